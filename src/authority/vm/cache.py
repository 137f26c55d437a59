"""Where images lie, and how one gets from the disk into a machine.

Rules
- `$XDG_CACHE_HOME/authority/vm` belongs to us and is closed to everybody else, nobody else can put
  another in its place, or nothing is read from it.
- An image is written aside, synced, and renamed; what says that it is there (its `.json`: digest,
  size, facts) is renamed last. So there is no half image: a build that is interrupted leaves
  nothing that counts.
- An image is copied into memory while it is digested, and the copy is sealed: the bytes that were
  compared are the bytes that boot, whatever becomes of the file meanwhile. One that is larger than
  `MOST_IN_MEMORY` boots from the disk, and is compared before each boot; it can be changed between
  the two by whoever may write to our files. A digest that differs refuses the start. Its number, size
  and times don't stand in for its bytes, not even for a descriptor that is held: a mapping changes
  bytes and no times, and a bad disk doesn't either.
- Others build and prune while it is read. What is gone or another file by then, and no longer in its
  record as it was found, is not tampered with: it is `Replaced`, and looked for anew.
- What is in sealed memory stays for the next start and is there once, whether it was read or made
  here; when there is too much, what was not used for longest goes.
- One process builds at a time; who waits finds what the other has built.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from authority.isolation import IsolationRefused
from authority.isolation.refusal import shown
from authority.vm import steps

_ELSEWHERE: Final = "set XDG_CACHE_HOME to a folder that you may write to"
REBUILD: Final = "build it anew: authority image build --force"
_CHUNK: Final = 1 << 20
_SEAL_SECONDS: Final = 20.0
MOST_IN_MEMORY: Final = 384 << 20
_MAX_HELD: Final = 1 << 30
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Replaced(IsolationRefused):
    """Between the look at its record and its bytes somebody built the image anew, or removed it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An image on the disk: where, what its digest has to be, and facts about what it was made of."""

    path: Path
    digest: str
    size: int
    sparse: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class Held:
    """An image that was compared, on a descriptor that lives as long as this object does."""

    def __init__(self, fd: int, digest: str, size: int) -> None:
        self.fd, self.digest, self.size = fd, digest, size

    def __del__(self) -> None:
        os.close(self.fd)


_held: dict[str, Held] = {}
_holding: Final = threading.Lock()


def _base() -> Path:
    """Where caches lie. A relative path would be another folder for the gate than for its caller."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named and not os.path.isabs(named):
        raise IsolationRefused(
            f"XDG_CACHE_HOME is no absolute path: {shown(named)}",
            "set it to an absolute one, or unset it",
        )
    path = Path(named) if named else Path(os.path.expanduser("~"), ".cache")
    if not path.is_absolute():
        raise IsolationRefused("there is no home that images could lie in", _ELSEWHERE)
    return path


def folder() -> Path:
    """The folder, made if it is not there. Raises `IsolationRefused` when it is not ours alone."""
    path = _base() / "authority" / "vm"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, above = os.lstat(path), os.lstat(path.parent)
    except OSError as error:
        raise IsolationRefused(
            f"the folder for images {shown(str(path))} can't be made: {error.strerror}", _ELSEWHERE
        ) from error
    # Whoever may write to the folder above could put another in its place.
    for one, forbidden, where in ((found, 0o077, path), (above, 0o022, path.parent)):
        owned = stat.S_ISDIR(one.st_mode) and one.st_uid == os.geteuid()
        if not owned or one.st_mode & forbidden:
            raise IsolationRefused(
                f"the folder for images {shown(str(where))} is not yours alone",
                f"chmod 700 {shown(str(where))}, and look who owns it",
            )
    return path


def to_write() -> Path:
    """The folder. Raises `IsolationRefused` where nothing can be put into it."""
    path = folder()
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise IsolationRefused(
            f"the folder for images {shown(str(path))} can't be written to", _ELSEWHERE
        )
    return path


def used(stored: Stored) -> None:
    """Notes that it was used now, where anything can be noted: what was not goes first."""
    with contextlib.suppress(OSError):
        os.utime(stored.path)


