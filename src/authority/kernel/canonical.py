"""Canonical JSON: one value, one sequence of bytes.

Pure. What is hashed, signed, compared or stored in the log is written by `encode` and read by
`decode`, so that two parties who agree on a value agree on its bytes.

Rules
- Members are sorted by the code points of their names; no blanks; no newline at the end.
- Only printable ASCII (0x20 to 0x7e) appears. Everything else is `\\uXXXX` (lower-case hex, a
  surrogate pair above U+FFFF), but for the short forms `\\" \\\\ \\b \\f \\n \\r \\t`. A terminal
  that is shown a line is never sent a control character, and no tool can disagree about UTF-8.
- No floats, not even whole ones, NaN or infinities: two writers may print one float in two ways.
- Integers n have |n| < 2**53, the range in which every JSON reader is exact (I-JSON, RFC 7493).
- At most `MAX_DEPTH` containers inside each other.
- Strings are Unicode text: a lone surrogate is refused. `bytes` stand as base64 (RFC 4648, with
  padding), tuples and sets as arrays (sets sorted), enumerations as their value, msgspec Structs as
  objects. Anything else is refused: there is no fallback to `str()`.
- `decode` refuses what `encode` could not have meant: a member named twice, floats, large integers,
  deep nesting, lone surrogates, bytes that are not UTF-8, anything behind the value. It does accept
  blanks and another order of members: who needs the exact form compares with `encode`.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec
from msgspec.structs import astuple

from authority.errors import AuthorityError
from authority.kernel.printing import printable

__all__ = ["MAX_DEPTH", "MAX_INTEGER", "CanonicalError", "decode", "digest", "encode", "printable"]

MAX_INTEGER = 2**53 - 1
"""The largest magnitude of an integer."""

MAX_DEPTH = 64
"""The most containers inside each other, the outermost counted."""

_encode = msgspec.json.Encoder(order="sorted").encode
_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})
_PLAIN = _CONTAINERS | {str, bytes, bool, int, type(None)}
"""What needs no look inside when it is empty, zero, false or nothing."""
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")


class CanonicalError(AuthorityError):
    """A value has no canonical form, or bytes are not JSON as this module accepts it."""


def encode(value: Any) -> bytes:
    """The canonical bytes of `value`. Raises `CanonicalError` when it has none."""
    _check((value,), 0)
    try:
        out = _encode(value)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise CanonicalError(f"a value has no canonical JSON: {error}") from error
    if out.isascii() and b"\x7f" not in out:
        return out
    # msgspec has already escaped the control characters below 0x20.
    return _NOT_PRINTABLE.sub(_escape_json, out.decode("utf-8")).encode("ascii")


def decode(data: bytes) -> Any:
    """The value that `data` (UTF-8 JSON) stands for. Raises `CanonicalError` as the rules say."""
    try:
        value = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CanonicalError(f"not JSON as Authority accepts it: {error}") from error
    _check((value,), 0)
    # A repeated member vanishes when decoded, so bytes that come back unchanged held none. That is
    # the usual case and the quick one; blanks or another order need the slow reader.
    if encode(value) != data:
        _refuse_repeated(data)
    return value


def digest(data: bytes) -> str:
    """SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def _escape_json(match: re.Match[str]) -> str:
    point = ord(match[0])
    if point > 0xFFFF:
        point -= 0x10000
        return f"\\u{0xD800 + (point >> 10):04x}\\u{0xDC00 + (point & 0x3FF):04x}"
    return f"\\u{point:04x}"


def _check(values: Iterable[Any], depth: int) -> None:
    """Refuse what msgspec would accept and we don't: it writes NaN as null and bignums whole."""
    if depth > MAX_DEPTH:
        raise CanonicalError(f"more than {MAX_DEPTH} containers inside each other")
    for value in values:
        kind = type(value)
        if kind is str or (not value and kind in _PLAIN and depth < MAX_DEPTH):
            continue
        if kind is int:
            if not -MAX_INTEGER <= value <= MAX_INTEGER:
                raise CanonicalError("an integer is outside +-(2**53 - 1)")
        elif kind is dict:
            # msgspec refuses keys that are not strings when it sorts.
            _check(value.values(), depth + 1)
        elif kind in _CONTAINERS:
            _check(value, depth + 1)
        elif kind in _PLAIN:
            continue
        elif isinstance(value, msgspec.Struct):
            _check(astuple(value), depth + 1)
        elif isinstance(value, enum.Enum):
            _check((value.value,), depth)
        else:
            raise CanonicalError(f"{kind.__name__} has no canonical JSON")


def _float(_text: str) -> NoReturn:
    raise CanonicalError("a float in JSON; only integers are accepted")


_decode = msgspec.json.Decoder(float_hook=_float).decode


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise CanonicalError("a member is named twice in one JSON object")
    return members


def _refuse_repeated(data: bytes) -> None:
    try:
        json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CanonicalError(f"not JSON as Authority accepts it: {error}") from error
