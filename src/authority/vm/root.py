"""The root image of a machine: what a run in name spaces would be shown, as a read-only file system.

Rules
- It holds what `contents` says, path by path. Nothing else of the host is in it.
- What the run's user could not read in name spaces is not in it either: started by root, files that
  not everybody may read are left out; started by a user, the files are that user's own inside.
- It is found by what it was made of (paths, kinds, sizes, times and numbers of every file), so a
  changed file makes another image; what changes while it is read makes none.
- Owners, times and the file system's own number are fixed and names are sorted: the same files give
  the same bytes.
- The file system is made by `mkfs.erofs` in name spaces of its own, without network, where the
  files lie as they will in the image: folders are bound there, single files are copied.
- What is left out of a bound folder is named to `mkfs.erofs`, which takes names as arguments alone, and
  of those a system takes only so many. A folder of which more is left out is copied without it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from authority.isolation import Host, IsolationRefused, Plan
from authority.isolation.probe import explain
from authority.isolation.refusal import shown
from authority.vm import cache, contents, installed, shelf, steps, tools
from authority.vm.cache import Stored
from authority.vm.contents import Contents

FORMAT: Final = 2
RUN_ID: Final = 1_900_000_000
"""The run's user inside the machine, outside the user name space that it lives in."""
MAX_BYTES: Final = 2 << 30

_UUID: Final = "00000000-0000-4000-8000-000000000000"
_FOLDERS: Final = ("/dev", "/proc", "/tmp")  # noqa: S108
_STAGE, _OUT = "/tmp/root", "/tmp/out"  # noqa: S108
_MOST_NAMED: Final = 256 << 10
"""Bytes of the paths that are named to be left out."""
_SECONDS: Final = 600
_TRIES: Final = 3


