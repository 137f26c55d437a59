"""Which control sequences of a full-screen program a person's terminal may see, and how to undo them.

Tables and pure functions; `screen` cuts the sequences out of the stream and asks here.

Rules
- What is not listed is dropped. Listed is what moves the cursor, colours, erases, scrolls, inserts
  and deletes, sets tabs and margins, draws lines, and the modes of `MODES`.
- Nothing that makes a terminal *answer* is listed (device attributes, status and mode queries, colour
  and capability queries): an answer arrives as typed input, and would be read by whatever runs next.
- Nothing that reaches beyond the grid is listed: titles, clipboard, links, notifications, files,
  printing, window operations, the keyboard's own protocols, the character coding, 8-bit controls.
- What was on the terminal before is the person's: neither the scroll-back (`CSI 3 J`) nor the whole
  terminal (`ESC c`) can be wiped.
- A number above `LARGEST` is no position on any screen, and drops its sequence. Repeating a character
  is bounded by `LONGEST_REPEAT`, so that a few bytes can't become a flood.
- Whatever was switched from its default can be switched back: `Modes.undo` says how. What is saved with
  the cursor comes back with it, also with the one that leaving the alternate screen restores: what was
  not plain when it was saved is undone once more behind everything else.

Sources: ECMA-48; DEC VT510 reference; XTerm Control Sequences (invisible-island.net).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

LARGEST: Final = 65_535
LONGEST_REPEAT: Final = 4_096
MOST_PARAMETERS: Final = 32

MODES: Final[dict[int, bool]] = {
    1: False,  # cursor keys send application codes
    5: False,  # whole screen reversed (a visible bell)
    6: False,  # positions count from the scroll region
    7: True,  # lines wrap
    12: False,  # the cursor blinks
    25: True,  # the cursor is seen
    47: False,  # alternate screen, three ways
    1047: False,
    1049: False,
    66: False,  # keypad sends application codes
    1000: False,  # the mouse: buttons, drags, moves, and the form of its reports
    1002: False,
    1003: False,
    1006: False,
    1007: False,  # the wheel sends arrows on the alternate screen
    2004: False,  # pasted text is marked as such
    2026: False,  # show nothing until the picture is whole
}
"""DEC private modes that pass, with what they are at the start. Not here, so dropped: 3 and 40 (resize
the window), 69 (changes what `CSI s` means), 1001 (hangs a terminal whose program does not answer),
1004, 2031 and 2048 (report what the person or the window does), 1034 (changes the coding of keys)."""

_SAVE_CURSOR = 1048
_SAVING: Final = (_SAVE_CURSOR, 1049)
_WITH_CURSOR: Final = (6, 7)
_ORDER: Final = (2026, 1000, 1002, 1003, 1006, 1007, 2004, 1, 66, 5, 12, 25, 47, 1047, 1049)
"""In which the others are undone: the alternate screen last, so that the rest is seen on neither."""
_USUAL_TABS: Final = "\x1b7\r\x1b[3g" + "\x1b[8C\x1bH" * 64 + "\x1b8"
"""A tab stop every eight columns, of 512; what lies beyond the edge falls on the last column."""

_NUMBERS = re.compile(r"[0-9]{0,5}(?:;[0-9]{0,5})*\Z")
_COLOURS = re.compile(r"[0-9]{0,5}(?:[;:][0-9]{0,5})*\Z")

_COUNTED: Final = frozenset("@ABCDEFGIJKLMPSTXZ`abdefgHru")
_MOST: Final = {"H": 2, "f": 2, "r": 2, "u": 0}
_ONLY: Final = {"J": {0, 1, 2}, "K": {0, 1, 2}, "g": {0, 3}, "h": {4}, "l": {4}}

PLAIN_ESCAPES: Final = frozenset("78DEMH=>")
"""ESC and one character: save and restore the cursor, index, next line, tab stop, reverse index, the
keypad's two modes."""
CHARACTER_SETS: Final = frozenset(f"{slot}{name}" for slot in "()*+" for name in "0AB")
"""Line drawing, British, ASCII into one of the four slots. Not `%` (the coding as a whole)."""


