"""The machine of an incident: every step in its order, with its own evidence, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.kernel import entries, state
from authority.kernel.fold import apply
from authority.kernel.incidents import STEPS, Case, Surroundings, refusal, take
from authority.kernel.state import FoldError, State

D = "a" * 64
OLD, NEW = "b" * 64, "c" * 64
AROUND = Surroundings(seq=100, version="v2")
BY = "uid 0 cap " + "1" * 32
OTHER = "uid 0 cap " + "2" * 32
CERTIFICATES = [
    {"digest": D, "policies": [NEW], "claims": [["never 'fs.read' to 'fs:/x'", True]]},
    {"digest": D, "policies": [OLD, NEW], "claims": [["no wider than", True]]},
]
GOOD: dict[str, dict[str, Any]] = {
    "investigating": {"kept": [], "head": 12},
    "forensics": {"verified": 40, "report": D},
    "cause": {"text": "the policy was too wide", "entries": [11]},
    "patched": {"kind": "policy", "digest": NEW},
    "proved": {"certificates": CERTIFICATES},
    "tested": {"version": "v2", "attacks": 13, "passed": 13, "tests": 5, "failed": 0, "digest": D},
    "deployed": {"digest": NEW, "path": "/p.toml"},
    "resumed": {"reason": "it is mended"},
}


def case(step: str = "revoked") -> Case:
    """A case that came to `step` as it should."""
    made = Case(id=10, what="canary", run="r", policy=OLD, version="v1", at={"detected": 10})
    for number, each in enumerate(STEPS[1 : STEPS.index(step) + 1], 11):
        take(made, each, number, number, BY, GOOD.get(each, {}))
    return made


def test_control_the_whole_way() -> None:
    made = case()
    for number, step in enumerate(STEPS[3:], 20):
        assert refusal(made, step, GOOD[step], BY, AROUND) == ""
        take(made, step, number, number, BY, GOOD[step])
    assert not made.open


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("step", STEPS)
def test_every_other_step_is_refused(at: str, step: str) -> None:
    made = case(at)
    due = STEPS[STEPS.index(at) + 1] if at != "resumed" else ""
    again = step == "patched" and "cause" in made.at and made.open
    allowed = refusal(made, step, GOOD.get(step, {}), BY, AROUND) == ""
    assert allowed == (step == due or again)


@pytest.mark.parametrize("step", [s for s in STEPS if s in GOOD])
def test_evidence_that_is_missing_or_unknown_is_refused(step: str) -> None:
    before = case(STEPS[STEPS.index(step) - 1])
    for name in GOOD[step]:
        less = {k: v for k, v in GOOD[step].items() if k != name}
        assert name in refusal(before, step, less, BY, AROUND)
        assert refusal(before, step, {**less, name: None}, BY, AROUND)
    assert "extra" in refusal(before, step, {**GOOD[step], "extra": 1}, BY, AROUND)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("forensics", {"verified": 5}),
        ("forensics", {"verified": 101}),
        ("forensics", {"report": "short"}),
        ("cause", {"text": "  "}),
        ("cause", {"entries": []}),
        ("cause", {"entries": [101]}),
        ("cause", {"entries": ["11"]}),
        ("patched", {"digest": OLD}),
        ("patched", {"digest": "x"}),
        ("patched", {"kind": "hope"}),
        ("patched", {"kind": "version", "digest": "v1"}),
        ("patched", {"kind": "version", "digest": "v3"}),
        ("proved", {"certificates": []}),
        ("proved", {"certificates": CERTIFICATES[:1]}),
        ("proved", {"certificates": CERTIFICATES[1:]}),
        ("tested", {"passed": 12}),
        ("tested", {"attacks": 12, "passed": 12}),
        ("tested", {"failed": 1}),
        ("tested", {"tests": 0}),
        ("tested", {"version": "v1"}),
        ("deployed", {"digest": OLD}),
        ("deployed", {"path": ""}),
        ("resumed", {"reason": " "}),
    ],
)
def test_evidence_that_shows_something_else_is_refused(step: str, change: dict[str, Any]) -> None:
    before = case(STEPS[STEPS.index(step) - 1])
    assert refusal(before, step, GOOD[step], BY, AROUND) == "", "the control"
    assert refusal(before, step, {**GOOD[step], **change}, BY, AROUND)


@pytest.mark.parametrize(
    "certificate",
    [
        {"digest": D, "policies": [OLD], "claims": [["never 'x' to 'y'", True]]},
        {"digest": D, "policies": [NEW], "claims": [["never 'x' to 'y'", False]]},
        {"digest": D, "policies": [NEW], "claims": []},
    ],
    ids=["about another policy", "disproved", "claims nothing"],
)
def test_a_certificate_that_proves_nothing_here(certificate: dict[str, Any]) -> None:
    before = case("patched")
    given_ = {"certificates": [certificate, CERTIFICATES[1]]}
    assert refusal(before, "proved", given_, BY, AROUND)


def test_a_new_patch_undoes_what_was_shown_of_the_old_one() -> None:
    made = case("deployed")
    other = {"kind": "policy", "digest": "d" * 64}
    assert refusal(made, "patched", other, BY, AROUND) == ""
    take(made, "patched", 50, 50, BY, other)
    assert made.step == "patched"
    assert not {"proved", "tested", "deployed"} & made.at.keys()
    assert "other policies" in refusal(made, "proved", GOOD["proved"], BY, AROUND)


def test_two_people() -> None:
    made = case("deployed")
    two = Surroundings(seq=100, version="v2", two_people=True)
    assert "two people" in refusal(made, "resumed", GOOD["resumed"], BY, two)
    assert refusal(made, "resumed", GOOD["resumed"], OTHER, two) == ""
    assert refusal(made, "resumed", GOOD["resumed"], BY, AROUND) == "", "the control"


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.booleans()), max_size=40))
def test_however_it_is_tried_the_order_holds(tries: list[tuple[str, bool]]) -> None:
    made = case()
    for number, (step, good) in enumerate(tries, 20):
        evidence = GOOD.get(step, {}) if good else {}
        if refusal(made, step, evidence, BY, AROUND) == "":
            take(made, step, number, number, BY, evidence)
    reached = STEPS[: STEPS.index(made.step) + 1]
    assert set(made.at) == set(reached)
    entries_of = [made.at[s] for s in reached]
    assert entries_of == sorted(entries_of)


# --- the fold ---


def folded(*new: entries.AnyEntry) -> State:
    made = State()
    first = entries.GateStart(
        log="l", rules=1, version="v2", boot="b", boot_clock=0, public_key="k", build="v2"
    )
    for number, entry in enumerate((first, *new)):
        entry.seq = entry.batch = entry.time = number
        apply(made, entry)
    return made


def test_a_halt_that_answers_a_case_is_two_steps_of_it() -> None:
    made = folded(entries.Incident(what="sync", wide=True), entries.Halt(reason="x", incident=1))
    assert made.cases["1"].step == "revoked"
    assert made.cases["1"].at == {"detected": 1, "halted": 2, "revoked": 2}
    assert made.halted == 2


def test_a_halt_can_not_be_lifted_while_a_wide_case_is_open() -> None:
    opened = (entries.Incident(what="sync", wide=True), entries.Halt(reason="x", incident=1))
    with pytest.raises(FoldError, match="incident"):
        folded(*opened, entries.Resume(reason="because"))
    folded(entries.Halt(reason="by hand"), entries.Resume(reason="the control"))


def test_what_is_only_noted_opens_no_case() -> None:
    assert folded(entries.Incident(what="usage", noted=True)).cases == {}
    assert "1" in folded(entries.Incident(what="usage")).cases, "the control"


def test_a_log_with_a_skipped_step_is_not_folded() -> None:
    opened = (entries.Incident(what="sync", wide=True), entries.Halt(reason="x", incident=1))
    step = entries.IncidentStep(incident=1, step="cause", by=BY, evidence=GOOD["cause"])
    with pytest.raises(FoldError, match="next is"):
        folded(*opened, step)
    with pytest.raises(FoldError, match="not known"):
        folded(entries.IncidentStep(incident=7, step="investigating", by=BY))


def test_a_snapshot_brings_cases_and_canaries_back() -> None:
    made = folded(
        entries.Incident(what="sync", wide=True),
        entries.Canary(action="plant", what="host", name="h", resource="host:trap.example"),
    )
    assert state.digest(state.load(state.dump(made))) == state.digest(made)
