"""Strict JSON: one reading of a text, or none.

Pure. Rules
- A key that is given twice is refused: two readers could take different ones. NaN, infinities, a
  number too large for a double, text that is not UTF-8 and lone surrogates are refused.
- At most `MAX_DEPTH` brackets inside each other, `MAX_TABLES` opened and `MAX_COMMAS` in all,
  counted before the parser sees the text: small tokens make large values.
- `encode` writes what is forwarded. What was judged is the parsed value, and it is that value which
  is written, never the program's own bytes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

MAX_DEPTH: Final = 96
MAX_DIGITS: Final = 64
MAX_TABLES: Final = 500_000
MAX_COMMAS: Final = 2_000_000
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """Why a text is not taken, as one sentence."""


def decode(data: bytes) -> Any:
    """The value of a JSON text. Raises `JsonError`."""
    depth = opened = 0
    if data.count(b",") > MAX_COMMAS:
        raise JsonError("The JSON has too many parts.")
    for found in _TOKENS.finditer(data):
        first = data[found.start()]
        if first in b"[{":
            depth, opened = depth + 1, opened + 1
            if depth > MAX_DEPTH:
                raise JsonError(f"The JSON is nested deeper than {MAX_DEPTH}.")
            if opened > MAX_TABLES:
                raise JsonError("The JSON has too many parts.")
        elif first in b"]}":
            depth -= 1
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise JsonError("The JSON is not UTF-8.") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except JsonError:
        raise
    except (ValueError, RecursionError):
        raise JsonError("The body is not JSON.") from None
    if b"\\u" in data and _has_surrogate(value):
        raise JsonError("The JSON holds half of a surrogate pair.")
    return value


def encode(value: Any) -> bytes:
    """The text of a value that `decode` gave, or of plain values like it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonError("The JSON gives a key twice.")
    return found


def _constant(_text: str) -> Any:
    raise JsonError("NaN and infinities are not JSON.")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError("The JSON holds a number without bounds.")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise JsonError("The JSON holds a number without bounds.")
    return int(text)


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_surrogate(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_has_surrogate, value))
