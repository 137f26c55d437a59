"""Judging again: real logs judge the same, kept ones too, and one changed member is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gate.lab import Lab

from authority.audit import query
from authority.audit.store import ContentStore
from authority.audit.verification import verify
from authority.cli.main import main
from authority.kernel import entries
from authority.kernel.entries import AnyEntry
from authority.proof.kernel import setting
from authority.proof.kernel.mutants import MUTANTS, applied
from authority.rejudge.judge import Judge
from authority.rejudge.log import rejudge
from authority.rejudge.sources import Sources

from .lively import play
from .walks import history

KEPT = sorted((Path(__file__).parent / "kept").iterdir())


def sources(folder: Path) -> Sources:
    return Sources(ContentStore(folder / "store"))


def read(folder: Path) -> list[AnyEntry]:
    return [entries.decode(line) for line in query.lines(folder / "log")]


def judged(found: list[AnyEntry], known: Sources) -> Judge:
    judge = Judge(known)
    for entry in found:
        if not judge.feed(entry):
            break
    judge.end()
    return judge


@pytest.mark.parametrize("folder", KEPT, ids=[folder.name for folder in KEPT])
def test_a_kept_log_of_every_rules_version_judges_the_same(folder: Path) -> None:
    assert verify(folder / "log").ok
    found = rejudge(folder / "log", sources(folder))
    assert found.ok, found.differences
    assert found.judged > 60
    assert sum(isinstance(e, entries.Denied) for e in read(folder)) > 30


def test_there_is_a_kept_log_of_these_rules() -> None:
    assert f"rules-{entries.RULES}" in {folder.name for folder in KEPT}


def test_a_log_that_was_just_written_judges_the_same(
    own: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    play(own)
    state = own.directory
    sealed = ContentStore(state.store, keys=state.keys / "sealed")
    found = rejudge(state.log, Sources(sealed, sealed=True))
    assert found.ok, found.differences
    assert "amounts of arguments that are not at hand" not in found.given
    assert main(["audit", "verify", "--rejudge", "--json", "--state", str(state.root)]) == 0
    shown = json.loads(capsys.readouterr().out)["rejudged"]
    assert shown["ok"]
    assert shown["judged"] == found.judged


def changed(
    kind: type, wanted: Callable[[Any], bool], **members: Any
) -> tuple[list[AnyEntry], int]:
    """The kept log with one entry's members changed, and that entry's number."""
    found = read(KEPT[-1])
    at = next(n for n, e in enumerate(found) if isinstance(e, kind) and wanted(e))
    made = {name: value(found[at]) if callable(value) else value for name, value in members.items()}
    found[at] = msgspec.structs.replace(found[at], **made)
    return found, at


def denied(layer: str) -> Callable[[Any], bool]:
    return lambda e: e.layer == layer and not e.given and bool(e.run)


@pytest.mark.parametrize(
    ("kind", "wanted", "members"),
    [
        (entries.Admit, lambda e: e.effect == "fs.read", {"rule": 'filesystem.read[9] "x"'}),
        (entries.Admit, lambda e: e.effect == "fs.write", {"resource": "fs:/etc/passwd"}),
        (entries.Admit, lambda e: e.effect == "fs.write", {"reserve": {"requests": 1}}),
        (entries.Admit, lambda e: bool(e.usage), {"usage": {}}),
        (entries.Admit, lambda e: bool(e.approval), {"approval": ""}),
        (
            entries.Admit,
            lambda e: len(e.caps) == 2 and bool(e.usage),
            {"caps": lambda e: e.caps[:1]},
        ),
        (entries.Admit, lambda e: e.effect == "fs.read", {"caps": []}),
        (entries.Admit, lambda e: e.effect == "tool.call", {"request": "0" * 64}),
        (entries.Admit, lambda e: e.label_at >= 0, {"label_at": -1}),
        (entries.Admit, lambda e: e.effect == "fs.read", {"at": lambda e: e.at - 10**9}),
        (entries.Denied, denied("policy"), {"reason": "because"}),
        (entries.Denied, denied("policy"), {"code": "E_TAINT", "layer": "labels"}),
        (entries.Denied, denied("labels"), {"resource": "fs:/tmp"}),
        (entries.Denied, denied("budget"), {"reserve": {}, "arguments": None}),
        (entries.Denied, denied("capability"), {"reason": "it was Tuesday"}),
        (entries.Denied, denied("policy"), {"number": lambda e: e.number + 1}),
        (entries.Denied, denied("policy"), {"again": lambda e: not e.again}),
        (entries.Denied, lambda e: bool(e.links), {"links": []}),
        (entries.Denied, lambda e: bool(e.links), {"links": [{"count": 1}]}),
        (entries.CapDerive, lambda e: True, {"restriction": {}}),
        (entries.CapMint, lambda e: e.run != "gate", {"restriction": {"methods": ["fs.list"]}}),
        (entries.CapDerive, lambda e: True, {"id": "0" * 32}),
        (entries.RunStart, lambda e: True, {"policy": "0" * 64}),
        (entries.Outcome, lambda e: True, {"of": 0}),
    ],
)
def test_one_changed_member_is_a_difference(
    kind: type, wanted: Callable[[Any], bool], members: dict[str, Any]
) -> None:
    found, at = changed(kind, wanted, **members)
    judge = judged(found, sources(KEPT[-1]))
    assert judge.differences
    first = judge.differences[0].seq
    # What was minted or started shows at the first verdict that rests on it.
    assert first == at if kind in (entries.Admit, entries.Denied, entries.Outcome) else first >= at


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (entries.CapRevoke, lambda e: True),
        (entries.Approval, lambda e: True),
        (entries.Halt, lambda e: bool(e.run)),
        (entries.Key, lambda e: e.action == "retire"),
        (entries.Denied, denied("policy")),
        (entries.Admit, lambda e: True),
    ],
)
def test_an_entry_that_is_left_out_shows(kind: type, wanted: Callable[[Any], bool]) -> None:
    """Even when the others are numbered again, so that the chain could be made whole."""
    found = read(KEPT[-1])
    at = next(n for n, e in enumerate(found) if isinstance(e, kind) and wanted(e))
    del found[at]
    for seq, entry in enumerate(found):
        entry.seq = seq
    assert judged(found, sources(KEPT[-1])).differences


def test_a_denial_turned_into_an_admission_is_named() -> None:
    found = read(KEPT[-1])
    at = next(
        n for n, e in enumerate(found) if isinstance(e, entries.Denied) and denied("policy")(e)
    )
    was = found[at]
    assert isinstance(was, entries.Denied)
    found[at] = entries.Admit(
        seq=was.seq, batch=was.batch, time=was.time, run=was.run, effect=was.effect,
        resource=was.resource, stream=was.stream, n=was.n, request=was.request, caps=was.caps,
        rule="", arguments=was.arguments, reserve={"requests": 1}, at=was.at,
    )  # fmt: skip
    first = judged(found, sources(KEPT[-1])).differences[0]
    assert first.seq == at
    assert "the gate said admit" in first.what


def test_without_its_policies_a_log_is_not_judged_and_that_is_no_pass() -> None:
    judge = judged(read(KEPT[-1]), Sources(None))
    assert "is not at hand" in judge.differences[0].what


def test_a_log_from_before_times_were_recorded_is_judged_by_its_entries() -> None:
    found = read(KEPT[-1])
    for entry in found:
        if isinstance(entry, entries.Admit | entries.Denied):
            entry.at = 0
    judge = judged(found, sources(KEPT[-1]))
    assert not judge.differences, judge.differences
    assert judge.given["times before they were recorded"] > 50


@pytest.mark.parametrize("seed", range(12))
def test_generated_histories_judge_the_same(seed: int) -> None:
    policy = setting.policy()
    known = Sources(None, policies={policy.digest: policy})
    judge = judged(history(seed, 60), known)
    assert not judge.differences, judge.differences


def test_generated_histories_hold_pieces_and_their_refusals() -> None:
    found = [entry for seed in range(12) for entry in history(seed, 60)]
    assert any(isinstance(e, entries.Chunk) for e in found)
    assert any(isinstance(e, entries.Denied) and e.of >= 0 for e in found)
    assert any(isinstance(e, entries.CapDerive) for e in found)


@pytest.mark.parametrize(
    "name",
    [
        "the MAC is not asked",
        "revocation is not asked, neither first nor again",
        "a capability is bound to nobody",
        "expiry is compared the wrong way",
        "one more than is left is taken",
        "only the run's own account is asked",
        "a halted run is not asked about",
        "a piece is not asked about its budget",
        "a piece does not ask about revocation",
    ],
)
def test_what_a_wrong_kernel_wrote_judges_differently(name: str) -> None:
    """A gate that let through what it should not have is found by its own log."""
    mutant = next(m for m in MUTANTS if m.name == name)
    policy = setting.policy()
    known = Sources(None, policies={policy.digest: policy})

    def written(seed: int) -> list[AnyEntry]:
        with applied(mutant):
            return history(seed, 60)

    assert any(judged(written(seed), known).differences for seed in range(150))


def test_the_command_names_the_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(KEPT[-1], copy)
    where = ["--log", str(copy / "log")]
    assert main(["audit", "verify", "--rejudge", *where, "--store", str(copy / "store")]) == 0
    assert "every verdict judges the same again" in capsys.readouterr().out
    assert main(["audit", "verify", "--rejudge", *where]) == 1
    assert "is not at hand" in capsys.readouterr().out
    assert main(["audit", "verify", *where]) == 0
