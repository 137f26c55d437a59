"""Many patterns at once: a decision costs the same at ten rules and ten thousand.

Pure. Built once, never changed.

- A rule is filed under its scheme, port and host; a host with subdomains under its suffix, and a
  request looks up each suffix of its host.
- There, a trie over the literal segments with which a rule begins. What follows (the *tail*, which
  begins with a wildcard) hangs at the node, filed under one key: a literal segment that the tail
  demands somewhere, or else the last extension of a segment it demands (`*.pem`). Of several
  candidates the rarest at that node is taken. A request looks up its own segments and extensions.
- Tails that demand neither (`*`, `test_*`) are *residual*: each is tried. They are the worst case,
  linear in their number. `**` alone, the usual tail, costs a single look.
- Every candidate is checked by the same matcher that a single pattern uses, so the index can only
  be too slow, never too generous. The rule that is reported is the first one written that matches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from authority.kernel.pattern_match import (
    Part,
    Pattern,
    literal_prefix,
    match_parts,
    may_continue,
    segments_for,
)
from authority.kernel.resources import Resource

_NEVER = 2**62


class _Tail:
    """What of a rule follows its literal beginning."""

    __slots__ = ("order", "parts", "pattern")

    def __init__(self, order: int, pattern: Pattern, parts: tuple[Part, ...]) -> None:
        self.order = order
        self.pattern = pattern
        self.parts = parts


class _Node:
    """A literal beginning. `lowest` is the first rule at or below it."""

    __slots__ = ("children", "end", "hanging", "keyed", "lowest", "residual", "whole")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.end: list[_Tail] = []
        self.whole: list[_Tail] = []
        self.keyed: dict[str, list[_Tail]] = {}
        self.residual: list[_Tail] = []
        self.hanging: list[_Tail] = []
        self.lowest = _NEVER

    def file(self) -> None:
        """Sort the hanging tails into `whole`, `keyed` and `residual`."""
        counts = Counter(key for tail in self.hanging for key in set(_keys(tail.parts)))
        for tail in self.hanging:
            if tail.parts == (None,):
                self.whole.append(tail)
                continue
            keys = _keys(tail.parts)
            if keys:
                key = min(keys, key=lambda each: (counts[each], each))
                self.keyed.setdefault(key, []).append(tail)
            else:
                self.residual.append(tail)
        for child in self.children.values():
            child.file()


def _keys(parts: tuple[Part, ...]) -> list[str]:
    """What a request's segments must hold: literal segments, or else extensions (`/` + `.pem`)."""
    literals = [part for part in parts if isinstance(part, str)]
    if literals:
        return literals
    # A slash can't stand in a segment, so an extension is never taken for a literal segment.
    return [
        "/" + part[-1][part[-1].rindex(".") :]
        for part in parts
        if isinstance(part, tuple) and "." in part[-1]
    ]


class _Trie:
    """All rules of one scheme, port and host."""

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root = _Node()

    def add(self, order: int, pattern: Pattern) -> None:
        prefix = literal_prefix(pattern.parts)
        node = self.root
        node.lowest = min(node.lowest, order)
        for segment in prefix:
            node = node.children.setdefault(segment, _Node())
            node.lowest = min(node.lowest, order)
        tail = _Tail(order, pattern, pattern.parts[len(prefix) :])
        (node.hanging if tail.parts else node.end).append(tail)

    def find(
        self, segments: tuple[str, ...], verb: str, query: str | None, best: int, keys: list[str]
    ) -> int:
        """The first rule before `best` that covers the segments, else `best`."""
        node: _Node | None = self.root
        depth = 0
        total = len(segments)
        while node is not None and node.lowest < best:
            for tail in node.whole:
                if tail.order >= best:
                    break
                if tail.pattern.admits(verb, query):
                    best = tail.order
                    break
            if node.keyed:
                if not keys:
                    keys.extend(_request_keys(segments))
                for key in keys:
                    if (tails := node.keyed.get(key)) is not None:
                        best = _first(tails, segments, depth, verb, query, best)
            if node.residual:
                best = _first(node.residual, segments, depth, verb, query, best)
            if depth == total:
                for tail in node.end:
                    if tail.order < best and tail.pattern.admits(verb, query):
                        best = tail.order
                        break
                break
            node = node.children.get(segments[depth])
            depth += 1
        return best

    def below(self, segments: tuple[str, ...]) -> int:
        """The first rule that may cover something strictly below the segments."""
        best = _NEVER
        node: _Node | None = self.root
        depth = 0
        while node is not None and node.lowest < best:
            if depth == len(segments):
                for child in node.children.values():
                    best = min(best, child.lowest)
            for tail in node.hanging:
                if tail.order >= best:
                    break
                if tail.parts[0] is None or may_continue(tail.parts, segments, depth):
                    best = tail.order
            if depth == len(segments):
                break
            node = node.children.get(segments[depth])
            depth += 1
        return best

    def leads(self, segments: tuple[str, ...]) -> int:
        """The first rule whose literal beginning reaches the segments or goes on below them."""
        node = self.root
        for segment in segments:
            following = node.children.get(segment)
            if following is None:
                return _NEVER
            node = following
        return node.lowest


