"""As root of a machine: past the guest's own kernel, to the memory, the ports and the devices.

Nothing that works here is used for anything: memory is opened and not written, a kernel is loaded and
not started. Where the guards are taken out (the control) most of it works.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys

from attempts import attempt, done  # type: ignore[import-not-found]
from calls import NothingGot, syscall  # type: ignore[import-not-found]
from guest_devices import CHARACTER, capabilities, folder, scratch  # type: ignore[import-not-found]

SYSTEM, DEBUG, TRACE = "/tmp/sys", "/tmp/debug", "/tmp/trace"  # noqa: S108
PCI = f"{SYSTEM}/bus/pci/devices"
ACPI = f"{SYSTEM}/firmware/acpi"


def node(major: int, minor: int, flags: int = os.O_RDWR) -> None:
    path = f"/tmp/node-{major}-{minor}"  # noqa: S108
    os.mknod(path, CHARACTER, os.makedev(major, minor))
    try:
        os.close(os.open(path, flags))
    finally:
        os.unlink(path)


def put(path: str, data: bytes, at: int = 0) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def get(path: str, size: int = 4, at: int = 0) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, size, at)
    finally:
        os.close(fd)
    if not data:
        raise NothingGot("nothing was read")
    return data[:4].hex()


def append(path: str, text: str) -> None:
    with open(path, "a", encoding="ascii") as f:
        f.write(text)


def device(kind: str) -> str:
    """The folder of the first device of this class."""
    for name in sorted(os.listdir(PCI)):
        with open(f"{PCI}/{name}/class", encoding="ascii") as f:
            if f.read().strip()[2:4] == kind:
                return f"{PCI}/{name}"
    raise NothingGot("there is no such device")


def bars(path: str) -> list[str]:
    names = (f"resource{number}" for number in range(10))
    return [f"{path}/{name}" for name in names if os.path.exists(f"{path}/{name}")]


def map_bar() -> None:
    """The memory of a device, in this process."""
    for path in bars(device("01")):
        fd = os.open(path, os.O_RDWR)
        try:
            if os.fstat(fd).st_size >= 4096:
                with mmap.mmap(fd, 4096):
                    return
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
        finally:
            os.close(fd)
    raise NothingGot("no memory of a device")


def port_of_device() -> None:
    """A device's ports, by the file that the kernel has for them: the queue that is selected."""
    put(f"{device('01')}/resource0", b"\0\0", 14)


def load(data: bytes, *, from_file: bool) -> None:
    """A module; one that is there already has passed every guard."""
    path = "/tmp/module.ko"  # noqa: S108
    with open(path, "wb") as f:
        f.write(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        if from_file:
            syscall(313, 273, fd, b"", 0)
        else:
            syscall(175, 105, data, len(data), b"")
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    finally:
        os.close(fd)


def other_kernel() -> None:
    """A kernel of one instruction, loaded and taken back."""
    import ctypes

    code = ctypes.create_string_buffer(b"\xf4" * 4096)
    segment = struct.pack("<QQQQ", ctypes.addressof(code), 4096, 0x2000000, 4096)
    syscall(246, 104, 0x2000000, 1, segment, 62 << 16)
    syscall(246, 104, 0, 0, None, 0)


def other_kernel_from_file() -> None:
    """What is no kernel is refused too: how far it came is what counts."""
    fd = os.open("/tmp/module.ko", os.O_RDONLY)  # noqa: S108
    try:
        syscall(320, 294, fd, fd, 1, b"\0", 0)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    finally:
        os.close(fd)


def debug() -> str:
    """A file of the kernel's own debugging, to write to it."""
    last: OSError = OSError(errno.ENOENT, "none")
    for folder_, _, names in os.walk(DEBUG):
        for name in names:
            try:
                os.close(os.open(f"{folder_}/{name}", os.O_WRONLY | os.O_NONBLOCK))
            except OSError as error:
                last = error
            else:
                return f"{folder_}/{name}".removeprefix(DEBUG)
    raise last


def acpi_tables() -> None:
    """The table of the machine, changed in the file that shows it, or by a method of one's own."""
    put(f"{ACPI}/tables/DSDT", b"overcome", 0)


def memory() -> None:
    attempt("/dev/mem", lambda: node(1, 1))
    attempt("/dev/mem to read", lambda: node(1, 1, os.O_RDONLY))
    attempt("/dev/kmem", lambda: node(1, 2))
    attempt("/dev/port", lambda: node(1, 4))
    attempt("/proc/kcore", lambda: get("/proc/kcore"))
    attempt("a processor's registers", lambda: node(202, 0))
    attempt("write in debugfs", debug)
    attempt(
        "a probe in the kernel", lambda: append(f"{TRACE}/kprobe_events", "p:probe/x vfs_read\n")
    )


def ports() -> None:
    attempt("iopl", lambda: syscall(172, -1, 3))
    attempt("ioperm", lambda: syscall(173, -1, 0x80, 1, 1))
    attempt("a port of a device", port_of_device)


def bus() -> None:
    for kind, name in (("06", "bridge"), ("01", "disk"), ("07", "channel")):
        where = f"{device(kind)}/config"
        attempt(f"configure the {name}", lambda where=where: put(where, b"\x07\x00", 4))
    for name in sorted(os.listdir("/proc/bus/pci/00")):
        where = f"/proc/bus/pci/00/{name}"
        attempt(f"configure {name} by /proc", lambda where=where: put(where, b"\x07\x00", 4))
    attempt("map a device's memory", map_bar)


def power() -> None:
    attempt("change the ACPI table", acpi_tables)
    attempt("a method of ACPI", lambda: put(f"{DEBUG}/acpi/custom_method", bytes(64)))
    attempt("a table of ACPI", lambda: os.mkdir("/tmp/config/acpi/table/own"))  # noqa: S108
    attempt(
        "the hardware's error injection", lambda: append(f"{DEBUG}/apei/einj/error_inject", "1")
    )
    attempt("hibernate", lambda: append(f"{SYSTEM}/power/state", "disk"))


def kernels() -> None:
    module = bytes.fromhex(sys.argv[1])
    unsigned = module.split(b"~Module signature appended~")[0]
    attempt("a module, from a file", lambda: load(module, from_file=True))
    attempt("a module, from memory", lambda: load(module, from_file=False))
    attempt("a module without its signature", lambda: load(unsigned, from_file=True))
    attempt("another kernel", other_kernel)
    attempt("another kernel, from a file", other_kernel_from_file)
    attempt("modules again", lambda: put("/proc/sys/kernel/modules_disabled", b"0"))
    attempt("kernels again", lambda: put("/proc/sys/kernel/kexec_load_disabled", b"0"))


if __name__ == "__main__":
    syscall(165, 40, b"tmpfs", b"/tmp", b"tmpfs", 0, None)
    attempt("be root with every capability", capabilities)
    attempt("write a file", scratch)
    for path, kind in ((SYSTEM, "sysfs"), (DEBUG, "debugfs"), (TRACE, "tracefs")):
        folder(path, kind)
    attempt("read the ACPI table", lambda: get(f"{ACPI}/tables/DSDT"))
    attempt("read the bridge's configuration", lambda: get(f"{device('06')}/config"))
    for act in (memory, ports, bus, power, kernels):
        act()
    done()
