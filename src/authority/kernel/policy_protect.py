"""Built-in denials: files that no rule of any policy can open.

Pure. Rules
- At and below a path of `no_access` nothing is allowed, at and below one of `no_write` nothing that
  writes. What lies above a protected path may not be renamed or deleted, which would move it.
- `/proc`, `/sys` and `/dev` are always out of reach: opened by the gate, they show and steer the
  gate's own process and the machine, not the run.
- A rule that begins at or below a protected path could never hold, so it is an error. A broad rule
  above one simply does not reach it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from authority.kernel.resource_files import file_segments, file_text

PSEUDO: Final = ("fs:/proc", "fs:/sys", "fs:/dev")
_HERE: Final = ""


class PathSet:
    """Paths, as a trie: is something at or below one of them, or above one?"""

    __slots__ = ("_root", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted(set(texts)))
        self._root: dict[str, dict] = {}  # type: ignore[type-arg]
        for text in self.texts:
            node = self._root
            for segment in file_segments(text, None):
                node = node.setdefault(segment, {})
            node[_HERE] = {}  # no file is called so

    def covers(self, segments: tuple[str, ...]) -> bool:
        """Whether the path is one of these, or below one."""
        node = self._root
        for segment in segments:
            if _HERE in node:
                return True
            following = node.get(segment)
            if following is None:
                return False
            node = following
        return _HERE in node

    def above(self, segments: tuple[str, ...]) -> bool:
        """Whether one of these is at or below the path."""
        node = self._root
        for segment in segments:
            following = node.get(segment)
            if following is None:
                return False
            node = following
        return bool(node)


class Protection:
    """What is denied whatever the rules say."""

    __slots__ = ("no_access", "no_write")

    def __init__(self, no_access: Iterable[str] = (), no_write: Iterable[str] = ()) -> None:
        self.no_access = PathSet((*PSEUDO, *no_access))
        self.no_write = PathSet(no_write)

    def denies(self, segments: tuple[str, ...], *, writes: bool, moves: bool) -> str:
        """Why the path is out of reach, or nothing."""
        if self.no_access.covers(segments):
            return "no run reaches this: it belongs to Authority, its keys or the machine"
        if writes and self.no_write.covers(segments):
            return "no run writes here: a policy, a tool or an installation lives there"
        if moves and (self.no_access.above(segments) or self.no_write.above(segments)):
            return "a protected file lies below"
        return ""


def path_text(path: str | bytes) -> str:
    """An absolute real path as canonical text. Raises `ResourceError`."""
    return file_text(file_segments(path, None))
