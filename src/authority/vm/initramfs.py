"""The initramfs of a machine: its first program, compiled here, and the modules that it loads.

Rules
- `init.c` is compiled statically, so nothing else has to be in the archive; without a build number, so
  the same source and compiler give the same bytes.
- The archive is a cpio of the form `newc`, written here: everything is root's, has no time, and lies in
  a fixed order. The same inputs give the same bytes.
- `/modules` lists the modules in the order in which they are loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from authority.isolation import IsolationRefused
from authority.vm import tools

INIT: Final = Path(__file__).with_name("init.c")
COMPILER: Final = "gcc libc6-dev"
"""The packages that it is compiled with."""
_COMPILE: Final = ("-static", "-O2", "-s", "-Wall", "-Wl,--build-id=none")


def compiled(work: Path) -> bytes:
    """The first program. Raises `IsolationRefused`."""
    made = work / "init"
    shutil.copyfile(INIT, work / "init.c")
    try:
        tools.run(["gcc", *_COMPILE, "-o", "init", "init.c"], work)
    except IsolationRefused as error:
        raise IsolationRefused(
            error.reason,
            error.fix or f"is the static C library there? apt-get install -y {COMPILER}",
        ) from error
    return made.read_bytes()


def archive(init: bytes, modules: list[tuple[str, bytes]]) -> bytes:
    """The whole of it."""
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
