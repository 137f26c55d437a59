"""What a launcher hands over, and what a run may do with its filter afterwards."""

from __future__ import annotations

import os
import struct

import pytest

from authority.isolation import notify
from authority.isolation.syscalls import X86_64

IDS = struct.pack("<II", 1000, 1001)


def descriptors(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_what_is_handed_over() -> None:
    fds = descriptors(6)
    found = notify.handed(IDS, fds, X86_64, 2, exec_once=True)
    assert found is not None
    assert (found.uid, found.gid, found.root) == (1000, 1001, fds[1])
    assert found.listener.fileno() == fds[0]
    assert found.folders == ((fds[2], fds[3]), (fds[4], fds[5]))
    found.listener.close()
    assert not is_open(fds[0])
    for fd in fds[1:]:
        os.close(fd)


@pytest.mark.parametrize(
    ("data", "count", "mounts"),
    [(IDS, 0, 1), (IDS, 3, 1), (IDS, 5, 1), (IDS[:-1], 4, 1), (IDS + b"x", 4, 1), (b"", 2, 0)],
)
def test_what_is_not_as_planned_is_closed(data: bytes, count: int, mounts: int) -> None:
    fds = descriptors(count)
    assert notify.handed(data, fds, X86_64, mounts, exec_once=False) is None
    assert not any(map(is_open, fds))
