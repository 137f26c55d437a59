"""The log's one writer: append in memory, commit in groups, tell who waits when it is durable.

Rules
- `append` is synchronous and quick: it checks the line's head, chains the hash and keeps the bytes.
  It never touches the disk. Nothing that rests on an entry may leave before `when_durable` fires.
- At most one batch is being written. What is appended meanwhile is the next batch; its number
  (`next_batch`) is the `seq` of its first entry. A batch that has grown to `batch_bytes` is closed
  and another begun, so that one sync never waits for an unbounded write.
- Writing and `fdatasync` happen in one thread of the log's own; results return to the event loop. A
  sync in the loop's thread would be a quarter quicker for one writer on a quick disk, but a disk that
  hangs would then hold up halts and limits too, and not only what needs the log.
- The first failure of a write or sync poisons the log for good: everything that waits gets
  `LogPoisoned`, every later `append` raises it, nothing is tried again (after a failed sync the
  kernel may report success for pages that it dropped). Only a new start, which copies, goes on.
- Callbacks run on the event loop's thread, in the order of their entries. A callback that raises is
  reported to the loop's exception handler, and the others still run.
- Without a running event loop (tools, tests) `flush` commits in the calling thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from authority.audit import recovery as recovering
from authority.audit.anchor import Anchor
from authority.audit.chain import State, plain, read_new_head, seal
from authority.audit.errors import LogMisuse, LogPoisoned
from authority.audit.files import FileLayer, OsLayer
from authority.audit.merkle import Frontier
from authority.audit.prefixes import Floor
from authority.audit.recovery import Recovered, Recovery, recover
from authority.audit.segments import DEFAULT_BYTES, SegmentWriter

MAX_LINE = 1024 * 1024
"""The longest entry in bytes; larger bodies belong into the content store."""

_FOLD_AT = 32

LOCK = "lock"

Callback = Callable[[BaseException | None], None]


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What proves to a caller that an entry exists: its number and its hash (32 bytes)."""

    seq: int
    hash: bytes


class _Batch:
    __slots__ = ("callbacks", "error", "first", "last", "lines", "settled", "size")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self.lines: list[bytes] = []
        self.size = 0
        self.callbacks: list[tuple[int, Callback]] = []
        self.error: BaseException | None = None
        self.settled = False


