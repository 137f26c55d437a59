"""The structures that are written into a program's memory, beside what the kernel itself writes."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

import pytest

from authority.compat import calls_wire
from authority.compat.calls_memory import Memory, take_descriptor
from authority.compat.calls_wire import Status
from authority.isolation.syscalls import NUMBERS

TABLE = NUMBERS[platform.machine()]
LIBC = ctypes.CDLL(None, use_errno=True)


def status_of(path: Path) -> Status:
    found = os.stat(path)
    times = [divmod(ns, 10**9) for ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    seconds, rest = [one for one, _ in times], [ns for _, ns in times]
    return Status(
        found.st_dev, found.st_ino, found.st_size, found.st_blocks, *seconds, *rest,
        found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_blksize,
    )  # fmt: skip


def kernel(name: str, path: Path, size: int, *more: int) -> bytes:
    space = ctypes.create_string_buffer(size)
    arguments: list[object] = [-100, os.fsencode(path)]
    arguments += [*more, space] if name == "statx" else [space, 0]
    assert LIBC.syscall(TABLE[name], *arguments) == 0
    return space.raw


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "f"
    made.write_bytes(b"x" * 5000)
    os.utime(made, ns=(1_234_567_890_123_456_789, 5_000_000_007))
    made.chmod(0o640)
    os.link(made, tmp_path / "g")
    return made


@pytest.mark.parametrize("name", ["f", "."])
def test_stat(file: Path, name: str) -> None:
    path = file.parent / name
    ours = calls_wire.stat_bytes(status_of(path))
    assert len(ours) == (128 if platform.machine() == "aarch64" else 144)
    assert ours == kernel("newfstatat", path, len(ours))


def test_statx(file: Path) -> None:
    ours = calls_wire.statx_bytes(status_of(file))
    assert len(ours) == 256
    real = kernel("statx", file, 256, 0, 0x7FF)
    for start, end in ((4, 8), (16, 30), (32, 56), (64, 80), (96, 128), (136, 144)):
        assert ours[start:end] == real[start:end], (start, end)
    (mask,) = struct.unpack_from("<I", ours)
    assert mask == 0x7FF


def test_directory_records() -> None:
    rows = [(7, 11, 8, b"a"), (8, 1 << 62, 4, b"name"), (9, 13, 10, b"x" * 255)]
    data, last = calls_wire.dirents(rows, 4096)
    assert last == 13
    at, found = 0, []
    while at < len(data):
        ino, following, size, kind = struct.unpack_from("<QqHB", data, at)
        assert size % 8 == 0
        found.append((ino, following, kind, data[at + 19 : at + size].split(b"\0", 1)[0]))
        at += size
    assert found == rows
    first, last = calls_wire.dirents(rows, 60)
    assert (len(first), last) == (48, 1 << 62)
    assert calls_wire.dirents([], 10) == (b"", -1)
    with pytest.raises(OSError, match="Invalid"):
        calls_wire.dirents(rows, 20)


def test_memory() -> None:
    space = ctypes.create_string_buffer(b"text", 8192)
    memory = Memory(os.getpid())
    try:
        at = ctypes.addressof(space)
        assert memory.text(at, 4096) == b"text"
        memory.write(at, b"other")
        assert space.value == b"other"
        space.raw = b"y" * 8192
        with pytest.raises(OSError, match="too long"):
            memory.text(at, 4096)
        for bad in (0, 8, 1 << 46, (1 << 63) + 8, (1 << 64) - 1):
            for work in (
                lambda at=bad: memory.read(at, 8),
                lambda at=bad: memory.text(at, 8),
                lambda at=bad: memory.write(at, b"x"),
            ):
                with pytest.raises(OSError, match="Bad address"):
                    work()
    finally:
        memory.close()


def test_a_descriptor_that_is_taken_shares_its_position(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("0123456789")
    with open(tmp_path / "f", "rb", buffering=0) as file:
        taken = take_descriptor(os.getpid(), file.fileno())
        try:
            os.lseek(taken, 4, os.SEEK_SET)
            assert file.read(2) == b"45"
        finally:
            os.close(taken)
        with pytest.raises(OSError, match="Bad file"):
            take_descriptor(os.getpid(), 999)
