"""Statements about all requests: a small language, read strictly.

    never EFFECT [to PATTERN]
    never a secret of NAME to any EFFECT [to PATTERN]
    never untrusted data to any EFFECT [to PATTERN]
    every SUBJECT needs an approval
    at most NUMBER DIMENSION

Rules
- EFFECT, PATTERN, NAME and SUBJECT stand in single or double quotes. EFFECT is a name such as
  `http.request`, a family (`http.*`) or `*`. SUBJECT is `EFFECT [to PATTERN]`, a pattern with its
  scheme, or the plain name of a tool.
- A pattern is read widely, as a rule that forbids: a statement that is proved holds for every
  spelling. Without a scheme it is a file for `fs` effects, a host for `http` and `net`, a name else.
- `never` is about what the policy allows, also with an approval. A secret is let out where a run that
  holds it passes the labels, untrusted data where a run that is not trusted does.
- One statement a line; `#` begins a comment. What is not understood is refused, with the place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from authority.errors import AuthorityError
from authority.kernel.addresses import shown
from authority.kernel.budgets import DIMENSIONS, MAX_AMOUNT
from authority.kernel.pattern_files import file_pattern
from authority.kernel.pattern_match import Pattern, PatternError
from authority.kernel.pattern_syntax import parse_pattern
from authority.kernel.pattern_urls import host_pattern, url_pattern
from authority.kernel.requests import EFFECTS
from authority.kernel.resources import NAME

_TOKEN: Final = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|([^\s'"#]+)|(#.*))""")
MAX_STATEMENTS: Final = 1000
FORMS: Final = (
    "never 'EFFECT' [to 'PATTERN']",
    "never a secret of 'NAME' to any 'EFFECT' [to 'PATTERN']",
    "never untrusted data to any 'EFFECT' [to 'PATTERN']",
    "every 'EFFECT' [to 'PATTERN'] needs an approval",
    "at most NUMBER DIMENSION",
)


class StatementError(AuthorityError):
    """A line that is no statement."""


