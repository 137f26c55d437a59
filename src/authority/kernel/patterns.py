"""Patterns: which resources a rule covers.

Pure. Rules
- `*` stands for any characters inside one segment, also none; it stops at `/`. `**` stands alone
  between slashes for any number of segments, also none: `./docs/**` covers `./docs` and everything
  below. Both match names that begin with a dot. Case counts.
- There are no other wildcards. `? [ ] { }`, a leading `!`, `~` or `$` and a trailing slash mean
  something elsewhere, so they are refused here; a backslash takes the next character literally. A
  whole pattern or host that is only `*` or `**` is refused.
- Files: a relative pattern is joined to `base`, a real path. `../` is taken only at the beginning
  and resolved at once. Written `fs:…`, a pattern is also percent-decoded once, and what was escaped
  is literal, so `literal(resource)` can name any file exactly.
- URLs: `[VERB,VERB ]https://host[:port]/path[?query]`. The host is exact or `*.` and a name (what
  is below the name, not itself). A port that is left out is the scheme's own. Without a verb every
  verb is covered. Without a path only `/` is covered. A query must be equal; without one only
  requests without a query are covered; `?*` covers all.
- `tcp://host:port`, and `tool: agent: run: model: gate: output:` with a name that may hold `*`.
- A rule that forbids is read widely (`forbids=True`), because a rule that permits is read narrowly:
  it covers everything below what it names, any query, a bare host (`host`, `host:port`) on every
  scheme, the name itself beside `*.name`, the whole host when it has no path, and a path however
  much of it is percent-encoded. A file pattern that begins with `**` holds everywhere, not only
  below `base`.

Reading stands in `pattern_syntax`, `pattern_files` and `pattern_urls`, matching one pattern in
`pattern_match`, matching many of them in `pattern_index`.
"""

from __future__ import annotations

from collections.abc import Sequence

from authority.kernel.pattern_files import escape_file, file_pattern
from authority.kernel.pattern_index import Index
from authority.kernel.pattern_match import ANY_QUERY, Pattern, PatternError
from authority.kernel.pattern_syntax import literal, parse_pattern
from authority.kernel.pattern_urls import host_pattern, tcp_pattern, url_pattern
from authority.kernel.resources import Resource

__all__ = [
    "ANY_QUERY",
    "Index",
    "Pattern",
    "PatternError",
    "PatternSet",
    "escape_file",
    "file_pattern",
    "host_pattern",
    "literal",
    "parse_pattern",
    "tcp_pattern",
    "url_pattern",
]


class PatternSet:
    """Patterns of any scheme, that permit, indexed. Immutable. A relative one raises `PatternError`."""

    __slots__ = ("_index", "patterns")

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        self._index = Index([parse_pattern(text) for text in self.patterns])

    def match(self, resource: Resource, verb: str = "") -> str | None:
        """The first pattern that covers the resource, or None."""
        found = self._index.find(resource, verb)
        return None if found is None else self.patterns[found]

    def below(self, resource: Resource) -> str | None:
        """A pattern that may cover something strictly below a directory, or None."""
        found = self._index.below(resource)
        return None if found is None else self.patterns[found]
