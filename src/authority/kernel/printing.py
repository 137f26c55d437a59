"""Foreign text for a terminal, a message or a log, where nothing in it may act.

Pure, and without any of the kernel's other modules: commands that print a name need no more.
"""

from __future__ import annotations

import re

_NOT_PLAIN = re.compile(r"[^\x20-\x5b\x5d-\x7e]")


def printable(text: str | bytes, limit: int | None = None) -> str:
    """`text` from outside, made harmless and unambiguous for a terminal, a message or a log.

    Everything but printable ASCII is escaped: `\\\\` for a backslash, `\\uXXXX` or `\\UXXXXXXXX`
    for a character, `\\xXX` for a byte that is not UTF-8. `limit` cuts the result to that many
    characters, the last three being `...`.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    out = _NOT_PLAIN.sub(_escape_text, text)
    if limit is not None and len(out) > limit:
        out = out[: max(0, limit - 3)] + "..."
    return out


def harmless(text: str) -> str:
    """The last door before a terminal, for text that should have passed `printable`: as it is when it
    has, else escaped as a whole."""
    return text if text.isascii() and text.isprintable() else printable(text)


def _escape_text(match: re.Match[str]) -> str:
    point = ord(match[0])
    if point == 0x5C:
        return "\\\\"
    if 0xDC80 <= point <= 0xDCFF:  # a byte that surrogateescape kept
        return f"\\x{point - 0xDC00:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"
