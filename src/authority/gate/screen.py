"""What a program writes to a terminal of its own, made harmless for the person's.

A state machine over characters, without input or output of its own. Bytes go in as they come, in
pieces cut anywhere; what comes out does not depend on where they were cut.

Rules
- Printable Unicode passes, and of the C0 controls bell, backspace, tab, line feed, vertical tab, form
  feed, carriage return and the two character-set shifts. Every other control is dropped: so are the
  C1 controls, as bytes or as Unicode, bytes that are not UTF-8 (shown as U+FFFD), and characters that
  only reorder or hide text.
- A sequence is held until it is whole. Then `sequences` says what passes of it, and it is written out
  anew from its parts. One that is broken off by a control, by the start of another, by a character
  that has no place in it, or that grows longer than `LONGEST`, is dropped, and what broke it off is
  read as if it stood alone.
- Strings (OSC, DCS, SOS, PM, APC) are dropped whatever they hold, and none of their bytes is kept. A
  string ends with ST, with any other escape, with CAN or SUB, an OSC with BEL too; and one longer than
  `LONGEST_STRING` at the next line, so that no program's output disappears for good behind an opening
  that was never closed.
- `flush` drops what is unfinished and gives the sequence that undoes what the program switched.
"""

from __future__ import annotations

import codecs
import re
from enum import Enum
from typing import Final

from authority.gate.sequences import Modes

LONGEST: Final = 96
LONGEST_STRING: Final = 4_096

_HIDDEN: Final = (
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f\U000e0100-\U000e01ef"
)
"""Characters that reorder text or are not seen: bidirectional controls, separators, tags, selectors."""

_DROPPED: Final = re.compile(f"[\x00-\x06\x10-\x1a\x1c-\x1f\x7f-\x9f{_HIDDEN}]")
_STRING_END: Final = re.compile("[\x07\x18\x1a\x1b\n\x9c]")
_CONTROL: Final = re.compile(r"([<=>?]?)([0-9:;]*)([ -/]*)")
_WHOLE: Final = re.compile(r"\x1b\[([<=>?]?)([0-9:;]{0,64})([ -/]{0,8})([@-~])")
_OPENERS: Final = frozenset("PX^_]")


class _State(Enum):
    GROUND = "text"
    ESCAPE = "after ESC"
    CONTROL = "inside a control sequence"
    STRING = "inside a string"


class Screen:
    """One program's terminal: `feed` what it writes, show what that returns."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = _State.GROUND
        self._held = ""
        self._opener = ""
        self._length = 0
        self.modes = Modes()

    def feed(self, data: bytes, final: bool = False) -> str:
        """What of these bytes, and of those held back before, may be shown now."""
        text = self._decoder.decode(data, final)
        out: list[str] = []
        at = 0
        while at < len(text):
            if self._state is _State.GROUND:
                at = self._ground(text, at, out)
            elif self._state is _State.STRING:
                at = self._string(text, at)
            else:
                at = self._sequence(text, at, out)
        return "".join(out)

    def flush(self) -> str:
        """Nothing more comes: what undoes the modes that are still set."""
        shown = self.feed(b"", final=True)
        self._state, self._held = _State.GROUND, ""
        return shown + self.modes.undo()

    def _ground(self, text: str, at: int, out: list[str]) -> int:
        escape = text.find("\x1b", at)
        stop = len(text) if escape < 0 else escape
        plain = _DROPPED.sub("", text[at:stop])
        if "\x0e" in plain or "\x0f" in plain:
            self.modes.shifted = plain.rfind("\x0e") > plain.rfind("\x0f")
        out.append(plain)
        if escape < 0:
            return stop
        whole = _WHOLE.match(text, escape)
        if whole is not None:  # nearly always: the same as character by character, and faster
            out.append(self.modes.control(whole[1], whole[2], whole[3], whole[4]))
            return whole.end()
        self._state, self._held = _State.ESCAPE, ""
        return stop + 1

    def _string(self, text: str, at: int) -> int:
        """Skip, keeping nothing. An ESC may be the first half of ST; any other begins anew."""
        found = _STRING_END.search(text, at)
        stop = found.start() if found else len(text)
        self._length += stop - at
        if found is None:
            return stop
        end = found[0]
        if end == "\x1b":
            self._state, self._held = _State.ESCAPE, ""
        elif end in "\x18\x1a\x9c" or (end == "\x07" and self._opener == "]"):
            self._state = _State.GROUND
        elif end == "\n" and self._length > LONGEST_STRING:
            self._state = _State.GROUND
            return stop  # the line's end is shown
        return stop + 1

    def _sequence(self, text: str, at: int, out: list[str]) -> int:
        """One character of an escape or control sequence; it is looked at again if it ends one."""
        char = text[at]
        if not " " <= char <= "~":
            self._state = _State.GROUND
            if char == "\x1b":
                self._state, self._held = _State.ESCAPE, ""
                return at + 1
            return at
        if self._state is _State.ESCAPE:
            self._escape(char, out)
        else:
            self._control(char, out)
        return at + 1

    def _escape(self, char: str, out: list[str]) -> None:
        if not self._held and char == "[":
            self._state = _State.CONTROL
        elif not self._held and char in _OPENERS:
            self._state, self._opener, self._length = _State.STRING, char, 0
        elif char < "0":
            self._hold(char)
        else:
            self._state = _State.GROUND
            if len(self._held) < LONGEST:
                out.append(self.modes.escape(self._held + char))

    def _control(self, char: str, out: list[str]) -> None:
        if char < "@":
            self._hold(char)
            return
        self._state = _State.GROUND
        parts = _CONTROL.fullmatch(self._held)
        if parts is not None and len(self._held) < LONGEST:
            out.append(self.modes.control(parts[1], parts[2], parts[3], char))

    def _hold(self, char: str) -> None:
        if len(self._held) < LONGEST:
            self._held += char
