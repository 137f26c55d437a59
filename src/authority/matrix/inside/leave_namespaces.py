"""Tries to leave: into other namespaces, up to root on the host, into the kernel.

At its end it says which network it is in and waits for its standard input to close, so that the host
can look at it from outside meanwhile.
"""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import socket
import struct
import sys

from attempts import attempt, done, note  # type: ignore[import-not-found]
from calls import NothingGot, syscall  # type: ignore[import-not-found]
from children import in_child  # type: ignore[import-not-found]
from given import GIVEN  # type: ignore[import-not-found]

CLONE = {
    "NEWNET": 0x40000000,
    "NEWUSER": 0x10000000,
    "NEWNS": 0x00020000,
    "NEWPID": 0x20000000,
    "NEWUSER+NEWNET": 0x50000000,
}
KERNEL_FILES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/dev/mem",
    "/dev/kmsg",
)
DEVICE = (8 << 8) | 0


def unshare(flags: int) -> None:
    in_child(lambda: syscall(272, 97, flags))


def clone(flags: int) -> None:
    """The raw call: the child ends at once."""
    pid = syscall(56, 220, flags | signal.SIGCHLD)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def clone3(flags: int) -> None:
    arguments = struct.pack("<QQQQQQQQ", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = syscall(435, 435, arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        in_child(lambda: syscall(308, 268, fd, 0))
    finally:
        os.close(fd)


def open_for_writing(path: str) -> None:
    """Opens and closes; writes nothing."""
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


def read_secret(path: str) -> str:
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if GIVEN["word"] not in text:
        raise NothingGot("another file")
    return "read"


def become_root() -> None:
    before = os.getresuid()
    in_child(lambda: os.setresuid(0, 0, 0))
    if before[0] == 0:
        raise NothingGot("it was uid 0 before")


def by_handle() -> str:
    """open_by_handle_at: the root of the file system that a descriptor is on (inode 2)."""
    handle = struct.pack("<Ii", 8, 1) + struct.pack("<II", 2, 0)
    fd = os.open("/", os.O_RDONLY)
    try:
        return f"descriptor {syscall(304, 265, fd, handle, os.O_RDONLY)}"
    finally:
        os.close(fd)


def mount() -> None:
    """An empty file system on a folder made for it, gone again at once."""
    path = f"/tmp/mount-{os.getpid()}"  # noqa: S108
    os.mkdir(path)
    try:
        syscall(165, 40, b"none", path.encode(), b"tmpfs", 0, None)
        syscall(166, 39, path.encode(), 2)
    finally:
        os.rmdir(path)


def node() -> None:
    """A block device of the host, made anew."""
    path = f"/tmp/node-{os.getpid()}"  # noqa: S108
    os.mknod(path, 0o600 | 0o060000, DEVICE)
    try:
        os.close(os.open(path, os.O_RDONLY))
    finally:
        os.unlink(path)


def other_interfaces() -> str:
    with open("/proc/net/dev", encoding="ascii") as f:
        names = {line.split(":")[0].strip() for line in f if ":" in line}
    with contextlib.suppress(OSError):
        names.update(os.listdir("/sys/class/net"))
    with contextlib.suppress(OSError):
        names.update(name for _, name in socket.if_nameindex())
    names.discard("lo")
    if not names:
        raise NothingGot("lo alone")
    return ",".join(sorted(names))


def host_network() -> str:
    mine = os.readlink("/proc/self/ns/net")
    if mine != GIVEN["host_net"]:
        raise NothingGot("its own")
    return mine


def main() -> None:
    attempt("the host's network namespace", host_network)
    attempt("other interfaces than lo", other_interfaces)
    places = sorted(glob.glob("/proc/[0-9]*/ns/*") + glob.glob("/proc/self/ns/*"))
    if not places:
        attempt("setns: nothing in /proc", lambda: os.listdir("/proc/1/ns"))
    for kind in ("net", "user", "mnt", "pid"):
        for path in [p for p in places if p.endswith("/" + kind)][-40:]:
            attempt(f"setns {path}", lambda p=path: enter(p))
    for name, flags in CLONE.items():
        attempt(f"unshare {name}", lambda f=flags: unshare(f))
        attempt(f"clone {name}", lambda f=flags: clone(f))
        attempt(f"clone3 {name}", lambda f=flags: clone3(f))
    for path in KERNEL_FILES:
        attempt(f"write {path}", lambda p=path: open_for_writing(p))
    for process in ("1", "self", str(os.getppid())):
        for way in ("root", "cwd"):
            path = f"/proc/{process}/{way}{GIVEN['secret']}"
            attempt(f"read the secret by /proc/{process}/{way}", lambda p=path: read_secret(p))
    attempt("read the secret by climbing", lambda: read_secret("../" * 40 + GIVEN["secret"][1:]))
    attempt("setresuid 0", become_root)
    attempt("mount", mount)
    attempt("pivot_root", lambda: syscall(155, 41, b"/", b"/"))
    attempt("chroot", lambda: in_child(lambda: os.chroot("/tmp")))  # noqa: S108
    attempt("ptrace of process 1", lambda: syscall(101, 117, 0x4206, 1, 0, 0))
    attempt("bpf", lambda: syscall(321, 280, 0, bytes(128), 128))
    attempt("keyctl", lambda: syscall(250, 219, 0, -3, 1))
    attempt("userfaultfd", lambda: os.close(syscall(323, 282, 0)))
    attempt("perf_event_open", lambda: os.close(syscall(298, 241, bytes(128), 0, -1, -1, 0)))
    attempt("open_by_handle_at", by_handle)
    attempt("init_module", lambda: syscall(175, 105, b"", 0, b""))
    attempt("kexec_load", lambda: syscall(246, 104, 0, 0, None, 0))
    attempt("a block device", node)
    done()
    note(waiting=os.getpid())
    sys.stdin.read()


if __name__ == "__main__":
    main()