@contextlib.contextmanager
def building(tell: steps.Tell = steps.nobody) -> Iterator[Path]:
    """The folder, while nobody else builds; who has to wait for that is told. Errors of the disk become
    refusals that say so."""
    path = to_write()
    try:
        with open(path / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            _sweep(path)
            try:
                yield path
            finally:
                _sweep(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise IsolationRefused(
            f"the image could not be built: {shown(error.strerror or str(error))}",
            f"make room in {shown(str(path))}" if full else "",
        ) from error


def _sweep(path: Path) -> None:
    """Removes what interrupted builds left, and one that failed; who holds the lock is the only one who
    builds."""
    for left in path.glob(".new-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def aside(path: Path) -> Path:
    """A name for a file that does not count yet."""
    return path / f".new-{secrets.token_hex(8)}"


def _pieces(fd: int, size: int, *, sparse: bool) -> Iterator[tuple[int, bytes]]:
    """(offset, content) of the file's pieces in order; of a sparse one those that hold anything."""
    at = 0
    while at < size:
        if sparse:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but emptiness up to the end
                    return
                raise
        part = os.pread(fd, min(_CHUNK, size - at), at)
        if not part:
            return
        if not sparse or part.count(0) != len(part):
            yield at, part
        at += len(part)


class _Digest:
    """SHA-256 of a file; of a sparse one over offset and content of the pieces that hold anything, so
    that a memory that is mostly empty is digested in a moment."""

    def __init__(self, *, sparse: bool) -> None:
        self._sparse = sparse
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, at: int, part: bytes) -> None:
        if self._sparse:
            self._hash.update(at.to_bytes(8, "big"))
        self._hash.update(part)
        self.size = at + len(part)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def keep(
    path: Path, name: str, made: Path, facts: dict[str, Any], *, sparse: bool = False
) -> Stored:
    """Takes a finished file into the folder under `name`."""
    digest = _Digest(sparse=sparse)
    with open(made, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for at, part in _pieces(file.fileno(), size, sparse=sparse):
            digest.add(at, part)
        os.fsync(file.fileno())
    # Whoever the hypervisor runs as may read it; the folder is closed to all others.
    made.chmod(0o444)
    stored = Stored(path / name, digest.hexdigest(), size, sparse, facts)
    record = aside(path)
    record.write_text(
        json.dumps(
            {"digest": stored.digest, "size": size, "sparse": sparse, "facts": facts},
            sort_keys=True,
        )
    )
    with open(record, "rb") as file:
        os.fsync(file.fileno())
    # The old record must not vouch for the new file, nor the new one for the old.
    _record(stored.path).unlink(missing_ok=True)
    os.replace(made, stored.path)
    os.replace(record, _record(stored.path))
    with contextlib.closing(_Folder(path)) as whole:
        os.fsync(whole.fd)
    return stored


class _Folder:
    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def find(name: str) -> Stored | None:
    """The image of this name, if it was built to its end. Its bytes are not looked at."""
    path = folder() / name
    try:
        record = json.loads(_record(path).read_text())
        return Stored(
            path,
            str(record["digest"]),
            int(record["size"]),
            bool(record["sparse"]),
            dict(record["facts"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(name: str) -> None:
    """Takes an image out of the folder."""
    path = folder() / name
    for one in (_record(path), path):
        with contextlib.suppress(FileNotFoundError):
            one.unlink()


def load(stored: Stored) -> Held:
    """The image in sealed memory. Raises `Replaced`, or `IsolationRefused` if it was changed."""
    try:
        return _loaded(stored)
    except IsolationRefused as error:
        # Whoever removes or replaces an image takes its record away first.
        if find(stored.path.name) == stored:
            raise
        raise Replaced(error.reason, error.fix) from error


def _loaded(stored: Stored) -> Held:
    if stored.size > MOST_IN_MEMORY and not stored.sparse:
        with _reading(stored):
            fd = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
            held = Held(fd, stored.digest, stored.size)
            _compare(stored, fd)
        return held
    with _holding:
        found = _held.get(stored.digest)
    return hold(found or _copy(stored))


def hold(held: Held) -> Held:
    """Keeps it for the next start; the one that is held, if another had the same first. What is in
    memory is sealed, and its digest was compared or made from these very bytes."""
    with _holding:
        found = _held.pop(held.digest, held)
        _held[held.digest] = found  # the last one is the one that was used last
        while len(_held) > 1 and sum(_resident(one) for one in _held.values()) > _MAX_HELD:
            del _held[next(iter(_held))]
    return found


@contextlib.contextmanager
def _reading(stored: Stored) -> Iterator[None]:
    """What can't be read is refused, and says how it is had again."""
    try:
        yield
    except OSError as error:
        raise IsolationRefused(
            f"{shown(str(stored.path))} could not be read: {error.strerror}", REBUILD
        ) from error


def _resident(held: Held) -> int:
    """What it takes of the memory: a sparse one less than its size."""
    return os.fstat(held.fd).st_blocks * 512


def _compare(stored: Stored, fd: int) -> None:
    digest = _Digest(sparse=False)
    for at, part in _pieces(fd, os.fstat(fd).st_size, sparse=False):
        digest.add(at, part)
    if digest.hexdigest() != stored.digest:
        raise _tampered(stored, digest.hexdigest())


def _tampered(stored: Stored, found: str) -> IsolationRefused:
    return IsolationRefused(
        f"{shown(str(stored.path))} is not what was built: its digest is {found} instead of "
        f"{stored.digest}",
        REBUILD,
    )


def memory_file() -> int:
    """An empty file in memory that can be sealed."""
    return os.memfd_create("authority-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(fd: int) -> None:
    """From now on nobody changes it. A mapping of a process that has just died takes a moment to go;
    one of a living process is an error."""
    deadline = time.monotonic() + _SEAL_SECONDS
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _copy(stored: Stored) -> Held:
    fd = memory_file()
    try:
        digest = _Digest(sparse=stored.sparse)
        with _reading(stored):
            with open(stored.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                os.ftruncate(fd, size)
                for at, part in _pieces(file.fileno(), size, sparse=stored.sparse):
                    digest.add(at, part)
                    os.pwrite(fd, part, at)
            seal(fd)
        if digest.hexdigest() != stored.digest or size != stored.size:
            raise _tampered(stored, digest.hexdigest())
    except BaseException:
        os.close(fd)
        raise
    return Held(fd, stored.digest, stored.size)


def store(fd: int, made: Path) -> str:
    """Writes a file in memory to the disk; what is empty stays a hole. The digest of what was written,
    as of a sparse file."""
    size = os.fstat(fd).st_size
    digest = _Digest(sparse=True)
    with open(made, "wb") as file:
        os.ftruncate(file.fileno(), size)
        for at, part in _pieces(fd, size, sparse=True):
            digest.add(at, part)
            os.pwrite(file.fileno(), part, at)
    return digest.hexdigest()
