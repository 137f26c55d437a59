"""Incidents: the specification's response as a machine whose every step is an entry.

    detected -> halted -> revoked -> investigating -> forensics -> cause -> patched -> proved
             -> tested -> deployed -> resumed

Rules
- A case opens with an `Incident` entry (`detected`), named by that entry's number. `wide` cases are
  failures of the evidence or of the gate, and concern everything; the others concern one run and its
  descendants, which caused them, so that no run can stop its neighbours.
- The halt that answers it carries the case's number. A halt revokes what it stops, so both steps
  rest on that entry. The gate takes the next one, `investigating`, by itself, once it has kept what
  a killed process would take with it.
- Each further step is a person's. It follows the one before it, rests on evidence of its own, and
  is refused without it: nothing is skipped, taken twice or taken with another case's evidence.
- A new patch may be given at any time after the cause was named, until the case is closed: what was
  proved and tested of the old one no longer counts.
- `resumed` closes a case. While a wide one is open nothing but that admits requests again.
- With `two_people`, who resumes must hold another capability than who deployed: one that was minted,
  not one that its holder derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

STEPS = (
    "detected",
    "halted",
    "revoked",
    "investigating",
    "forensics",
    "cause",
    "patched",
    "proved",
    "tested",
    "deployed",
    "resumed",
)
HOUR = 3_600_000_000
"""The specification's bound for halting and resuming, in microseconds."""
ATTACKS = 13
"""Tests of the specification's matrix."""
NO_WIDER = "no wider than"
"""The claim of a certificate that compares the policy of the incident with its patch."""

_EVIDENCE: dict[str, dict[str, type]] = {
    "investigating": {"kept": list, "head": int},
    "forensics": {"verified": int, "report": str},
    "cause": {"text": str, "entries": list},
    "patched": {"kind": str, "digest": str},
    "proved": {"certificates": list},
    "tested": {
        "version": str,
        "attacks": int,
        "passed": int,
        "tests": int,
        "failed": int,
        "digest": str,
    },
    "deployed": {"digest": str, "path": str},
    "resumed": {"reason": str},
}


class Case(msgspec.Struct):
    """One incident. `at` is the entry of each step taken, `times` when (us), `by` who took it."""

    id: int
    what: str
    run: str = ""
    wide: bool = False
    detail: str = ""
    step: str = "detected"
    at: dict[str, int] = {}
    times: dict[str, int] = {}
    by: dict[str, str] = {}
    policy: str = ""
    version: str = ""
    patch: str = ""
    patch_kind: str = ""

    @property
    def open(self) -> bool:
        """Not closed yet."""
        return self.step != "resumed"


class Surroundings(msgspec.Struct, frozen=True):
    """What a step is judged against, all of it from the state: the last entry's number, and the
    digest of the program that decides now."""

    seq: int
    version: str
    two_people: bool = False


def refusal(
    case: Case, step: str, evidence: Mapping[str, Any], by: str, around: Surroundings
) -> str:
    """Why `step` may not be taken now; empty when it may."""
    if step not in STEPS or step == "detected":
        return f"there is no step {step!r}"
    if not case.open:
        return f"incident {case.id} was closed in entry {case.at['resumed']}"
    due = STEPS[STEPS.index(case.step) + 1]
    patched_before = "cause" in case.at
    if step != due and not (step == "patched" and patched_before):
        return f"incident {case.id} is at {case.step!r}: next is {due!r}, not {step!r}"
    wanted = _EVIDENCE.get(step, {})
    for name, kind in wanted.items():
        if type(evidence.get(name)) is not kind:
            return f"{step!r} rests on {', '.join(wanted)}: {name!r} is missing"
    if unknown := evidence.keys() - wanted.keys():
        return f"{step!r} knows no evidence {min(unknown)!r}"
    check = _CHECKS.get(step)
    return check(case, evidence, by, around) if check else ""


def _forensics(case: Case, e: Mapping[str, Any], _by: str, around: Surroundings) -> str:
    if not case.at["investigating"] <= e["verified"] <= around.seq:
        return "the log has to be verified through the entries that this case rests on"
    return "" if _digest(e["report"]) else "the report is named by its SHA-256"


