"""The log's files: names, zeroed segments, rotation, and the space kept back for the end.

Rules
- Segments are `00000001.jsonl`, `00000002.jsonl`, … without gaps. A name appears only when its file
  is whole: it is zeroed under a temporary name, synced, renamed, and the folder synced.
- Zeroed beforehand, because writing into existing blocks needs no change to the file system's own
  records at each sync (1.4 times quicker, see `benchmarks/bench_log.py`).
- One batch lies in one segment. If it does not fit, the segment is sealed (cut to what it holds and
  synced) *before* the first byte goes to the next one. So an earlier segment is always whole and
  durable, and only the last one that holds entries can be torn.
- The next segment is made by a thread of its own once the active one is half full. If that fails,
  `trouble` says why: the gate then lets only halt, status and denials through, and they may fill
  the active segment and a reserved one that was zeroed at the start. Making it is tried again.
- A segment that would take what has to stay free of the disk (`kernel/room.py`) is not made either: a
  log that grows without end finds its own end before everybody's.
- A batch larger than a segment makes that segment longer.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable

from authority.audit.errors import LogFull
from authority.audit.files import FileLayer, write_all

DEFAULT_BYTES = 16 * 1024 * 1024
"""The size in bytes of a segment, the first one excepted."""

FIRST_BYTES = 1024 * 1024
"""The first segment and the reserve are no larger: a short run should start at once.

From there each is four times the one before, so that the next is zeroed before the active is full, but
none takes more than a quarter of what the disk has for the log.
"""

RESERVE = "reserve.zero"
_SUFFIX = ".jsonl"
_NAME = re.compile(r"[0-9]{8}\.jsonl")
_CHUNK = bytes(1024 * 1024)
_RETRY_S = 1.0
_GROWTH = 4


def name_of(index: int) -> str:
    """The file name of segment `index` (from 1)."""
    return f"{index:08d}{_SUFFIX}"


def index_of(name: str) -> int:
    """The number in a segment's file name."""
    return int(name[:8])


def segment_names(names: list[str]) -> list[str]:
    """Those of `names` that are segments, in order."""
    return sorted(name for name in names if _NAME.fullmatch(name))


def create_zeroed(layer: FileLayer, path: str, size: int) -> None:
    """Make `path`, `size` zero bytes, durable on return, never seen half made. Raises `OSError`."""
    temporary = path + ".tmp"
    if layer.exists(temporary):
        layer.unlink(temporary)
    fd = layer.open(temporary, create=True)
    try:
        for offset in range(0, size, len(_CHUNK)):
            write_all(layer, fd, _CHUNK[: size - offset], offset)
        layer.fsync(fd)
    finally:
        layer.close(fd)
    layer.rename(temporary, path)
    layer.sync_directory(os.path.dirname(path))


class SegmentWriter:
    """Writes batches into segments. Used by one thread at a time; makes the next in another."""

    def __init__(
        self,
        layer: FileLayer,
        directory: str,
        *,
        index: int,
        used: int,
        segment_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """Continue after `used` bytes of segment `index`, or start the log when `index` is 0.

        Raises `OSError` when that segment cannot be opened or made.
        """
        self._layer = layer
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._small_bytes = min(segment_bytes, FIRST_BYTES)
        self._maker: threading.Thread | None = None
        self._maker_error: BaseException | None = None
        self._tried = 0.0
        self.trouble = ""
        """Why the next segment or the reserve is missing; empty when all is well."""
        if index == 0:
            index, used = 1, 0
            create_zeroed(layer, self._path(1), self._small_bytes)
        self.index = index
        self.used = used
        self._fd = layer.open(self._path(index))
        self._capacity = layer.size(self._fd)
        self._next_ready = layer.exists(self._path(index + 1))
        self._left = layer.space(directory).for_log
        if not layer.exists(self._path_of(RESERVE)):
            try:
                create_zeroed(layer, self._path_of(RESERVE), self._small_bytes)
            except OSError as error:
                self.trouble = f"no space for the reserved segment: {error}"

    def left(self, least: int) -> int:
        """How many bytes more the log may take; looked up anew when it seems to be below `least`."""
        if self._left < least:
            self._left = self._layer.space(self._directory).for_log
        return self._left

    def commit(self, data: bytes, while_syncing: Callable[[], None] = lambda: None) -> None:
        """Write one batch and return when it is durable. Any exception means: poisoned.

        `while_syncing` is called when the bytes are written, right before the sync.
        """
        if self.used and self.used + len(data) > self._capacity:
            self._rotate()
        write_all(self._layer, self._fd, data, self.used)
        while_syncing()
        self._layer.fdatasync(self._fd)
        self.used += len(data)
        if self.trouble or (not self._next_ready and self.used * 2 >= self._capacity):
            self._make_next()

    def close(self) -> None:
        """Wait for the thread that makes a segment, and close the active one."""
        self._join()
        if self._fd >= 0:
            self._layer.close(self._fd)
            self._fd = -1

    def _path(self, index: int) -> str:
        return self._path_of(name_of(index))

    def _path_of(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _next_bytes(self) -> int:
        share = self._left // _GROWTH // self._small_bytes * self._small_bytes
        grown = min(self._segment_bytes, _GROWTH * self._capacity, share)
        return max(self._small_bytes, grown)

    def _create(self, path: str) -> None:
        self._left = self._layer.space(self._directory).for_log
        size = self._next_bytes()
        if self._left < size:
            raise OSError(errno.ENOSPC, "the disk has only its rest left")
        create_zeroed(self._layer, path, size)
        self._left -= size

    def _make_next(self) -> None:
        if self._maker is not None:
            if self._maker.is_alive():
                return
            self._join()
            if self._next_ready and not self.trouble:
                return
        now = time.monotonic()
        if self.trouble and now - self._tried < _RETRY_S:
            return
        self._tried = now
        self._maker = threading.Thread(
            target=self._make, args=(self.index + 1,), name="log-segment", daemon=True
        )
        self._maker.start()

    def _make(self, index: int) -> None:
        try:
            if not self._layer.exists(self._path(index)):
                self._create(self._path(index))
            if not self._layer.exists(self._path_of(RESERVE)):
                create_zeroed(self._layer, self._path_of(RESERVE), self._small_bytes)
        except BaseException as error:
            self._maker_error = error
            self.trouble = f"the next log segment could not be made: {error}"

    def _join(self) -> None:
        if self._maker is None:
            return
        self._maker.join()
        self._maker = None
        error, self._maker_error = self._maker_error, None
        self._next_ready = self._layer.exists(self._path(self.index + 1))
        if error is None:
            self.trouble = ""
        elif not isinstance(error, OSError):
            raise error

    def _rotate(self) -> None:
        self._join()
        path = self._path(self.index + 1)
        if not self._next_ready:
            try:
                self._create(path)
            except OSError as error:
                self.trouble = f"the next log segment could not be made: {error}"
                self._take_reserve(path, error)
        self._layer.truncate(self._fd, self.used)
        self._layer.fsync(self._fd)
        self._layer.close(self._fd)
        self._fd = -1
        self._fd = self._layer.open(path)
        self._capacity = self._layer.size(self._fd)
        self.index += 1
        self.used = 0
        self._next_ready = False

    def _take_reserve(self, path: str, cause: OSError) -> None:
        reserve = self._path_of(RESERVE)
        if not self._layer.exists(reserve):
            raise LogFull(
                "the log has no space left and its reserve is used up",
                "make space on the disk that holds the state directory, then start the gate again",
            ) from cause
        self._layer.rename(reserve, path)
        self._layer.sync_directory(self._directory)
