"""What a program's terminal may show: allowed sequences whole, every other one gone, at any cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authority.gate.screen import LONGEST_STRING, Screen
from authority.gate.sequences import MODES, Modes
from authority.gate.terminal import Terminal


def shown(data: bytes, *cuts: int) -> str:
    """What one screen shows of `data`, fed in pieces."""
    screen = Screen()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return "".join(
        screen.feed(data[a:b], final=b == len(data) and a != b)
        for a, b in itertools.pairwise(edges)
    )


PASSES = [
    "plain text, tab\tand\r\nnew line, bell \x07 backspace \x08",
    "é 漢字 👩\u200d💻 ▁▂▃ \u00a0",
    "\x1b[H\x1b[2J\x1b[10;20H\x1b[;H\x1b[5A\x1b[B\x1b[12C\x1b[D\x1b[3E\x1b[F\x1b[7G\x1b[4d\x1b[2;3f",
    "\x1b[0m\x1b[m\x1b[1;31m\x1b[38;5;196m\x1b[48;2;1;2;3m\x1b[4:3m\x1b[38:2::1:2:3m",
    "\x1b[K\x1b[1K\x1b[2K\x1b[J\x1b[0J\x1b[1J\x1b[3X\x1b[2L\x1b[M\x1b[P\x1b[4@\x1b[3S\x1b[T",
    "\x1b[1;24r\x1b[r\x1b7\x1b8\x1bD\x1bM\x1bE\x1bH\x1b[g\x1b[3g\x1b[2I\x1b[Z\x1b[s\x1b[u",
    "\x1b(0lqqk\x1b(B\x0ex\x0f\x1b)0",
    "\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[?1h\x1b=\x1b[?7l\x1b[4h\x1b[4l\x1b>",
    "\x1b[?1000h\x1b[?1002;1006h\x1b[?2026h\x1b[?2026l",
    "\x1b[4 q\x1b[ q\x1b[!p\x1b[80b",
]

DROPPED = {
    "clipboard": "\x1b]52;c;cm0gLXJmIH4K\x07",
    "clipboard by ST": "\x1b]52;c;?\x1b\\",
    "title": "\x1b]0;sudo password:\x07",
    "hyperlink": "\x1b]8;;http://evil.example/\x1b\\",
    "colours asked": "\x1b]11;?\x07\x1b]4;1;?\x1b\\",
    "notification": "\x1b]9;hello\x07\x1b]777;notify;a;b\x07",
    "file of iTerm": "\x1b]1337;File=name=eA==:AAAA\x07",
    "device attributes": "\x1b[c\x1b[0c\x1b[>c\x1b[=c\x1bZ",
    "status": "\x1b[5n\x1b[6n\x1b[?6n\x1b[?15n\x1b[?996n",
    "mode asked": "\x1b[?2026$p\x1b[4$p",
    "settings asked": '\x1bP$qm\x1b\\\x1bP$q"p\x1b\\',
    "capabilities asked": "\x1bP+q544e\x1b\\",
    "version": "\x1b[>q\x1b[>0q",
    "parameters asked": "\x1b[x\x1b[1x",
    "checksum of the screen": "\x1b[1;1;1;1;10;10*y",
    "answer back": "\x05",
    "device control": "\x1bPq#0;2;0;0;0\x1b\\",
    "application command": "\x1b_Gf=100;AAAA\x1b\\",
    "privacy message, start of string": "\x1b^x\x1b\\\x1bXx\x1b\\",
    "window": "\x1b[8;50;200t\x1b[3;0;0t\x1b[21t\x1b[22;0;0t\x1b[1t",
    "keyboard of kitty": "\x1b[>1u\x1b[=1;1u\x1b[<u\x1b[?u",
    "keyboard of xterm": "\x1b[>4;2m\x1b[?4m",
    "printing": "\x1b[5i\x1b[4i\x1b[?5i",
    "scroll-back": "\x1b[3J",
    "everything": "\x1bc",
    "coding": "\x1b%@\x1b%G",
    "8-bit answers": "\x1b G\x1b F",
    "conformance": '\x1b[61;1"p',
    "focus": "\x1b[?1004h",
    "mouse highlight": "\x1b[?1001h",
    "132 columns": "\x1b[?40h\x1b[?3h",
    "resize reports": "\x1b[?2048h",
    "colour reports": "\x1b[?2031h",
    "left and right margins": "\x1b[?69h\x1b[2;3s",
    "rectangles": "\x1b[1;1;2;2;3;3$v\x1b[65;1;1;9;9$x",
    "locking shifts": "\x1bn\x1bo\x1b|\x1b}\x1b~",
    "single shifts": "\x1bN\x1bO",
    "double size": "\x1b#3\x1b#8",
    "lights": "\x1b[1q",
    "C1 as text": "\x9b31m".replace("31m", "") + "\x9d\x90\x84\x85",
    "other controls": "\x00\x01\x02\x11\x13\x14\x7f",
    "hidden text": "\u202e\u2066\u200b\ufeff\u061c\U000e0041",
    "a number that is none": "\x1b[999999A\x1b[70000;1H\x1b[5000b",
    "parameters of another kind": "\x1b[1:2H\x1b[?1:2h\x1b[1?h",
    "too many parameters": "\x1b[" + "1;" * 40 + "1m",
    "too long": "\x1b[" + "0" * 200 + "m",
    "broken off by another": "\x1b[31\x1b]0;x\x07",
}


@pytest.mark.parametrize("text", PASSES, ids=range(len(PASSES)))
def test_what_a_full_screen_program_needs_passes_unchanged(text: str) -> None:
    assert shown(text.encode()) == text


@pytest.mark.parametrize("name", DROPPED)
def test_what_reaches_beyond_the_screen_is_gone(name: str) -> None:
    assert shown(b"before" + DROPPED[name].encode() + b"after") == "beforeafter"


@pytest.mark.parametrize("name", DROPPED)
def test_it_is_gone_however_it_is_cut(name: str) -> None:
    data = b"before" + DROPPED[name].encode() + b"after"
    assert {shown(data, cut) for cut in range(len(data))} == {"beforeafter"}
    assert shown(data, *range(len(data))) == "beforeafter"


def test_raw_c1_bytes_are_no_controls() -> None:
    assert shown(b"a\x9b31mb\x9d0;t\x9cc") == "a\ufffd31mb\ufffd0;t\ufffdc"


def test_modes_that_pass_are_kept_beside_those_that_do_not() -> None:
    assert shown(b"\x1b[?1004;1049;2031;2004h") == "\x1b[?1049;2004h"


def test_a_control_in_the_midst_ends_the_sequence() -> None:
    assert shown(b"\x1b[3\n1mx") == "\n1mx"
    assert shown(b"\x1b[3\x181mx") == "1mx"
    assert shown("\x1b[3é1mx".encode()) == "é1mx"


def test_a_string_ends_with_any_other_escape() -> None:
    assert shown(b"\x1b]0;title\x1b[31mred") == "\x1b[31mred"
    assert shown(b"\x1bPq...\x18text") == "text"


def test_a_string_that_never_ends_hides_no_more_than_its_lines() -> None:
    screen = Screen()
    assert screen.feed(b"\x1b]52;c;" + b"A" * LONGEST_STRING) == ""
    assert screen.feed(b"AAAA\nseen\n") == "\nseen\n"
    short = Screen()
    assert short.feed(b"\x1b]0;two\nlines\x07seen") == "seen"


def test_a_huge_string_costs_no_memory() -> None:
    screen = Screen()
    for _ in range(64):
        assert screen.feed(b"\x1bP" + b"q" * 65_536) == ""
    assert len(screen._held) <= 8
    assert screen.feed(b"\x1b\\ok") == "ok"


def test_the_end_undoes_what_is_set_and_nothing_else() -> None:
    screen = Screen()
    screen.feed(
        b"\x1b[?1049h\x1b[?25l\x1b[?1000;1006h\x1b[?2004h\x1b[1;31m\x1b=\x1b[2;5r\x1b(0\x1b["
    )
    undone = screen.flush()
    for part in ("\x1b[?1049l", "\x1b[?25h", "\x1b[?1000l", "\x1b[?1006l", "\x1b[?2004l", "\x1b[0m",
                 "\x1b>", "\x1b[r", "\x1b(B"):  # fmt: skip
        assert part in undone
    assert undone.endswith("\x1b[?1049l")
    assert screen.flush() == ""
    tidy = Screen()
    tidy.feed(b"\x1b[?1049h\x1b[?25l\x1b[31mx\x1b[0m\x1b[?25h\x1b[?1049l")
    assert tidy.flush() == ""


class Kept:
    """A terminal as far as it is about what it saves with the cursor, and its tab stops. Some save one
    cursor for each screen, some one for both."""

    def __init__(self, *, each: bool) -> None:
        self._each = each
        self.hidden = self.drawing = self.shifted = self.origin = self.alternate = False
        self._column = 0
        self.tabs = set(range(8, 100, 8))
        self._slots: dict[bool, tuple[bool, ...]] = {}

    @property
    def plain(self) -> bool:
        usual = self.tabs - {99} == set(range(8, 99, 8))
        return usual and not any(self._all) and not self.alternate

    @property
    def _all(self) -> tuple[bool, ...]:
        return self.hidden, self.drawing, self.shifted, self.origin

    def _switch(self, mode: str, on: bool) -> None:
        if mode == "6":
            self.origin = on
        if mode in ("1048", "1049") and on:
            self._slots[False] = self._all
        if mode == "1049":
            self.alternate = on
        if mode in ("1048", "1049") and not on:
            self._restore(False)

    def _restore(self, slot: bool) -> None:
        usual = (False,) * 4
        self.hidden, self.drawing, self.shifted, self.origin = self._slots.get(slot, usual)

    def hears(self, text: str) -> None:
        for prefix, numbers, final, escaped, char in re.findall(
            r"\x1b\[(\??)([0-9;]*)([a-zA-Z])|\x1b([78H]|\(.)|(.)", text, re.DOTALL
        ):
            slot = self._each and self.alternate
            match prefix, final or escaped or char:
                case "?", ("h" | "l") as how:
                    for mode in numbers.split(";"):
                        self._switch(mode, how == "h")
                case _, "m":
                    self.hidden = numbers == "8"
                case _, "(0" | "(B" as name:
                    self.drawing = name == "(0"
                case _, "\x0e" | "\x0f" as name:
                    self.shifted = name == "\x0e"
                case _, "7" | "s":
                    self._slots[slot] = self._all
                case _, "8" | "u":
                    self._restore(slot)
                case _, "g":
                    self.tabs = set() if numbers == "3" else self.tabs - {self._column}
                case _, "H":
                    self.tabs.add(self._column)
                case _, "C":
                    self._column = min(self._column + int(numbers), 99)
                case _, "\r":
                    self._column = 0


LEFT_BEHIND = {
    "hidden text under the other screen": "\x1b[8m\x1b[?1049h\x1b[0m",
    "the same, and the screen is put back": "\x1b[8m\x1b[?1049h\x1b[0m\x1b[?1049l",
    "hidden text": "\x1b[8m\x1b7\x1b[0m\x1b8",
    "hidden text by another name": "\x1b[8m\x1b[s\x1b[0m\x1b[u",
    "and a third": "\x1b[8m\x1b[?1048h\x1b[0m\x1b[?1048l",
    "saved on one screen, restored on the other": "\x1b[8m\x1b7\x1b[0m\x1b[?1049h\x1b8",
    "saved twice": "\x1b[8m\x1b7\x1b[0m\x1b[?1049h\x1b7\x1b[?1049l\x1b8",
    "line drawing": "\x1b(0\x1b7\x1b(B\x1b8",
    "a shift": "\x0e\x1b7\x0f\x1b8",
    "positions in a region": "\x1b[?6h\x1b7\x1b[?6l\x1b8",
    "no tab stops": "\x1b[3g",
    "other tab stops": "\r\x1b[3C\x1bH",
}


@pytest.mark.parametrize("each", [False, True], ids=["one cursor", "one each"])
@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_comes_back_with_a_saved_cursor_is_undone_and_tab_stops_are(
    name: str, each: bool
) -> None:
    screen, terminal = Screen(), Kept(each=each)
    assert terminal.plain
    terminal.hears(screen.feed(LEFT_BEHIND[name].encode()))
    undone = screen.flush()
    terminal.hears(undone)
    assert terminal.plain, undone
    assert problems(undone) == []
    assert screen.flush() == ""


# --- for any bytes ---

PIECES = st.sampled_from(
    [t.encode() for t in [*PASSES, *DROPPED.values()]]
    + [
        b"\x1b",
        b"[",
        b"]",
        b"\\",
        b"?",
        b";",
        b"1",
        b"m",
        b"h",
        b"\x9b",
        b"\xc2",
        b"\x07",
        b"$",
        b"P",
    ]
)
STREAMS = st.lists(PIECES | st.binary(max_size=12), max_size=12).map(b"".join)
HARMLESS = re.compile(
    r"[^\x00-\x06\x10-\x1f\x7f-\x9f]"
    r"|\x1b(?:[78DEMH=>]|[()*+][0AB])"
    r"|\x1b\[[0-9:;]*m"
    r"|\x1b\[[0-9;]*[@ABCDEFGHIJKLMPSTXZ`abdefghlrsu]"
    r"|\x1b\[\?[0-9;]+[hl]|\x1b\[!p|\x1b\[[0-6]? q"
)


def problems(text: str) -> list[str]:
    """Everything in `text` that no terminal of a person should be told; by another grammar."""
    found, at = [], 0
    while at < len(text):
        match = HARMLESS.match(text, at)
        if match is None:
            return [*found, text[at : at + 20]]
        token = match[0]
        if token.startswith("\x1b[?") and not {int(n) for n in token[3:-1].split(";")} <= {
            *MODES, 1048,
        }:  # fmt: skip
            found.append(token)
        if token == "\x1b[3J":
            found.append(token)
        at = match.end()
    return found


@settings(max_examples=400, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 400), max_size=6))
@example(b"\x1b]0;\xc3\x07", [4])
def test_where_it_is_cut_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    assert shown(data, *cuts) == shown(data)


@settings(max_examples=400, deadline=None)
@given(STREAMS)
def test_only_what_is_listed_comes_out(data: bytes) -> None:
    text = shown(data)
    assert problems(text) == []
    assert shown(text.encode()) == text


@settings(max_examples=300, deadline=None)
@given(STREAMS)
def test_after_the_end_no_mode_is_left(data: bytes) -> None:
    screen = Screen()
    text = screen.feed(data)
    text += screen.flush()
    again = Screen()
    again.feed(text.encode())
    assert again.modes == Modes(changed=dict(again.modes.changed))
    assert not any(n != 7 for n in again.modes.changed)


@settings(max_examples=300, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 400), max_size=6))
def test_the_filter_for_pipes_is_cut_anywhere_too(data: bytes, cuts: list[int]) -> None:
    whole = Terminal()
    wanted = whole.feed(data) + whole.flush()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = Terminal()
    got = "".join(pieces.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    assert got + pieces.flush() == wanted
    assert not re.search(r"\x1b(?!\[[0-9;]*m)|[\x00-\x08\x7f-\x9f\U000e0000-\U000e007f]", wanted)


def test_the_problems_are_seen() -> None:
    for name, text in DROPPED.items():
        if name not in {"hidden text", "a number that is none", "too many parameters", "too long",
                        "132 columns"}:  # fmt: skip
            assert problems(text), name
