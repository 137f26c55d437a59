"""Lists of rules as automata, and the shortest word for which a formula over them holds.

Rules
- An `Atom` is a list of patterns and what is asked of it: `find` (one covers the path), `below` (one
  may cover something below it), `leads` (a literal beginning reaches the path or goes on below it).
  `decoded` reads the path as a server does that decodes it: the reading of rules that forbid.
- Each atom becomes one deterministic automaton, made as far as it is walked. Letters that no rule
  tells apart are walked once. So a search is exact, and its cost follows the rules, not the alphabet.
- A state in which nothing can be accepted any more is `DEAD`, one in which everything will be is
  `FULL`; what a formula no longer depends on is forgotten, which makes equal states equal.
- `words` gives words for which the formula holds, shortest first, one for each state in which one
  may end; when it gives none there is none. A search that grows beyond its limit raises `Undecided`:
  not knowing is no proof.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from authority.kernel.pattern_match import Part
from authority.proof.alphabets import DEAD, SEP, Alphabet, Universe
from authority.proof.formulas import (
    FALSE,
    TRUE,
    Atom,
    Formula,
    Undecided,
    atom,
    atoms_of,
    both,
    either,
    loosened,
    negated,
    ways_of,
    weigh,
)

__all__ = [
    "FALSE",
    "TRUE",
    "Atom",
    "Formula",
    "Searcher",
    "Undecided",
    "atom",
    "atoms_of",
    "both",
    "either",
    "negated",
    "weigh",
]

FULL: Final = -1
_FORGOTTEN: Final = -2
LIMIT: Final = 200_000
"""States that one search may visit."""
_LOOKS: Final = 64
"""Words that are tried of each way in which a formula's stepped atoms come out."""


class Machine(Protocol):
    """The automaton of an atom; an atom that is no list of patterns makes its own (`machine`)."""

    start: int

    def row(self, state: int) -> tuple[int, Mapping[int, int]]: ...

    def end(self, state: int) -> bool: ...


class _Inside(NamedTuple):
    """A place in a rule: in its part `part`, `offset` letters on; -1 is inside of a `**`."""

    rule: int
    part: int
    offset: int


