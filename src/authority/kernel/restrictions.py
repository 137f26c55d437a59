"""One link of a token, made ready for judging: what it allows, decided without looking at others.

Pure. A link is compiled once per restriction's bytes and kept in a bounded table; that is a memory
of a pure function, never of a decision.

Rules
- Every question is answered by every link of a token (`capabilities.scope` asks them): the links
  are joined by *and*, so a link can only take away.
- Patterns are compiled when a link is first judged, which is after its MAC was checked; a pattern
  that does not compile makes the token invalid.
- `fs.*` is every effect whose name begins with `fs.`; an empty list allows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

import msgspec

from authority.errors import AuthorityError
from authority.kernel.codes import Code
from authority.kernel.labels import Label
from authority.kernel.patterns import PatternSet, parse_pattern
from authority.kernel.resources import Resource
from authority.tokens import MAX_INT, Restriction, TokenError, decode_restriction

LINKS_KEPT = 1024
"""Compiled links kept at one time. Their bytes are at most 8 KiB each, so this is bounded."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a capability does not cover a use; `reason` is for the operator, never for the agent."""

    code: Code
    reason: str


Matcher: TypeAlias = Callable[[Resource, str], str | None]


def _matcher(texts: tuple[str, ...]) -> Matcher:
    """What answers with the pattern that covers a resource. Raises TokenError for a bad pattern.

    One folder and all below it, the usual restriction by far, is compared as a slice; a test holds
    that against `PatternSet`.
    """
    try:
        patterns = PatternSet(texts)
        only = parse_pattern(texts[0], base=None, forbids=False) if len(texts) == 1 else None
    except (AuthorityError, ValueError) as error:
        raise TokenError(f"holds a pattern that is not valid: {error}") from error
    if only is None or only.schemes != {"fs"} or only.verbs is not None or only.host:
        return patterns.match
    *prefix, last = only.parts or ("",)
    if last is not None or not all(isinstance(part, str) for part in prefix):
        return patterns.match
    text, folder, depth = texts[0], tuple(prefix), len(prefix)

    def below(resource: Resource, verb: str) -> str | None:
        return text if resource.scheme == "fs" and resource.segments[:depth] == folder else None

    return below


class Link:
    """A compiled restriction. Its attributes are read only; `match` compiles itself once.

    - `methods` (None: all) and `families` (`fs.` stands for `fs.*`),
    - `match(resource, verb)`: the pattern that covers, or None; itself None when all are covered,
    - `ceiling`: whether sources or secrets are limited.
    """

    __slots__ = (
        "ceiling",
        "counted",
        "expires",
        "families",
        "interval",
        "match",
        "methods",
        "not_before",
        "quotas",
        "restriction",
        "run_only",
    )

    def __init__(self, restriction: Restriction) -> None:
        self.restriction = restriction
        self.not_before = restriction.not_before or 0
        self.expires = MAX_INT + 1 if restriction.expires is None else restriction.expires
        self.interval = restriction.rate.interval if restriction.rate else 0
        self.quotas = tuple((q.argument, q.limit) for q in restriction.quotas or ())
        self.counted = restriction.counted
        self.run_only = restriction.run_only
        self.ceiling = restriction.sources is not None or restriction.secrets is not None
        self.methods: frozenset[str] | None = None
        self.families: tuple[str, ...] = ()
        if restriction.methods is not None:
            self.methods = frozenset(m for m in restriction.methods if not m.endswith(".*"))
            self.families = tuple(m[:-1] for m in restriction.methods if m.endswith(".*"))
        self.match: Matcher | None = None
        if restriction.resources is not None:
            self.match = self._compile_and_match

    def compile(self) -> None:
        """Compile the patterns of the resources. Raises TokenError when one is no pattern."""
        if self.restriction.resources is not None:
            self.match = _matcher(self.restriction.resources)

    def _compile_and_match(self, resource: Resource, verb: str) -> str | None:
        self.match = match = _matcher(self.restriction.resources or ())
        return match(resource, verb)

    def number_missing(self, numbers: Mapping[str, int | None]) -> str:
        """Empty if each quota argument is there as a non-negative integer, else what is not."""
        for argument, _ in self.quotas:
            if amount(numbers, argument) is None:
                return f"limits the argument {argument!r}, which is no non-negative integer here"
        return ""

    def label_refuses(self, label: Label) -> str:
        """Empty if the run's label is within the ceilings of this link."""
        sources, secrets = self.restriction.sources, self.restriction.secrets
        if sources is not None and not label.sources.issubset(sources):
            return "is not for runs that were shaped by other sources than it names"
        if secrets is not None and not label.secrets.issubset(secrets):
            return "is not for runs that hold other secrets than it names"
        return ""


def amount(numbers: Mapping[str, int | None], argument: str) -> int | None:
    """The argument's value if it is an integer that a quota can sum, else None."""
    value = numbers.get(argument)
    if type(value) is not int or not 0 <= value <= MAX_INT:
        return None
    return value


@lru_cache(maxsize=LINKS_KEPT)
def link(data: bytes) -> Link:
    """The compiled link of a restriction's bytes. Raises TokenError unless they are canonical."""
    return Link(decode_restriction(data))
