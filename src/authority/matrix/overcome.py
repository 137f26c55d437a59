"""Guests that were overcome: images like those of a run, in which the program is root.

Rules
- Nothing of the gate, of the hypervisor or of its jail is changed. A folder for images of its own holds
  the kernel and an initramfs whose first program was compiled from `vm/init.c` with the changes that
  stand here: it does not start the sandbox, but the program as root with every capability, on the
  channel (`inside/be_root.py`). The records are made anew, so the digests fit: this is what a guest
  looks like in which everything was overcome, not an image that was changed behind the gate's back.
- `UNLOCKED` takes the guest's last guard out too: its kernel doesn't know the word `lockdown`, and
  modules and other kernels can be loaded. It is the control of what the guard refuses, and the
  strongest attacker of the hypervisor: ports, devices and all of memory are its own.
- A change that does not fit `init.c` any more is an error, never a guest that is as it was.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import authority.vm as rooms
from authority.isolation import probe
from authority.vm import architectures, cache, kernel

ROOT, UNLOCKED = "root", "unlocked"

_INIT: Final = Path(rooms.__file__).with_name("init.c")
_HERE: Final = Path(__file__).parent
_BEGIN: Final = "static void become_sandbox("
_STARTS: Final = "    execve(words[0], words, environment);\n"
_GUARDS: Final = (
    '    setting("/proc/sys/kernel/modules_disabled");\n',
    '    setting("/proc/sys/kernel/kexec_load_disabled");\n',
)
_LOCK: Final = (b"\0lockdown\0", b"\0lockdowm\0")
_COMPILE: Final = ("gcc", "-static", "-O2", "-s", "-Wall", "-o", "init", "init.c")
_SECONDS: Final = 120
_HEAD: Final = 110
_SIZE_AT, _NAME_AT = 54, 94
"""Where a cpio head of the form `newc` has the sizes of content and name, in eight hex digits."""


class NotOvercome(Exception):
    """The guest could not be changed as an attacker would have it."""


@contextmanager
def images_of(guest: str, folder: Path) -> Iterator[None]:
    """While the block runs, gates that are started find the images of such a guest."""
    base = kernel.build(architectures.of(probe().architecture))
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        _lay(base, guest)
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _lay(base: kernel.Base, guest: str) -> None:
    system = base.kernel.path.read_bytes()
    initramfs = base.initramfs.path.read_bytes()
    if guest == UNLOCKED and _LOCK[1] not in system:  # it is when one is laid beside another
        system = _changed(system, *_LOCK)
    with cache.building() as place:
        made = cache.aside(place)
        made.write_bytes(system)
        kept = cache.keep(place, base.kernel.path.name, made, base.kernel.facts)
        made = cache.aside(place)
        made.write_bytes(_with_init(initramfs, _compiled(guest)))
        facts = {**base.initramfs.facts, "kernel": kept.digest}
        cache.keep(place, base.initramfs.path.name, made, facts)


def _changed(data: bytes, old: bytes, new: bytes) -> bytes:
    if old not in data:
        raise NotOvercome(f"{old!r} is not there to be changed")
    return data.replace(old, new)


def source(guest: str) -> str:
    """The first program of such a guest."""
    text = _INIT.read_bytes()
    code = (_HERE / "inside" / "be_root.py").read_bytes()
    array = ", ".join(str(byte) for byte in code)
    own = f"static const char BE_ROOT[] = {{{array}, 0}};\n".encode()
    own += (_HERE / "overcome.c").read_bytes()
    text = _changed(text, _BEGIN.encode(), own + _BEGIN.encode())
    text = _changed(text, _STARTS.encode(), b"    words = overcome(words);\n" + _STARTS.encode())
    if guest == UNLOCKED:
        for guard in _GUARDS:
            text = _changed(text, guard.encode(), b"")
    return text.decode()


def _compiled(guest: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="authority-init-") as folder:
        Path(folder, "init.c").write_text(source(guest), encoding="utf-8")
        done = subprocess.run(
            _COMPILE, cwd=folder, capture_output=True, timeout=_SECONDS, check=False
        )
        if done.returncode:
            raise NotOvercome(f"gcc: {done.stderr.decode('utf-8', 'replace')[-500:]}")
        return Path(folder, "init").read_bytes()


def _entries(archive: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(head, name, content) of what a cpio archive holds."""
    at = 0
    while at < len(archive):
        head = archive[at : at + _HEAD]
        size, named = (int(head[where : where + 8], 16) for where in (_SIZE_AT, _NAME_AT))
        begin = _aligned(at + _HEAD + named)
        yield head, archive[at + _HEAD : at + _HEAD + named], archive[begin : begin + size]
        at = _aligned(begin + size)


def _with_init(archive: bytes, init: bytes) -> bytes:
    """The archive with another first program."""
    parts = []
    for head, name, found in _entries(archive):
        content = init if name == b"init\0" else found
        size = f"{len(content):08X}".encode()
        entry = head[:_SIZE_AT] + size + head[_SIZE_AT + 8 :] + name
        parts += [entry, bytes(-len(entry) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def _aligned(at: int) -> int:
    return -(-at // 4) * 4


def module(name: str) -> bytes:
    """One of the kernel's own modules: refused, it is refused by a guard and not for what it is."""
    base = kernel.build(architectures.of(probe().architecture))
    for _, found, content in _entries(base.initramfs.path.read_bytes()):
        if found == name.encode() + b"\0":
            return content
    raise NotOvercome(f"there is no module {name}")
