"""A file system over a folder of the host that answers the kernel's messages: the other end of a
mount's stream, without any judgement, and small. What is mounted through it is real; who may what is
tested where it is decided.

`Folder.answer(message)` gives the reply, or None for messages that want none. `refuse(operation, path)`
may return an errno. Layouts: linux/include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import Any

HEAD = struct.Struct("<IIQQIIII")
OUT = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
(LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK) = (
    *range(1, 7),
    *range(8, 14),
)
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, CREATE, INTERRUPT = (
    25,
    26,
    27,
    28,
    29,
    34,
    35,
    36,
)
BATCH_FORGET, RENAME2 = 42, 45
SILENT = (FORGET, BATCH_FORGET, INTERRUPT)


class Folder:
    """Answers for a folder and what is below it."""

    def __init__(
        self, root: str, refuse: Callable[[int, str], int] | None = None, deaf: Any = None
    ) -> None:
        self.refuse = refuse or (lambda _operation, _path: 0)
        self.deaf = deaf or (lambda _operation, _path: False)
        self.paths = {1: root}
        self.nodes = {root: 1}
        self.handles: dict[int, Any] = {}
        self.count = 1
        self.asked: list[tuple[int, str]] = []

    def answer(self, message: bytes) -> bytes | None:
        _, operation, unique, node, uid, gid, _, _ = HEAD.unpack_from(message)
        self.uid, self.gid = uid, gid
        path = self.paths.get(node, "")
        body = message[HEAD.size :]
        names = body.split(b"\0")
        if operation in (LOOKUP, UNLINK, RMDIR):
            about = self.below(path, names[0])
        elif operation in (CREATE, MKDIR):
            about = self.below(path, body[(16 if operation == CREATE else 8) :].split(b"\0")[0])
        else:
            about = path
        self.asked.append((operation, about))
        if operation in SILENT or self.deaf(operation, about):
            return None
        try:
            number = self.refuse(operation, about)
            if number:
                raise OSError(number, "")
            data = self.perform(operation, path, about, body)
        except OSError as error:
            return OUT.pack(OUT.size, -(error.errno or errno.EIO), unique)
        return OUT.pack(OUT.size + len(data), 0, unique) + data

    def below(self, path: str, name: bytes) -> str:
        return os.path.join(path, os.fsdecode(name))

    def attributes(self, path: str) -> bytes:
        s = os.lstat(path)
        times = [int(t) for t in (s.st_atime, s.st_mtime, s.st_ctime)]
        nanoseconds = [t % 1_000_000_000 for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)]
        return ATTR.pack(
            s.st_ino, s.st_size, s.st_blocks, *times, *nanoseconds,
            s.st_mode, s.st_nlink, self.uid, self.gid, 0, 4096, 0,
        )  # fmt: skip

    def number(self, path: str) -> int:
        if path not in self.nodes:
            self.count += 1
            self.nodes[path], self.paths[self.count] = self.count, path
        return self.nodes[path]

    def entry(self, path: str) -> bytes:
        attributes = self.attributes(path)
        return struct.pack("<QQQQII", self.number(path), 0, 0, 0, 0, 0) + attributes

    def handle(self, value: Any) -> bytes:
        self.count += 1
        self.handles[self.count] = value
        return struct.pack("<QIi", self.count, 1, 0)  # FOPEN_DIRECT_IO would forbid execution

    def perform(self, operation: int, path: str, about: str, body: bytes) -> bytes:
        match operation:
            case 26:
                (_, _, ahead, _) = struct.unpack_from("<IIII", body)
                return struct.pack(
                    "<IIIIHHIIHHI", 7, 31, ahead, 1 << 5 | 1 << 22, 12, 10, 1 << 17, 1, 32, 0, 0
                ) + bytes(28)
            case 1:
                return self.entry(about)
            case 3:
                return struct.pack("<QII", 0, 0, 0) + self.attributes(path)
            case 4:
                valid, _, _, size = struct.unpack_from("<IIQQ", body)
                if valid & 8:
                    os.truncate(path, size)
                if valid & 1:
                    os.chmod(path, struct.unpack_from("<I", body, 68)[0])
                return struct.pack("<QII", 0, 0, 0) + self.attributes(path)
            case 5:
                return os.fsencode(os.readlink(path))
            case 6:
                name, target = body.split(b"\0")[:2]
                os.symlink(target, os.fsencode(self.below(path, name)))
                return self.entry(self.below(path, name))
            case 9:
                os.mkdir(about)
                return self.entry(about)
            case 10:
                os.unlink(about)
                return b""
            case 11:
                os.rmdir(about)
                return b""
            case 12 | 45:
                head = 8 if operation == RENAME else 16
                (new,) = struct.unpack_from("<Q", body)
                old_name, new_name = body[head:].split(b"\0")[:2]
                source, target = self.below(path, old_name), self.below(self.paths[new], new_name)
                os.rename(source, target)
                self.paths[self.number(source)] = target
                self.nodes[target] = self.nodes.pop(source)
                return b""
            case 13:
                (old,) = struct.unpack_from("<Q", body)
                target = self.below(path, body[8:].split(b"\0")[0])
                os.link(self.paths[old], target)
                return self.entry(target)
            case 14:
                (flags,) = struct.unpack_from("<I", body)
                return self.handle(os.open(path, flags & ~os.O_NOFOLLOW & ~os.O_CREAT))
            case 35:
                flags, mode = struct.unpack_from("<II", body)
                fd = os.open(about, flags | os.O_CREAT, mode & 0o7777)
                return self.entry(about) + self.handle(fd)
            case 15:
                fh, offset, size = struct.unpack_from("<QQI", body)
                return os.pread(self.handles[fh], size, offset)
            case 16:
                fh, offset, size = struct.unpack_from("<QQI", body)
                return struct.pack(
                    "<II", os.pwrite(self.handles[fh], body[40 : 40 + size], offset), 0
                )
            case 17:
                return struct.pack(
                    "<QQQQQIIII", 1000, 1000, 1000, 1000, 1000, 4096, 255, 4096, 0
                ) + bytes(24)
            case 18 | 29:
                value = self.handles.pop(struct.unpack_from("<Q", body)[0])
                if operation == RELEASE:
                    os.close(value)
                return b""
            case 27:
                return self.handle(sorted(os.listdir(path)))
            case 28:
                return self.listing(path, *struct.unpack_from("<QQI", body))
            case 20 | 25 | 30 | 34:
                return b""
        raise OSError(errno.ENOSYS, "")

    def listing(self, path: str, fh: int, offset: int, size: int) -> bytes:
        out = b""
        for place, name in enumerate(self.handles[fh][offset:], offset + 1):
            raw = os.fsencode(name)
            mode = os.lstat(os.path.join(path, name)).st_mode
            one = struct.pack("<QQII", place, place, len(raw), stat.S_IFMT(mode) >> 12) + raw
            one += bytes(-len(one) % 8)
            if len(out) + len(one) > size:
                break
            out += one
        return out