def _cause(case: Case, e: Mapping[str, Any], _by: str, around: Surroundings) -> str:
    if len(e["text"].strip()) < 10:
        return "say what the cause is, in a sentence"
    if not e["entries"]:
        return "name the entries that show it"
    if any(type(n) is not int or not 0 <= n <= around.seq for n in e["entries"]):
        return "an entry that the log does not hold shows nothing"
    return ""


def _patched(case: Case, e: Mapping[str, Any], _by: str, around: Surroundings) -> str:
    if e["kind"] == "policy":
        if not _digest(e["digest"]):
            return "a policy is named by its digest"
        return "" if e["digest"] != case.policy else "that is the policy under which it happened"
    if e["kind"] == "version":
        if e["digest"] == case.version:
            return "that is the program under which it happened"
        return "" if e["digest"] == around.version else "that is not the program that runs now"
    return "a patch is a policy or a version"


def _proved(case: Case, e: Mapping[str, Any], _by: str, around: Surroundings) -> str:
    """A certificate here is `{digest, policies, claims: [[statement, proved]]}`, as the gate found it
    by deciding every claim again."""
    statements: list[str] = []
    if not e["certificates"]:
        return "give a certificate"
    for one in e["certificates"]:
        if not one.get("claims"):
            return "a certificate claims nothing"
        for statement, proved in one["claims"]:
            if not proved:
                return f"a certificate says that {statement!r} does not hold"
            statements.append(statement)
        wider = statements[-1].startswith(NO_WIDER)
        about = [case.policy, case.patch] if wider else [case.patch]
        if case.patch_kind == "policy" and one["policies"] != about:
            return "a certificate is about other policies than this incident's"
    if all(s.startswith(NO_WIDER) for s in statements):
        return "prove that what happened is denied now ('never ...')"
    if case.patch_kind == "policy" and case.policy and statements.count(NO_WIDER) == 0:
        return f"prove that nothing else was widened ({NO_WIDER!r})"
    return ""


def _tested(_case: Case, e: Mapping[str, Any], _by: str, around: Surroundings) -> str:
    if e["version"] != around.version:
        return "the tests are of another program than the one that runs now"
    if e["attacks"] < ATTACKS or e["passed"] != e["attacks"]:
        return f"{e['passed']} of {e['attacks']} attacks were held off; all {ATTACKS} have to be"
    if e["tests"] < 1 or e["failed"]:
        return f"of the project's own tests {e['tests']} ran and {e['failed']} failed"
    return "" if _digest(e["digest"]) else "the results are named by their SHA-256"


def _deployed(case: Case, e: Mapping[str, Any], _by: str, around: Surroundings) -> str:
    if e["digest"] != case.patch:
        return "what was deployed is not the patch that was proved and tested"
    if case.patch_kind == "version":
        return "" if case.patch == around.version else "another program runs now"
    return "" if e["path"] else "say from which file the patched policy is used"


def _resumed(case: Case, e: Mapping[str, Any], by: str, around: Surroundings) -> str:
    if not e["reason"].strip():
        return "say why it is safe to go on"
    if around.two_people and person(by) == person(case.by.get("deployed", "")):
        return "two people are wanted: who resumes is not who deployed"
    return ""


_CHECKS = {
    "forensics": _forensics,
    "cause": _cause,
    "patched": _patched,
    "proved": _proved,
    "tested": _tested,
    "deployed": _deployed,
    "resumed": _resumed,
}


def take(case: Case, step: str, seq: int, time: int, by: str, evidence: Mapping[str, Any]) -> None:
    """Fold one step. A patch undoes what was shown of the one before it."""
    if step == "patched":
        for later in ("proved", "tested", "deployed"):
            case.at.pop(later, None)
            case.times.pop(later, None)
            case.by.pop(later, None)
        case.patch, case.patch_kind = evidence["digest"], evidence["kind"]
    case.step = step
    case.at[step], case.times[step], case.by[step] = seq, time, by


def person(by: str) -> str:
    """Who stands behind `by`: the minted capability, whatever was derived from it."""
    return by.rpartition(" ")[2]


def _digest(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
