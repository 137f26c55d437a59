"""What a run made itself: repositories and folders in which it may write what is closed elsewhere.

`kernel.policy_persist` closes the paths that some trusted tool later executes or obeys. In what the
run made itself nobody had trusted anything yet, so some of them open there. This module saw the run
make it, and answers for the conditions.

Rules
- A `.git` counts as the run's own when this gate made it for the run, by that name, in this run; a
  folder likewise. Its inode is held open, so that its number can't become another's meanwhile.
- A repository that gets another name is not the run's own any more: under that name nothing in it is
  closed, and it could come back with anything.
- In an own repository: the configuration gets its name by a rename alone, and only with a text that
  names no program, one name (no hard link) and no open writer; it may be removed and its mode set.
  Hooks are made without an execute bit, get none later, and are no links. Whatever else would make or
  change such a path is refused like anywhere.
- In an own folder: what Python and its environments load by themselves. Not where a folder or a link
  of somebody else was that the run took away: it would only stand in its place.
- Beyond `MOST` of them, further ones are not the run's own: then what is closed stays closed.
- What was written so is listed for the run's end (`written`).
"""

from __future__ import annotations

import errno
import os
import stat

from authority.effects.beneath import Untouchable
from authority.effects.tree import Files, Identity
from authority.kernel import git_config
from authority.kernel.policy_persist import OWN, Kind, Persistent, persistent
from authority.kernel.resources import Resource

MOST = 1000
MOST_LEFT = 100_000
LISTED = 200
_HOOKS = frozenset({"fs.mkdir", "fs.modify", "fs.attributes", "fs.delete", "fs.rename"})
_CONFIG = frozenset({"fs.attributes", "fs.delete", "fs.rename"})
_EXECUTE = 0o111


class Own:
    """The repositories and folders that one run made, over all its mounts."""

    def __init__(self) -> None:
        self._repositories: dict[Identity, int] = {}
        self._folders: dict[Identity, int] = {}
        self._left: set[tuple[str, ...]] = set()
        self.written: dict[str, str] = {}

    def close(self) -> None:
        for fd in (*self._repositories.values(), *self._folders.values()):
            os.close(fd)
        self._repositories.clear()
        self._folders.clear()

    def made(self, files: Files, path: bytes, resource: Resource, inside: bool) -> None:
        """The run made this directory. `inside`: it lies in a folder of its own already."""
        table = self._repositories if resource.segments[-1] == ".git" else self._folders
        if (table is self._folders and inside) or len(table) >= MOST:
            return
        found = files.look(path)
        if not found.is_directory or found.identity in table:
            found.close()
            return
        table[found.identity] = found.fd

    def leave(self, files: Files, *places: tuple[bytes, Resource]) -> None:
        """What lies at these places, if anything, is about to leave them."""
        for path, resource in places:
            self._leaves(files, path, resource)

    def _leaves(self, files: Files, path: bytes, resource: Resource) -> None:
        try:
            with files.look(path) as found:
                identity, mode = found.identity, found.status.st_mode
        except FileNotFoundError:
            return
        replaceable = stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        if replaceable and not (self.folder(identity) or self.in_folder(files, path)):
            if len(self._left) >= MOST_LEFT:
                self._left = {()}  # more than can be remembered: everything was somebody else's
            self._left.add(resource.segments)

    def theirs(self, resource: Resource) -> bool:
        """Whether the run took away what was there, or what that was in."""
        segments = resource.segments
        return any(segments[:depth] in self._left for depth in range(len(segments) + 1))

    def renamed(self, files: Files, path: bytes, target: Resource) -> None:
        """What lies at the path is about to get the name `target`."""
        identity = _identity(files, path)
        if target.segments[-1] != ".git" and identity in self._repositories:
            os.close(self._repositories.pop(identity))

    def repository(self, identity: Identity) -> bool:
        return identity in self._repositories

    def folder(self, identity: Identity) -> bool:
        return identity in self._folders or identity in self._repositories

    def in_folder(self, files: Files, path: bytes) -> bool:
        """Whether a directory above the path is the run's own."""
        names = path.split(b"/")
        return any(
            self.folder(identity)
            for depth in range(1, len(names))
            if (identity := _identity(files, b"/".join(names[:depth]))) is not None
        )

    def verb(self, files: Files, effect: str, path: bytes, resource: Resource) -> str:
        """`OWN` when the policy may let this pass as the run's own, else nothing. May wait for a
        disk, but only for a path that is closed."""
        kept = persistent(effect, resource.segments)
        return OWN if kept is not None and self._opens(files, effect, path, resource, kept) else ""

    def _opens(
        self, files: Files, effect: str, path: bytes, resource: Resource, kept: Persistent
    ) -> bool:
        if kept.kind == Kind.FOLDER:
            return not self.theirs(resource) and self.in_folder(files, path)
        if kept.kind != Kind.REPOSITORY:
            return False
        at = [name.lower() for name in resource.segments].index(".git")
        beneath = len(resource.segments) - at - 1
        names = path.split(b"/")
        if resource.segments[at] != ".git" or beneath >= len(names):
            return False
        identity = _identity(files, b"/".join(names[: len(names) - beneath]))
        if identity is None or identity not in self._repositories:
            return False
        if not beneath:
            return effect == "fs.rename"
        return effect in (_HOOKS if is_hook(resource) else _CONFIG)

    def note(self, resource: Resource, effect: str) -> None:
        """Something that is closed elsewhere was written."""
        kept = persistent(effect, resource.segments)
        if kept is not None and effect != "fs.delete" and len(self.written) < LISTED:
            self.written[resource.text] = kept.what


def is_hook(resource: Resource) -> bool:
    """Whether a path that is closed as a repository's is one of its hooks, or their folder."""
    kept = persistent("fs.modify", resource.segments)
    return bool(kept and kept.what == "a repository's hooks")


def mode_for(resource: Resource, mode: int) -> int:
    """The mode that a new file gets: hooks are never executable."""
    return mode & ~_EXECUTE if is_hook(resource) else mode


def check_mode(resource: Resource, mode: int) -> None:
    """Raises when an execute bit would make a hook."""
    if is_hook(resource) and mode & _EXECUTE:
        raise Untouchable("is a repository's hook, and would become executable")


def check_arrival(
    files: Files, path: bytes, target: Resource, status: os.stat_result, *, writers: bool
) -> None:
    """Whether the regular file at `path` may get the name `target` in an own repository."""
    if not stat.S_ISREG(status.st_mode):
        raise Untouchable("is no regular file, and the name is a repository's configuration")
    if status.st_nlink != 1 or writers:
        raise Untouchable("can still be written by another way, and becomes a configuration")
    if is_hook(target):
        check_mode(target, status.st_mode)
        return
    fd = files.open(path, os.O_RDONLY, (status.st_dev, status.st_ino))
    try:
        data = os.pread(fd, git_config.MAX_SIZE + 1, 0)
    finally:
        os.close(fd)
    if target.segments[-1].lower() == "commondir":
        raise Untouchable("sends a repository's configuration elsewhere")
    if key := git_config.program_key(data):
        raise Untouchable(f"is a repository's configuration that holds {key}")


def _identity(files: Files, path: bytes) -> Identity | None:
    try:
        with files.look(path) as found:
            return found.identity if found.is_directory else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
