"""The file server of a run's mounts, at the gate: what the kernel asks comes here, one message a frame.

Inside the run nobody judges: a pump carries the kernel's messages out and the answers back. Here each
is read strictly, judged on the canonical path, and performed beneath a held directory.

Rules
- The first message is INIT; what is used is what both sides know. Anything malformed ends the mount,
  and with it everything that the run has open.
- A look is answered at once where the kernel's caches have it; everything else is a task of its own,
  at most `AT_ONCE` of them, so one slow file holds up only who waits for it. A message is never
  answered twice.
- An interrupted request is finished: it may be admitted already. FORGET and INTERRUPT have no answer.
- When the run is halted, ends, or loses its capability, all open files are closed in the same step;
  every further message gets EIO.
- The kernel may go through a name that it was told of a moment ago (`fuse_reply`). What it asks about
  the node is judged and performed at the path where the node lies, on the very object that it was told
  of. If that is not there any more the answer is ESTALE: the kernel then asks for every name of the
  path anew, so that a change from outside is seen at once.
- A defect here answers EIO, ends the mount and is raised: nothing goes on half right.

Parts: `mount_desk` (who answers what), `fuse_wire` and `fuse_reply` (the messages), `mount_view`
(looks), `mount_changes` (names and attributes), `mount_files`, `mount_leases` and `mount_sizes` (open
files), `mount_own` (what is closed elsewhere), `effects.tree` and `effects.overlay` (the files).
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from authority.compat import fuse_abi as abi
from authority.compat import fuse_reply as out
from authority.compat.base import Door, Folder, Places, Refused, Stream
from authority.compat.fuse_wire import Request, WireError, parse
from authority.compat.mount_bench import Bench
from authority.compat.mount_desk import Desk, Handler
from authority.compat.mount_handles import Handles
from authority.compat.mount_links import Links
from authority.compat.mount_locks import Stillness
from authority.compat.mount_nodes import Nodes
from authority.compat.mount_own import Own
from authority.effects.beneath import Beneath, Untouchable
from authority.effects.tree import Files, Tree
from authority.kernel.policy_protect import PathSet, path_text
from authority.kernel.requests import Nothing
from authority.kernel.resources import parse_text

AT_ONCE = 64
THREADS = 4
_BACKGROUND = 64
_PAGES = 256
_ERRNO_MOST = 511
_DOUBTFUL = frozenset({errno.EACCES, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_OF_A_NODE = frozenset(
    {abi.GETATTR, abi.SETATTR, abi.ACCESS, abi.OPEN, abi.OPENDIR, abi.READLINK, abi.GETXATTR}
    | {abi.LISTXATTR, abi.SETXATTR, abi.REMOVEXATTR}
)

NO_SHARED_MAPPINGS = (
    "this kernel has no shared writable file mappings over FUSE without a cache (Linux 6.6 and later"
    " do): programs that need one (SQLite in WAL mode) get ENODEV"
)


class Mounts:
    """Service MOUNT of one run. `open_files` gives the files of a folder outside when they are not the
    folder's own (an overlay). What it holds is let go when the last mount has ended."""

    def __init__(
        self, door: Door, places: Places, open_files: Callable[[Folder], Files] | None = None
    ) -> None:
        self._door = door
        self._places = places
        self._open_files = open_files or self._plain
        self._handles = Handles()
        self._own = Own()
        self._links = Links()
        self._still = Stillness()
        self._threads = ThreadPoolExecutor(THREADS, "authority-mount")
        self._beneath: Beneath | None = None
        self._served: set[int] = set()
        self._active = 0

    def _plain(self, folder: Folder) -> Files:
        if self._beneath is None:
            self._beneath = Beneath()
        return Tree(self._beneath, os.fsencode(folder.source))

    def written_to_act_later(self) -> dict[str, str]:
        """What was written in the run's own repositories and folders that is closed elsewhere, and
        what it is: for the run's end."""
        return dict(self._own.written)

    async def serve(self, stream: Stream) -> None:
        """Serve the mount whose index the stream's detail says, until it ends."""
        number = int.from_bytes(stream.detail, "big")
        if len(stream.detail) != 2 or number >= len(self._places.folders) or number in self._served:
            self._door.trouble("a mount was asked for that this run does not have")
            stream.abort()
            return
        self._served.add(number)
        self._active += 1
        folder = self._places.folders[number]
        try:
            files = self._open_files(folder)
            try:
                await self._serve(stream, folder, files)
            finally:
                self._handles.stop()
                files.close()
        finally:
            self._active -= 1
            if not self._active:
                self._close()

    async def _serve(self, stream: Stream, folder: Folder, files: Files) -> None:
        root = parse_text(path_text(folder.path))
        with files.look(b"") as found:
            nodes = Nodes(root, found.identity)
        bench = Bench(
            self._door,
            files,
            nodes,
            handles=self._handles,
            own=self._own,
            shown=PathSet(map(path_text, self._places.shown)),
            over=PathSet(map(path_text, self._places.over)),
            home=folder.home,
            threads=self._threads,
            still=self._still,
        )
        try:
            flow = await self._door.open("fs.mount", root, Nothing(), bench.verb)
        except Refused:
            stream.abort()
            return
        flow.on_stop(self._handles.stop)
        try:
            await Mount(stream, bench, self._links).serve()
        finally:
            self._handles.stop()
            flow.settle("done")

    def _close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._own.close()
        if self._beneath is not None:
            self._beneath.close()
            self._beneath = None


