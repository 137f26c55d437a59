"""Rules that do nothing: each proved, not guessed.

Rules
- A rule that permits is *dead* when no request that it covers is allowed: a denial, protection or
  another file of the chain stands before all of it. One that forbids or asks is dead when nothing
  that it covers would be allowed without it.
- A rule is *shadowed* when all that it covers is covered by the rules of its list that are kept. They
  are tried from the last to the first, so all that are named can be taken out together, and of two
  equal ones the first stays.
- What the rule covers is all requests, as `prover` reads them. Where the search gives up on one rule,
  that rule is named as undecided and the others are still judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from authority.kernel.pattern_match import Pattern
from authority.kernel.policy import Policy
from authority.kernel.policy_files import LISTS, READS, WRITES
from authority.kernel.policy_rules import RuleList, Rules
from authority.kernel.requests import EFFECTS
from authority.proof.automata import FALSE, Undecided, both, either, negated
from authority.proof.claims import prover_for
from authority.proof.encoding import Encoded, covers
from authority.proof.prover import Prover
from authority.proof.space import Cell, schemes_of

_FS_READS: Final = tuple(sorted(READS | {"fs.look", "fs.show"}))
_FS_WRITES: Final = tuple(sorted(WRITES))


class DeadRule(msgspec.Struct, frozen=True):
    """`state`: dead, shadowed or undecided."""

    file: str
    rule: str
    state: str
    why: str


def dead_rules(policy: Policy) -> Iterator[DeadRule]:
    """The rules of the policy's own lists that do nothing."""
    prover = prover_for(policy)
    encoded = Encoded(policy)
    for layer in policy.layers:
        for rules, effects, forbids in _lists(layer):
            yield from _of_list(prover, encoded, layer, rules, effects, forbids)


def _lists(layer: Rules) -> Iterator[tuple[RuleList, tuple[str, ...], bool]]:
    yield layer.read, _FS_READS, False
    yield layer.write, _FS_WRITES, False
    yield layer.deny, (*_FS_READS, *_FS_WRITES), True
    yield layer.http, ("http.request",), False
    yield layer.tunnel, ("net.connect",), False
    yield layer.net_deny, ("http.request", "net.connect"), True
    yield layer.approvals, tuple(EFFECTS), True


def _of_list(
    prover: Prover,
    encoded: Encoded,
    layer: Rules,
    rules: RuleList,
    effects: tuple[str, ...],
    forbids: bool,
) -> Iterator[DeadRule]:
    patterns = rules.index.patterns
    kept = dict(enumerate(patterns))
    found: dict[int, DeadRule] = {}
    for number in range(len(patterns) - 1, -1, -1):
        pattern = patterns[number]
        name = rules._name(number)
        try:
            if _is_dead(prover, encoded, rules, pattern, effects, forbids):
                why = (
                    "nothing that it covers would be allowed without it"
                    if forbids
                    else "nothing that it covers is allowed"
                )
                found[number] = DeadRule(layer.name, name, "dead", why)
                continue
            others = [p for key, p in kept.items() if key != number]
            if _is_shadowed(prover, pattern, others, effects):
                del kept[number]
                found[number] = DeadRule(
                    layer.name, name, "shadowed", "other rules of the list cover all of it"
                )
        except Undecided as error:
            found[number] = DeadRule(layer.name, name, "undecided", error.message)
    yield from (found[number] for number in sorted(found))


def _is_dead(
    prover: Prover,
    encoded: Encoded,
    rules: RuleList,
    pattern: Pattern,
    effects: tuple[str, ...],
    forbids: bool,
) -> bool:
    for effect in effects:
        for cell in _touched(prover, effect, pattern):
            allowed = encoded.judge(effect, cell, without=rules if forbids else None)
            if allowed == FALSE:
                continue
            covered = covers([pattern], cell)
            if forbids and effect == "fs.rename":
                covered = either(covered, covers([pattern], cell, "leads"))
            elif effect in LISTS and not forbids:
                covered = either(covered, covers([pattern], cell, "below"))
            if not prover.empty(cell.scheme, both(covered, allowed)):
                return False
    return True


def _is_shadowed(
    prover: Prover, pattern: Pattern, others: list[Pattern], effects: tuple[str, ...]
) -> bool:
    for effect in effects:
        for cell in _touched(prover, effect, pattern):
            kinds = ["find"]
            if not pattern.forbids and effect in LISTS:
                kinds.append("below")
            if pattern.forbids and effect == "fs.rename":
                kinds.append("leads")
            for kind in kinds:
                mine = covers([pattern], cell, kind)
                theirs = (
                    [covers(others, cell, each) for each in kinds]
                    if kind != "find"
                    else [covers(others, cell)]
                )
                if not prover.empty(cell.scheme, both(mine, *map(negated, theirs))):
                    return False
    return True


def _touched(prover: Prover, effect: str, pattern: Pattern) -> Iterator[Cell]:
    """Cells in which the pattern says something about the effect."""
    for scheme in schemes_of(effect):
        if scheme not in pattern.schemes:
            continue
        for cell in prover.cells(scheme):
            if cell.covered(pattern):
                yield cell
