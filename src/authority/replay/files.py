"""The folders of a replay's mounts: what lies outside, as it is, under a private copy of every change.

Rules
- Nothing outside is changed: every mount is an overlay whose upper folder is the replay's own, and goes
  with it.
- What the run made then is hidden: it was not there when the run began. What it gave a name by a
  rename counts as made, when it had not touched that name before.
- A file that was read then, and whose content was kept, is laid into the copy where what lies outside
  was changed since.
- Any other file that was read then must be the one that lies there now. Its identity and size are
  part of the recorded request; that nothing touched it since is told by its change time, which
  nobody can set. A file that was changed since is said to be gone: its content was not kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from authority.compat.base import Folder
from authority.effects.beneath import Beneath
from authority.effects.overlay import Overlay
from authority.effects.tree import Files
from authority.kernel import entries
from authority.kernel.addresses import ResourceError
from authority.kernel.resources import parse_text
from authority.recorded.bodies import Kept, Missing
from authority.recorded.diff import described
from authority.recorded.errors import Divergence
from authority.recorded.recording import Asked, Recording

_MAKES = frozenset({"fs.modify", "fs.mkdir", "fs.symlink", "fs.write", "fs.append"})


class Copies:
    """The overlays of one replay, below `scratch`."""

    def __init__(
        self,
        recording: Recording,
        kept: Kept,
        scratch: Path,
        diverged: Callable[[Divergence], None],
        renewed: Callable[[str], None],
    ) -> None:
        self._scratch = scratch
        self._diverged = diverged
        self._beneath: Beneath | None = None
        self._count = 0
        self._made = _made(recording)
        self._kept = _read(recording, kept)
        self._renewed = renewed
        self.laid: set[str] = set()

    def open(self, folder: Folder) -> Files:
        """The files of a mounted folder."""
        if self._beneath is None:
            self._beneath = Beneath()
        self._count += 1
        store = self._scratch / f"mount-{self._count}"
        store.mkdir(mode=0o700)
        overlay = Overlay(self._beneath, os.fsencode(folder.source), store)
        root = os.fsencode(folder.path).rstrip(b"/") + b"/"
        for path in self._made:
            if path.startswith(root):
                overlay.table.gone.add(path[len(root) :].hex())
        for resource, (asked, data) in self._kept.items():
            path = _path(resource)
            if path.startswith(root) and not _unchanged(path, asked):
                _lay(overlay, path[len(root) :], data)
                self.laid.add(resource)
                self._renewed(resource)
        return overlay

    def close(self) -> None:
        if self._beneath is not None:
            self._beneath.close()
            self._beneath = None

    def check(self, found: Asked, dev: int, ino: int) -> bool:
        """Whether the file that is opened now still has the content that it had then."""
        if found.verdict.resource in self.laid:
            return True
        path = _path(found.verdict.resource)
        try:
            status = os.lstat(path)
        except OSError:
            return True  # one of the replay's own
        if (status.st_dev, status.st_ino) != (dev, ino):
            return True
        if status.st_ctime_ns // 1000 < found.verdict.time:
            return True
        self._diverged(
            Divergence(
                found.seq,
                "a file that was changed since",
                f"{described(found.verdict)} as it was then",
                "it was changed after this entry, and its content was not kept",
            )
        )
        return False


def _unchanged(path: bytes, asked: Asked) -> bool:
    """Whether what lies there now is what was read then."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_ctime_ns // 1000 < asked.verdict.time


def _lay(overlay: Overlay, path: bytes, data: bytes) -> None:
    """Put a file with this content at a path of the private copy."""
    names = path.split(b"/")
    for depth in range(1, len(names)):
        above = b"/".join(names[:depth])
        try:
            overlay.look(above).close()
        except FileNotFoundError:
            overlay.mkdir(above, 0o755)
    try:
        overlay.look(path).close()
        fd = overlay.open(path, os.O_RDWR)
        os.ftruncate(fd, 0)
    except FileNotFoundError:
        fd = overlay.create(path, os.O_WRONLY, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def _read(recording: Recording, kept: Kept) -> dict[str, tuple[Asked, bytes]]:
    """Files that were read before the run changed them, and whose content was kept."""
    found: dict[str, tuple[Asked, bytes]] = {}
    changed: set[str] = set()
    for asked in recording.requests():
        verdict, outcome = asked.verdict, asked.outcome
        if verdict.effect in _MAKES or verdict.effect in ("fs.rename", "fs.link"):
            changed.update((verdict.target or verdict.resource, verdict.resource))
        if verdict.effect != "fs.open" or outcome is None or outcome.result is None:
            continue
        if outcome.status != "done" or verdict.resource in changed | found.keys():
            continue
        with contextlib.suppress(Missing):
            found[verdict.resource] = (asked, kept.read(outcome.result))
    return found


def _path(resource: str) -> bytes:
    try:
        return parse_text(resource).path
    except ResourceError:
        return b""


def _made(recording: Recording) -> list[bytes]:
    """Paths that the run made: the first that it did to them was to make them."""
    seen: dict[str, bool] = {}
    for asked in recording.requests():
        verdict, outcome = asked.verdict, asked.outcome
        if not isinstance(verdict, entries.Admit) or outcome is None:
            continue
        if verdict.effect == "fs.rename" and outcome.status == "done":
            seen.setdefault(verdict.target, True)
        elif verdict.resource.startswith("fs:") and verdict.effect in _MAKES:
            made = outcome.status == "done" and bool(outcome.facts.get("created"))
            seen.setdefault(verdict.resource, made)
        elif verdict.effect in ("fs.open", "fs.read") and outcome.status == "done":
            seen.setdefault(verdict.resource, False)
    return [path for name, made in seen.items() if made and (path := _path(name))]
