"""Reading a log while it is written: a batch that lands between two reads is no damage."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from authority.audit import reading
from authority.audit.writer import LOCK

SIZE = 96 << 20
LINE = b"{" + b"x" * 500 + b"}\n"
CHUNK = LINE * 97


def write_all(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    at = 0
    while at + len(CHUNK) < SIZE:
        os.pwrite(fd, CHUNK, at)
        at += len(CHUNK)


def read_while_written(folder: Path, *, locked: bool) -> tuple[int, int]:
    """(lines read, lines that nobody wrote)."""
    path = str(folder / reading.name_of(1))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(SIZE), 0)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    if locked:
        fcntl.flock(lock, fcntl.LOCK_EX)
    child = os.fork()
    if child == 0:
        write_all(path)
        os._exit(0)
    reader = reading.Reader(folder)
    lines = wrong = 0
    deadline = time.monotonic() + 30
    over = False
    while not over and time.monotonic() < deadline:
        over = os.waitpid(child, os.WNOHANG)[0] == child
        for block in reader.blocks():
            for line in block.lines():
                lines += 1
                wrong += line + b"\n" != LINE
    os.close(fd)
    os.close(lock)
    return lines, wrong


def test_a_live_log_is_read_whole_and_right(tmp_path: Path) -> None:
    lines, wrong = read_while_written(tmp_path, locked=True)
    assert wrong == 0
    assert lines == (SIZE - 1) // len(CHUNK) * 97
