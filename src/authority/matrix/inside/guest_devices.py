"""As root of a machine: a way out by another device, and the disk that can't be written."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import socket
import struct
import sys

from attempts import attempt, done, said  # type: ignore[import-not-found]
from calls import NothingGot, syscall  # type: ignore[import-not-found]

BLOCK, CHARACTER = 0o060600, 0o020600
MOUNT = b"/tmp/mnt"
_KINDS = {"01": "disk", "06": "bridge", "07": "channel", "00": "random", "ff": "random"}


def folder(path: str, kind: str) -> str:
    os.mkdir(path)
    syscall(165, 40, kind.encode(), path.encode(), kind.encode(), 0, None)
    return path


def text(path: str) -> str:
    with open(path, encoding="latin-1") as f:
        return f.read()


def connect(family: int, address: tuple[str | int, ...], kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(family, kind) as s:
        s.settimeout(5)
        s.connect(address)


def send_packet() -> None:
    """A frame on a card that is not loopback."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        raise NothingGot("lo alone")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((names[0], 0))
        s.send(bytes(60))


def other_port(major: int, minor: int) -> None:
    path = f"/tmp/port-{minor}"  # noqa: S108
    os.mknod(path, CHARACTER, os.makedev(major, minor))
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(fd, b"out")
    finally:
        os.close(fd)


def network(system: str) -> None:
    classes = f"{system}/bus/pci/devices"
    found = {name: text(f"{classes}/{name}/class")[2:4] for name in os.listdir(classes)}
    others = [kind for kind in found.values() if kind not in _KINDS]
    said("a device of another kind", bool(others), ", ".join(others) or f"{len(found)} devices")
    said("the bus shows the channel", "07" in found.values(), f"{len(found)} devices")
    cards = [name for name in os.listdir(f"{system}/class/net") if name != "lo"]
    said("a network card", bool(cards), ", ".join(cards) or "lo alone")
    for host in ("10.0.2.2", "10.0.2.3", "192.0.2.1", "169.254.169.254"):
        attempt(f"connect to {host}", lambda host=host: connect(socket.AF_INET, (host, 80)))
    attempt("connect by IPv6", lambda: connect(socket.AF_INET6, ("fec0::2", 80)))
    attempt("send a packet", send_packet)
    for cid in (0, 1, 2):
        attempt(f"vsock to {cid}", lambda cid=cid: connect(40, (cid, 1024)))
    major = os.major(os.stat("/dev/vport0p1").st_rdev)
    for minor in (0, *range(2, 32)):
        attempt(f"port {minor} of the channel", lambda minor=minor: other_port(major, minor))
    attempt("the channel twice", lambda: os.close(os.open("/dev/vport0p1", os.O_RDWR)))
    for tag in (b"host", b"share", b"root"):
        for kind in (b"9p", b"virtiofs"):
            attempt(
                f"mount {kind.decode()} {tag.decode()}",
                lambda kind=kind, tag=tag: syscall(165, 40, tag, MOUNT, kind, 0, None),
            )


def loopback() -> None:
    """The control: the guest's kernel has a network, it leads nowhere."""
    with socket.socket() as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1))  # up
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect(socket.AF_INET, server.getsockname())


def make_writable(path: str) -> None:
    """What the guest's kernel thinks of it (BLKROSET)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x125D, struct.pack("i", 0))
    finally:
        os.close(fd)


def write(path: str, flags: int = 0) -> None:
    space = mmap.mmap(-1, 4096)
    space.write(b"overcome" * 512)
    fd = os.open(path, os.O_RDWR | flags)
    try:
        os.pwrite(fd, space, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def first(path: str) -> bytes:
    """The beginning as the hypervisor has it, past what the guest keeps."""
    space = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [space], 0)
    finally:
        os.close(fd)
    return space[:]


def discard(path: str, request: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(fd, request, struct.pack("<QQ", 0, 1 << 20))
    finally:
        os.close(fd)


def command(path: str) -> None:
    """A SCSI command to the disk itself (SG_IO): write, without asking the kernel's layers."""
    data = ctypes.create_string_buffer(b"overcome" * 64)
    words = ctypes.create_string_buffer(bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]))
    head = struct.pack("<iiBBHIQQQIIiQ", ord("S"), -2, 10, 0, 0, 512, ctypes.addressof(data),
                       ctypes.addressof(words), 0, 5000, 0, 0, 0)  # fmt: skip
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(fd, 0x2285, bytearray(head.ljust(88, b"\0")))
    finally:
        os.close(fd)


def mount_to_write(path: str) -> None:
    syscall(165, 40, path.encode(), MOUNT, b"erofs", 0, None)
    try:
        os.close(os.open(MOUNT + b"/overcome", os.O_WRONLY | os.O_CREAT))
    finally:
        syscall(166, 39, MOUNT, 2)


def disk(system: str) -> None:
    disks = [name for name in os.listdir(f"{system}/block") if name != "vda"]
    said("another disk", bool(disks), ", ".join(disks) or "vda alone")
    os.mknod("/tmp/disk", BLOCK, os.stat("/dev/vda").st_rdev)  # noqa: S108
    before = first("/dev/vda")
    for path in ("/dev/vda", "/tmp/disk"):  # noqa: S108
        attempt(f"write {path}", lambda path=path: write(path))
    attempt("call it writable", lambda: make_writable("/dev/vda"))
    for path in ("/dev/vda", "/tmp/disk"):  # noqa: S108
        attempt(f"write {path} then", lambda path=path: write(path))
        attempt(f"write {path} directly", lambda path=path: write(path, os.O_DIRECT))
    attempt("discard", lambda: discard("/dev/vda", 0x1277))
    attempt("discard for good", lambda: discard("/dev/vda", 0x127D))
    attempt("write zeroes", lambda: discard("/dev/vda", 0x127F))
    attempt("write by a SCSI command", lambda: command("/dev/vda"))
    attempt("mount it to write", lambda: mount_to_write("/dev/vda"))
    after = first("/dev/vda")
    said("change the disk", after != before, "it is as it was" if after == before else "changed")
    digest = hashlib.sha256()
    with open("/dev/vda", "rb") as f:
        while part := f.read(1 << 20):
            digest.update(part)
    said("read the disk", True, digest.hexdigest())


def scratch() -> None:
    """The control: what can be written can be written the same way."""
    with open("/tmp/scratch", "wb") as f:  # noqa: S108
        f.write(bytes(8192))
    fd = os.open("/tmp/scratch", os.O_RDWR)  # noqa: S108
    os.pwrite(fd, b"overcome", 0)
    os.fsync(fd)
    os.close(fd)
    if not text("/tmp/scratch").startswith("overcome"):  # noqa: S108
        raise NothingGot("it was not written")


def capabilities() -> str:
    lines = text("/proc/self/status").splitlines()
    held = next(line.split()[1] for line in lines if line.startswith("CapEff"))
    if os.getuid() or int(held, 16) & (1 << 41) - 1 != (1 << 41) - 1:
        raise NothingGot(held)
    return held


if __name__ == "__main__":
    syscall(165, 40, b"tmpfs", b"/tmp", b"tmpfs", 0, None)
    os.mkdir(MOUNT)
    attempt("be root with every capability", capabilities)
    attempt("loopback", loopback)
    attempt("write a file", scratch)
    place = folder("/tmp/sys", "sysfs")  # noqa: S108
    {"network": network, "disk": disk}[sys.argv[1]](place)
    done()