class Mount:
    """One mount while it is served."""

    def __init__(self, stream: Stream, bench: Bench, links: Links) -> None:
        self._stream = stream
        self._bench = bench
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        self._over = False
        self._broken: BaseException | None = None
        self._view = (desk := Desk(bench, links)).view
        self._handlers: dict[int, Handler] = desk.handlers | {
            abi.INIT: self._init,
            abi.DESTROY: self._destroy,
            abi.RELEASEDIR: self._releasedir,
            abi.FSYNCDIR: self._fsyncdir,
        }

    async def serve(self) -> None:
        """Take messages to the end of the stream. Raises what broke it."""
        try:
            while not self._over and (frame := await self._stream.read()):
                try:
                    await self._message(parse(frame))
                except WireError as error:
                    await self._malformed(error)
                while len(self._tasks) >= AT_ONCE:
                    await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)
        except ConnectionError:
            self._over = True  # the program's side is gone
        finally:
            for task in self._tasks:
                task.cancel()
        if self._broken is not None:
            raise self._broken

    async def _malformed(self, error: WireError) -> None:
        self._over = True
        self._bench.handles.stop()
        self._stream.abort()
        root = self._bench.nodes.root
        await self._bench.door.deny("fs.mount", root.text, f"no message of a kernel: {error}")
        self._bench.door.trouble("the mount sent what no kernel sends; it was ended")

    async def _message(self, request: Request) -> None:
        opcode, nodes = request.opcode, self._bench.nodes
        if opcode == abi.FORGET:
            nodes.forget(request.nodeid, request.head.nlookup)
            return
        if opcode == abi.BATCH_FORGET:
            for number, count in request.forgets:
                nodes.forget(number, count)
            return
        if opcode == abi.INTERRUPT:
            return
        if not self._begun and opcode != abi.INIT:
            raise WireError("a message before the first")
        handler = self._handlers.get(opcode)
        if handler is None:
            await self._stream.write(out.error(request.unique, errno.ENOSYS))
            return
        if self._bench.handles.stopped and opcode not in (abi.INIT, abi.DESTROY):
            await self._stream.write(out.error(request.unique, errno.EIO))
            return
        try:
            answer = handler(request)
        except (OSError, Untouchable) as error:
            answer = self._failure(request, error)
        if isinstance(answer, bytes):
            await self._stream.write(answer)
            return
        task = asyncio.get_running_loop().create_task(self._finish(request, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, request: Request, work: Coroutine[Any, Any, bytes]) -> None:
        try:
            answer = await work
        except (OSError, Untouchable) as error:
            answer = self._failure(request, error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._broken = self._broken or error
            self._over = True
            self._bench.handles.stop()
            self._stream.abort()
            return
        try:
            await self._stream.write(answer)
        except ConnectionError:
            self._over = True

    def _failure(self, request: Request, error: OSError | Untouchable) -> bytes:
        """The errno; ESTALE where the path led elsewhere than the kernel believes."""
        number = errno_of(error)
        doubtful = number in _DOUBTFUL or (number == errno.ENOENT and request.opcode in _OF_A_NODE)
        if doubtful and not self._view.there(request.nodeid):
            number = errno.ESTALE
        return out.error(request.unique, number)

    # --- what concerns the mount itself ---

    def _init(self, request: Request) -> bytes:
        head = request.head
        if self._begun:
            raise WireError("a second INIT")
        if head.major != abi.MAJOR or head.minor < abi.MINOR_LEAST:
            self._bench.door.trouble(
                f"this kernel speaks FUSE {head.major}.{head.minor}, and 7.{abi.MINOR_LEAST} is needed"
            )
            raise WireError("a version that is not spoken here")
        self._begun = True
        flags = head.flags & abi.WANTED
        if not flags & abi.DIRECT_IO_ALLOW_MMAP:
            self._bench.door.trouble(NO_SHARED_MAPPINGS)
        body = out.init_out(
            min(head.minor, abi.MINOR_MOST),
            head.readahead,
            flags,
            background=_BACKGROUND,
            max_pages=_PAGES,
        )
        return out.reply(request.unique, body)

    def _destroy(self, request: Request) -> bytes:
        self._over = True
        return out.reply(request.unique)

    def _releasedir(self, request: Request) -> bytes:
        self._view.close(request.head.fh)
        return out.reply(request.unique)

    async def _fsyncdir(self, request: Request) -> bytes:
        bench = self._bench
        directory = bench.handles.directory(request.head.fh)
        path = bench.nodes.path(directory.node)
        await bench.thread(lambda: bench.files.sync(path))
        return out.reply(request.unique)


def errno_of(error: OSError | Untouchable) -> int:
    """What a program is told: `EACCES` for what may not be touched, `EIO` for what has no number."""
    if isinstance(error, Untouchable):
        return errno.EACCES
    number = error.errno or 0
    return number if 0 < number <= _ERRNO_MOST else errno.EIO