class Statement(msgspec.Struct, frozen=True):
    """`kind`: never, secret, untrusted, approval or budget. `patterns` empty: everything."""

    text: str
    kind: str
    effects: tuple[str, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    everything: bool = True
    secret: str = ""
    dimension: str = ""
    amount: int = 0


class Scope(msgspec.Struct, frozen=True):
    """What `EFFECT [to PATTERN]` says."""

    effects: tuple[str, ...]
    patterns: tuple[Pattern, ...] = ()
    everything: bool = True


def parse(text: str, *, base: str) -> Statement:
    """One statement. `base`: the folder that relative patterns are joined to."""
    line = _Line(text)
    first = line.word("never, every or at", "never", "every", "at")
    if first == "at":
        found = _budget(line)
    elif first == "every":
        found = _approval(line, base)
    else:
        found = _never(line, base)
    line.end()
    return found


def read(text: str, *, base: str) -> list[Statement]:
    """The statements of a file. Raises `StatementError` with the number of the line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            found.append(parse(line, base=base))
        except StatementError as error:
            raise StatementError(f"line {number}: {error.message}", error.hint) from None
        if len(found) > MAX_STATEMENTS:
            raise StatementError(f"more than {MAX_STATEMENTS} statements", "use two files")
    if not found:
        raise StatementError("there is no statement", f"write {FORMS[0]}")
    return found


def scope(text: str, *, base: str) -> Scope:
    """`'EFFECT' [to 'PATTERN']` as an exception: read narrowly, as a rule that permits."""
    line = _Line(text)
    found = _scope(line, base, forbids=False)
    line.end()
    return found


class _Line:
    """The words and quoted texts of a line, taken one by one."""

    def __init__(self, text: str) -> None:
        if not text.strip().isprintable():
            raise StatementError("a statement holds a control or invisible character")
        self.text = " ".join(text.split()) if "'" not in text and '"' not in text else text.strip()
        self._tokens = list(_tokens(text))
        self._at = 0

    def peek(self) -> tuple[str, bool]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", False)

    def word(self, wanted: str, *choices: str) -> str:
        text, quoted = self.peek()
        if quoted or text not in choices:
            what = f"{shown(text)!r} stands" if text else "nothing stands"
            near = difflib.get_close_matches(text[:32], choices, 1)
            raise StatementError(
                f"{what} where {wanted} should in {shown(self.text)!r}",
                f"did you mean {near[0]}?" if near and not quoted else "forms: " + "; ".join(FORMS),
            )
        self._at += 1
        return text

    def words(self, text: str) -> None:
        for each in text.split():
            self.word(f"{text!r}", each)

    def has(self, word: str) -> bool:
        return self.peek() == (word, False)

    def quoted(self, what: str) -> str:
        text, quoted = self.peek()
        if not quoted or not text:
            raise StatementError(
                f"{what} in quotes is missing in {shown(self.text)!r}",
                f"write '{shown(text)}'" if text and not quoted else "forms: " + "; ".join(FORMS),
            )
        self._at += 1
        return text

    def number(self) -> int:
        text, quoted = self.peek()
        if quoted or not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > MAX_AMOUNT:
            raise StatementError(f"{shown(text)!r} is no amount", "write a number in base units")
        self._at += 1
        return int(text)

    def end(self) -> None:
        text, _ = self.peek()
        if text:
            raise StatementError(
                f"{shown(text)!r} stands behind the end of {shown(self.text)!r}",
                "forms: " + "; ".join(FORMS),
            )


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            raise StatementError(f"a quote in {shown(text.strip())!r} is not closed")
        at = found.end()
        if found[4] is not None:
            return
        if found[3] is not None:
            yield found[3], False
        else:
            yield found[1] if found[1] is not None else found[2], True


def _never(line: _Line, base: str) -> Statement:
    if line.has("a"):
        line.words("a secret of")
        name = line.quoted("the name of a secret")
        line.words("to any")
        return _statement(line, "secret", _scope(line, base), secret=name)
    if line.has("untrusted"):
        line.words("untrusted data to any")
        return _statement(line, "untrusted", _scope(line, base))
    return _statement(line, "never", _scope(line, base))


def _approval(line: _Line, base: str) -> Statement:
    text = line.quoted("an effect, a pattern or the name of a tool")
    if _effects(text):
        found = _to(line, base, text, forbids=True)
    elif NAME.match(text) and "." not in text:
        pattern = parse_pattern(f"tool:{text}", base=base, forbids=True)
        found = Scope(("tool.call",), (pattern,), False)
    elif re.match(r"(?:[A-Z,-]+ )?[a-z]+:", text):
        found = Scope(tuple(EFFECTS), (_pattern(text, base, "", forbids=True),), False)
    else:
        raise _no_effect(text)
    line.words("needs an approval")
    return _statement(line, "approval", found)


def _budget(line: _Line) -> Statement:
    line.words("most")
    amount = line.number()
    dimension = line.word("a dimension", *sorted(DIMENSIONS))
    return Statement(line.text, "budget", dimension=dimension, amount=amount)


def _statement(line: _Line, kind: str, found: Scope, secret: str = "") -> Statement:
    return Statement(line.text, kind, found.effects, found.patterns, found.everything, secret)


def _scope(line: _Line, base: str, *, forbids: bool = True) -> Scope:
    return _to(line, base, line.quoted("an effect"), forbids=forbids)


def _to(line: _Line, base: str, effect: str, *, forbids: bool) -> Scope:
    effects = _effects(effect)
    if not effects:
        raise _no_effect(effect)
    if not line.has("to"):
        return Scope(effects)
    line.words("to")
    raw = line.quoted("a pattern")
    families = {name.partition(".")[0] for name in effects}
    family = families.pop() if len(families) == 1 else ""
    return Scope(effects, (_pattern(raw, base, family, forbids=forbids),), False)


def _effects(text: str) -> tuple[str, ...]:
    if text == "*":
        return tuple(EFFECTS)
    if text.endswith(".*"):
        return tuple(name for name in EFFECTS if name.startswith(text[:-1]))
    return (text,) if text in EFFECTS else ()


def _no_effect(text: str) -> StatementError:
    near = difflib.get_close_matches(text[:64], EFFECTS, 1)
    hint = f"did you mean {near[0]}?" if near else f"effects: {', '.join(sorted(EFFECTS))}"
    return StatementError(f"{shown(text)!r} is no effect", hint)


def _pattern(text: str, base: str, family: str, *, forbids: bool) -> Pattern:
    try:
        if family == "fs":
            return file_pattern(text, base=base, forbids=forbids)
        if "://" not in text and family in ("http", "net") and forbids:
            return host_pattern(text)
        if family == "http" and not forbids:
            return url_pattern(text)
        scheme = {"tool": "tool", "agent": "agent", "msg": "run", "model": "model"}.get(family)
        if scheme and ":" not in text:
            text = f"{scheme}:{text}"
        return parse_pattern(text, base=base, forbids=forbids)
    except PatternError as error:
        hint = error.hint or "docs/policy.md has the patterns"
        raise StatementError(f"{shown(text)!r}: {error.message}", hint) from None
