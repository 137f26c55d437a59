"""The letters of which paths and names are made, and which words of them a request can name.

Rules
- A *letter* is what a path is read by: a byte of a file's name, a character of a name, one character
  or one whole percent escape of a URL's path. `SEP` (0) stands between segments.
- A letter has its spelling as it stands (`raw`) and the byte that a server decodes it to (`byte`); an
  encoded slash or backslash decodes to a separator, as rules that forbid see it.
- A *universe* accepts the words that `resources.parse` can give. It may accept more, never less:
  then a proof holds for more than there is, and a witness that can't be asked for is thrown away by
  whoever asks the real policy about it. What it leaves out: lengths, and dots that show themselves
  only to a server that decodes more than once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

SEP: Final = 0
DEAD: Final = 0
"""The state of every automaton from which nothing is accepted any more."""

_NICE = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Alphabet:
    """Letters by number, 1 and up. `order` is the order in which a witness prefers them."""

    __slots__ = ("by_byte", "by_raw", "byte", "order", "raw", "weight")

    def __init__(self, letters: list[tuple[bytes, int]]) -> None:
        self.raw: list[bytes] = [b"/"]
        self.byte: list[int] = [SEP]
        self.by_raw: dict[bytes, int] = {}
        self.by_byte: dict[int, list[int]] = {}
        for raw, byte in letters:
            number = len(self.raw)
            self.raw.append(raw)
            self.byte.append(byte)
            self.by_raw[raw] = number
            self.by_byte.setdefault(byte, []).append(number)
        self.weight = [len(raw) for raw in self.raw]
        nice = {ord(char): place for place, char in enumerate(_NICE)}
        self.order = sorted(
            range(1, len(self.raw)),
            key=lambda n: (self.weight[n], nice.get(self.raw[n][0], 256 + self.raw[n][0]), n),
        )

    def text(self, word: tuple[int, ...]) -> bytes:
        """A word as it is spelled, a slash for each separator."""
        return b"".join(self.raw[letter] for letter in word)


class Universe(Protocol):
    """A deterministic automaton; its `letters` are those that it tells apart from the rest."""

    start: int

    def row(self, state: int) -> tuple[int, Mapping[int, int]]:
        """Where every other letter leads, and where these do."""

    def end(self, state: int) -> bool:
        """Whether a word may end here."""


class _Table:
    """An automaton whose rows are worked out when they are asked for."""

    start = 1

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, dict[int, int]]] = {}

    def row(self, state: int) -> tuple[int, Mapping[int, int]]:
        found = self._rows.get(state)
        if found is None:
            found = self._rows[state] = self._row(state)
        return found

    def _row(self, state: int) -> tuple[int, dict[int, int]]:
        raise NotImplementedError


_FILE_BYTES = [b for b in range(0x20, 0x100) if b not in (0x2F, 0x7F)]
FILE: Final = Alphabet([(bytes((b,)), b) for b in _FILE_BYTES])

_PATH_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@"
_UNRESERVED = frozenset(_PATH_SAFE[:66])
_SLASHES = frozenset(b"/\\")
URL: Final = Alphabet(
    [(bytes((b,)), b) for b in _PATH_SAFE]
    + [
        (b"%%%02X" % b, SEP if b in _SLASHES else b)
        for b in range(0x20, 0x100)
        if b not in _UNRESERVED and b != 0x7F
    ]
)

_NAME_FIRST = frozenset(_NICE.encode())
_NAME_BYTES = sorted(_NAME_FIRST | frozenset(b"._:/@+-"))
NAMES: Final = Alphabet([(bytes((b,)), b) for b in _NAME_BYTES])
PLAIN_NAME: Final = _NAME_FIRST | frozenset(b"._-")
MODEL_NAME: Final = frozenset(_NAME_BYTES)


class Files(_Table):
    """Absolute paths: no empty, `.` or `..` segment, no control character (C1 stands in two bytes)."""

    _ROOT, _EMPTY, _DOT, _DOTS, _MORE, _LEAD = range(1, 7)

    def end(self, state: int) -> bool:
        return state in (self._ROOT, self._MORE, self._LEAD)

    def _row(self, state: int) -> tuple[int, dict[int, int]]:
        if state == DEAD:
            return DEAD, {}
        if state == self._ROOT:
            return DEAD, {SEP: self._EMPTY}
        lead, dot = FILE.by_raw[b"\xc2"], FILE.by_raw[b"."]
        special = {lead: self._LEAD}
        special[SEP] = self._EMPTY if state in (self._MORE, self._LEAD) else DEAD
        if state == self._EMPTY:
            special[dot] = self._DOT
        elif state == self._DOT:
            special[dot] = self._DOTS
        elif state == self._LEAD:
            special.update(
                dict.fromkeys((FILE.by_raw[bytes((b,))] for b in range(0x80, 0xA0)), DEAD)
            )
        return self._MORE, special


class Paths(_Table):
    """Paths of URLs: a slash first, no empty segment but the last, no dots, decoded once or not."""

    _NONE, _START, _DOT, _DOTS, _MORE, _AFTER = range(1, 7)

    def end(self, state: int) -> bool:
        return state in (self._START, self._MORE, self._AFTER)

    def _row(self, state: int) -> tuple[int, dict[int, int]]:
        if state == DEAD:
            return DEAD, {}
        if state == self._NONE:
            return DEAD, {SEP: self._START}
        dots = state in (self._DOT, self._DOTS)
        special = {SEP: DEAD if dots or state == self._START else self._START}
        for raw in (b"%2F", b"%5C"):
            special[URL.by_raw[raw]] = DEAD if dots else self._AFTER
        if dots:
            special[URL.by_raw[b";"]] = special[URL.by_raw[b"%3B"]] = DEAD
        if state in (self._START, self._AFTER):
            special[URL.by_raw[b"."]] = self._DOT
        elif state == self._DOT:
            special[URL.by_raw[b"."]] = self._DOTS
        return self._MORE, special


class Names(_Table):
    """One name: a letter or digit, then what `allowed` holds, at most 128 characters."""

    def __init__(self, allowed: frozenset[int]) -> None:
        super().__init__()
        self._first = {NAMES.by_raw[bytes((b,))] for b in _NAME_FIRST}
        self._refused = {NAMES.by_raw[bytes((b,))]: DEAD for b in _NAME_BYTES if b not in allowed}
        self._not_first = {
            letter: DEAD for letter in range(1, len(NAMES.raw)) if letter not in self._first
        }

    def end(self, state: int) -> bool:
        return state > 2

    def _row(self, state: int) -> tuple[int, dict[int, int]]:
        if state in (DEAD, 1):
            return DEAD, {SEP: 2} if state else {}
        if state >= 130:
            return DEAD, {}
        return state + 1, {SEP: DEAD, **(self._not_first if state == 2 else self._refused)}
