"""What a program file asks of the system: its ELF interpreter and the libraries that it names.

Read from the file itself. (`ldd` would ask the program's own interpreter, that is: run it.)

Source: System V ABI, chapters 4 and 5; 64-bit little-endian files alone, which is what x86-64 and
arm64 use. Anything else, or a file that is cut short, is 'no ELF file' or an error, never a guess.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}


class ElfError(ValueError):
    """The file begins like an ELF file and isn't a whole one."""


@dataclass(frozen=True, slots=True)
class Elf:
    """`interpreter` is empty for static programs; `search` holds RPATH and RUNPATH folders with
    `$ORIGIN` already replaced."""

    machine: int
    interpreter: str
    needed: tuple[str, ...]
    search: tuple[str, ...]


def machine_number(architecture: str) -> int:
    """The ELF machine of an architecture of ours."""
    return _MACHINES[architecture]


def read(path: str) -> Elf | None:
    """The file's needs; None when it is no ELF file. Raises `ElfError` or `OSError`. A file is parsed
    once: another one at its place, or a change of it, has another number or other times."""
    found = os.stat(path)
    return _read(
        path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


@functools.lru_cache(maxsize=8192)
def _read(path: str, *_identity: int) -> Elf | None:
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data, os.path.dirname(os.path.realpath(path)))
            except (struct.error, IndexError, OverflowError) as error:
                raise ElfError("the ELF file is cut short") from error


def _text(data: mmap.mmap, offset: int) -> str:
    end = data.find(b"\0", offset)
    if end < 0 or end - offset > 4096:
        raise ElfError("a string of the ELF file has no end")
    return os.fsdecode(data[offset:end])


def _parse(data: mmap.mmap, origin: str) -> Elf:
    if data[4] != 2 or data[5] != 1:
        raise ElfError("only 64-bit little-endian ELF files can run here")
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    interpreter, dynamic, loads = "", (0, 0), []
    for place in range(count):
        kind, _flags, offset, address, _physical, length = struct.unpack_from(
            "<IIQQQQ", data, table + place * size
        )
        if kind == _PT_INTERP:
            interpreter = _text(data, offset)
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, length)
        elif kind == _PT_LOAD:
            loads.append((address, offset, length))
    entries = [
        struct.unpack_from("<QQ", data, dynamic[0] + at) for at in range(0, dynamic[1] - 15, 16)
    ]
    strings = -1
    for tag, value in entries:
        if tag == _DT_STRTAB:
            for address, offset, length in loads:
                if address <= value < address + length:
                    strings = value - address + offset
    if strings < 0:
        return Elf(machine, interpreter, (), ())
    needed, search = [], []
    for tag, value in entries:
        if tag == _DT_NEEDED:
            needed.append(_text(data, strings + value))
        elif tag in (_DT_RPATH, _DT_RUNPATH):
            for folder in _text(data, strings + value).split(":"):
                plain = folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin)
                if os.path.isabs(plain):
                    search.append(os.path.normpath(plain))
    return Elf(machine, interpreter, tuple(needed), tuple(search))
