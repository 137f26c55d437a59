"""Applying what a dry run kept: each change is asked for again and made in one piece.

Rules
- First everything is compared: a path that is not as it was when the run changed it refuses the whole,
  and nothing is done.
- Then each change is a request of a run of its own, under the same policy and with the label that the
  dry run had in the end: judged anew, recorded, and performed as any request is. Files are replaced
  atomically. The first one that is refused ends it; what was done until then stands in the log.
- What the dry run wrote in its own repository, and only that, is asked for as the run's own: there it
  was judged when it was written, and nothing has touched it since.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from authority.compat.base import Door, Failed, Refused
from authority.effects.beneath import Beneath, Untouchable
from authority.effects.overlay_changes import Change
from authority.effects.overlay_table import Table, before_of
from authority.effects.tree import Tree
from authority.errors import AuthorityError
from authority.kernel.canonical import printable
from authority.kernel.policy_persist import OWN
from authority.kernel.requests import FsAttributes, FsMkdir, FsSymlink, FsWrite, Nothing
from authority.kernel.resources import Resource, parse

FILE_MOST = 64 * 1024 * 1024


class NotApplied(AuthorityError):
    """The changes, or the rest of them, were not made."""


def conflicts(beneath: Beneath, table: Table, found: list[Change]) -> list[str]:
    """What is not as it was when the dry run changed it, for a person."""
    tree = Tree(beneath, os.fsencode(table.base))
    try:
        return [printable(c.path, 400) for c in found if not _as_it_was(tree, c)]
    finally:
        tree.close()


def _as_it_was(tree: Tree, change: Change) -> bool:
    try:
        with tree.look(change.path) as now:
            if change.before is None:
                return False
            was = before_of(now.status)
            return was == change.before or (
                was.kind == change.before.kind == stat.S_IFDIR and was.ino == change.before.ino
            )
    except (FileNotFoundError, NotADirectoryError):
        return change.before is None
    except (OSError, Untouchable):
        return False


class Apply:
    """Makes the changes of one overlay, at the door of a run that was begun for it."""

    def __init__(self, door: Door, beneath: Beneath, store: Path, own: frozenset[str]) -> None:
        self._door = door
        self._beneath = beneath
        self._upper = os.fsencode(store / "upper")
        self._own = own

    async def apply(self, table: Table, found: list[Change]) -> int:
        """Make all changes; how many. Raises `NotApplied`."""
        if changed := conflicts(self._beneath, table, found):
            raise NotApplied(
                f"changed meanwhile: {', '.join(changed[:10])}",
                "nothing was done; look at the diff, and run again",
            )
        tree = Tree(self._beneath, os.fsencode(table.base))
        try:
            for number, change in enumerate(found):
                resource = parse("fs.write", os.path.join(os.fsencode(table.base), change.path))
                try:
                    await self._one(tree, change, resource)
                except (Refused, Failed) as no:
                    raise NotApplied(
                        f"{printable(resource.text, 300)}: {no.sentence}",
                        f"{number} of {len(found)} changes were made; the rest is kept",
                    ) from None
        finally:
            tree.close()
        return len(found)

    async def _one(self, tree: Tree, change: Change, resource: Resource) -> None:
        verb = OWN if resource.text in self._own else ""
        ask = self._door.ask
        replaced = change.before is not None and (
            change.now is None or change.before.kind != _KIND[change.kind] or change.kind == "link"
        )
        if replaced:
            await ask("fs.delete", resource, Nothing(), verb)
        if change.now is None:
            return
        full = os.path.join(self._upper, change.path)
        if change.kind == "directory":
            await ask("fs.mkdir", resource, FsMkdir(), verb)
        elif change.kind == "link":
            await self._link(tree, change.path, resource, os.readlink(full))
            return
        else:
            await ask("fs.write", resource, FsWrite(data=_read(full, resource)), verb)
        await self._mode(tree, change, resource, verb)

    async def _link(self, tree: Tree, path: bytes, resource: Resource, text: bytes) -> None:
        flow = await self._door.open("fs.symlink", resource, FsSymlink(printable(text, 4096)))
        try:
            tree.symlink(path, text)
        except OSError as error:
            await flow.finish("failed")
            raise Failed(str(error.strerror)) from None
        await flow.finish("done", facts={"created": True})

    async def _mode(self, tree: Tree, change: Change, resource: Resource, verb: str) -> None:
        assert change.now is not None
        mode = change.now[0] & 0o777
        with tree.look(change.path) as found:
            if found.status.st_mode & 0o777 == mode:
                return
            identity = found.identity
        flow = await self._door.open("fs.attributes", resource, FsAttributes(mode=mode), verb)
        try:
            tree.chmod(change.path, mode, identity)
        except OSError as error:
            await flow.finish("failed")
            raise Failed(str(error.strerror)) from None
        await flow.finish("done")


_KIND = {"file": stat.S_IFREG, "link": stat.S_IFLNK, "directory": stat.S_IFDIR}


def _read(path: bytes, resource: Resource) -> bytes:
    if os.lstat(path).st_size > FILE_MOST:
        raise Failed(f"{printable(resource.text, 300)} has more than {FILE_MOST >> 20} MiB")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read()
