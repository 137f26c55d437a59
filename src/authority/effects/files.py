"""File effects: reading files and directories, and the door to changing them (`file_changes`).

Rules
- Every path is opened as `beneath` says: no links, only regular files and directories, only file
  systems that hold files, and the handle that was checked is the one that is used.
- `prepare` looks up a file's size and identity for the decision, opens nothing for longer, and
  raises for nothing that it finds: size and identity 0 stand for everything that can't be read, so
  that a run which may not see a path learns nothing about it. `perform` says what was wrong.
- `fs.read` never returns more than was reserved. When the caller passes on what `prepare` found
  (`Call.looked_up`), a file that is another one by then is not read.
- Nothing here may stall the gate's loop. What the kernel can answer from its caches is answered at
  once (`RESOLVE_CACHED`, `RWF_NOWAIT`: at most `QUICK_READ` bytes); everything else runs in threads
  of this object. A cancelled call leaves its thread to finish: `drain` waits for those of a run.
- Names in a listing are given as they are when they are plain UTF-8; others are percent-encoded as
  in resources and come with `resource`, the canonical text that names them, if there is one. A
  directory with more than `LIST_LIMIT` entries fails: half a listing would look like a whole one.
- Errors name the canonical resource and nothing else of the machine.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from authority.effects import file_changes
from authority.effects.base import Call, EffectFailed, EffectRefused, Performed
from authority.effects.beneath import Beneath, Handle, Untouchable, WouldWait
from authority.effects.file_changes import Work, identity, moment
from authority.kernel.canonical import digest, encode, printable
from authority.kernel.codes import Code
from authority.kernel.requests import LIST_LIMIT, MAX_READ
from authority.kernel.resource_files import decode_name, file_text
from authority.kernel.resources import Resource, parse_text

_T = TypeVar("_T")

THREADS = 8
"""How many calls may wait for disks at once."""
QUICK_READ = 64 * 1024
"""The most bytes read without a thread."""

_MAX_INTEGER = 2**53 - 1
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

_SENTENCES = {
    errno.ENOENT: "there is no such file or directory",
    errno.EACCES: "the gate's user has no permission for this",
    errno.EPERM: "the system does not permit this",
    errno.EEXIST: "it exists already",
    errno.EISDIR: "it is a directory",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would become too large",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reported an error",
    errno.EXDEV: "the two names lie on different file systems",
    errno.EBUSY: "the system is using it",
    errno.ETXTBSY: "it is a program that is running",
    errno.EWOULDBLOCK: "another program holds it",
    errno.ESTALE: "it vanished from its file system",
    errno.EMLINK: "the directory cannot hold more",
    errno.EMFILE: "the gate has too many files open",
    errno.ENFILE: "the system has too many files open",
    errno.EOPNOTSUPP: "the file system cannot do this",
}

_CHANGES: dict[str, Callable[[Beneath, Work], dict[str, int]]] = {
    "fs.write": file_changes.write,
    "fs.append": file_changes.append,
    "fs.mkdir": file_changes.mkdir,
    "fs.rename": file_changes.rename,
    "fs.delete": file_changes.delete,
}


class FileEffects:
    """Performs `fs.*`. Raises `BeneathUnavailable` where files can't be opened safely."""

    def __init__(self) -> None:
        self._beneath = Beneath()
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "authority-files")
        self._running: dict[concurrent.futures.Future[Any], str] = {}

    def close(self) -> None:
        """Wait for running threads and close all handles."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._beneath.close()

    async def prepare(self, effect: str, resource: Resource) -> dict[str, int]:
        """`{"size", "dev", "ino"}` (bytes, integers) of a file that is to be read, else `{}`."""
        if effect != "fs.read":
            return {}
        try:
            return _found(self._beneath, resource, now=True)
        except WouldWait:
            return await self._in_thread("", lambda: _found(self._beneath, resource, now=False))

    async def perform(self, call: Call) -> Performed:
        """Perform an admitted `fs.*` call. Raises `EffectFailed` or `EffectRefused`."""
        if call.effect in ("fs.read", "fs.stat"):
            try:
                return _guarded(self._beneath, call, now=True)
            except WouldWait:
                pass
        return await self._in_thread(call.run, lambda: _guarded(self._beneath, call, now=False))

    async def drain(self, run: str, timeout_us: int) -> int:
        """Wait until no thread works for `run` any more; gives how many still do (in doubt)."""
        waiting = {future for future, of in self._running.items() if of == run}
        if not waiting:
            return 0
        loop = asyncio.get_running_loop()
        done = await loop.run_in_executor(
            None, lambda: concurrent.futures.wait(waiting, timeout_us / 1e6)
        )
        return len(done.not_done)

    async def _in_thread(self, run: str, work: Callable[[], _T]) -> _T:
        future = self._threads.submit(work)
        self._running[future] = run
        future.add_done_callback(lambda done: self._running.pop(done, None))
        try:
            return await asyncio.wrap_future(future)
        finally:
            del future  # else a failure that it holds would hold this frame, and all that it wrote


def _guarded(beneath: Beneath, call: Call, *, now: bool) -> Performed:
    """Perform in this thread, every error told in a sentence about the canonical resource."""
    work = Work(call)
    shown = printable(call.resource.text, 300)
    try:
        if call.effect == "fs.read":
            value: Any = _read(beneath, work, now=now)
        elif call.effect == "fs.stat":
            value = _stat(beneath, work, now=now)
        elif call.effect == "fs.list":
            value = _list(beneath, work)
        elif call.effect in _CHANGES:
            value = _CHANGES[call.effect](beneath, work)
        else:
            raise EffectRefused(Code.INTERNAL, f"{printable(call.effect)} is not a file effect.")
    except Untouchable as error:
        raise EffectRefused(
            Code.POLICY_DENY, f"{shown}: it {error.reason}.", facts={"why": error.reason}
        ) from None
    except OSError as error:
        number = error.errno or 0
        name = errno.errorcode.get(number, str(number))
        sentence = _SENTENCES.get(number, f"the system reported {name}")
        raise EffectFailed(
            f"{shown}: {sentence}.", spent=work.spent, facts=work.facts | {"errno": name}
        ) from None
    return Performed(value, spent=work.spent, facts=work.facts)


def _found(beneath: Beneath, resource: Resource, *, now: bool) -> dict[str, int]:
    try:
        with beneath.look(resource.path, now=now) as found:
            if not found.is_directory:
                return {"size": min(found.status.st_size, _MAX_INTEGER), **identity(found.status)}
    except (OSError, Untouchable):
        # Said by `perform`, if the decision lets the run come that far.
        return {"size": 0, "dev": 0, "ino": 0}
    return {"size": 0, "dev": 0, "ino": 0}


def _read(beneath: Beneath, work: Work, *, now: bool) -> dict[str, Any]:
    call = work.call
    offset, length = call.arguments.offset, call.arguments.length
    if offset < 0 or offset > _MAX_INTEGER or (length is not None and length < 0):
        raise EffectRefused(Code.SCHEMA_INVALID, "Offset and length are not negative.")
    with beneath.look(call.resource.path, now=now) as found:
        if found.is_directory:
            raise IsADirectoryError(errno.EISDIR, "")
        if found.status.st_size > _MAX_INTEGER:
            raise OSError(errno.EFBIG, "")
        _check_expected(call, found)
        room = min(call.reserved.get("file_bytes", 0), MAX_READ)
        wanted = room if length is None else min(length, room)
        wanted = min(wanted, max(0, found.status.st_size - offset))
        if now and wanted > QUICK_READ:
            raise WouldWait
        fd = beneath.reopen(found, os.O_RDONLY)
    try:
        data = _pread_now(fd, wanted, offset) if now else _pread(fd, wanted, offset)
        status = os.fstat(fd)
    finally:
        os.close(fd)
    size = min(status.st_size, _MAX_INTEGER)
    work.spent["file_bytes"] = len(data)
    work.facts |= identity(status) | moment(status)
    work.facts |= {
        "size": size,
        "offset": offset,
        "length": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return {"data": data, "size": size, "eof": offset + len(data) >= size}


def _check_expected(call: Call, found: Handle) -> None:
    expected = getattr(call, "looked_up", None) or {}
    now = identity(found.status)
    if "ino" in expected and any(
        expected.get(key, 0) != now.get(key, 0) for key in ("dev", "ino", "ino_high")
    ):
        raise Untouchable("became another file between the decision and the reading; try again")


def _pread_now(fd: int, wanted: int, offset: int) -> bytes:
    """All `wanted` bytes from the page cache, or `WouldWait`."""
    if not wanted:
        return b""
    buffer = bytearray(wanted)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise WouldWait from None
        raise
    if count < wanted:
        raise WouldWait  # The rest is on the disk, or the file became shorter.
    return bytes(buffer)


def _pread(fd: int, wanted: int, offset: int) -> bytes:
    parts = []
    while wanted > 0:
        part = os.pread(fd, min(wanted, 1024 * 1024), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        wanted -= len(part)
    return b"".join(parts)


def _stat(beneath: Beneath, work: Work, *, now: bool) -> dict[str, Any]:
    with beneath.look(work.call.resource.path, now=now) as found:
        status = found.status
        kind = "directory" if found.is_directory else "file"
    value = {
        "type": kind,
        "size": 0 if kind == "directory" else min(status.st_size, _MAX_INTEGER),  # as when listed
        "mtime": max(-_MAX_INTEGER, min(status.st_mtime_ns // 1000, _MAX_INTEGER)),
        "mode": status.st_mode & 0o7777,
    }
    work.facts |= identity(status) | moment(status) | value
    return value


def _list(beneath: Beneath, work: Work) -> list[dict[str, Any]]:
    with beneath.look(work.call.resource.path) as found:
        if not found.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, "")
        fd = beneath.reopen(found, os.O_RDONLY | os.O_DIRECTORY)
    call = work.call
    segments = call.resource.segments
    partial = call.policy.judge("fs.list", call.resource).partial
    read = 0
    rows: list[tuple[bytes, dict[str, Any]]] = []
    try:
        work.facts |= identity(os.fstat(fd))
        with os.scandir(fd) as entries:
            for entry in entries:
                read += 1
                if read > LIST_LIMIT:
                    raise EffectFailed(
                        f"{printable(call.resource.text, 300)}: the directory has more than"
                        f" {LIST_LIMIT} entries.",
                        spent=work.spent,
                        facts=work.facts,
                    )
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # Removed while the directory was read.
                raw = os.fsencode(entry.name)
                if not partial or _visible(call, segments, decode_name(raw)):
                    rows.append((raw, _row(raw, status, segments)))
    finally:
        os.close(fd)
    rows.sort(key=lambda row: row[0])
    value = [row for _, row in rows]
    work.facts |= {"entries": len(value), "sha256": digest(encode(value))}
    return value


def _visible(call: Call, segments: tuple[str, ...], name: str) -> bool:
    """In a directory that is only the way to something readable: is this name part of the way?"""
    if _CONTROL.search(name):
        return False
    child = parse_text(file_text((*segments, name)))
    return bool(call.policy.judge("fs.stat", child).allowed)


def _row(raw: bytes, status: os.stat_result, segments: tuple[str, ...]) -> dict[str, Any]:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
    name = decode_name(raw)
    row: dict[str, Any] = {"name": name, "type": kind, "size": 0}
    if kind == "file":
        row["size"] = min(status.st_size, _MAX_INTEGER)
    if _ODD.search(name):
        encoded = file_text((name,)).removeprefix("fs:/")
        row["name"] = _CONTROL.sub(
            lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), encoded
        )
        if not _CONTROL.search(name):
            row["resource"] = file_text((*segments, name))
    return row
