"""Landlock rights by the kernel's ABI: what a ruleset handles and what each path is granted.

Rules
- A ruleset handles every right that the kernel's ABI knows (2 to 6; later ABIs add no right that we
  grant), so whatever a rule does not grant is denied.
- A right that the ABI does not know is left out of the rules too: the kernel refuses unknown bits.
- Without `loopback` binding and connecting TCP sockets is handled and granted nowhere (ABI 4).
  Abstract sockets and signals can't leave the run (ABI 6).
- ABI 2 is the least that a start accepts: with ABI 1 files could not be renamed between folders,
  and programs would fail in ways that nobody understands.

Source: linux/Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MINIMUM_ABI: Final = 2
NEWEST_ABI: Final = 6
"""The last ABI whose rights are used here; a newer kernel is asked for these alone."""

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 12
_REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ: Final = READ_FILE | READ_DIR
DEVICE: Final = READ_FILE | WRITE_FILE
WRITE: Final = (
    READ
    | WRITE_FILE
    | TRUNCATE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SOCK
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
)
"""Everything but execute and device nodes."""

FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The rights that a rule on a single file may hold; the kernel refuses others with EINVAL."""

_FILE_SYSTEM_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16}
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What one ABI can do: the attribute to create a ruleset with, and the mask for its rules."""

    abi: int
    attribute: bytes
    rights: int
    network: bool
    scopes: bool

    def grant(self, rights: int, *, directory: bool) -> int:
        """`rights` as far as this ABI, and a rule on this kind of path, can hold them."""
        return rights & self.rights & (-1 if directory else FILE_RIGHTS)


def ruleset(abi: int, *, loopback: bool) -> Ruleset:
    """The ruleset for a kernel with this ABI. `ValueError` below the least that is accepted."""
    if abi < MINIMUM_ABI:
        raise ValueError(f"Landlock ABI {abi} is below {MINIMUM_ABI}")
    used = min(abi, NEWEST_ABI)
    files = (1 << _FILE_SYSTEM_BITS[used]) - 1
    network = used >= 4 and not loopback
    scopes = used >= 6
    words = [files]
    if used >= 4:
        words.append(_BIND_TCP | _CONNECT_TCP if network else 0)
    if used >= 6:
        words.append(_SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL)
    return Ruleset(used, struct.pack(f"={len(words)}Q", *words), files, network, scopes)
