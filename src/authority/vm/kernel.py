"""The kernel and the initramfs that every machine boots: built once, and used until a person says.

Rules
- Both are built by who comes first, from Debian's package (`kernel_package`), its modules (`modules`)
  and `init.c` (`initramfs`), and used until `--force`, a new `init.c` or a new form of image; a person
  decides when the kernel changes.
- Their records say which package and which `init.c` they are of, and the initramfs which kernel it
  belongs to: halves of two builds are never taken for one.
- What is built with is looked for before anything is fetched, and both are whole before either is kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authority.vm import cache, initramfs, kernel_package, modules, steps, tools
from authority.vm.architectures import Architecture
from authority.vm.cache import Stored

FORMAT: Final = 1
_NEEDED: Final = {
    "gcc": initramfs.COMPILER,
    "dpkg-deb": "dpkg",
    "mkfs.erofs": "erofs-utils",
}
"""What images are built with, and in which packages it is; the last for root images."""


@dataclass(frozen=True, slots=True)
class Base:
    """What every machine boots; `version` is the kernel's."""

    kernel: Stored
    initramfs: Stored

    @property
    def version(self) -> str:
        return str(self.kernel.facts["version"])


def find(architecture: Architecture) -> Base | None:
    """What was built from this `init.c`, or nothing."""
    kernel, first = (cache.find(name) for name in _names(architecture))
    if kernel is None or first is None:
        return None
    if first.facts.get("of") != _inputs() or first.facts.get("kernel") != kernel.digest:
        return None
    return Base(kernel, first)


def build(
    architecture: Architecture,
    *,
    force: bool = False,
    package: Path | None = None,
    tell: steps.Tell = steps.nobody,
) -> Base:
    """Finds it or builds it. `package` is a .deb with the kernel; else apt fetches it."""
    found = None if force or package else find(architecture)
    if found is not None:
        return found
    tools.need_all({**_NEEDED, **({} if package else {"apt-get": "apt"})})
    cache.to_write()
    tell("kernel")
    with (
        cache.building(tell) as folder,
        tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch,
    ):
        # Who held the lock before may have built it.
        if not force and package is None and (found := find(architecture)):
            return found
        work = Path(scratch)
        deb = package or kernel_package.fetch(architecture.package, work)
        unpacked = kernel_package.unpack(deb, work)
        loaded = modules.in_order(unpacked.modules, architecture.modules)
        archive = initramfs.archive(initramfs.compiled(work), loaded)
        kernel_name, initramfs_name = _names(architecture)
        made = cache.aside(folder)
        made.write_bytes(unpacked.kernel)
        facts = {
            "version": unpacked.version,
            "package": deb.name,
            "package_digest": digest_of(deb),
        }
        kernel = cache.keep(folder, kernel_name, made, facts)
        made = cache.aside(folder)
        made.write_bytes(archive)
        facts = {"of": _inputs(), "kernel": kernel.digest}
        return Base(kernel, cache.keep(folder, initramfs_name, made, facts))


def _names(architecture: Architecture) -> tuple[str, str]:
    return f"kernel-{architecture.name}", f"initramfs-{architecture.name}"


def _inputs() -> str:
    return f"{FORMAT}:{digest_of(initramfs.INIT)}"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
