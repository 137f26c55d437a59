"""What a machine is made of: QEMU's arguments, all of them.

Rules
- There is a processor, memory, the root image as a read-only disk, one serial channel, a source of
  random numbers, and the socket that the gate controls the hypervisor by. No network card, no
  shared folder, no display, no second disk, nothing that QEMU would add by itself.
- Files are descriptors that the gate hands over (`/proc/self/fd/N`): sealed memory, so nobody
  changes them.
- Memory and processors come from the policy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from authority.isolation import SandboxSpec
from authority.vm.architectures import Architecture
from authority.vm.jail import FIRST_FD

CHANNEL, CONTROL, KERNEL, INITRAMFS, ROOT, MEMORY, STATE = range(FIRST_FD, FIRST_FD + 7)
"""The descriptors that QEMU is handed, in this order; the last two only around saved states."""

_OWN_MIB: Final = 96
"""What the guest's kernel and the launcher take, beyond what the policy grants the program."""
_LEAST_MIB, _DEFAULT_MIB, _STEP_MIB = 192, 1024, 64
OVERHEAD_BYTES: Final = 512 << 20
"""What the hypervisor takes beside the machine's memory: translated code, its own heap."""
DATA_BYTES: Final = 1 << 30
"""The same with the stacks of all its threads: what its process may map, whatever else limits it."""
_TRANSLATED_MIB: Final = 128
_RANDOM_BYTES: Final = 64 << 10
"""In a second."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """`accelerated`: by KVM, else emulated."""

    architecture: Architecture
    accelerated: bool
    memory_mib: int
    processors: int

    @property
    def described(self) -> str:
        way = "KVM" if self.accelerated else "emulation"
        return f"{self.architecture.machine.partition(',')[0]}, {way}, {self.memory_mib} MiB"


def of(spec: SandboxSpec, architecture: Architecture, *, accelerated: bool) -> Hardware:
    """The machine for a run: its limits, and what the guest's own system takes beside."""
    wanted = -(-spec.memory // (1 << 20)) + _OWN_MIB if spec.memory else _DEFAULT_MIB
    memory = max(_LEAST_MIB, -(-wanted // _STEP_MIB) * _STEP_MIB)
    processors = 1
    if accelerated:
        processors = min(os.cpu_count() or 1, -(-spec.millicpus // 1000) or 1)
    return Hardware(architecture, accelerated, memory, processors)


def _file(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def arguments(hardware: Hardware, *, memory: str = "", incoming: bool = False) -> list[str]:
    """`memory`: empty for memory of its own, `save` to keep it in the file `MEMORY`, `clone` to begin
    with that file's content and leave it alone. `incoming`: wait for a saved state."""
    architecture = hardware.architecture
    machine = architecture.machine
    made = ["-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot"]
    if hardware.accelerated:
        made += ["-accel", "kvm", "-cpu", "host"]
    else:
        made += ["-accel", f"tcg,tb-size={_TRANSLATED_MIB}", "-cpu", "max"]
    made += ["-m", str(hardware.memory_mib), "-smp", str(hardware.processors)]
    if memory:
        share = "on" if memory == "save" else "off"
        made += [
            "-object",
            f"memory-backend-file,id=ram,size={hardware.memory_mib}M,"
            f"mem-path={_file(MEMORY)},share={share}",
        ]
        machine += ",memory-backend=ram"
    made += ["-machine", machine]
    made += ["-kernel", _file(KERNEL), "-initrd", _file(INITRAMFS)]
    made += ["-append", architecture.kernel_arguments]
    made += [
        "-chardev",
        f"socket,id=channel,fd={CHANNEL}",
        "-device",
        "virtio-serial-pci,max_ports=2",
    ]
    made += ["-device", "virtserialport,chardev=channel,name=channel,nr=1"]
    made += ["-drive", f"if=none,id=root,file={_file(ROOT)},format=raw,readonly=on"]
    made += ["-device", "virtio-blk-pci,drive=root"]
    made += ["-object", "rng-builtin,id=rng"]
    # What a guest asks for at one time is kept by the hypervisor beside the machine's memory.
    made += ["-device", f"virtio-rng-pci,rng=rng,max-bytes={_RANDOM_BYTES},period=1000"]
    made += ["-chardev", f"socket,id=control,fd={CONTROL}", "-mon", "chardev=control,mode=control"]
    return made + (["-incoming", "defer", "-S"] if incoming else [])
