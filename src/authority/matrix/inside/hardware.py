"""The machine itself, from Python as root: ports, the PCI bus, memory by its real address.

Each port is read and written by three instructions in a page of this process, after `iopl`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from calls import NothingGot, syscall  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_OUT = {1: "89fa89f0eec3", 2: "89fa89f066efc3", 4: "89fa89f0efc3"}
_IN = {1: "89fa31c0ecc3", 2: "89fa31c066edc3", 4: "89faedc3"}
# The question that VMware's guests ask; who answers it is their hypervisor, or acts like it.
_BACKDOOR = "53b868584d56b90a00000031dbba58560000ed89d85bc3"
BACKDOOR_ANSWER = 0x564D5868
_HUGE, _SIZE = 0x40000, 2 << 20
_code: list[Any] = []


def _function(code: str, *arguments: Any) -> Any:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex(code))
    _code.append(page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_uint32, *arguments)(address)


def take_ports() -> None:
    """Raises OSError where the kernel is locked."""
    syscall(172, -1, 3)


class Ports:
    """All ports, after `take_ports`."""

    def __init__(self) -> None:
        self._out = {n: _function(c, ctypes.c_uint32, ctypes.c_uint32) for n, c in _OUT.items()}
        self._in = {n: _function(c, ctypes.c_uint32) for n, c in _IN.items()}
        self.backdoor = _function(_BACKDOOR)

    def write(self, port: int, value: int, size: int = 1) -> None:
        self._out[size](port & 0xFFFF, value & 0xFFFFFFFF)

    def read(self, port: int, size: int = 1) -> int:
        return int(self._in[size](port & 0xFFFF))

    # --- PCI ---

    def config(self, device: int, register: int) -> int:
        """`device`: bus, device and function as one number of 16 bits."""
        self.write(0xCF8, 0x80000000 | device << 8 | register & 0xFC, 4)
        return self.read(0xCFC, 4)

    def configure(self, device: int, register: int, value: int) -> None:
        self.write(0xCF8, 0x80000000 | device << 8 | register & 0xFC, 4)
        self.write(0xCFC, value, 4)

    def devices(self, buses: int = 256) -> Iterator[tuple[int, int, int]]:
        """(device, vendor and device id, class) of all that answer."""
        for device in range(buses << 8):
            found = self.config(device, 0)
            if found & 0xFFFF not in (0xFFFF, 0):
                yield device, found, self.config(device, 8) >> 16

    # --- fw_cfg, what the hypervisor hands to the firmware ---

    def firmware(self, key: int, size: int) -> bytes:
        self.write(0x510, key, 2)
        return bytes(self.read(0x511) for _ in range(size))

    def firmware_files(self) -> dict[str, tuple[int, int]]:
        """(key, size) by name."""
        (count,) = struct.unpack(">I", self.firmware(0x19, 4))
        table = self.firmware(0x19, 4 + 64 * count)[4:]
        found = {}
        for at in range(0, len(table), 64):
            size, key = struct.unpack_from(">IH", table, at)
            found[table[at + 8 : at + 64].split(b"\0")[0].decode("ascii")] = (key, size)
        return found


class Memory:
    """Two megabytes in one piece, with their address on the bus."""

    def __init__(self) -> None:
        with open("/proc/sys/vm/nr_hugepages", "w", encoding="ascii") as f:
            f.write("4")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _HUGE
        self.bytes = mmap.mmap(-1, _SIZE, flags=flags)
        self.bytes[:8] = b"\xff" * 8
        virtual = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        (entry,) = struct.unpack("<Q", os.pread(fd, 8, virtual // 4096 * 8))
        os.close(fd)
        self.address = (entry & (1 << 55) - 1) * 4096
        if not self.address:
            raise NothingGot("the kernel does not tell where it is")


class Virtio:
    """A device by its older interface, ports alone; whatever drove it before has lost it."""

    def __init__(self, ports: Ports, device: int) -> None:
        self.ports = ports
        ports.configure(device, 4, 7)
        self.base = ports.config(device, 0x10) & ~3

    def begin(self) -> None:
        self.ports.write(self.base + 18, 0)
        for status in (1, 3):
            self.ports.write(self.base + 18, status)

    def ready(self) -> None:
        self.ports.write(self.base + 18, 7)

    def queue(self, number: int) -> int:
        """Selects a queue; how many descriptors it has."""
        self.ports.write(self.base + 14, number, 2)
        return self.ports.read(self.base + 12, 2)

    def place(self, address: int) -> None:
        self.ports.write(self.base + 8, address >> 12, 4)

    def notify(self, number: int) -> None:
        self.ports.write(self.base + 16, number, 2)


def descriptor(address: int, length: int, flags: int = 0, following: int = 0) -> bytes:
    return struct.pack(
        "<QIHH", address & (1 << 64) - 1, length & 0xFFFFFFFF, flags, following & 0xFFFF
    )


def ring(memory: Memory, size: int, descriptors: list[bytes], heads: list[int], index: int) -> None:
    """Lays a queue of `size` at the beginning of the memory, its used part behind."""
    table = b"".join(descriptors)
    memory.bytes[: len(table)] = table
    available = struct.pack("<HH", 1, index & 0xFFFF)
    available += b"".join(struct.pack("<H", head & 0xFFFF) for head in heads)
    memory.bytes[16 * size : 16 * size + len(available)] = available