class Automaton:
    """One atom over one alphabet. States are numbers; `start` is before the first separator."""

    def __init__(self, asked: Atom, alphabet: Alphabet) -> None:
        self._kind, self._decoded = asked.kind, asked.decoded
        self._alphabet = alphabet
        self._rules = sorted(asked.parts, key=repr)
        self._compiled = [[_compiled(part) for part in rule] for rule in self._rules]
        self._sets: list[tuple[frozenset[Any], bool]] = [(frozenset(), False)]
        self._numbers: dict[tuple[frozenset[Any], bool], int] = {self._sets[0]: DEAD}
        begin = frozenset(at for rule in range(len(self._rules)) for at in self._after(rule, 0))
        self.start = self._number(frozenset(("at", *at) for at in begin), False)
        self._rows: dict[int, tuple[int, dict[int, int]]] = {DEAD: (DEAD, {}), FULL: (FULL, {})}
        self._ends: dict[int, bool] = {DEAD: False, FULL: True}
        self._bytes: dict[tuple[int, int], int] = {}

    def row(self, state: int) -> tuple[int, Mapping[int, int]]:
        """Where every other letter leads, and where these do."""
        found = self._rows.get(state)
        if found is None:
            found = self._rows[state] = self._row(state)
        return found

    def end(self, state: int) -> bool:
        """Whether the atom holds of a path that ends here."""
        found = self._ends.get(state)
        if found is None:
            found = self._ends[state] = self._holds(self._boundaries(*self._sets[state]))
        return found

    def _number(self, places: frozenset[Any], fresh: bool) -> int:
        if self._full(places):
            return FULL
        key = (places, fresh) if places else self._sets[DEAD]
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._sets)
            self._sets.append(key)
        return number

    def _full(self, places: frozenset[Any]) -> bool:
        """Whether whatever follows is accepted: a rule is in a `**` that ends it."""
        if self._kind == "leads":
            return False
        return any(
            type(at) is _Inside
            and at.offset < 0
            and (self._kind == "below" or at.part == len(self._rules[at.rule]) - 1)
            for at in places
        )

    def _after(self, rule: int, part: int) -> Iterator[tuple[int, int]]:
        """The places between segments that a rule is in before `part`; a `**` may be passed by."""
        yield rule, part
        while part < len(self._rules[rule]) and self._rules[rule][part] is None:
            part += 1
            yield rule, part

    def _boundaries(self, places: frozenset[Any], _fresh: bool) -> set[tuple[int, int]]:
        found: set[tuple[int, int]] = set()
        for at in places:
            if type(at) is not _Inside:
                found.add((at[1], at[2]))
            elif at.offset < 0:
                found.update(self._after(at.rule, at.part))
            elif at.offset == self._compiled[at.rule][at.part][1]:
                found.update(self._after(at.rule, at.part + 1))
        return found

    def _holds(self, boundaries: set[tuple[int, int]]) -> bool:
        if self._kind == "leads":
            return bool(boundaries)
        below = self._kind == "below"
        return any((part < len(self._rules[rule])) is below for rule, part in boundaries)

    def _separator(self, state: int) -> int:
        places, fresh = self._sets[state]
        if fresh:  # an encoded slash beside a slash: what it makes is no segment
            return state
        inside = [
            _Inside(rule, part, -1 if self._rules[rule][part] is None else 0)
            for rule, part in self._boundaries(places, fresh)
            if part < len(self._rules[rule])
        ]
        return self._number(frozenset(inside), self._decoded)

    def _row(self, state: int) -> tuple[int, dict[int, int]]:
        letters = self._alphabet
        special = {SEP: self._separator(state)}
        default = self._byte(state, -1)
        relevant = self._relevant(state)
        if self._decoded:
            for letter in letters.by_byte.get(SEP, ()):
                special[letter] = special[SEP]
            for byte in relevant:
                for letter in letters.by_byte.get(byte, ()):
                    special[letter] = self._byte(state, byte)
            return default, special
        for byte in relevant:
            if (found := letters.by_raw.get(bytes((byte,)))) is not None:
                special[found] = self._byte(state, byte)
        for raw, letter in letters.by_raw.items():
            if len(raw) > 1 and (37 in relevant or default != DEAD):
                at = state
                for byte in raw:
                    at = self._byte(at, byte)
                if at != default:
                    special[letter] = at
        return default, special

    def _relevant(self, state: int) -> set[int]:
        found = set()
        for at in self._sets[state][0]:
            if type(at) is _Inside and at.offset >= 0:
                text = self._compiled[at.rule][at.part][0]
                if at.offset < len(text):
                    found.add(text[at.offset])
        return found

    def _byte(self, state: int, byte: int) -> int:
        """Where one byte leads; -1 is a byte that no rule names here."""
        if state in (DEAD, FULL):
            return state
        known = self._bytes.get((state, byte))
        if known is not None:
            return known
        found = set()
        for at in self._sets[state][0]:
            if type(at) is not _Inside:
                continue
            if at.offset < 0:
                found.add(at)
                continue
            text, _, loops = self._compiled[at.rule][at.part]
            if at.offset in loops:
                found.add(at)
            if at.offset < len(text) and text[at.offset] == byte:
                found.add(at._replace(offset=at.offset + 1))
        number = self._bytes[state, byte] = self._number(frozenset(found), False)
        return number


def _compiled(part: Part) -> tuple[bytes, int, frozenset[int]]:
    """The letters of a part, how many they are, and after which of them anything may stand."""
    if part is None:
        return b"", 0, frozenset()
    pieces = (part,) if isinstance(part, str) else part
    if len(pieces) > 1 and any("\ud800" <= char <= "\udfff" for piece in pieces for char in piece):
        raise Undecided(
            "a rule holds a wildcard beside bytes that are not UTF-8",
            "write such a name out whole; nothing is proved about this rule",
        )
    raw = [piece.encode("utf-8", "surrogateescape") for piece in pieces]
    loops, at = set(), 0
    for piece in raw[:-1]:
        at += len(piece)
        loops.add(at)
    text = b"".join(raw)
    return text, len(text), frozenset(loops)


