"""Open files of the gate that no run may use up: the log's next file has to be among what is left.

Rules
- What a run makes the gate open and hold (a connection, a file, a server's socket) is given up again
  when its number is one of the last `KEPT` (of the last quarter, where the gate may have few). The
  kernel gives out the lowest free number, so whatever else the gate opens finds room there.
- Many runs together can hold all the rest: then each of them is refused more, and nothing else.
"""

from __future__ import annotations

import errno
import os
import resource
import socket

KEPT = 512


def kept(fd: int) -> bool:
    """Whether this number is one of those that no run may hold."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return fd >= soft - min(KEPT, soft // 4)


def scarce() -> bool:
    """Whether what is opened next would be given up again, as far as can be told beforehand."""
    try:
        lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    os.close(lowest)
    return kept(lowest)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, the first to be held for a run. Raises `OSError`."""
    ours, theirs = socket.socketpair()
    if kept(ours.fileno()):
        ours.close()
        theirs.close()
        raise OSError(errno.ENFILE, "the gate has too many open files")
    return ours, theirs
