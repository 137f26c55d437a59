"""Debian's package of a kernel: fetched, unpacked, and the kernel that lies in it.

Rules
- It comes through apt, which checks it against Debian's signed lists, or is named as a file. Nothing of
  it is installed, and none of its scripts is run: it is unpacked into the folder of a build, which is
  gone afterwards.
- The package that is asked for is the one without a version; the one that it depends on has the kernel.
- Of the kernel the uncompressed image is kept: it boots sooner, and emulation does not unpack it each
  time. What nothing here unpacks boots as it is.
- A version that can't be read is refused: what the guest's kernel can do is known by it.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authority.isolation import IsolationRefused
from authority.isolation.refusal import shown
from authority.vm import tools

_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,4}\b")
_SETUP_SECTORS, _SETUP_MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
"""Where a bzImage says what it is and where its packed kernel lies (Linux, arch/x86/boot.rst)."""
_PACKED: Final = (
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x1f\x8b\x08", "gzip"),
)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What the package holds for a machine: the kernel, and the folder of its modules."""

    version: str
    kernel: bytes
    modules: Path


def unpack(deb: Path, work: Path) -> Unpacked:
    """Unpacks the package below `work`. Raises `IsolationRefused`."""
    tools.run(["dpkg-deb", "-x", str(deb), str(work / "kernel")], work)
    image = next((work / "kernel" / "boot").glob("vmlinuz-*"), None)
    if image is None:
        raise IsolationRefused(f"there is no kernel in {shown(deb.name)}")
    version = image.name.removeprefix("vmlinuz-")
    if not _VERSION.match(version):
        raise IsolationRefused(f"the kernel {shown(version)} has no version that can be read")
    modules = work / "kernel" / "lib" / "modules" / version
    return Unpacked(version, uncompressed(image.read_bytes(), work), modules)


def fetch(package: str, work: Path) -> Path:
    """The package that the given one stands for (it names the version), fetched through apt."""
    tools.need("apt-get", "apt")
    named = tools.run(["apt-cache", "depends", "--important", package], work)
    wanted = [line.split()[-1] for line in named.splitlines() if "Depends:" in line]
    images = [name for name in wanted if name.startswith("linux-image-")]
    if not images:
        raise IsolationRefused(
            f"apt knows no package {package}",
            "apt-get update, or name a kernel package: authority image build --kernel FILE.deb",
        )
    # It is our folder, not one that apt's own user could write to; apt would warn.
    tools.run(["apt-get", "download", "-o", "APT::Sandbox::User=root", images[0]], work)
    found = next(work.glob("linux-image-*.deb"), None)
    if found is None:
        raise IsolationRefused(f"apt fetched nothing for {shown(images[0])}")
    return found


def uncompressed(image: bytes, work: Path) -> bytes:
    """The ELF kernel inside a bzImage; the image itself if it is none, or nothing here unpacks it."""
    if image[_SETUP_MAGIC : _SETUP_MAGIC + 4] != b"HdrS":
        return image
    offset, size = struct.unpack_from("<II", image, _PAYLOAD)
    at = (image[_SETUP_SECTORS] + 1) * 512 + offset
    payload = image[at : at + size]
    for magic, tool in _PACKED:
        if payload.startswith(magic) and shutil.which(tool, path=tools.PATH) is not None:
            # The kernel's build appends the unpacked size, which the tools take for trailing garbage.
            done = subprocess.run(
                [tool, "-dc"], input=payload, capture_output=True, timeout=tools.SECONDS, check=False,
                env={"PATH": tools.PATH}, cwd=work,
            )  # fmt: skip
            if done.stdout.startswith(b"\x7fELF"):
                return done.stdout
    return image