class Log:
    """An open log. Use `Log.open`; all methods belong to one thread (the event loop's)."""

    def __init__(
        self, directory: str, layer: FileLayer, lock: int, found: Recovered, writer: SegmentWriter
    ) -> None:
        self._directory = directory
        self._layer = layer
        self._lock = lock
        self._writer = writer
        self.recovery: Recovery = found.report
        """What opening found, cut and copied."""
        self.batch_bytes = MAX_LINE
        self._tree = found.tree
        self._leaves: list[bytes] = []
        state = found.state
        self._hash = state.hash
        self._next_seq = state.next_seq
        self._durable = state.next_seq - 1
        self._durable_state = state
        self._open = _Batch(state.next_seq)
        self._closed: deque[_Batch] = deque()
        self._in_flight: _Batch | None = None
        self._poison: LogPoisoned | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kicked = False
        self._jobs: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        layer: FileLayer | None = None,
        segment_bytes: int = DEFAULT_BYTES,
        floors: Iterable[Floor] = (),
        anchor: Anchor | None = None,
    ) -> Log:
        """Lock, check and recover the log in `directory` (made if its parent exists).

        `floors` is what checkpoints and witnesses vouch for. Blocks; call it before serving. Raises
        `LogLocked`, `LogCorrupt`, `LogTampered`, `LogError` and `OSError`; with an `anchor` to begin
        at, which must lie below one of the floors, `AnchorUnfit`.
        """
        layer = OsLayer() if layer is None else layer
        path = os.path.abspath(os.fspath(directory))
        if not layer.exists(path):
            layer.mkdir(path)
            layer.sync_directory(os.path.dirname(path))
        lock = layer.lock(os.path.join(path, LOCK))
        try:
            found = recover(path, layer, floors, anchor)
            recovering.forget_marks(path, layer)
            writer = SegmentWriter(
                layer, path, index=found.index, used=found.used, segment_bytes=segment_bytes
            )
        except BaseException:
            layer.close(lock)
            raise
        return cls(path, layer, lock, found, writer)

    @property
    def next_seq(self) -> int:
        """The number that the next entry must carry."""
        return self._next_seq

    @property
    def next_batch(self) -> int:
        """The batch number that the next entry must carry."""
        return self._open.first

    @property
    def durable_seq(self) -> int:
        """The last durable entry; -1 when there is none."""
        return self._durable

    @property
    def head(self) -> bytes:
        """The hash of the last entry appended (not necessarily durable)."""
        return self._hash

    @property
    def poisoned(self) -> LogPoisoned | None:
        """The failure that ended this log's life, if there was one."""
        return self._poison

    @property
    def trouble(self) -> str:
        """Why only halt, status and denials may go on (no space for a next segment); or empty."""
        return self._writer.trouble

    def left(self, least: int) -> int:
        """How many bytes more the disk has for the log; looked up anew if that seems below `least`."""
        return self._writer.left(least)

    def append(self, line: bytes) -> Receipt:
        """Add an entry: canonical JSON with `next_seq` and `next_batch`, without `hash`.

        Raises `LogPoisoned`, or `LogMisuse` for a line that cannot be the next entry.
        """
        if self._poison is not None:
            raise self._poison.with_traceback(None)
        if self._ended:
            raise LogMisuse("the log is closed")
        batch = self._open
        seq = self._next_seq
        try:
            head = read_new_head(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise LogMisuse(f"not an entry: {error}") from error
        if head.seq != seq or head.batch != batch.first:
            raise LogMisuse(
                f"the next entry is {seq} of batch {batch.first}, not {head.seq} of {head.batch}"
            )
        if (
            head.hash is not msgspec.UNSET
            or not plain(line)
            or b"\n" in line
            or line[:1] != b"{"
            or line[-1:] != b"}"
            or len(line) > MAX_LINE
        ):
            raise LogMisuse("an entry is one line of printable ASCII, not too long, without 'hash'")
        if self._loop is None:
            self._attach()
        digest, sealed = seal(self._hash, line)
        self._hash = digest
        self._next_seq = seq + 1
        batch.lines.append(sealed)
        batch.last = seq
        batch.size += len(sealed)
        if batch.size >= self.batch_bytes:
            self._close_batch()
        if not self._kicked and self._in_flight is None and self._loop is not None:
            self._kicked = True
            self._loop.call_soon(self._gather)
        return Receipt(seq, digest)

    def when_durable(self, seq: int, callback: Callback) -> None:
        """Call `callback(None)` once entry `seq` is durable: now, if it already is.

        After a failure it is called with the `LogPoisoned`. Raises `LogMisuse` for a number that
        was not appended yet.
        """
        if seq <= self._durable:
            callback(None)
            return
        if seq >= self._next_seq:
            raise LogMisuse(f"entry {seq} was not appended yet")
        if self._poison is not None:
            callback(self._poison)
            return
        batch = self._in_flight
        if batch is None or seq > batch.last:
            batch = self._open
            if seq < batch.first:
                batch = next(each for each in self._closed if seq <= each.last)
        batch.callbacks.append((seq, callback))

    async def durable(self, seq: int) -> None:
        """Return once entry `seq` is durable. Raises `LogPoisoned`."""
        if seq <= self._durable:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if future.done():
                return  # the waiter was cancelled
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.when_durable(seq, done)
        await future

    def tree(self) -> Frontier:
        """The Merkle tree of exactly the durable entries; a copy."""
        self._fold()
        return self._tree.copy()

    def acknowledge_repair(self) -> None:
        """Call when the entry that names `recovery.cuts` is durable. Raises `OSError`."""
        recovering.acknowledge_cuts(self._directory, self._layer)

    def flush(self) -> None:
        """Commit everything in the calling thread; for tools without an event loop.

        Raises `LogPoisoned`, or `LogMisuse` when an event loop drives this log.
        """
        if self._loop is not None:
            raise LogMisuse("an event loop drives this log: await durable() instead")
        self._drain()
        if self._poison is not None:
            raise self._poison

    def close(self) -> None:
        """Commit what is pending, mark the log as cleanly closed, release the lock. Blocks.

        Poisoned or failing, it closes all the same, unmarked: the next start then copies.
        """
        if self._ended:
            return
        self._ended = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            if self._in_flight is not None:
                self._done(self._in_flight)
        try:
            self._drain()
            self._writer.close()
            if self._poison is None:
                recovering.mark_clean(self._directory, self._layer, self._durable_state)
        except OSError as error:
            self._fail(error)
        finally:
            self._layer.close(self._lock)

    def _attach(self) -> None:
        with contextlib.suppress(RuntimeError):  # a tool without a loop: it calls flush
            self._loop = asyncio.get_running_loop()

    def _fold(self) -> None:
        leaves, self._leaves = self._leaves, []
        self._tree.add_lines([line[:-1] for line in leaves])

    def _close_batch(self) -> None:
        self._closed.append(self._open)
        self._open = _Batch(self._next_seq)

    def _next(self) -> _Batch | None:
        if not self._closed:
            if not self._open.lines:
                return None
            self._close_batch()
        return self._closed.popleft()

    def _gather(self) -> None:
        """One more turn of the loop: what was begun in this one goes into the same batch."""
        if self._loop is not None:
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kicked = False
        if self._in_flight is None and self._poison is None and not self._ended:
            batch = self._next()
            if batch is None:
                return
            self._in_flight = batch
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="log-sync", daemon=True)
                self._thread.start()
            self._jobs.put(batch)

    def _work(self) -> None:
        assert self._loop is not None
        while (batch := self._jobs.get()) is not None:
            self._commit(batch)
            try:
                self._loop.call_soon_threadsafe(self._done, batch)
            except RuntimeError:
                # The loop was closed under us: nobody can be told, `close` settles the batch.
                return

    def _commit(self, batch: _Batch) -> None:
        try:
            self._writer.commit(b"".join(batch.lines), self._while_syncing)
        except BaseException as error:
            batch.error = error

    def _while_syncing(self) -> None:
        """Called by the thread right before it waits for the disk: the loop may hash meanwhile."""
        if self._loop is not None and len(self._leaves) >= _FOLD_AT:
            with contextlib.suppress(RuntimeError):  # a loop that was closed has nothing to do
                self._loop.call_soon_threadsafe(self._fold)

    def _done(self, batch: _Batch) -> None:
        if batch.settled:
            return
        batch.settled = True
        self._in_flight = None
        if batch.error is not None:
            self._closed.appendleft(batch)
            self._fail(batch.error)
            return
        self._durable = batch.last
        last = batch.lines[-1]
        self._durable_state = State(
            batch.last + 1, batch.first, bytes.fromhex(last[-67:-3].decode("ascii"))
        )
        self._leaves += batch.lines
        # Whoever is told may append at once, and it goes along. Starting the thread before that
        # would gain nothing: it cannot run while callbacks hold the interpreter.
        self._kicked = True
        self._tell(batch, None)
        self._kicked = False
        if self._loop is not None:
            self._kick()

    def _tell(self, batch: _Batch, error: LogPoisoned | None) -> None:
        batch.callbacks.sort(key=lambda item: item[0])
        for _, callback in batch.callbacks:
            try:
                callback(error)
            except Exception as problem:
                if self._loop is not None and not self._loop.is_closed():
                    self._loop.call_exception_handler(
                        {"message": "a log callback failed", "exception": problem}
                    )
                else:
                    sys.excepthook(type(problem), problem, problem.__traceback__)

    def _fail(self, error: BaseException) -> None:
        if self._poison is not None:
            return
        poison = LogPoisoned(
            f"the log could not be made durable: {error}",
            "nothing more is done by this gate; look at the disk, then start it again",
        )
        poison.__cause__ = error
        self._poison = poison
        try:
            recovering.mark_poisoned(self._directory, self._layer, error)
        except OSError as second:
            # Expected on a failing disk, and harmless: recovery takes the absent 'clean' as doubt.
            poison.add_note(f"the mark for the next start could not be written either: {second}")
        waiting = [*self._closed, self._open]
        self._closed.clear()
        self._open = _Batch(self._next_seq)
        for batch in waiting:
            self._tell(batch, poison)

    def _drain(self) -> None:
        while self._poison is None and (batch := self._next()) is not None:
            self._in_flight = batch
            self._commit(batch)
            self._done(batch)
