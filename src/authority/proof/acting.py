"""Paths that act later (`policy_persist`) as an automaton: is a path one, by its first names?

Rules
- `Acting(effect, but, at)` holds of a path when `persistent(effect, path)` says what it is, in its
  first `at` names at most; `but` names what is left out: `OWN`, what may be written in one's own
  repository and folders, or `FILLED`, what may be in a folder of `process.exec_from`.
- The names themselves are read from `policy_persist`, and compared without regard to case, as there
  (the Kelvin sign is a `k` in lower case, the only character that is not ASCII and becomes so).
- What is kept of a path is: how many names there were (as far as it matters), the last one, where in a
  repository it is, and what was found first. So it is exact, and finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from authority.kernel import policy_persist as persist
from authority.kernel.policy_persist import Kind
from authority.proof.alphabets import DEAD, FILE, SEP

MAKES, REMOVES, CHANGES = "makes", "removes", "changes"
NOTHING, OWN, FILLED = "", "own", "filled"
NEVER: Final = 1 << 20
"""A number of names that no path has."""
_KELVIN: Final = "\u212a".encode()
_GIT: Final = frozenset({".git", "hooks", "worktrees", "modules"})
_WORDS: Final = frozenset(
    {*persist._FOLDERS, *persist._FILES, *persist._GIT_FILES, *persist._PYTHON}
    | {*persist._PYTHON_PACKAGES, *_GIT, "bin", "scripts"}
    | {name for pair in persist._PAIRS for name in pair}
)
_PREFIXES: Final = frozenset(word[:end] for word in _WORDS for end in range(len(word) + 1))
_FOLLOWING: Final = {
    text: {word[len(text)] for word in _WORDS if word.startswith(text) and word != text}
    for text in _PREFIXES
}
_MARKS: Final = ("activate", ".pth")
_OTHER, _ACTIVATE, _PTH, _BOTH = "/", "/activate", "/.pth", "/activate.pth"
"""Names that are in no list: a name holds no slash, so these are none."""


def effect_class(effect: str) -> str:
    """What of an effect matters here."""
    if effect in persist._MAKES_DIRECTORIES:
        return MAKES
    return REMOVES if effect in persist._REMOVES else CHANGES


class Acting(NamedTuple):
    """The question. `at`: in how many first names it has to be decided (`NEVER`: any)."""

    effect: str
    but: str
    at: int

    @property
    def steps(self) -> tuple[Any, int]:
        """What it has in common with others that hold if it does, and its place among them."""
        return (self.effect, self.but), self.at

    def machine(self) -> ActingAutomaton:
        """Its automaton."""
        return ActingAutomaton(self)


class _Name(NamedTuple):
    """A name so far, in lower case: `text` while it may become a word, and the marks it bears."""

    text: str | None = ""
    activate: int = 0
    tail: str = ""
    kelvin: int = 0


class _Path(NamedTuple):
    """Names that are over, and how many. `scripts`: the last but one holds programs. `found`: the
    kind and place of what ends the reading. `inside`: the place of `.git`; `below`: what matters of
    the names after it."""

    names: int = 0
    last: str = ""
    scripts: bool = False
    found: tuple[str, int] | None = None
    inside: int = -1
    below: tuple[Any, ...] = ()


class ActingAutomaton:
    """The automaton of one question, over the letters of files."""

    def __init__(self, asked: Acting) -> None:
        self._asked = asked
        # Beyond what is asked about, one number of names is as good as another.
        self._cap = 1 if asked.at == NEVER else asked.at + 1
        self._states: list[tuple[_Path, _Name | None] | None] = [None]
        self._numbers: dict[Any, int] = {None: DEAD}
        self.start = self._number((_Path(), None))
        self._rows: dict[int, tuple[int, dict[int, int]]] = {DEAD: (DEAD, {})}

    def _number(self, state: tuple[_Path, _Name | None]) -> int:
        path, name = state
        if path.found is not None:
            if path.found[1] > self._asked.at:
                return DEAD
            # What was found first stays, whatever follows.
            state = (_Path(found=path.found), _Name(None, -1, "") if name is not None else None)
        elif path.inside < 0 and path.names > self._asked.at:
            return DEAD
        found = self._numbers.get(state)
        if found is None:
            found = self._numbers[state] = len(self._states)
            self._states.append(state)
        return found

    def row(self, state: int) -> tuple[int, Mapping[int, int]]:
        """Where every other letter leads, and where these do."""
        found = self._rows.get(state)
        if found is None:
            found = self._rows[state] = self._row(state)
        return found

    def end(self, state: int) -> bool:
        """Whether the path is one that acts later."""
        here = self._states[state]
        if here is None:
            return False
        path, name = here
        kept = self._whole(self._closed(path, name) if name is not None else path)
        if kept is None or (self._asked.but == OWN and kept[0] != Kind.ALWAYS):
            return False
        if self._asked.but == FILLED and kept[0] == Kind.FOLDER:
            return False
        return kept[1] <= self._asked.at

    def _row(self, state: int) -> tuple[int, dict[int, int]]:
        here = self._states[state]
        assert here is not None
        path, name = here
        if name is None:
            return DEAD, {SEP: self._number((path, _Name()))}
        default = self._number((path, _next(name, 0)))
        special = {SEP: self._number((self._closed(path, name), _Name()))}
        for byte in _telling(name):
            if (letter := FILE.by_raw.get(bytes((byte,)))) is not None:
                special[letter] = self._number((path, _next(name, byte)))
        return default, special

    def _closed(self, path: _Path, name: _Name) -> _Path:
        """The path with one name more."""
        word = _word(name)
        at = min(path.names, self._cap)
        found, inside, below = path.found, path.inside, path.below
        if found is None:
            if word in persist._FOLDERS or (at and (path.last, word) in persist._PAIRS):
                found = (Kind.ALWAYS, at + 1)
            elif word in persist._PYTHON_PACKAGES:
                found = (Kind.FOLDER, at + 1)
        if inside >= 0:
            below = _below(below, word, at)
        elif word == ".git":
            inside = at
        scripts = path.last == "scripts"
        last = _kind_of(word) if found is None else ""
        return _Path(min(at + 1, self._cap), last, scripts, found, inside, below)

    def _whole(self, path: _Path) -> tuple[str, int] | None:
        """What `persistent` says of a path that ends here."""
        if path.found is not None:
            return path.found
        if path.inside >= 0:
            return self._repository(path)
        if not path.names:
            return None
        if path.last == "file":
            return Kind.ALWAYS, path.names
        if path.last == "python" or (path.last == "activate" and path.scripts):
            return Kind.FOLDER, path.names
        return None

    def _repository(self, path: _Path) -> tuple[str, int] | None:
        if not path.below:
            if self._asked.effect in (MAKES, REMOVES):
                return None
            return Kind.REPOSITORY, path.inside + 1
        _, hooks, single = path.below
        at = hooks if hooks >= 0 else single
        return (Kind.REPOSITORY, at) if at >= 0 else None


def _telling(name: _Name) -> set[int]:
    """The letters after which a name may still become, or bear, something of the lists."""
    chars = set(_FOLLOWING.get(name.text, "") if name.text is not None else "") | set(_MARKS[1])
    if 0 <= name.activate < len(_MARKS[0]):
        chars.add(_MARKS[0][name.activate])
    return {ord(case) for char in chars for case in (char, char.upper())} | set(_KELVIN)


def _next(name: _Name, byte: int) -> _Name:
    """One letter more; byte 0 stands for one that no list names."""
    if name.kelvin:
        if byte == _KELVIN[name.kelvin]:
            over = name.kelvin == len(_KELVIN) - 1
            return _plain(name._replace(kelvin=0), "k") if over else name._replace(kelvin=2)
        name = _other(name)  # those bytes were something else
    if byte == _KELVIN[0]:
        return name._replace(kelvin=1)
    return _plain(name, chr(byte).lower()) if 0 < byte < 0x80 else _other(name)


def _other(name: _Name) -> _Name:
    """A letter that belongs to no word."""
    return _Name(None, name.activate if name.activate == len(_MARKS[0]) else -1, "")


def _plain(name: _Name, char: str) -> _Name:
    text = None if name.text is None or name.text + char not in _PREFIXES else name.text + char
    activate = name.activate
    if 0 <= activate < len(_MARKS[0]):
        activate = activate + 1 if _MARKS[0][activate] == char else -1
    tail = next(
        (end for n in range(4, 0, -1) if (end := (name.tail + char)[-n:]) == ".pth"[:n]), ""
    )
    return _Name(text, activate, tail)


def _word(name: _Name) -> str:
    if name.kelvin:
        name = _other(name)
    if name.text in _WORDS:
        return name.text or ""
    if name.activate == len(_MARKS[0]):
        return _BOTH if name.tail == ".pth" else _ACTIVATE
    return _PTH if name.tail == ".pth" else _OTHER


_FIRSTS: Final = frozenset(first for first, _ in persist._PAIRS)


def _kind_of(word: str) -> str:
    """What of the last name matters: that it is a file of the lists, or the first of a pair."""
    if word in persist._FILES:
        return "file"
    if word in persist._PYTHON or word in (_PTH, _BOTH):
        return "python"
    if word in ("bin", "scripts"):
        return "scripts"
    return word if word in _FIRSTS else "activate" if word == _ACTIVATE else ""


def _below(below: tuple[Any, ...], word: str, at: int) -> tuple[Any, ...]:
    """(where in the repository, at of a `hooks`, at of a last name that is configuration)."""
    place = below[0] if below else "first"
    hooks = below[1] if below else -1
    single = at + 1 if word in persist._GIT_FILES else -1
    if hooks >= 0:
        return below[0], hooks, -1
    is_hooks = at + 1 if word == "hooks" else -1
    match place:
        case "first":
            if word in ("worktrees", "modules"):
                return word, -1, -1
            return "plain", is_hooks, single
        case "plain":
            return "plain", -1, -1
        case "worktrees":
            return "worktree", -1, -1
        case "worktree":
            return "plain", is_hooks, single
        case "modules":
            return "module", -1, -1
        case _:
            return "module", is_hooks, single
