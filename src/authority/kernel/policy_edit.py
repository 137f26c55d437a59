"""Putting additions into a policy's text, so that a person finds their own file again.

Pure. Rules
- Lines are put in, none is changed or taken away: before the closing bracket of a list that is there,
  below the header of a section that is there, else at the end.
- The result is read again and must say exactly what was meant: the old policy with the new rules at
  the ends of their lists. If the file is written in a way that this can't do (an inline table, dotted
  keys), `EditError` says so, and nothing is written half.
- JSON has no comments and no layout of its own: it is written anew.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final

from authority.errors import AuthorityError
from authority.kernel.suggest import Addition, Place, commented

_HEADER: Final = re.compile(r"[ \t]*\[([^\[\]]+)\][ \t]*(?:#.*)?\Z")
_STRINGS: Final = re.compile(
    r"'''.*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|#[^\n]*|[\[\]]",
    re.DOTALL,
)


class EditError(AuthorityError):
    """The additions can't be put into this text."""


def with_additions(text: str, additions: Sequence[Addition], *, format: str) -> str:
    """The text of the policy with the additions in it. Raises `EditError`."""
    old = _read(text, format)
    wanted = _merged(old, additions)
    if format == "json":
        return json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
    made = text if not text or text.endswith("\n") else text + "\n"
    for place in dict.fromkeys(each.place for each in additions):
        made = _put(made, place, [each for each in additions if each.place == place])
    try:
        same = _read(made, format) == wanted
    except EditError:
        same = False
    if not same:
        raise EditError(
            "the additions can't be put into this file as it is written",
            "write its sections as [filesystem] and [network], its lists as read = [ ... ]",
        )
    return made


def _read(text: str, format: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if format == "json" else tomllib.loads(text)
    except ValueError as error:
        raise EditError("the policy can't be read", str(error)) from error
    if not isinstance(found, dict):
        raise EditError("the policy is no table")
    return found


def _merged(old: dict[str, Any], additions: Sequence[Addition]) -> dict[str, Any]:
    out: dict[str, Any] = copy.deepcopy(old)
    for each in additions:
        table: Any = out
        for part in each.section.split("."):
            table = table.setdefault(part, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(table.get(each.key, []), list):
            raise EditError(f"{each.section}.{each.key} is no list in this file")
        table[each.key] = [*table.get(each.key, []), each.rule]
    return out


def _put(text: str, place: Place, additions: Sequence[Addition]) -> str:
    section, key = place
    lines = [f"    {line}" for each in additions for line in commented(each)]
    block = [f"{key} = [", *lines, "]"]
    start, end = _section(text, section)
    if start < 0:
        return "\n".join([text.rstrip("\n"), "", f"[{section}]", *block, ""]).lstrip("\n")
    found = re.compile(rf"^[ \t]*{re.escape(key)}[ \t]*=[ \t]*\[", re.MULTILINE).search(
        text, start, end
    )
    if found is None:
        return text[:start] + "\n".join(block) + "\n" + text[start:]
    close = _closing(text, found.end())
    last = _last(text, found.end(), close)
    if last >= 0 and text[last] != ",":
        text = text[: last + 1] + "," + text[last + 1 :]
        close += 1
    return text[:close].rstrip() + "\n" + "\n".join(lines) + "\n" + text[close:]


def _section(text: str, name: str) -> tuple[int, int]:
    """(behind its header line, begin of the next header); (-1, -1) when there is none."""
    start, at = -1, 0
    for line in text.splitlines(keepends=True):
        header = _HEADER.match(line.rstrip("\r\n"))
        array = line.lstrip().startswith("[[")
        if (header or array) and start >= 0:
            return start, at
        at += len(line)
        if header and header[1].strip() == name:
            start = at
    return (start, at) if start >= 0 else (-1, -1)


def _closing(text: str, at: int) -> int:
    """Where the list that was opened before `at` closes. Raises `EditError`."""
    depth = 1
    for token in _STRINGS.finditer(text, at):
        depth += {"[": 1, "]": -1}.get(token[0], 0)
        if not depth:
            return token.start()
    raise EditError("a list in this file has no end")


def _last(text: str, start: int, close: int) -> int:
    """Where the last character of a list stands that is neither blank nor in a comment; -1: none."""
    hidden = [token.span() for token in _STRINGS.finditer(text, start, close) if token[0][0] == "#"]
    for at in range(close - 1, start - 1, -1):
        if not text[at].isspace() and not any(a <= at < b for a, b in hidden):
            return at
    return -1
