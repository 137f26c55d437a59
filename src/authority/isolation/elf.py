"""What a program file asks of the system: its ELF interpreter and the libraries that it names.

Read from the file itself. (`ldd` would ask the program's own interpreter, that is: run it.)

Source: System V ABI, chapters 4 and 5; 64-bit little-endian files alone, which is what x86-64 and
arm64 use. Anything else, or a file that is cut short, is 'no ELF file' or an error, never a guess.
It is read and not mapped: somebody may cut it short meanwhile, and touching a mapping would kill us.
"""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass
from typing import Final

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MOST_TEXT, _MOST_DYNAMIC = 4097, 64 * 1024
"""Bytes of a string with its end, and of the table that names the libraries."""
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
        try:
            return _parse(file.fileno(), os.path.dirname(os.path.realpath(path)))
        except (struct.error, OverflowError) as error:
            raise ElfError("the ELF file is cut short") from error


def _unpack(fd: int, form: str, offset: int) -> tuple[int, ...]:
    return struct.unpack(form, os.pread(fd, struct.calcsize(form), offset))


def _text(fd: int, offset: int) -> str:
    text, end, _ = os.pread(fd, _MOST_TEXT, offset).partition(b"\0")
    if not end:
        raise ElfError("a string of the ELF file has no end")
    return os.fsdecode(text)


def _parse(fd: int, origin: str) -> Elf:
    if os.pread(fd, 2, 4) != b"\2\1":
        raise ElfError("only 64-bit little-endian ELF files can run here")
    (machine,) = _unpack(fd, "<H", 18)
    (table,) = _unpack(fd, "<Q", 32)
    size, count = _unpack(fd, "<HH", 54)
    interpreter, dynamic, loads = "", (0, 0), []
    for place in range(count):
        header = _unpack(fd, "<IIQQQQ", table + place * size)
        kind, _flags, offset, address, _physical, length = header
        if kind == _PT_INTERP:
            interpreter = _text(fd, offset)
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, length)
        elif kind == _PT_LOAD:
            loads.append((address, offset, length))
    if dynamic[1] > _MOST_DYNAMIC:
        raise ElfError("the ELF file's table of libraries is too long")
    entries = [_unpack(fd, "<QQ", dynamic[0] + at) for at in range(0, dynamic[1] - 15, 16)]
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
            needed.append(_text(fd, strings + value))
        elif tag in (_DT_RPATH, _DT_RUNPATH):
            for folder in _text(fd, strings + value).split(":"):
                plain = folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin)
                if os.path.isabs(plain):
                    search.append(os.path.normpath(plain))
    return Elf(machine, interpreter, tuple(needed), tuple(search))
