"""A request in words, then and now, for somebody who looks for the difference.

All text is escaped and bounded: requests are written by programs.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from typing import Any, Final

import msgspec

from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.recorded.bodies import Kept, Missing
from authority.recorded.errors import Divergence
from authority.recorded.now import Now
from authority.recorded.recording import Asked

LINES: Final = 40
WIDTH: Final = 160
_TEXTS: Final = frozenset({"data", "body"})


def described(what: entries.Admit | entries.Denied | Now) -> str:
    """One line: effect, verb, resource."""
    if isinstance(what, entries.Admit | entries.Denied):
        words = (what.effect or "(no request)", what.verb, what.resource)
    else:
        request = what.request
        words = (request.effect or "(no request)", request.verb, request.shown)
    return printable(" ".join(filter(None, words)), 400)


def differing(found: Asked, now: Now, kept: Kept, what: str) -> Divergence:
    """What was asked then and now."""
    then = _lines(
        found.verdict.effect,
        found.verdict.verb,
        found.verdict.resource,
        found.verdict.target,
        _recorded(found, kept),
    )
    request = now.request
    asked = _lines(
        request.effect,
        request.verb,
        request.shown,
        request.target.text if request.target else "",
        now.arguments,
    )
    diff = list(difflib.unified_diff(then, asked, "then", "now", lineterm="", n=2))
    if len(diff) > LINES:
        diff = [*diff[:LINES], f"... {len(diff) - LINES} lines more"]
    return Divergence(found.seq, what, described(found.verdict), described(now), tuple(diff))


def _recorded(found: Asked, kept: Kept) -> bytes | str:
    body = found.verdict.arguments
    if body is None:
        return b""
    try:
        return kept.read(body)
    except Missing as missing:
        return f"(not at hand: {missing})"


def _lines(effect: str, verb: str, resource: str, target: str, arguments: bytes | str) -> list[str]:
    rows = [f"effect: {effect}"]
    rows += [f"verb: {verb}"] if verb else []
    rows += [f"resource: {resource}"]
    rows += [f"to: {target}"] if target else []
    if isinstance(arguments, str):
        rows.append(f"arguments: {arguments}")
    elif arguments:
        rows += _arguments(arguments)
    return [printable(row, WIDTH) for row in rows]


def _arguments(data: bytes) -> list[str]:
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return [f"arguments: {data[:WIDTH]!r}"]
    if not isinstance(value, dict):
        return [f"arguments: {json.dumps(value)[:WIDTH]}"]
    rows: list[str] = []
    for name, each in sorted(value.items()):
        text = _text(each) if name in _TEXTS else None
        if text is not None:
            rows += [f"{name}: {line}" for line in text.split("\n")]
        elif isinstance(each, dict | list):
            shown = json.dumps(each, indent=1, sort_keys=True)
            rows += [f"{name}: {line}" for line in shown.split("\n")]
        else:
            rows.append(f"{name}: {json.dumps(each)}")
    return rows


def _text(value: Any) -> str | None:
    """The text of bytes that stand as base64, when they are text."""
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
