"""What a program prints to a pipe, made harmless for a terminal that may show it.

A program that has a terminal of its own is heard by `screen`, which lets more through.

Rules
- Printable Unicode, newline, tab and carriage return pass, and so do complete colour sequences
  (`ESC [ digits and semicolons m`, ECMA-48 SGR). Nothing else that a terminal would act on does.
- Every other control character (C0, DEL, C1), bidirectional control, line or paragraph separator,
  character that is never seen, and byte that is not UTF-8 is written out as `\\xNN`, `\\uNNNN` or
  `\\UNNNNNNNN`, so that it is seen and does nothing.
- Text arrives in pieces. A character or a colour sequence cut by the end of a piece waits for the
  next one, never longer than `HELD` bytes; `flush` gives out what waits.
"""

from __future__ import annotations

import codecs
import re

HELD = 32
_OPEN_COLOUR = re.compile(r"\x1b(\[[0-9;]{0,24})?\Z")
_BAD = re.compile(
    "\x1b\\[[0-9;]{0,24}m|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)


def _harmless(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) > 1:
        return text
    point = ord(text)
    if 0xDC80 <= point <= 0xDCFF:
        return f"\\x{point - 0xDC00:02x}"
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


class Terminal:
    """One stream of output; `feed` gives the harmless text of each piece."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """The harmless text of `data` and of what waited before it."""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final and (cut := _OPEN_COLOUR.search(text)) and len(cut[0]) <= HELD:
            text, self._held = text[: cut.start()], cut[0]
        return _BAD.sub(_harmless, text)

    def flush(self) -> str:
        """What still waits, at the end of the stream."""
        return self.feed(b"", final=True)