def _request_keys(segments: tuple[str, ...]) -> list[str]:
    keys = list(segments)
    for segment in segments:
        dot = segment.rfind(".")
        if dot >= 0:
            keys.append("/" + segment[dot:])
    return keys


def _first(
    tails: list[_Tail],
    segments: tuple[str, ...],
    depth: int,
    verb: str,
    query: str | None,
    best: int,
) -> int:
    for tail in tails:
        if tail.order >= best:
            break
        if tail.pattern.admits(verb, query) and match_parts(tail.parts, segments, depth):
            return tail.order
    return best


class Index:
    """Patterns, filed. `find` gives the position of the first that covers a resource."""

    __slots__ = ("_exact", "_forbids", "_subdomains", "patterns")

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = tuple(patterns)
        self._forbids = any(pattern.forbids for pattern in self.patterns)
        self._exact: dict[tuple[str, int, str], _Trie] = {}
        self._subdomains: dict[tuple[str, int, str], _Trie] = {}
        for order, pattern in enumerate(self.patterns):
            if pattern.forbids != self._forbids:
                raise ValueError("one index holds rules that permit or rules that forbid, not both")
            table = self._subdomains if pattern.subdomains else self._exact
            for scheme in pattern.schemes:
                key = (scheme, pattern.port, pattern.host)
                table.setdefault(key, _Trie()).add(order, pattern)
        for table in (self._exact, self._subdomains):
            for trie in table.values():
                trie.root.file()

    def __len__(self) -> int:
        return len(self.patterns)

    def find(self, resource: Resource, verb: str = "") -> int | None:
        """The position of the first pattern that covers the resource, or None."""
        if not self.patterns:
            return None
        best = _NEVER
        segments = segments_for(resource, self._forbids)
        keys: list[str] = []
        query = resource.query
        for trie in self._tries(resource):
            best = trie.find(segments, verb, query, best, keys)
        return None if best == _NEVER else best

    def below(self, resource: Resource) -> int | None:
        """The first pattern that may cover something strictly below the resource, or None."""
        best = _NEVER
        segments = segments_for(resource, self._forbids)
        for trie in self._tries(resource):
            best = min(best, trie.below(segments))
        return None if best == _NEVER else best

    def leads(self, resource: Resource) -> int | None:
        """The first pattern whose literal beginning goes on below the resource, or None."""
        segments = segments_for(resource, self._forbids)
        best = min((trie.leads(segments) for trie in self._tries(resource)), default=_NEVER)
        return None if best == _NEVER else best

    def _tries(self, resource: Resource) -> list[_Trie]:
        scheme, port, host = resource.scheme, resource.port, resource.host
        found = []
        exact = self._exact
        if (trie := exact.get((scheme, port, host))) is not None:
            found.append(trie)
        if port and (trie := exact.get((scheme, 0, host))) is not None:
            found.append(trie)
        if self._subdomains and host:
            suffix = host
            if not self._forbids:
                suffix = host.partition(".")[2]
            while suffix:
                for number in (port, 0):
                    if (trie := self._subdomains.get((scheme, number, suffix))) is not None:
                        found.append(trie)
                suffix = suffix.partition(".")[2]
        return found
