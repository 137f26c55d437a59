"""A kernel of our own: it sends FUSE messages to a mount's server and can be told to lie.

Each method sends one request and gives what the reply says; an errno is raised as `OSError`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import Any, NamedTuple

from authority.compat import fuse_abi as abi
from authority.compat.fuse_reply import NAME_SECONDS

HEADER = struct.Struct("<IIQQIIIHH")
ALL_FLAGS = abi.WANTED | abi.INIT_EXT
UID, GID = 1000, 1000


class Attr(NamedTuple):
    ino: int
    size: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int


class Entry(NamedTuple):
    node: int
    attr: Attr
    valid: tuple[int, int]


def _attr(data: bytes) -> Attr:
    v = struct.unpack_from("<QQQQQQIIIIIIIIII", data)
    return Attr(v[0], v[1], v[9], v[10], v[11], v[12], v[4])


class Stream:
    """Both ends of a raw stream, without a run between them. See `compat.base.Stream`."""

    service = 6

    def __init__(self, number: int = 0) -> None:
        self.number = 7
        self.detail = number.to_bytes(2, "big")
        self.to_gate: asyncio.Queue[bytes] = asyncio.Queue()
        self.to_kernel: asyncio.Queue[bytes] = asyncio.Queue()
        self.gone = False

    async def read(self) -> bytes:
        return b"" if self.gone else await self.to_gate.get()

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError("gone")
        self.to_kernel.put_nowait(data)

    def write_eof(self) -> None:
        self.to_kernel.put_nowait(b"")

    def abort(self) -> None:
        self.gone = True
        self.to_gate.put_nowait(b"")
        self.to_kernel.put_nowait(b"")


class Kernel:
    """Asks one mount."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._unique = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._reader: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()

    def start(self) -> None:
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while data := await self.stream.to_kernel.get():
            length, error, unique = struct.unpack_from("<IiQ", data)
            assert length == len(data)
            future = self._waiting.pop(unique)
            if error:
                future.set_exception(OSError(-error, errno.errorcode.get(-error, "?")))
            else:
                future.set_result(data[16:])
        self.ended.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the mount ended"))

    def stop(self) -> None:
        self.stream.abort()

    def frame(self, opcode: int, node: int, body: bytes, unique: int) -> bytes:
        head = HEADER.pack(HEADER.size + len(body), opcode, unique, node, UID, GID, 4711, 0, 0)
        return head + body

    def send(self, opcode: int, node: int, body: bytes = b"") -> asyncio.Future[bytes]:
        self._unique += 2
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[self._unique] = future
        self.stream.to_gate.put_nowait(self.frame(opcode, node, body, self._unique))
        return future

    async def ask(self, opcode: int, node: int, body: bytes = b"") -> bytes:
        async with asyncio.timeout(20):
            return await self.send(opcode, node, body)

    def tell(self, opcode: int, node: int, body: bytes) -> None:
        """Without an answer."""
        self._unique += 2
        self.stream.to_gate.put_nowait(self.frame(opcode, node, body, self._unique))

    # --- requests ---

    async def init(self, flags: int = ALL_FLAGS, minor: int = 41) -> tuple[Any, ...]:
        body = struct.pack("<IIIII44x", 7, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)
        return struct.unpack_from("<IIIIHHIIHHI", await self.ask(abi.INIT, 0, body))

    async def lookup(self, node: int, name: str | bytes) -> Entry:
        return entry(await self.ask(abi.LOOKUP, node, _name(name)))

    async def walk(self, path: str) -> Entry:
        """Look a whole path up, name by name."""
        found = Entry(1, await self.getattr(1), (0, 0))
        for name in path.split("/"):
            found = await self.lookup(found.node, name)
        return found

    async def getattr(self, node: int, fh: int | None = None) -> Attr:
        body = struct.pack("<IIQ", 0 if fh is None else 1, 0, fh or 0)
        reply = await self.ask(abi.GETATTR, node, body)
        assert struct.unpack_from("<QI", reply) == (0, 0)
        return _attr(reply[16:])

    async def setattr(self, node: int, **given: int) -> Attr:
        bits = {
            "mode": abi.SET_MODE, "uid": abi.SET_UID, "gid": abi.SET_GID, "size": abi.SET_SIZE,
            "atime": abi.SET_ATIME, "mtime": abi.SET_MTIME, "fh": abi.SET_FH,
        }  # fmt: skip
        valid = sum(bits[key] for key in given)
        g = given.get
        body = struct.pack(
            "<IIQQQQQQIIIIIIII", valid, 0, g("fh", 0), g("size", 0), 0, g("atime", 0),
            g("mtime", 0), 0, 0, 0, 0, g("mode", 0), 0, g("uid", 0), g("gid", 0), 0,
        )  # fmt: skip
        return _attr((await self.ask(abi.SETATTR, node, body))[16:])

    async def open(self, node: int, flags: int = os.O_RDONLY) -> int:
        fh, how = struct.unpack_from(
            "<QI", await self.ask(abi.OPEN, node, struct.pack("<II", flags, 0))
        )
        assert how & abi.OPEN_DIRECT_IO
        assert bool(how & abi.OPEN_NO_FLUSH) is (not flags & (os.O_ACCMODE | os.O_TRUNC))
        return int(fh)

    async def create(
        self, node: int, name: str | bytes, flags: int = os.O_WRONLY, mode: int = 0o644
    ) -> tuple[Entry, int]:
        body = struct.pack("<IIII", flags | os.O_CREAT, mode, 0o022, 0) + _name(name)
        reply = await self.ask(abi.CREATE, node, body)
        return entry(reply), struct.unpack_from("<Q", reply, 128)[0]

    async def read(self, node: int, fh: int, size: int = 4096, offset: int = 0) -> bytes:
        return await self.ask(abi.READ, node, _io(fh, offset, size))

    async def write(
        self, node: int, fh: int, data: bytes, offset: int = 0, *, flags: int = 0
    ) -> int:
        body = struct.pack("<QQIIQII", fh, offset, len(data), 0, 0, flags, 0) + data
        return int(struct.unpack_from("<I", await self.ask(abi.WRITE, node, body))[0])

    async def flush(self, node: int, fh: int) -> None:
        await self.ask(abi.FLUSH, node, struct.pack("<QIIQ", fh, 0, 0, 0))

    async def release(self, node: int, fh: int) -> None:
        await self.ask(abi.RELEASE, node, struct.pack("<QIIQ", fh, 0, 0, 0))

    async def close(self, node: int, fh: int) -> None:
        await self.flush(node, fh)
        await self.release(node, fh)

    async def fsync(self, node: int, fh: int, *, data: bool = False) -> None:
        await self.ask(abi.FSYNC, node, struct.pack("<QII", fh, int(data), 0))

    async def mkdir(self, node: int, name: str | bytes, mode: int = 0o755) -> Entry:
        return entry(await self.ask(abi.MKDIR, node, struct.pack("<II", mode, 0o022) + _name(name)))

    async def mknod(self, node: int, name: str, mode: int) -> Entry:
        body = struct.pack("<IIII", mode, 0, 0o022, 0) + _name(name)
        return entry(await self.ask(abi.MKNOD, node, body))

    async def unlink(self, node: int, name: str) -> None:
        await self.ask(abi.UNLINK, node, _name(name))

    async def rmdir(self, node: int, name: str) -> None:
        await self.ask(abi.RMDIR, node, _name(name))

    async def symlink(self, node: int, name: str, text: str) -> Entry:
        return entry(await self.ask(abi.SYMLINK, node, _name(name) + _name(text)))

    async def link(self, old: int, node: int, name: str) -> Entry:
        return entry(await self.ask(abi.LINK, node, struct.pack("<Q", old) + _name(name)))

    async def readlink(self, node: int) -> bytes:
        return await self.ask(abi.READLINK, node)

    async def rename(self, old: int, name: str, new: int, to: str, flags: int = 0) -> None:
        names = _name(name) + _name(to)
        if flags:
            await self.ask(abi.RENAME2, old, struct.pack("<QII", new, flags, 0) + names)
        else:  # as the kernel does
            await self.ask(abi.RENAME, old, struct.pack("<Q", new) + names)

    async def access(self, node: int, mask: int) -> None:
        await self.ask(abi.ACCESS, node, struct.pack("<II", mask, 0))

    async def list(self, node: int, size: int = 4096) -> list[str]:
        """Open a directory, read it in pieces, close it."""
        reply = await self.ask(abi.OPENDIR, node, struct.pack("<II", os.O_DIRECTORY, 0))
        fh = struct.unpack_from("<Q", reply)[0]
        names, offset = [], 0
        while data := await self.ask(abi.READDIR, node, _io(fh, offset, size)):
            at = 0
            while at < len(data):
                _, offset, length, _ = struct.unpack_from("<QQII", data, at)
                names.append(os.fsdecode(data[at + 24 : at + 24 + length]))
                at += 24 + (length + 7) // 8 * 8
        await self.ask(abi.RELEASEDIR, node, struct.pack("<QIIQ", fh, 0, 0, 0))
        assert names[:2] == [".", ".."]
        return sorted(names[2:])

    async def fallocate(self, node: int, fh: int, offset: int, length: int, mode: int = 0) -> None:
        await self.ask(abi.FALLOCATE, node, struct.pack("<QQQII", fh, offset, length, mode, 0))

    async def lseek(self, node: int, fh: int, offset: int, whence: int) -> int:
        body = struct.pack("<QQII", fh, offset, whence, 0)
        return int(struct.unpack("<Q", await self.ask(abi.LSEEK, node, body))[0])

    async def copy(self, node: int, fh: int, off: int, to: int, fh_to: int, at: int, n: int) -> int:
        body = struct.pack("<QQQQQQQ", fh, off, to, fh_to, at, n, 0)
        reply = await self.ask(abi.COPY_FILE_RANGE, node, body)
        return int(struct.unpack_from("<I", reply)[0])

    async def setxattr(self, node: int, name: str, value: bytes) -> None:
        body = struct.pack("<II", len(value), 0) + _name(name) + value
        await self.ask(abi.SETXATTR, node, body)

    async def getxattr(self, node: int, name: str, size: int = 256) -> bytes:
        return await self.ask(abi.GETXATTR, node, struct.pack("<II", size, 0) + _name(name))

    async def listxattr(self, node: int, size: int = 256) -> bytes:
        return await self.ask(abi.LISTXATTR, node, struct.pack("<II", size, 0))

    def forget(self, node: int, count: int) -> None:
        self.tell(abi.FORGET, node, struct.pack("<Q", count))

    # --- whole files, as programs use them ---

    async def get(self, path: str) -> bytes:
        found = await self.walk(path)
        fh = await self.open(found.node)
        data = b""
        while piece := await self.read(found.node, fh, 65536, len(data)):
            data += piece
        await self.close(found.node, fh)
        return data

    async def put(self, path: str, data: bytes, mode: int = 0o644) -> Entry:
        folder, _, name = path.rpartition("/")
        parent = (await self.walk(folder)).node if folder else 1
        try:
            found = await self.lookup(parent, name)
        except FileNotFoundError:
            found, fh = await self.create(parent, name, os.O_WRONLY | os.O_TRUNC, mode)
        else:
            fh = await self.open(found.node, os.O_WRONLY | os.O_TRUNC)
        if data:
            assert await self.write(found.node, fh, data) == len(data)
        await self.close(found.node, fh)
        return found


def entry(reply: bytes) -> Entry:
    node, _, name_valid, attr_valid, ns, ns2 = struct.unpack_from("<QQQQII", reply)
    assert (name_valid, attr_valid, ns, ns2) == (NAME_SECONDS, 0, 0, 0)
    return Entry(node, _attr(reply[40:]), (name_valid, attr_valid))


def _name(name: str | bytes) -> bytes:
    return os.fsencode(name) + b"\0"


def _io(fh: int, offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0)