class Searcher:
    """Searches over one alphabet and universe; automata and answers are kept."""

    def __init__(self, alphabet: Alphabet, universe: Universe) -> None:
        self.alphabet = alphabet
        self._universe = universe
        self._automata: dict[Any, Machine] = {}
        self.visited = 0

    def words(self, formula: Formula) -> Iterator[tuple[int, ...]]:
        """Words for which the formula holds, the shortest that is found first. None is the proof
        that there is none. Raises `Undecided`.

        Where atoms that are no lists of patterns (`steps`) stand in the formula, each way in which
        they can come out is searched without them first. Nothing found is as good as nothing found
        with them, and a word that holds with them, too, is an answer. Only when neither comes of it
        are they walked along.
        """
        ways = ways_of(formula)
        if ways is None:
            yield from self._words(formula)
            return
        if next(self._words(loosened(formula)), None) is None:
            return
        found: list[tuple[int, ...]] = []
        seen = False
        for way in ways:
            for word in islice(self._words(way), _LOOKS):
                seen = True
                if self.holds(formula, word):
                    found.append(word)
                    break
        if found or not seen:
            yield from sorted(found, key=self._length)
            return
        yield from self._words(formula)

    def _length(self, word: tuple[int, ...]) -> int:
        return sum(self.alphabet.weight[letter] for letter in word)

    def _words(self, formula: Formula) -> Iterator[tuple[int, ...]]:
        """Words for which the formula holds, shortest first, every atom walked along."""
        if formula == FALSE:
            return
        universe, letters = self._universe, self.alphabet
        asked = atoms_of(formula)
        machines = [self._automaton(each) for each in asked]
        judged: dict[tuple[int, ...], tuple[bool | None, frozenset[Atom]]] = {}

        def tidy(states: tuple[int, ...]) -> tuple[int, ...] | None:
            """None when the formula can't hold any more; what it does not need is forgotten."""
            status = tuple(s if s in (DEAD, FULL, _FORGOTTEN) else 1 for s in states)
            verdict = judged.get(status)
            if verdict is None:
                known = {
                    each: s == FULL
                    for each, s in zip(asked, status, strict=True)
                    if s in (DEAD, FULL)
                }
                verdict = judged[status] = weigh(formula, known)
            value, needs = verdict
            if value is False:
                return None
            return tuple(
                s if s in (DEAD, FULL) or each in needs else _FORGOTTEN
                for each, s in zip(asked, states, strict=True)
            )

        first = tidy(tuple(machine.start for machine in machines))
        if first is None:
            return
        start = (universe.start, first)
        heap: list[tuple[int, int, tuple[int, tuple[int, ...]]]] = [(0, 0, start)]
        before: dict[Any, tuple[Any, int]] = {start: (None, 0)}
        best = {start: 0}
        done = set()
        count = 0
        while heap:
            weight, _, node = heapq.heappop(heap)
            if node in done:
                continue
            done.add(node)
            place, states = node
            if universe.end(place):
                known = {
                    each: machine.end(s)
                    for each, machine, s in zip(asked, machines, states, strict=True)
                    if s != _FORGOTTEN
                }
                if weigh(formula, known)[0]:
                    yield _walked(before, node)
            default_place, special_place = universe.row(place)
            rows = [
                (_FORGOTTEN, {}) if s == _FORGOTTEN else machine.row(s)
                for machine, s in zip(machines, states, strict=True)
            ]
            named = set(special_place)
            for _, special in rows:
                named.update(special)
            rest = next((letter for letter in letters.order if letter not in named), None)
            for letter in sorted(named) if rest is None else (rest, *sorted(named)):
                there = special_place.get(letter, default_place)
                if there == DEAD:
                    continue
                following = tidy(tuple(special.get(letter, default) for default, special in rows))
                if following is None:
                    continue
                new = (there, following)
                far = weight + letters.weight[letter]
                if far < best.get(new, 1 << 60):
                    best[new], before[new] = far, (node, letter)
                    count += 1
                    heapq.heappush(heap, (far, count, new))
            if len(done) > LIMIT:
                raise Undecided(
                    f"the search grew beyond {LIMIT} states",
                    "rules with many wildcards in one segment are what makes it grow",
                )
            self.visited += 1

    def holds(self, formula: Formula, word: tuple[int, ...]) -> bool:
        """Whether the formula holds for one word; the universe is not asked."""
        known = {}
        for each in atoms_of(formula):
            machine = self._automaton(each)
            state = machine.start
            for letter in word:
                default, special = machine.row(state)
                state = special.get(letter, default)
            known[each] = machine.end(state)
        return bool(weigh(formula, known)[0])

    def can_ask(self, word: tuple[int, ...]) -> bool:
        """Whether the universe holds the word."""
        state = self._universe.start
        for letter in word:
            default, special = self._universe.row(state)
            state = special.get(letter, default)
        return state != DEAD and self._universe.end(state)

    def _make(self, asked: Any) -> Machine:
        return Automaton(asked, self.alphabet) if isinstance(asked, Atom) else asked.machine()

    def _automaton(self, asked: Any) -> Machine:
        found = self._automata.get(asked)
        if found is None:
            found = self._automata[asked] = self._make(asked)
        return found


def _walked(before: Mapping[Any, tuple[Any, int]], node: Any) -> tuple[int, ...]:
    word = []
    while (step := before[node])[0] is not None:
        word.append(step[1])
        node = step[0]
    return tuple(reversed(word))
