"""As root of a machine whose kernel holds nothing back: against the hypervisor, device by device.

What a guest may never write is written, what it asks for is absurd. Each part has a machine of its own,
because some end it. Before each step the program says what it does, so that the host knows how far it
came.
"""

from __future__ import annotations

import os
import struct
import sys
import time

from attempts import attempt, done, note, said  # type: ignore[import-not-found]
from calls import syscall  # type: ignore[import-not-found]
from guest_kinds import MEGABYTES  # type: ignore[import-not-found]
from hardware import (  # type: ignore[import-not-found]
    BACKDOOR_ANSWER,
    Memory,
    Ports,
    Virtio,
    descriptor,
    ring,
    take_ports,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHANNEL, DISK, RANDOM = 0x10031AF4, 0x10011AF4, 0x10051AF4
EXPECTED = {0x29C08086, 0x29188086, CHANNEL, DISK, RANDOM}
NEXT, INTO = 1, 2
HARMLESS = ("etc/smi/requested-features", "etc/smi/features-ok")
"""What the firmware and the chip set agree on; it changes nothing beyond the machine."""
_MAX = (1 << 64) - 1


def settle() -> None:
    """What answers has answered; a machine that was to end has ended."""
    time.sleep(0.5)


def keep_code() -> None:
    """Reads what this process may still need from the disk, which is about to be taken away."""
    with open("/proc/self/maps", encoding="utf-8") as f:
        lines = f.readlines()
    for line in lines:
        path = line.rstrip("\n").split(" ", 5)[-1].strip()
        if path.startswith("/") and os.path.isfile(path):
            with open(path, "rb") as f:
                f.read()


def one(ports: Ports, wanted: int) -> int:
    return next(int(device) for device, found, _ in ports.devices(1) if found == wanted)


# --- what answers at all ---


def scan(ports: Ports) -> None:
    found = list(ports.devices())
    others = [f"{vendor:08x}" for _, vendor, _ in found if vendor not in EXPECTED]
    said("a device beyond those that it has", bool(others), ", ".join(others) or f"{len(found)}")
    said("the bus answers", {v for _, v, _ in found} == EXPECTED, f"{len(found)} devices")
    answer = ports.backdoor()
    said("VMware's back door", answer == BACKDOOR_ANSWER, f"{answer:x}")
    for name, port in (("a serial port", 0x3F8), ("a second one", 0x2F8), ("a printer", 0x378)):
        ports.write(port + 7 if "ser" in name or "sec" in name else port, 0x5A)
        back = ports.read(port + 7 if "ser" in name or "sec" in name else port)
        said(name, back == 0x5A, f"{back:02x}")
    for name, port in (("a floppy disk", 0x3F4), ("an old disk", 0x1F7), ("a debug port", 0xE9),
                       ("a debug port of firmware", 0x402), ("a way to end tests", 0x501),
                       ("a panic port", 0x505)):  # fmt: skip
        back = ports.read(port)
        said(name, back not in (0xFF, 0), f"{back:02x}")


def firmware(ports: Ports) -> None:
    """fw_cfg: what it holds, and whether a guest can write it by port or by DMA."""
    magic = ports.firmware(0, 4)
    said("fw_cfg answers", magic == b"QEMU", magic.hex())
    files = ports.firmware_files()
    note(files=sorted(files))
    memory = Memory()
    for name, (key, size) in sorted(files.items()):
        if not size:
            continue
        before = ports.firmware(key, min(size, 64))
        ports.write(0x510, key, 2)
        ports.write(0x511, before[0] ^ 0xFF)
        said(f"write {name} by port", ports.firmware(key, len(before)) != before, f"{size} bytes")
        memory.bytes[4096:4160] = bytes(b ^ 0xFF for b in before).ljust(64)
        memory.bytes[:16] = struct.pack(
            ">IIQ", key << 16 | 0x18, len(before), memory.address + 4096
        )
        ports.write(0x514, int.from_bytes(struct.pack(">I", memory.address >> 32), "little"), 4)
        low = struct.pack(">I", memory.address & 0xFFFFFFFF)
        ports.write(0x518, int.from_bytes(low, "little"), 4)
        changed = ports.firmware(key, len(before)) != before
        if name in HARMLESS:
            note(written=name, changed=changed)
        else:
            said(f"write {name} by DMA", changed, f"{size} bytes")


def firmware_storm(ports: Ports) -> None:
    """Copies of everything to everywhere; the guest overwrites itself first of all. Twice what there
    is of memory, and once the most that can be asked for: the hypervisor does it a piece at a time."""
    memory = Memory()
    more = MEGABYTES << 21
    for control, length, address in (
        (0x1A, more, 0), (0x1A, more, _MAX - 4096), (0xFFFFFFFF, 0xFFFFFFFF, 1 << 62),
        (0x0A, more, memory.address), (0x1C, more, memory.address),
    ):  # fmt: skip
        memory.bytes[:16] = struct.pack(">IIQ", control, length, address)
        ports.write(0x514, 0, 4)
        ports.write(
            0x518, int.from_bytes(struct.pack(">I", memory.address & 0xFFFFFFFF), "little"), 4
        )
    note(magic=ports.firmware(0, 4).hex())


def bus(ports: Ports) -> None:
    """BARs over memory, over each other, over the interrupt controllers; every register of all."""
    devices = [device for device, _, _ in ports.devices(1)]
    random = one(ports, RANDOM)
    for address in (0, 0x100000, 0xFEC00000, 0xFED00000, 0xFEE00000, 0xFFFC0000, 0xFFFFFFF0):
        for register in (0x10, 0x14, 0x20, 0x24, 0x30):
            ports.configure(random, register, address | 1 if register == 0x10 else address)
            ports.configure(random, register + 4, 0xFFFFFFFF)
    note(step="BARs over everything")
    disk = one(ports, DISK)
    ports.configure(disk, 0x20, 0xFEE00000)
    for port in (0xCF8, 0x510, 0x60, 0x600, 0):
        ports.configure(random, 0x10, port | 1)
    note(step="ports over ports")
    for device in devices:
        for register in range(0, 256, 4):
            for value in (0xFFFFFFFF, 0, 0xA5A5A5A5):
                ports.configure(device, register, value)
    note(step="every register")


def acpi(ports: Ports) -> None:
    """Power, hot plugging, the chip set's own registers, from harmless to deadly."""
    base = ports.config(0xF8, 0x40) & 0xFF80
    said("the power registers are there", base == 0x600, f"{base:x}")
    for at in range(0xCC0, 0xCF0, 4):  # devices, processors: plugged in and out
        for value in (0xFFFFFFFF, 0, 1, 2, 3):
            ports.write(at, value, 4)
    for at in range(0xA00, 0xA18):
        ports.write(at, 0xFF)
    note(step="hot plugging")
    for at in range(0x20, 0x80, 4):
        for value in (0xFFFFFFFF, 0):
            ports.write(base + at, value, 4)
    note(step="events")
    for value in (0, 1, 2, 3, 4, 0xFF):
        ports.write(0xB3, value)
        ports.write(0xB2, value)
    note(step="system management")
    settle()
    for value in range(3, 8):  # a sleep that this machine doesn't know
        ports.write(base + 4, 1 << 13 | value << 10, 2)
    note(step="unknown sleeps")
    settle()


# --- devices that are told nonsense ---

NONSENSE = (
    ("of everything", [descriptor(0, 0xFFFFFFFF)], [0], 1),
    ("from nowhere", [descriptor(_MAX & ~0xFFF, 0xFFFFFFFF, INTO)], [0], 1),
    ("past the end", [descriptor(_MAX - 1, 16)], [0], 1),
    ("that follows itself", [descriptor(0x100000, 16, NEXT, 0)], [0], 1),
    ("that leads outside", [descriptor(0x100000, 16, NEXT, 0xFFFF)], [0], 1),
    ("with a head that isn't there", [descriptor(0x100000, 16)], [0xFFFF], 1),
    ("that lists itself", [descriptor(0, 0xFFFFFFF0, 4)], [0], 1),
    ("listed in nowhere", [descriptor(1 << 62, 32, 4)], [0], 1),
    ("of no length", [descriptor(0x100000, 0)], [0], 1),
    ("number 65535", [descriptor(0x100000, 16, INTO)], [0], 0xFFFF),
    ("read and written", [descriptor(0x100000, 16, INTO | NEXT, 1), descriptor(0x100000, 16)],
     [0], 1),
)  # fmt: skip


def nonsense(ports: Ports, wanted: int) -> None:
    memory = Memory()
    device = Virtio(ports, one(ports, wanted))
    for queue in range(8):
        for name, table, heads, index in NONSENSE:
            device.begin()
            size = device.queue(queue)
            if not size:
                continue
            memory.bytes[:] = bytes(len(memory.bytes))
            ring(memory, size, table, heads, index)
            device.place(memory.address)
            device.ready()
            device.notify(queue)
            note(step=f"queue {queue}: {name}")
        for address in (0, 0xFFFFF000, 0xFFFFFFFF000, 0xFEE00000, 0xA0000):
            device.begin()
            device.queue(queue)
            device.place(address)
            device.ready()
            device.notify(queue)
            note(step=f"queue {queue} at {address:x}")
    device.begin()
    for queue in (8, 64, 1023, 0xFFFF):
        size = device.queue(queue)
        device.notify(queue)
        said(f"queue {queue}", size != 0, f"{size}")
    for at in range(0, 64, 4):
        ports.write(device.base + at, 0xFFFFFFFF, 4)
    note(step="every register of it")
    settle()


def greedy(ports: Ports, wanted: int, queue: int, flags: int) -> None:
    """The same memory named again and again: more than the machine has."""
    memory = Memory()
    device = Virtio(ports, one(ports, wanted))
    device.begin()
    if wanted == CHANNEL:
        ports.write(device.base + 4, 2, 4)  # more than one port
    size = device.queue(queue)
    count = min(size, 16)
    piece = MEGABYTES * 3 // 4 << 20
    table = [
        descriptor(0x100000, piece, flags | (NEXT if at < count - 1 else 0), at + 1)
        for at in range(count)
    ]
    ring(memory, size, table, [0], 1)
    device.place(memory.address)
    device.ready()
    note(asked=piece * count)
    settle()
    device.notify(queue)
    time.sleep(5)


def write_disk(ports: Ports) -> None:
    """The disk's own protocol, past every layer of the guest."""
    memory = Memory()
    device = Virtio(ports, one(ports, DISK))

    def ask(kind: int, sector: int, data: bytes) -> int:
        device.begin()
        size = device.queue(0)
        memory.bytes[:] = bytes(len(memory.bytes))
        at = 1 << 20
        memory.bytes[at : at + 16] = struct.pack("<IIQ", kind, 0, sector)
        memory.bytes[at + 4096 : at + 4608] = data
        memory.bytes[at + 8192] = 0xEE
        into = INTO if kind in (0, 8) else 0
        table = [
            descriptor(memory.address + at, 16, NEXT, 1),
            descriptor(memory.address + at + 4096, 512, NEXT | into, 2),
            descriptor(memory.address + at + 8192, 1, INTO),
        ]
        ring(memory, size, table, [0], 1)
        device.place(memory.address)
        device.ready()
        device.notify(0)
        for _ in range(2000):
            if memory.bytes[at + 8192] != 0xEE:
                break
            time.sleep(0.005)
        return int(memory.bytes[at + 8192])

    def first() -> bytes:
        status = ask(0, 2, bytes(512))
        said("ask the disk itself", status == 0, f"status {status}")
        return bytes(memory.bytes[(1 << 20) + 4096 : (1 << 20) + 4608])

    before = first()
    said("it is the file system", before[:4] == b"\xe2\xe1\xf5\xe0", before[:4].hex())
    for kind, name in ((1, "write"), (4, "flush"), (11, "discard"), (13, "zeroes"),
                       (14, "erase"), (2, "a SCSI command"), (24, "append"),
                       (0x7FFF, "no kind")):  # fmt: skip
        for sector in (2, 0, 1 << 40, _MAX):
            status = ask(kind, sector, b"overcome" * 64)
            if kind != 4:
                said(f"{name} at {sector:x}", status == 0, f"status {status}")
    for sector in (1 << 40, _MAX, _MAX >> 9):
        status = ask(0, sector, bytes(512))
        said(f"read beyond the end, {sector:x}", status == 0, f"status {status}")
    said("change the disk", first() != before)


PARTS: dict[str, Callable[[Ports], None]] = {
    "scan": scan,
    "firmware": firmware,
    "firmware storm": firmware_storm,
    "bus": bus,
    "acpi": acpi,
    "write the disk": write_disk,
    "nonsense for random": lambda ports: nonsense(ports, RANDOM),
    "nonsense for the disk": lambda ports: nonsense(ports, DISK),
    "nonsense for the channel": lambda ports: nonsense(ports, CHANNEL),
    "greedy for random": lambda ports: greedy(ports, RANDOM, 0, INTO),
    "greedy on the channel": lambda ports: greedy(ports, CHANNEL, 3, 0),
}

if __name__ == "__main__":
    syscall(165, 40, b"tmpfs", b"/tmp", b"tmpfs", 0, None)
    keep_code()
    attempt("take the ports", take_ports)
    PARTS[sys.argv[1]](Ports())
    done()
