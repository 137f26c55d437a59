"""Tries to reach anything through a socket: every family and kind, the host's loopback and address,
its abstract and named unix sockets, descriptors that were left open, io_uring.
"""

from __future__ import annotations

import os
import socket
import stat
import time

from attempts import attempt, done  # type: ignore[import-not-found]
from calls import NothingGot, syscall  # type: ignore[import-not-found]
from given import GIVEN  # type: ignore[import-not-found]

KINDS = {"STREAM": 1, "DGRAM": 2, "RAW": 3, "RDM": 4, "SEQPACKET": 5, "PACKET": 10}
FAMILIES = {int(f): f.name.removeprefix("AF_") for f in socket.AddressFamily}
TIMEOUT = 1.0


def make(family: int, kind: int) -> None:
    """A socket of this family and kind, for protocols 0 and (raw) 1."""
    os.close(socket.socket(family, kind, 1 if kind == 3 else 0).detach())


def reach(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as s:
        s.settimeout(TIMEOUT)
        s.connect(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_DGRAM:
            # Where nobody listens the first datagram is lost, and the kernel says so at the second.
            s.send(b"reached")
            time.sleep(0.05)
            s.send(b"reached")


def interfaces() -> str:
    """Interfaces by netlink."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.bind((0, 0))
        s.send(bytes.fromhex("20000000120001030100000000000000" + "00" * 16))
        s.settimeout(TIMEOUT)
        return f"{len(s.recv(65536))} bytes"


def inherited() -> str:
    """A socket, device or folder that somebody left open above the standard streams."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            mode = os.fstat(int(name)).st_mode
        except OSError:
            continue
        if int(name) > 2 and not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            found.append(name)
    if not found:
        raise NothingGot("none left open")
    return ",".join(found)


def main() -> None:
    for family in range(46):
        for kind_name, kind in KINDS.items():
            if family != socket.AF_UNIX:
                name = FAMILIES.get(family, str(family))
                attempt(f"socket {name} {kind_name}", lambda f=family, k=kind: make(f, k))
    for name, (host, port, ipv6, kind) in GIVEN.get("addresses", {}).items():
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        attempt(
            f"reach {name}", lambda f=family, k=kind, h=host, p=port: reach(f, KINDS[k], (h, p))
        )
    for path in GIVEN.get("unix", []):
        target = "\0" + path[1:] if path.startswith("@") else path
        attempt(f"reach unix {path}", lambda t=target: reach(socket.AF_UNIX, socket.SOCK_STREAM, t))
    attempt("netlink interfaces", interfaces)
    attempt("io_uring_setup", lambda: os.close(syscall(425, 425, 8, bytes(120))))
    attempt("descriptors left open", inherited)
    done()


if __name__ == "__main__":
    main()
