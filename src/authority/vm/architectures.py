"""What differs between kinds of machines, in one table: names of packages, programs, devices, flags.

x86-64 is tested. arm64 stands here so that nothing else has to know of it; nobody has booted it yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from authority.isolation import IsolationRefused
from authority.isolation.refusal import shown
from authority.isolation.syscalls import AARCH64, X86_64


@dataclass(frozen=True, slots=True)
class Architecture:
    """`modules` are those that init loads, in whatever order their dependencies want."""

    name: str
    package: str
    qemu: str
    qemu_package: str
    machine: str
    firmware: tuple[str, ...]
    kernel_arguments: str
    modules: tuple[str, ...] = (
        "virtio_pci",
        "virtio_console",
        "virtio_blk",
        "virtio-rng",
        "erofs",
        "fuse",
    )


_QUIET: Final = (
    "console=none quiet panic=-1 oops=panic random.trust_cpu=on lockdown=confidentiality"
)

ARCHITECTURES: Final = {
    X86_64: Architecture(
        name=X86_64,
        package="linux-image-cloud-amd64",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        # No disk controller, no SMBus, no mouse: what q35 would bring along.
        machine="q35,sata=off,smbus=off,vmport=off,usb=off",
        firmware=("/usr/share/seabios", "/usr/share/qemu"),
        # The triple fault is the reset that needs no device.
        kernel_arguments=f"{_QUIET} reboot=t",
    ),
    AARCH64: Architecture(
        name=AARCH64,
        package="linux-image-cloud-arm64",
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        machine="virt,gic-version=max",
        firmware=("/usr/share/qemu",),
        kernel_arguments=_QUIET,
    ),
}


def of(name: str) -> Architecture:
    """Raises `IsolationRefused` for a machine that nobody has described."""
    found = ARCHITECTURES.get(name)
    if found is None:
        raise IsolationRefused(f"there are no virtual machines for {shown(name)} here")
    return found
