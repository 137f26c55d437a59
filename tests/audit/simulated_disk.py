"""A disk in memory that promises only what POSIX does, and can lose power at any operation.

What it models
- A write reaches the disk for sure only when its file was synced after it. Until then each of its
  512-byte sectors is, independently of all others, on the disk or not (dropped, torn, reordered).
- `fdatasync` makes bytes and growth durable, `fsync` a smaller size too.
- A name (made, renamed, linked, removed, a directory) is durable only when its folder was synced;
  until then each change is on the disk or not, independently. A rename is one change.
- A failed sync leaves the written bytes readable and lost: no later sync writes them (Linux marks
  such pages clean). Only writing them anew helps. `read_back` shows what the disk has.

Use: run a workload on a `Disk`, then for each `point` of `disk.trace` take `Disk.after_crash`.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from dataclasses import dataclass, field
from typing import Any

from authority.audit.files import SECTOR
from authority.kernel.room import Space

Op = tuple[Any, ...]


@dataclass
class _Inode:
    live: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)


def _write(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


def _truncate(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def _sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    out = []
    at = offset
    end = offset + len(data)
    while at < end:
        stop = min((at // SECTOR + 1) * SECTOR, end)
        out.append((at, data[at - offset : stop - offset]))
        at = stop
    return out


class State:
    """What is in memory and what is on the disk; operations are plain tuples."""

    def __init__(self) -> None:
        self.inodes: dict[int, _Inode] = {}
        self.names: dict[str, int] = {}
        self.folders: set[str] = {"/"}
        self.disk_names: dict[str, int] = {}
        self.disk_folders: set[str] = {"/"}
        self.name_ops: list[Op] = []

    def apply(self, op: Op) -> None:
        kind, *rest = op
        getattr(self, "_" + kind)(*rest)

    def _create(self, path: str, number: int) -> None:
        self.inodes[number] = _Inode()
        self._name(("put", path, number))

    def _name(self, op: Op) -> None:
        self.name_ops.append(op)
        _apply_name(op, self.names, self.folders)

    def _pwrite(self, number: int, offset: int, data: bytes) -> None:
        inode = self.inodes[number]
        _write(inode.live, offset, data)
        inode.pending.append(("write", offset, data))

    def _truncate(self, number: int, size: int) -> None:
        inode = self.inodes[number]
        _truncate(inode.live, size)
        inode.pending.append(("truncate", size))

    def _fdatasync(self, number: int) -> None:
        inode = self.inodes[number]
        kept = []
        for op in inode.pending:
            if op[0] == "write":
                _write(inode.disk, op[1], op[2])
            elif op[1] >= len(inode.disk):
                _truncate(inode.disk, op[1])
            else:
                kept.append(op)
        inode.pending = kept

    def _fsync(self, number: int) -> None:
        inode = self.inodes[number]
        for op in inode.pending:
            _apply_data(inode.disk, op)
        inode.pending = []

    def _lost(self, number: int) -> None:
        self.inodes[number].pending = []

    def _sync_directory(self, path: str) -> None:
        kept = []
        for op in self.name_ops:
            if os.path.dirname(op[1]) == path:
                _apply_name(op, self.disk_names, self.disk_folders)
            else:
                kept.append(op)
        self.name_ops = kept

    def _ack(self, *_: Any) -> None:
        pass

    def crash(self, rng: random.Random, keep: float) -> State:
        """What is there after power comes back; each unsynced piece stays with chance `keep`."""
        out = State()
        out.disk_names = dict(self.disk_names)
        out.disk_folders = set(self.disk_folders)
        for op in self.name_ops:
            if rng.random() < keep:
                _apply_name(op, out.disk_names, out.disk_folders)
        reachable = {
            path: number
            for path, number in out.disk_names.items()
            if os.path.dirname(path) in out.disk_folders
        }
        out.disk_names = reachable
        out.names, out.folders = dict(reachable), set(out.disk_folders)
        for number in set(reachable.values()):
            data = bytearray(self.inodes[number].disk)
            for op in self.inodes[number].pending:
                if op[0] == "truncate":
                    if rng.random() < keep:
                        _truncate(data, op[1])
                    continue
                for offset, piece in _sectors(op[1], op[2]):
                    if rng.random() < keep:
                        _write(data, offset, piece)
            out.inodes[number] = _Inode(bytearray(data), bytearray(data))
        return out


def _apply_data(data: bytearray, op: Op) -> None:
    if op[0] == "write":
        _write(data, op[1], op[2])
    else:
        _truncate(data, op[1])


def _apply_name(op: Op, names: dict[str, int], folders: set[str]) -> None:
    if op[0] == "put":
        names[op[1]] = op[2]
    elif op[0] == "rename":
        names.pop(op[2], None)
        names[op[1]] = op[3]
    elif op[0] == "remove":
        names.pop(op[1], None)
    else:
        folders.add(op[1])


class Disk:
    """The file layer over a `State`, recording every operation in `trace`."""

    def __init__(self, state: State | None = None, *, syncs: bool = True) -> None:
        self.state = state or State()
        self.trace: list[Op] = []
        self.syncs = syncs
        self.fail: dict[str, list[BaseException | int]] = {}
        """Failures to come, by operation: an exception, or a number of bytes for a short write."""
        self.only = ""
        """When set, failures hit only files whose path holds this."""
        self._fds: dict[int, tuple[int, str]] = {}
        self._next = 1000 + max(self.state.inodes, default=0)
        self._mutex = threading.RLock()
        for number, inode in self.state.inodes.items():
            assert number < self._next
            assert inode.live == inode.disk

    def ack(self, seq: int) -> None:
        """Note in the trace that somebody was told that entry `seq` is durable."""
        with self._mutex:
            self._do("ack", seq)

    def _do(self, *op: Any) -> None:
        self.trace.append(op)
        self.state.apply(op)

    def _failure(self, name: str, path: str) -> BaseException | int | None:
        waiting = self.fail.get(name)
        if waiting and (not self.only or self.only in path):
            return waiting.pop(0)
        return None

    def _check(self, name: str, path: str) -> None:
        failure = self._failure(name, path)
        if isinstance(failure, BaseException):
            raise failure

    def _number(self, path: str) -> int:
        try:
            return self.state.names[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from None

    def open(self, path: str, *, create: bool = False) -> int:
        with self._mutex:
            self._check("open", path)
            if create:
                if path in self.state.names:
                    raise FileExistsError(path)
                assert os.path.dirname(path) in self.state.folders, path
                self._next += 1
                self._do("create", path, self._next)
            self._next += 1
            self._fds[self._next] = (self._number(path), path)
            return self._next

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        with self._mutex:
            number, path = self._fds[fd]
            failure = self._failure("pwrite", path)
            if isinstance(failure, BaseException):
                raise failure
            if failure is not None:
                data = data[:failure]
            self._do("pwrite", number, offset, bytes(data))
            return len(data)

    def _sync(self, kind: str, fd: int) -> None:
        with self._mutex:
            number, path = self._fds[fd]
            failure = self._failure(kind, path)
            if isinstance(failure, BaseException):
                self._do("lost", number)
                raise failure
            if self.syncs:
                self._do(kind, number)

    def fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    def fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    def truncate(self, fd: int, size: int) -> None:
        with self._mutex:
            number, path = self._fds[fd]
            self._check("truncate", path)
            self._do("truncate", number, size)

    def size(self, fd: int) -> int:
        return len(self.state.inodes[self._fds[fd][0]].live)

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)

    def read(self, path: str) -> bytes:
        with self._mutex:
            self._check("read", path)
            return bytes(self.state.inodes[self._number(path)].live)

    def read_back(self, path: str) -> tuple[bytes, str]:
        with self._mutex:
            self._check("read_back", path)
            return bytes(self.state.inodes[self._number(path)].disk), "direct"

    def rename(self, old: str, new: str) -> None:
        with self._mutex:
            self._check("rename", new)
            assert os.path.dirname(old) == os.path.dirname(new)
            self._do("name", ("rename", new, old, self._number(old)))

    def link(self, old: str, new: str) -> None:
        with self._mutex:
            self._check("link", new)
            self._do("name", ("put", new, self._number(old)))

    def unlink(self, path: str) -> None:
        with self._mutex:
            self._check("unlink", path)
            self._number(path)
            self._do("name", ("remove", path))

    def mkdir(self, path: str) -> None:
        with self._mutex:
            self._check("mkdir", path)
            if path not in self.state.folders:
                self._do("name", ("mkdir", path))

    def listdir(self, path: str) -> list[str]:
        self._check("listdir", path)
        found = [*self.state.names, *self.state.folders]
        return [os.path.basename(p) for p in found if os.path.dirname(p) == path and p != "/"]

    def exists(self, path: str) -> bool:
        return path in self.state.names or path in self.state.folders

    def space(self, path: str) -> Space:
        return Space(1 << 40, 1 << 40)

    def sync_directory(self, path: str) -> None:
        with self._mutex:
            self._check("sync_directory", path)
            if self.syncs:
                self._do("sync_directory", path)

    def lock(self, path: str) -> int:
        return -1


def crashes(
    trace: list[Op], start: State | None, rng: random.Random, *, each: int, step: int = 1
) -> Any:
    """(acknowledged entries, disk after a crash) for points of a trace, `each` crashes a point."""
    state = _clone(start) if start else State()
    acknowledged = -1
    for point, op in enumerate(trace):
        if point % step == 0:
            for number in range(each):
                keep = (0.0, 0.5, 1.0)[number] if number < 3 else rng.random()
                yield acknowledged, state.crash(rng, keep)
        state.apply(op)
        if op[0] == "ack":
            acknowledged = max(acknowledged, op[1])
    yield acknowledged, state.crash(rng, 0.0)


def _clone(state: State) -> State:
    """A state as it is right after a crash (nothing pending)."""
    out = State()
    out.names, out.folders = dict(state.disk_names), set(state.disk_folders)
    out.disk_names, out.disk_folders = dict(state.disk_names), set(state.disk_folders)
    out.inodes = {
        number: _Inode(bytearray(inode.disk), bytearray(inode.disk))
        for number, inode in state.inodes.items()
    }
    return out
