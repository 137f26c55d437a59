"""Formulas over what is asked of lists of patterns, and what can be said of one without a search.

Rules
- A formula is a tuple: `true`, `false`, `atom`, `not`, `and`, `or`. The functions here make smaller
  ones where they can, and never one that means something else.
- An atom is an `Atom`, or anything that makes its own automaton (`machine`) and says in which family of
  ever weaker questions it stands (`steps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from authority.errors import AuthorityError
from authority.kernel.pattern_match import Part, literal_prefix


class Undecided(AuthorityError):
    """A question that this engine does not answer. It is never taken for a proof."""


class Atom(NamedTuple):
    """What is asked of a list of patterns."""

    kind: str
    decoded: bool
    parts: frozenset[tuple[Part, ...]]


Formula: TypeAlias = tuple[Any, ...]
TRUE: Final[Formula] = ("true",)
FALSE: Final[Formula] = ("false",)


def atom(kind: str, decoded: bool, patterns: frozenset[tuple[Part, ...]]) -> Formula:
    """The formula of one list; an empty list covers nothing."""
    if kind == "leads":
        patterns = frozenset(literal_prefix(parts) for parts in patterns)
    return ("atom", Atom(kind, decoded, patterns)) if patterns else FALSE


def both(*formulas: Formula) -> Formula:
    """All of them hold."""
    parts = (part for f in formulas for part in (f[1:] if f[0] == "and" else (f,)))
    kept = [f for f in dict.fromkeys(parts) if f != TRUE]
    whole = {("and", *kept), *kept}
    if FALSE in kept or any(f[0] == "not" and f[1] in whole for f in kept):
        return FALSE
    for f in kept:
        if f[0] == "not" and f[1][0] == "and":
            # What holds anyway is not what keeps the other from holding.
            rest = [part for part in f[1][1:] if part not in whole]
            if len(rest) < len(f[1]) - 1:
                return both(*(g for g in kept if g != f), negated(both(*rest)))
    return TRUE if not kept else kept[0] if len(kept) == 1 else ("and", *kept)


def either(*formulas: Formula) -> Formula:
    """One of them holds."""
    kept = [f for f in dict.fromkeys(formulas) if f != FALSE]
    if TRUE in kept:
        return TRUE
    return FALSE if not kept else kept[0] if len(kept) == 1 else ("or", *kept)


def negated(formula: Formula) -> Formula:
    """It does not hold."""
    if formula in (TRUE, FALSE):
        return FALSE if formula == TRUE else TRUE
    return formula[1] if formula[0] == "not" else ("not", formula)


def atoms_of(formula: Formula) -> list[Atom]:
    """The atoms of a formula, each once."""
    found: dict[Atom, None] = {}
    waiting = [formula]
    while waiting:
        head, *rest = waiting.pop()
        if head == "atom":
            found[rest[0]] = None
        else:
            waiting.extend(rest)
    return list(found)


def weigh(formula: Formula, known: Mapping[Atom, bool]) -> tuple[bool | None, frozenset[Atom]]:
    """The value as far as it is known, and the atoms on which it still depends."""
    head = formula[0]
    if head in ("true", "false"):
        return head == "true", frozenset()
    if head == "atom":
        value = known.get(formula[1])
        return value, frozenset() if value is not None else frozenset((formula[1],))
    if head == "not":
        value, needs = weigh(formula[1], known)
        return None if value is None else not value, needs
    decides = head == "or"
    all_needs: frozenset[Atom] = frozenset()
    open_ = False
    for each in formula[1:]:
        value, needs = weigh(each, known)
        if value is decides:
            return decides, frozenset()
        open_ = open_ or value is None
        all_needs |= needs
    return None if open_ else not decides, all_needs


def replaced(formula: Formula, known: Mapping[Any, bool]) -> Formula:
    """The formula with these atoms settled."""
    head = formula[0]
    if head == "atom":
        value = known.get(formula[1])
        return formula if value is None else TRUE if value else FALSE
    if head == "not":
        return negated(replaced(formula[1], known))
    if head in ("and", "or"):
        parts = [replaced(each, known) for each in formula[1:]]
        return both(*parts) if head == "and" else either(*parts)
    return formula


def ways_of(formula: Formula) -> list[Formula] | None:
    """The formula for each way in which its stepped atoms can come out; None when it has none.

    Those of one family (`steps` of each names it, and its own step) hold from some step on.
    """
    families: dict[Any, dict[int, Any]] = {}
    for each in atoms_of(formula):
        if not isinstance(each, Atom):
            family, step = each.steps
            families.setdefault(family, {})[step] = each
    if not families:
        return None
    ways: list[dict[Any, bool]] = [{}]
    for members in families.values():
        steps = sorted(members)
        options = [
            {members[step]: step >= first for step in steps} for first in (*steps, steps[-1] + 1)
        ]
        ways = [{**way, **option} for way in ways for option in options]
    return list(dict.fromkeys(replaced(formula, way) for way in ways))


def loosened(formula: Formula) -> Formula:
    """A formula that holds wherever this one does: without the demands that rest on stepped atoms."""
    parts = formula[1:] if formula[0] == "and" else (formula,)
    return both(*(p for p in parts if all(isinstance(each, Atom) for each in atoms_of(p))))
