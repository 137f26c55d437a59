"""Labels of files: joined, moved, never lowered by a name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from authority.kernel import entries
from authority.kernel.file_labels import (
    LIMIT,
    REST,
    Files,
    Marked,
    done,
    in_doubt,
    intend,
    recorded,
)
from authority.kernel.fold import apply
from authority.kernel.labels import CLEAN, Label
from authority.kernel.state import State

WEB = Label(frozenset({"tool:web"}))
MAIL = Label(frozenset({"tool:mail"}))


def change(
    files: Files, effect: str, name: str, label: Label, target: str = "", **facts: object
) -> None:
    intend(files, effect, name, target, label)
    done(files, effect, name, target, facts, label)


def test_a_folder_takes_all_that_is_below_it_along() -> None:
    files: Files = {}
    change(files, "fs.write", "fs:/a/x", WEB, created=True, size=1)
    change(files, "fs.write", "fs:/a/deep/y", MAIL, size=1)
    change(files, "fs.rename", "fs:/a", CLEAN, "fs:/b", type="directory")
    assert recorded(files, "fs.read", "fs:/b/x", {}) == WEB
    assert recorded(files, "fs.read", "fs:/b/deep/y", {}) == MAIL
    assert recorded(files, "fs.list", "fs:/b", {}) == WEB
    assert recorded(files, "fs.read", "fs:/a/x", {}) == CLEAN
    change(files, "fs.delete", "fs:/b", CLEAN)
    assert files == {}


def test_an_intent_may_have_happened() -> None:
    files: Files = {}
    intend(files, "fs.write", "fs:/x", "", WEB)
    assert recorded(files, "fs.open", "fs:/x", {}) == WEB
    change(files, "fs.write", "fs:/x", CLEAN)
    assert recorded(files, "fs.open", "fs:/x", {}) == CLEAN


def test_a_further_name_has_the_label_of_the_file() -> None:
    files: Files = {}
    change(files, "fs.write", "fs:/x", WEB)
    change(files, "fs.link", "fs:/x", CLEAN, "fs:/y")
    change(files, "fs.delete", "fs:/x", CLEAN)
    assert recorded(files, "fs.read", "fs:/y", {}) == WEB


def test_beyond_the_limit_all_share_one_label() -> None:
    files: Files = {f"fs:/{n}": Marked(MAIL) for n in range(LIMIT)}
    change(files, "fs.write", "fs:/more", WEB)
    assert REST in files
    assert recorded(files, "fs.read", "fs:/never-seen", {}) == WEB
    assert len(files) == LIMIT + 1


labels = st.builds(Label, st.frozensets(st.sampled_from("abc"), max_size=3), st.just(frozenset()))
names = st.sampled_from(["fs:/a", "fs:/a/b", "fs:/c", "fs:/c/d"])
steps = st.lists(st.tuples(st.sampled_from(["fs.append", "fs.modify"]), names, labels), max_size=12)


@given(steps, names)
def test_adding_to_a_file_never_lowers_its_label(
    steps: list[tuple[str, str, Label]], name: str
) -> None:
    files: Files = {}
    seen = CLEAN
    for effect, at, label in steps:
        change(files, effect, at, label)
        seen = seen.join(label) if at == name else seen
        assert seen <= recorded(files, "fs.read", name, {})


def test_what_may_have_happened_has_every_name_that_it_may_have() -> None:
    files: Files = {}
    change(files, "fs.write", "fs:/a/x", WEB, size=1)
    intend(files, "fs.rename", "fs:/a", "fs:/b", CLEAN)  # and the gate dies
    assert recorded(files, "fs.read", "fs:/b/x", {}) == WEB
    assert recorded(files, "fs.read", "fs:/a/x", {}) == WEB
    intend(files, "fs.mkdir", "fs:/c/d/pay-eve", "", MAIL)
    assert recorded(files, "fs.list", "fs:/c/d", {}) == MAIL
    assert recorded(files, "fs.list", "fs:/c", {}) == CLEAN
    in_doubt(files, "fs.mkdir", "fs:/c/d/pay-eve", "", MAIL)
    assert recorded(files, "fs.list", "fs:/c", {}) == MAIL
    assert recorded(files, "fs.list", "fs:/", {}) == MAIL


def test_every_folder_that_was_made_shows_its_name() -> None:
    files: Files = {}
    change(files, "fs.mkdir", "fs:/a/b/c", WEB, made=2)
    assert recorded(files, "fs.list", "fs:/a/b", {}) == WEB
    assert recorded(files, "fs.list", "fs:/a", {}) == WEB
    assert recorded(files, "fs.list", "fs:/", {}) == CLEAN


def test_what_replaces_a_file_ends_its_inode_unless_it_has_another_name() -> None:
    for links, left in ((1, CLEAN), (2, WEB)):
        files: Files = {}
        change(files, "fs.write", "fs:/x", WEB, size=1, dev=1, ino=7)
        change(files, "fs.rename", "fs:/new", CLEAN, "fs:/x", replaced_links=links)
        assert recorded(files, "fs.read", "fs:/y", {"dev": 1, "ino": 7, "links": 2}) == left


def test_what_a_dry_run_did_is_as_if_it_had_not_been_done() -> None:
    state = State()
    steps: list[entries.AnyEntry] = [
        entries.GateStart(
            log="l", rules=entries.RULES, version="0", boot="b", boot_clock=0, public_key="k"
        ),
        entries.Key(kid="k1", action="add"),
    ]
    for run, dry, sources in (("r", "", ["tool:web"]), ("d", "kept", []), ("e", "applied", [])):
        steps.append(
            entries.RunStart(run=run, capability=run, policy="p", sources=sources, dry=dry)
        )

    def done(run: str, effect: str, resource: str, target: str = "") -> None:
        steps.append(
            entries.Admit(
                run=run, effect=effect, resource=resource, target=target, stream=0, n=1,
                request="x", caps=[], rule="", at=0,
            )
        )  # fmt: skip
        steps.append(entries.Outcome(run=run, of=len(steps) - 1, status="done", spent={}))

    done("r", "fs.write", "fs:/x")
    done("d", "fs.rename", "fs:/x", "fs:/y")
    done("e", "fs.delete", "fs:/x")
    done("e", "fs.write", "fs:/y")  # what was moved, unread
    for seq, entry in enumerate(steps):
        entry.seq = seq
        apply(state, entry)
        if seq == len(steps) - 5:
            assert recorded(state.files, "fs.read", "fs:/x", {}) == WEB
    assert recorded(state.files, "fs.read", "fs:/y", {}) == WEB
    assert recorded(state.files, "fs.read", "fs:/x", {}) == CLEAN


def test_a_change_that_nobody_recorded_is_the_hosts() -> None:
    known = {"size": 5, "sha256": "a", "changed": 9, "dev": 1, "ino": 2}
    files: Files = {}
    change(files, "fs.write", "fs:/x", WEB, **known)
    same = {**known, "length": 5}
    seen: list[tuple[dict[str, object], bool]] = [
        (same, False),
        ({**same, "size": 6}, True),
        ({**same, "sha256": "b"}, True),
        ({**same, "changed": 10}, False),  # touched, and its bytes are what they were
        ({**same, "length": 4, "sha256": "c"}, False),
        ({**same, "length": 4, "sha256": "c", "changed": 10}, True),  # not all was read
        ({"size": 5, "changed": 10}, True),  # opened through a mount
        ({"size": 5}, False),
    ]
    for facts, host in seen:
        label = recorded(files, "fs.open", "fs:/x", facts)
        assert ("host" in label.sources) == host, facts
    change(files, "fs.attributes", "fs:/x", CLEAN, changed=11)
    assert recorded(files, "fs.read", "fs:/x", {**same, "size": 6}).sources == {"tool:web", "host"}
    assert recorded(files, "fs.open", "fs:/x", {"size": 5, "changed": 11}) == WEB
