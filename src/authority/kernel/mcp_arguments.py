"""Rules about one argument of an MCP tool: a text, a number, one of a list, or a list of those.

Pure. Rules
- An argument that a rule is for must be there, unless the rule says `optional`: a server's own
  default is nobody's decision. A tool with rules takes no argument that no rule names.
- Types are exact: a rule for text refuses a list that holds the text, `true` is no number, `5.0` is
  no integer, and null is nothing.
- A text that begins with `/`, `./` or `../` is a path pattern. The value is read as a path below the
  policy's folder and refused where a server could read it otherwise: `..`, a backslash, `%`, `$`, a
  leading `~`, a scheme, a control character, letters that another form of Unicode turns into these.
- A text that begins with `http://` or `https://` is a URL pattern; the value must be a URL that it
  covers. Any other text is compared as it is, `*` standing for any printable characters but `/`, and
  `**` for any at all.
- Nothing is matched with regular expressions that a policy or a server wrote.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from authority.errors import AuthorityError
from authority.kernel.addresses import shown
from authority.kernel.pattern_files import file_pattern
from authority.kernel.pattern_match import Pattern, PatternError
from authority.kernel.pattern_parts import check_source
from authority.kernel.pattern_urls import url_pattern
from authority.kernel.resources import parse

MAX_ITEMS: Final = 256
"""The most items of a list that `each` looks at."""
MAX_TEXT: Final = 4096
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_STARS: Final = re.compile(r"\*{1,2}")
_PATHS: Final = ("/", "./", "../")
_URLS: Final = ("http://", "https://")
MAX_STARS: Final = 16


class ArgumentRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """`one_of` and `match` for texts, `least` and `most` for integers, `any` for whatever comes."""

    match: str | None = None
    one_of: tuple[str | int | bool, ...] | None = None
    least: int | None = None
    most: int | None = None
    any: bool = False
    optional: bool = False
    each: bool = False

    def refuses(self, value: object, base: str) -> str:
        """Why this value is not covered, or nothing. `base` is the policy's folder."""
        if not self.each:
            return self._one(value, base)
        if not isinstance(value, list):
            return "must be a list"
        if len(value) > MAX_ITEMS:
            return f"holds more than {MAX_ITEMS} items"
        return next((why for item in value if (why := self._one(item, base))), "")

    def _one(self, value: object, base: str) -> str:
        if self.any:
            return ""
        if self.one_of is not None:
            fits = any(type(each) is type(value) and each == value for each in self.one_of)
            return "" if fits else "is none of those that are named"
        if self.match is not None:
            if not isinstance(value, str):
                return "must be text"
            return _text(self.match, value, base)
        if type(value) is not int:
            return "must be a whole number"
        low = self.least is not None and value < self.least
        high = self.most is not None and value > self.most
        return "is outside the range" if low or high else ""


def judge(
    rules: Mapping[str, ArgumentRule], given: Mapping[str, Any], base: str
) -> tuple[str, str]:
    """The name of the first argument that is refused, and why; two empty texts when none is."""
    for name in given:
        if name not in rules:
            return name, "is not one that the policy names"
    for name, rule in rules.items():
        if name not in given:
            if not rule.optional:
                return name, "must be given"
        elif why := rule.refuses(given[name], base):
            return name, why
    return "", ""


def check(text: str, base: str) -> None:
    """Whether a text is a pattern for `match`. Raises `PatternError`."""
    check_source(text)
    if text.startswith(_URLS):
        url_pattern(text)
    elif text.startswith(_PATHS):
        file_pattern(text, base=base)
    elif text in ("*", "**"):
        raise PatternError(f"a bare {text} would cover everything", "write { any = true }")
    elif "***" in text or len(_STARS.findall(text)) > MAX_STARS:
        raise PatternError(f"{shown(text)!r} has too many stars", "use * and **")


def _text(pattern: str, value: str, base: str) -> str:
    if len(value) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters"
    if not value.isprintable():
        return "holds a control or invisible character"
    if unicodedata.normalize("NFKC", value) != value:
        return "holds characters that another form of Unicode turns into others"
    if pattern.startswith(_URLS):
        return _covered(url_pattern(pattern), "http.request", value, base)
    if pattern.startswith(_PATHS):
        if _SCHEME.match(value):
            return "is a path with a scheme"
        if value.startswith("~") or any(char in value for char in "\\%$"):
            return "is a path with characters that a server may expand"
        return _covered(file_pattern(pattern, base=base), "fs.read", value, base)
    return "" if glob(pattern, value) else "is not covered by the pattern"


def _covered(pattern: Pattern, effect: str, value: str, base: str) -> str:
    try:
        resource = parse(effect, value, cwd=base)
    except AuthorityError as error:
        return f"has no one meaning: {error.message}"
    verb = next(iter(pattern.verbs), "") if pattern.verbs else ""
    return "" if pattern.matches(resource, verb) else "is not covered by the pattern"


def glob(pattern: str, value: str) -> bool:
    """Pieces and stars, without backtracking into more than one `**`: states, not a search."""
    pieces = _STARS.split(pattern)
    stars = _STARS.findall(pattern)
    ends = {len(pieces[0])} if value.startswith(pieces[0]) else set()
    for star, piece in zip(stars, pieces[1:], strict=True):
        following: set[int] = set()
        for end in ends:
            stop = len(value) if star == "**" else _stop(value, end)
            at = value.find(piece, end, stop + len(piece))
            while at >= 0:
                following.add(at + len(piece))
                at = value.find(piece, at + 1, stop + len(piece))
        ends = following
    return len(value) in ends


def _stop(value: str, start: int) -> int:
    found = value.find("/", start)
    return len(value) if found < 0 else found
