"""Questions about all requests: is there one for which this holds, and which is the shortest?

Rules
- A question is asked of every effect and cell (`space`), as a formula (`encoding`). Cells with one
  formula are searched once. What is found is the shortest resource text; of two, the first effect.
- What was found is asked again of the real policy, as the gate would ask it. A text that no request
  can name is passed over for the next one. If the policy says otherwise than the formula, the
  encoding is wrong: that is `Undecided`, loudly, never an answer.
- Nothing found in any cell is the proof: the cells are all requests, and a search that gives up
  raises `Undecided`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

import msgspec

from authority.kernel.addresses import ResourceError, shown
from authority.kernel.pattern_match import Pattern
from authority.kernel.resources import Resource
from authority.proof.automata import FALSE, TRUE, Formula, Undecided
from authority.proof.space import Cell, cells, resource_of, schemes_of, searchers

_PLAIN: Final = frozenset({"fs", "run", "model"})
_TRIES: Final = 2000
"""Words that one search may find which no request can name, before it is given up."""


class Witness(msgspec.Struct, frozen=True, omit_defaults=True):
    """A concrete request: what is wrong about it in a few words."""

    effect: str
    resource: str
    verb: str = ""
    why: str = ""


class Question(msgspec.Struct, frozen=True):
    """`formula` for a cell, and `real`: the same asked of the real policy about one request."""

    why: str
    effects: tuple[str, ...]
    formula: Callable[[str, Cell], Formula]
    real: Callable[[str, Resource, str], bool]


class Prover:
    """Searches the requests that `patterns` and `names` (of tools and agents) tell apart."""

    def __init__(self, patterns: Iterable[Pattern], names: Iterable[str]) -> None:
        self._patterns = tuple(dict.fromkeys(patterns))
        self._names = tuple(sorted(set(names)))
        self._searchers = searchers()
        self._cells: dict[str, tuple[Cell, ...]] = {}

    @property
    def visited(self) -> int:
        """States that were walked, in all searches together."""
        return sum(each.visited for each in {id(s): s for s in self._searchers.values()}.values())

    def cells(self, scheme: str) -> tuple[Cell, ...]:
        """The cells of a scheme."""
        found = self._cells.get(scheme)
        if found is None:
            found = tuple(cells(scheme, self._patterns, self._names))
            self._cells[scheme] = found
        return found

    def shortest(self, question: Question) -> Witness | None:
        """The shortest request for which it holds; None is the proof that there is none."""
        asked: dict[tuple[str, Formula], tuple[int, str, Cell]] = {}
        for effect in question.effects:
            for scheme in schemes_of(effect):
                for cell in self.cells(scheme):
                    formula = question.formula(effect, cell)
                    if formula == FALSE:
                        continue
                    length = 3 if scheme in _PLAIN else len(cell.text(()))
                    key = (_place(cell), formula)
                    if key not in asked or length < asked[key][0]:
                        asked[key] = (length, effect, cell)
        best: Witness | None = None
        for (_, formula), (length, effect, cell) in sorted(
            asked.items(), key=lambda item: item[1][0]
        ):
            if best is not None and length >= len(best.resource):
                break
            found = self._in_cell(question, effect, cell, formula)
            if found is not None and (best is None or len(found.resource) < len(best.resource)):
                best = found
        return best

    def empty(self, scheme: str, formula: Formula) -> bool:
        """Whether no path or name fits; a path that no request can name counts as one."""
        searcher = self._searchers.get(scheme)
        if searcher is None:
            return formula == FALSE
        return next(searcher.words(formula), None) is None

    def _in_cell(
        self, question: Question, effect: str, cell: Cell, formula: Formula
    ) -> Witness | None:
        if _place(cell) not in self._searchers:
            if formula != TRUE:
                raise Undecided(f"a formula about {shown(cell.text(()))} was left open")
            return self._asked(question, effect, cell, ())
        nameless = 0
        for word in islice(self._searchers[cell.scheme].words(formula), _TRIES):
            found = self._asked(question, effect, cell, word)
            if found is not None:
                return found
            nameless += 1
        if nameless:
            raise Undecided(
                f"only requests that can't be made were found, such as one of {shown(effect)}",
                "a path that is too long, or dots that are escaped more than once",
            )
        return None

    def _asked(
        self, question: Question, effect: str, cell: Cell, word: tuple[int, ...]
    ) -> Witness | None:
        try:
            resource = resource_of(cell, word)
        except ResourceError:
            return None
        text = cell.text(word)
        if resource.text != text or not question.real(effect, resource, cell.verb):
            raise Undecided(
                f"the policy and its encoding disagree about {shown(effect)} on {shown(text)}",
                "this is a defect of the proof engine; nothing is proved",
            )
        return Witness(effect, text, cell.verb, question.why)


def _place(cell: Cell) -> str:
    """Cells that share a search: those of one alphabet."""
    if cell.name or cell.scheme == "tcp":
        return f"{cell.scheme}:{cell.name}:{cell.host}:{cell.port}"
    return cell.scheme
