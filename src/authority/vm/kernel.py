"""The kernel and the initramfs of a machine: from Debian's package and `init.c`, nothing installed.

Rules
- The package comes through apt, which checks it against Debian's signed lists, or is named as a
  file. It is unpacked into a folder that is gone afterwards.
- Of the kernel the uncompressed image is kept: it boots sooner, and emulation does not unpack it
  each time.
- Modules are taken as they are (their signatures are checked when they are loaded) with everything
  that they say they depend on.
- The initramfs is a cpio archive that is written here: times, numbers and order are fixed, so the
  same inputs give the same bytes.
- It is built once, by who comes first, and used until `--force`, a new `init.c` or a new form of
  image; a person decides when the kernel changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authority.isolation import IsolationRefused
from authority.isolation.refusal import shown
from authority.vm import cache
from authority.vm.architectures import Architecture
from authority.vm.cache import Stored

FORMAT: Final = 1
_INIT: Final = Path(__file__).with_name("init.c")
_COMPILE: Final = ("-static", "-O2", "-s", "-Wall", "-Wl,--build-id=none")
_TOOLS: Final = "/usr/bin:/usr/sbin:/bin:/sbin"
_NEEDED: Final = {"gcc": "gcc libc6-dev", "dpkg-deb": "dpkg", "mkfs.erofs": "erofs-utils"}
"""What images are built with, and in which packages it is; the last for root images."""
_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,4}\b")
_SECONDS: Final = 300
_SETUP_SECTORS, _SETUP_MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
"""Where a bzImage says what it is and where its packed kernel lies (Linux, arch/x86/boot.rst)."""
_PACKED: Final = (
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x1f\x8b\x08", "gzip"),
)


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
    kernel, initramfs = (cache.find(name) for name in _names(architecture))
    if kernel is None or initramfs is None:
        return None
    if initramfs.facts.get("of") != _inputs() or initramfs.facts.get("kernel") != kernel.digest:
        return None
    return Base(kernel, initramfs)


def build(architecture: Architecture, *, force: bool = False, package: Path | None = None) -> Base:
    """Finds it or builds it. `package` is a .deb with the kernel; else apt fetches it."""
    found = None if force or package else find(architecture)
    if found is not None:
        return found
    need_all({**_NEEDED, **({} if package else {"apt-get": "apt"})})
    with (
        cache.building() as folder,
        tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch,
    ):
        # Who held the lock before may have built it.
        if not force and package is None and (found := find(architecture)):
            return found
        work = Path(scratch)
        deb = package or _fetch(architecture.package, work)
        _run(["dpkg-deb", "-x", str(deb), str(work / "kernel")], work)
        image = next((work / "kernel" / "boot").glob("vmlinuz-*"), None)
        if image is None:
            raise IsolationRefused(f"there is no kernel in {shown(deb.name)}")
        version = image.name.removeprefix("vmlinuz-")
        if not _VERSION.match(version):
            raise IsolationRefused(f"the kernel {shown(version)} has no version that can be read")
        kernel_name, initramfs_name = _names(architecture)
        made = cache.aside(folder)
        made.write_bytes(uncompressed(image.read_bytes(), work))
        facts = {"version": version, "package": deb.name, "package_digest": digest_of(deb)}
        kernel = cache.keep(folder, kernel_name, made, facts)
        modules = _modules(work / "kernel" / "lib" / "modules" / version, architecture.modules)
        made = cache.aside(folder)
        made.write_bytes(_initramfs(_compiled(work), modules))
        facts = {"of": _inputs(), "kernel": kernel.digest}
        return Base(kernel, cache.keep(folder, initramfs_name, made, facts))


def _names(architecture: Architecture) -> tuple[str, str]:
    return f"kernel-{architecture.name}", f"initramfs-{architecture.name}"


def _inputs() -> str:
    return f"{FORMAT}:{digest_of(_INIT)}"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def need(tool: str, package: str) -> str:
    """The path of a tool that is needed to build. Raises `IsolationRefused` with what to install."""
    return need_all({tool: package})[tool]


def need_all(tools: dict[str, str]) -> dict[str, str]:
    """The paths of all these tools; who lacks several is told once."""
    found = {tool: shutil.which(tool, path=_TOOLS) for tool in tools}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise IsolationRefused(
            f"{', '.join(missing)} {are} not installed",
            "apt-get install -y " + " ".join(tools[tool] for tool in missing),
        )
    return {tool: path for tool, path in found.items() if path is not None}


def _run(command: list[str], folder: Path) -> str:
    environment = {"PATH": _TOOLS, "LC_ALL": "C", "HOME": str(folder)}
    environment |= {
        name: value
        for name, value in os.environ.items()
        if name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IsolationRefused(f"{command[0]} failed: {shown(str(error))}") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [b"it said nothing"]
        raise IsolationRefused(f"{command[0]} failed: {shown(last[0])}")
    return done.stdout.decode("utf-8", "replace")


def _fetch(package: str, work: Path) -> Path:
    """The package that the given one stands for (it names the version), fetched through apt."""
    need("apt-get", "apt")
    named = _run(["apt-cache", "depends", "--important", package], work)
    wanted = [line.split()[-1] for line in named.splitlines() if "Depends:" in line]
    images = [name for name in wanted if name.startswith("linux-image-")]
    if not images:
        raise IsolationRefused(
            f"apt knows no package {package}",
            "apt-get update, or name a kernel package: authority image build --kernel FILE.deb",
        )
    # It is our folder, not one that apt's own user could write to; apt would warn.
    _run(["apt-get", "download", "-o", "APT::Sandbox::User=root", images[0]], work)
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
        if payload.startswith(magic) and shutil.which(tool, path=_TOOLS) is not None:
            # The kernel's build appends the unpacked size, which the tools take for trailing garbage.
            done = subprocess.run(
                [tool, "-dc"], input=payload, capture_output=True, timeout=_SECONDS, check=False,
                env={"PATH": _TOOLS}, cwd=work,
            )  # fmt: skip
            if done.stdout.startswith(b"\x7fELF"):
                return done.stdout
    return image


def _modules(folder: Path, wanted: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """(name, content) of the modules and of what they depend on, each behind what it needs. What is
    not there is built into the kernel, or `init` will say what it misses."""
    files = {path.stem.replace("-", "_"): path for path in sorted(folder.rglob("*.ko"))}
    done: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path.name in done:
            return
        content = path.read_bytes()
        for one in _depends(content):
            add(one)
        done[path.name] = content

    for name in wanted:
        add(name)
    if not done:
        raise IsolationRefused("the kernel package holds no modules that can be read")
    return list(done.items())


def _depends(module: bytes) -> list[str]:
    at = module.find(b"\0depends=")
    if at < 0:
        return []
    text = module[at + 9 : module.index(b"\0", at + 9)].decode("ascii")
    return [name for name in text.split(",") if name]


def _compiled(work: Path) -> bytes:
    made = work / "init"
    shutil.copyfile(_INIT, work / "init.c")
    try:
        _run(["gcc", *_COMPILE, "-o", "init", "init.c"], work)
    except IsolationRefused as error:
        raise IsolationRefused(
            error.reason, f"is the static C library there? apt-get install -y {_NEEDED['gcc']}"
        ) from error
    return made.read_bytes()


def _initramfs(init: bytes, modules: list[tuple[str, bytes]]) -> bytes:
    listed = "".join(f"/{name}\n" for name, _ in modules).encode()
    parts: list[tuple[str, int, bytes]] = [
        ("dev", 0o40755, b""),
        ("root", 0o40755, b""),
        ("init", 0o100755, init),
        ("modules", 0o100644, listed),
    ]
    parts += [(name, 0o100644, content) for name, content in modules]
    return b"".join(_archived(parts))


def _archived(parts: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """A cpio archive of the form `newc`: everything is root's and has no time."""
    for number, (name, mode, content) in enumerate([*parts, ("TRAILER!!!", 0, b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        head = "070701" + "".join(f"{field:08X}" for field in fields) + name + "\0"
        yield head.encode() + bytes(-len(head) % 4)
        yield content + bytes(-len(content) % 4)