class Walked:
    """What the image is made of, walked: its key, its size, what is left out."""

    def __init__(self, made_of: Contents, *, root: bool) -> None:
        self.bytes = 0
        self.left_out: list[str] = []
        self._readable_by_all = root
        digest = hashlib.sha256()
        for line in self._lines(made_of):
            digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
        self.key = digest.hexdigest()

    def _lines(self, made_of: Contents) -> Iterator[str]:
        yield repr([FORMAT, self._readable_by_all, os.geteuid() if os.geteuid() else 0])
        for path in made_of.folders:
            yield repr(["folder", path])
        for path, target in made_of.links:
            yield repr(["link", path, target])
        for path in made_of.files:
            yield from self._one(path, os.stat(path))
        for path in made_of.trees:
            yield from self._tree(path)

    def _tree(self, path: str) -> Iterator[str]:
        found = os.stat(path)
        yield from self._one(path, found)
        if path in self.left_out:
            return
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._tree(entry.path)
                else:
                    yield from self._one(entry.path, entry.stat(follow_symlinks=False))

    def _one(self, path: str, found: os.stat_result) -> Iterator[str]:
        kind = stat.S_IFMT(found.st_mode)
        if not self._shown(path, found):
            self.left_out.append(path)
            yield repr(["left out", path])
            return
        facts: list[object] = [path, found.st_mode]
        if kind == stat.S_IFREG:
            self.bytes += found.st_size
            facts += [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        elif kind == stat.S_IFLNK:
            facts.append(os.readlink(path))
        yield repr(facts)

    def _shown(self, path: str, found: os.stat_result) -> bool:
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFLNK:
            return True
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return False
        wanted = os.R_OK if kind == stat.S_IFREG else os.R_OK | os.X_OK
        if self._readable_by_all:
            return found.st_mode & wanted == wanted
        return os.access(path, wanted)


def ready(plan: Plan, host: Host, tell: steps.Tell = steps.nobody) -> Stored:
    """The root image for a plan: found, or built now. Raises `IsolationRefused`."""
    made_of, walked = _walked(plan, host)
    for _ in range(_TRIES):
        name = f"root-{walked.key[:32]}"
        found = cache.find(name)
        if found is not None:
            cache.used(found)
            return found
        tools.need("mkfs.erofs", "erofs-utils")
        cache.to_write()
        tell("image")
        with cache.building(tell) as folder:
            found = cache.find(name)
            if found is not None:
                return found
            made = cache.aside(folder)
            _make(made_of, walked, host, made)
            _, again = _walked(plan, host)
            if again.key == walked.key:
                facts = {"bytes": walked.bytes, "key": walked.key}
                stored = cache.keep(folder, name, made, facts)
                shelf.tidy(folder)
                return stored
            made.unlink()
        made_of, walked = _walked(plan, host)
    raise IsolationRefused("the runtime kept changing while its image was made", "start it again")


def _walked(plan: Plan, host: Host) -> tuple[Contents, Walked]:
    try:
        made_of = contents.of(plan, host)
        walked = Walked(made_of, root=host.root)
    except OSError as error:
        raise IsolationRefused(f"the runtime could not be read: {shown(str(error))}") from error
    if walked.bytes > MAX_BYTES:
        cause = "the packages of what the policy lists need much"
        if not installed.known():
            cause = "which of the system's files are needed is known for Debian's packages alone"
        raise IsolationRefused(
            f"the program's runtime has {walked.bytes >> 20} MiB, and an image at most "
            f"{MAX_BYTES >> 20}: {cause}",
            "list fewer programs, single ones in place of folders; or --isolation namespace",
        )
    return made_of, walked


def _make(made_of: Contents, walked: Walked, host: Host, made: Path) -> None:
    owner = "0" if host.root else str(RUN_ID)
    copies = cache.aside(made.parent)
    try:
        named, copied = _left_out(made_of, walked.left_out)
        _copy(made_of, frozenset(walked.left_out), copied, copies)
        bound = [tree for tree in made_of.trees if tree not in copied]
        command = [*_stage(bound, host, copies, made.parent), "--"]
        command += [tools.need("mkfs.erofs", "erofs-utils"), "--quiet", "-T0", f"-U{_UUID}", "-x-1"]
        command += [f"--force-uid={owner}", f"--force-gid={owner}"]
        command += [f"--exclude-path={path.lstrip('/')}" for path in named]
        command += [f"{_OUT}/{made.name}", _STAGE]
        done = subprocess.run(
            command, env={}, capture_output=True, timeout=_SECONDS, check=False, close_fds=True
        )
    except subprocess.TimeoutExpired as error:
        raise IsolationRefused(f"the root image was not made: {shown(str(error))}") from error
    finally:
        shutil.rmtree(copies, ignore_errors=True)
    if done.returncode:
        made.unlink(missing_ok=True)
        said = shown((done.stderr or done.stdout).strip()[-500:])
        if said.startswith("bwrap: "):
            cause, fix = explain(host, said)
            raise IsolationRefused(f"the root image was not made: {cause} ({said})", fix)
        full = "No space left" in said
        raise IsolationRefused(
            f"mkfs.erofs failed: {said or 'it said nothing'}",
            f"make room in {shown(str(made.parent))}" if full else "",
        )


def _left_out(made_of: Contents, paths: Iterable[str]) -> tuple[list[str], frozenset[str]]:
    """What is named to be left out, and the folders that are copied because that would be too much."""
    below: dict[str, list[str]] = {}
    trees = frozenset(made_of.trees)
    for path in paths:
        tree = path
        while tree not in trees and tree != "/":
            tree = os.path.dirname(tree)
        if tree in trees:  # a single file is left out by not being copied
            below.setdefault(tree, []).append(path)
    sizes = {tree: sum(len(os.fsencode(path)) for path in below[tree]) for tree in below}
    copied: set[str] = set()
    for tree in sorted(sizes, key=lambda one: (-sizes[one], one)):
        if sum(sizes[one] for one in sizes if one not in copied) <= _MOST_NAMED:
            break
        copied.add(tree)
    return [path for tree in below if tree not in copied for path in below[tree]], frozenset(copied)


def _copy(made_of: Contents, left_out: frozenset[str], trees: frozenset[str], copies: Path) -> None:
    """Single files and links, these trees, and every folder that something lies in, below a folder of
    their own. Raises `OSError`."""
    copies.mkdir(mode=0o755)
    copies.chmod(0o755)
    there = {"/"}

    def folder(path: str) -> None:
        if path not in there:
            folder(os.path.dirname(path))
            os.mkdir(f"{copies}{path}")
            os.chmod(f"{copies}{path}", 0o755)  # noqa: S103 - a folder of the image
            there.add(path)

    def file(path: str) -> None:
        shutil.copyfile(path, f"{copies}{path}", follow_symlinks=False)
        os.chmod(f"{copies}{path}", os.stat(path).st_mode & 0o777)

    def tree(path: str) -> None:
        folder(path)
        # What is copied has to be removed again: its owner may write, as far as the image says.
        os.chmod(f"{copies}{path}", os.stat(path).st_mode & 0o777 | 0o700)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.path in left_out:
                    continue
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), f"{copies}{entry.path}")
                elif entry.is_dir(follow_symlinks=False):
                    tree(entry.path)
                else:
                    file(entry.path)

    for path in (*_FOLDERS, *made_of.folders, *made_of.trees):
        folder(path)
    for path in trees - left_out:
        tree(path)
    for path in made_of.files:
        if path not in left_out:
            folder(os.path.dirname(path))
            file(path)
    for path, target in made_of.links:
        folder(os.path.dirname(path))
        os.symlink(target, f"{copies}{path}")


def _stage(trees: Iterable[str], host: Host, copies: Path, out: Path) -> list[str]:
    """bubblewrap's arguments: the files as they will lie in the image, below a folder of its own."""
    command = [host.bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--die-with-parent", "--cap-drop", "ALL"]
    if host.root:
        command += ["--cap-add", "CAP_DAC_READ_SEARCH"]
    else:
        command += ["--unshare-user"]
    command += ["--ro-bind", "/", "/", "--perms", "0755", "--tmpfs", "/tmp"]  # noqa: S108
    command += ["--bind", str(copies), _STAGE]
    for path in trees:
        command += ["--ro-bind", path, _STAGE + path]
    return [*command, "--bind", str(out), _OUT]