@dataclass
class Modes:
    """What a program switched on its terminal and did not switch back."""

    changed: dict[int, bool] = field(default_factory=dict)
    inserts: bool = False
    keypad: bool = False
    characters: dict[str, str] = field(default_factory=dict)
    shifted: bool = False
    coloured: bool = False
    region: bool = False
    cursor: bool = False
    tabs: bool = field(default=False, compare=False)
    saved: dict[str, None] = field(default_factory=dict, compare=False)
    """What undoes all that was not plain when a cursor was saved; what was saved may come back at any
    time, and terminals differ in how many they keep."""

    def undo(self) -> str:
        """The sequence that puts the terminal back; empty when nothing is left. Forgets it."""
        out = [f"\x1b[?{n}{_letter(MODES[n])}" for n in _ORDER[:1] if n in self.changed]
        out += self._with_cursor()
        if self.inserts:
            out.append("\x1b[4l")
        if self.keypad:
            out.append("\x1b>")
        if self.region:
            out.append("\x1b7\x1b[r\x1b8")
        if self.cursor:
            out.append("\x1b[0 q")
        if self.tabs:
            out.append(_USUAL_TABS)
        out += [f"\x1b[?{n}{_letter(MODES[n])}" for n in _ORDER[1:] if n in self.changed]
        out += self.saved
        self.changed, self.characters, self.saved = {}, {}, {}
        self.inserts = self.keypad = self.shifted = self.tabs = False
        self.coloured = self.region = self.cursor = False
        return "".join(out)

    def _with_cursor(self) -> list[str]:
        """What undoes that which a terminal saves and restores together with the cursor."""
        out = ["\x1b[0m"] if self.coloured else []
        if self.shifted:
            out.append("\x0f")
        out += [f"\x1b{slot}B" for slot in self.characters]
        return out + [f"\x1b[?{n}{_letter(MODES[n])}" for n in _WITH_CURSOR if n in self.changed]

    def _save(self) -> None:
        self.saved |= dict.fromkeys(self._with_cursor())

    def escape(self, body: str) -> str:
        """What passes of `ESC body`: all of it, or nothing."""
        if body in CHARACTER_SETS:
            self.characters.pop(body[0], None)
            if body[1] != "B":
                self.characters[body[0]] = body[1]
        elif body in PLAIN_ESCAPES:
            if body in "=>":
                self.keypad = body == "="
            elif body == "7":
                self._save()
            elif body == "H":
                self.tabs = True
        else:
            return ""
        return f"\x1b{body}"

    def control(self, prefix: str, parameters: str, between: str, final: str) -> str:
        """What passes of `CSI prefix parameters between final`: all, some modes, or nothing."""
        if prefix or between:
            return self._marked(prefix, parameters, between, final)
        if final == "m":
            return self._colour(parameters)
        values = _values(parameters)
        if values is None:
            return ""
        if final in _ONLY and not set(values or [0]) <= _ONLY[final]:
            return ""
        if final in "hl":
            if not values:
                return ""
            self.inserts = final == "h"
        elif final == "s":
            if values:
                return ""
            self._save()
        elif final not in _COUNTED or len(values) > _MOST.get(final, 1):
            return ""
        elif final == "r":
            self.region = bool(values)
        elif final == "g":
            self.tabs = True
        elif final == "b" and values and values[0] > LONGEST_REPEAT:
            return ""
        return f"\x1b[{parameters}{final}"

    def _marked(self, prefix: str, parameters: str, between: str, final: str) -> str:
        values = _values(parameters)
        if values is None:
            return ""
        match prefix, between, final:
            case "?", "", "h" | "l":
                return self._modes(values, on=final == "h")
            case "", "!", "p" if not values:
                self.changed[7] = False  # a soft reset, which on some terminals ends the wrapping
            case "", " ", "q" if len(values) <= 1 and (not values or values[0] <= 6):
                self.cursor = bool(values and values[0])
            case _:
                return ""
        return f"\x1b[{parameters}{between}{final}"

    def _modes(self, values: list[int], *, on: bool) -> str:
        passed = [n for n in values if n in MODES or n == _SAVE_CURSOR]
        for n in passed:
            if on and n in _SAVING:
                self._save()
            if n == _SAVE_CURSOR:
                continue
            if MODES[n] == on:
                self.changed.pop(n, None)
            else:
                self.changed[n] = on
        return f"\x1b[?{';'.join(map(str, passed))}{'h' if on else 'l'}" if passed else ""

    def _colour(self, parameters: str) -> str:
        if not _COLOURS.match(parameters) or parameters.count(";") >= MOST_PARAMETERS:
            return ""
        self.coloured = parameters.strip("0;") != ""
        return f"\x1b[{parameters}m"


def _letter(on: bool) -> str:
    return "h" if on else "l"


def _values(parameters: str) -> list[int] | None:
    """The numbers; none for no parameters, None for what is not a list of small numbers."""
    if not parameters:
        return []
    if not _NUMBERS.match(parameters) or parameters.count(";") >= MOST_PARAMETERS:
        return None
    values = [int(text or 0) for text in parameters.split(";")]
    return values if max(values) <= LARGEST else None
