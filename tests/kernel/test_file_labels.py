"""Labels of files: joined, moved, never lowered by a name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from authority.kernel.file_labels import LIMIT, REST, Files, Marked, done, intend, recorded
from authority.kernel.labels import CLEAN, Label

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
