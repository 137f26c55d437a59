"""One parsed pattern, and whether it covers a resource.

Pure. The rules of reading stand in `patterns`. Matching never backtracks into more than one
wildcard at a level, so its time is bounded by the product of the lengths of pattern and path, both
of which are limited; there are no regular expressions made from rules.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from authority.errors import AuthorityError
from authority.kernel.resource_urls import DEFAULT_PORTS, decoded_segments
from authority.kernel.resources import Resource

Part: TypeAlias = str | tuple[str, ...] | None
"""One segment of a pattern: literal text, the pieces between its stars, or None for `**`."""

ANY_QUERY: Final = "#any"
"""Covers every query and none; no canonical query holds a `#`."""


class PatternError(AuthorityError):
    """The text is not a pattern, or one that does not mean what it seems to."""


class Pattern(msgspec.Struct, frozen=True):
    """One rule, parsed. `port` 0 is any port, `verbs` None any verb."""

    text: str
    schemes: frozenset[str]
    parts: tuple[Part, ...] = ()
    host: str = ""
    subdomains: bool = False
    port: int = 0
    query: str | None = ANY_QUERY
    verbs: frozenset[str] | None = None
    forbids: bool = False

    def matches(self, resource: Resource, verb: str = "") -> bool:
        """Whether the rule covers the resource; what the index must agree with."""
        return (
            resource.scheme in self.schemes
            and self.port in (0, resource.port)
            and self.covers_host(resource.host)
            and self.admits(verb, resource.query)
            and match_parts(self.parts, segments_for(resource, self.forbids))
        )

    def admits(self, verb: str, query: str | None) -> bool:
        """Whether verb and query are covered."""
        return (self.verbs is None or verb in self.verbs) and self.query in (ANY_QUERY, query)

    def covers_host(self, host: str) -> bool:
        """Whether the (canonical) host is covered."""
        if not self.subdomains:
            return host == self.host or not self.host
        return host.endswith("." + self.host) or (self.forbids and host == self.host)


def segments_for(resource: Resource, forbids: bool) -> tuple[str, ...]:
    """The segments that patterns are held against: decoded ones for rules that forbid."""
    if forbids and resource.scheme in DEFAULT_PORTS:
        return decoded_segments(resource.segments)
    return resource.segments


def match_segment(part: str | tuple[str, ...], segment: str) -> bool:
    """Whether one segment is covered by one part that is not `**`."""
    if isinstance(part, str):
        return part == segment
    first, last = part[0], part[-1]
    end = len(segment) - len(last)
    at = len(first)
    if end < at or not segment.startswith(first) or not segment.endswith(last):
        return False
    for piece in part[1:-1]:
        found = segment.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def match_parts(parts: tuple[Part, ...], segments: tuple[str, ...], start: int = 0) -> bool:
    """Whether `segments[start:]` is covered. Only the last `**` passed is ever widened."""
    at, here, size, total = 0, start, len(parts), len(segments)
    retry, mark = -1, 0
    while here < total:
        if at < size:
            part = parts[at]
            if part is None:
                retry, mark = at, here
                at += 1
                continue
            if match_segment(part, segments[here]):
                at += 1
                here += 1
                continue
        if retry < 0:
            return False
        mark += 1
        at, here = retry + 1, mark
    while at < size and parts[at] is None:
        at += 1
    return at == size


def may_continue(parts: tuple[Part, ...], segments: tuple[str, ...], start: int = 0) -> bool:
    """Whether something strictly below `segments[start:]` may be covered."""
    states = _closure({0}, parts)
    for segment in segments[start:]:
        following = set()
        for state in states:
            if state == len(parts):
                continue
            part = parts[state]
            if part is None:
                following.add(state)
            elif match_segment(part, segment):
                following.add(state + 1)
        states = _closure(following, parts)
        if not states:
            return False
    return any(state < len(parts) for state in states)


def _closure(states: set[int], parts: tuple[Part, ...]) -> set[int]:
    found = set(states)
    for state in states:
        at = state
        while at < len(parts) and parts[at] is None:
            at += 1
            found.add(at)
    return found


def literal_prefix(parts: tuple[Part, ...]) -> tuple[str, ...]:
    """The literal segments with which a pattern begins."""
    prefix: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            break
        prefix.append(part)
    return tuple(prefix)
