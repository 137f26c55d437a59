"""Root in the guest has no way out but the channel; each refusal beside something that is allowed."""

from __future__ import annotations

import asyncio
import errno

import pytest

from authority.vm import Images

from .guest import attack

HARDWARE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind):
    if libc.mount(source, target, kind, 0, None):
        raise OSError(ctypes.get_errno(), "mount")
def attempt(act):
    try:
        return act() or 0
    except OSError as error:
        return error.errno
def call(number, *arguments):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(number, *arguments) == -1 else 0
def opened(path, flags):
    os.close(os.open(path, flags))
found = {"uid": os.getuid()}
found["capabilities"] = next(l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff"))
mount(b"tmpfs", b"/tmp", b"tmpfs")
os.mkdir("/tmp/sys")
mount(b"sysfs", b"/tmp/sys", b"sysfs")
found["interfaces"] = os.listdir("/tmp/sys/class/net")
pci = "/tmp/sys/bus/pci/devices/"
found["classes"] = sorted(open(pci + d + "/class").read().strip()[2:4] for d in os.listdir(pci))
found["ports"] = sorted(n for n in os.listdir("/dev") if n.startswith("vport"))
found["disks"] = sorted(os.listdir("/tmp/sys/block"))
# the disk
found["read disk"] = attempt(lambda: opened("/dev/vda", os.O_RDONLY))
def write_disk():
    import fcntl
    fd = os.open("/dev/vda", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, 0x125D, b"\\0\\0\\0\\0")  # BLKROSET: writable, says the guest
    finally:
        os.close(fd)
    fd = os.open("/dev/vda", os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * 4096, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
before = os.pread(os.open("/dev/vda", os.O_RDONLY), 4096, 0)
found["write disk"] = attempt(write_disk)
try:
    import fcntl
    fd = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
    import mmap
    space = mmap.mmap(-1, 4096)
    os.preadv(fd, [space], 0)
    found["disk changed"] = space[:] != before
except OSError as error:
    found["disk changed"] = "unread %d" % error.errno
# memory, ports, modules, other kernels
found["zero"] = attempt(lambda: opened("/dev/zero", os.O_RDWR))
os.mknod("/tmp/mem", 0o600 | 0o20000, os.makedev(1, 1))
os.mknod("/tmp/port", 0o600 | 0o20000, os.makedev(1, 4))
found["mem"] = attempt(lambda: opened("/tmp/mem", os.O_RDWR))
found["port"] = attempt(lambda: opened("/tmp/port", os.O_RDWR))
found["iopl"] = call(172, 3)
found["getpid"] = call(39)
open("/tmp/module", "wb").write(b"\\x7fELF" + bytes(60))
module = os.open("/tmp/module", os.O_RDONLY)
found["module"] = call(313, module, b"", 0)
found["kexec"] = call(246, 0, 0, None, 0)
def config():
    fd = os.open(pci + sorted(os.listdir(pci))[0] + "/config", os.O_RDWR)
    try:
        os.pwrite(fd, b"\\x07\\x00", 4)
    finally:
        os.close(fd)
found["pci"] = attempt(config)
# another port of the channel's device
major = os.major(os.stat("/dev/vport0p1").st_rdev)
failed = []
def second():
    for minor in range(2, 8):
        os.mknod("/tmp/vport%d" % minor, 0o600 | 0o20000, os.makedev(major, minor))
        fd = os.open("/tmp/vport%d" % minor, os.O_RDWR)
        try:
            os.write(fd, b"out")
            raise SystemExit("a second channel")
        except OSError as error:
            failed.append(error.errno)
        finally:
            os.close(fd)
attempt(second)
found["second port"] = failed
import socket
def vsock():
    s = socket.socket(40, socket.SOCK_STREAM)
    s.connect((2, 1234))
found["vsock"] = attempt(vsock)
def packet():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(5)
    s.connect(("10.0.2.2", 80))
found["connect"] = attempt(packet)
tell(found)
import time
time.sleep(600)
"""


@pytest.fixture(scope="module")
def found(built: Images) -> dict[str, object]:
    return asyncio.run(attack(built, HARDWARE))


def test_control_it_is_root_with_every_capability(found: dict[str, object]) -> None:
    assert found["uid"] == 0
    assert int(str(found["capabilities"]), 16) >= 0x1FFFFFFFFFF
    assert [found[name] for name in ("read disk", "zero", "getpid")] == [0, 0, 0]


def test_there_is_no_network_device(found: dict[str, object]) -> None:
    assert found["interfaces"] == ["lo"]
    # 01 is the disk, 06 a bridge, 07 the channel, 00 and ff random numbers; 02 would be a network.
    assert isinstance(found["classes"], list)
    assert "02" not in found["classes"]
    assert set(found["classes"]) <= {"00", "01", "06", "07", "ff"}, found["classes"]
    assert found["connect"] == errno.ENETUNREACH
    assert found["vsock"] == errno.EAFNOSUPPORT


def test_there_is_one_channel_and_one_disk(found: dict[str, object]) -> None:
    assert found["ports"] == ["vport0p1"]
    assert found["disks"] == ["vda"]
    assert set(found["second port"]) == {errno.EINVAL}  # type: ignore[call-overload]


def test_the_disk_can_not_be_written(found: dict[str, object]) -> None:
    assert found["write disk"] in (errno.EPERM, errno.EACCES, errno.EROFS, errno.EIO)
    assert found["disk changed"] is False


@pytest.mark.parametrize("name", ["mem", "port", "iopl", "module", "kexec", "pci"])
def test_the_guests_kernel_is_locked(found: dict[str, object], name: str) -> None:
    # This kernel has no /dev/port at all.
    assert found[name] == (errno.ENXIO if name == "port" else errno.EPERM)
