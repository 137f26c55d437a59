"""System calls by their numbers, for attacking programs.

Few imports: in an emulated machine those of `typing` and `platform` take longer than most attacks.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
_PR_SET_NAME = 15


class NothingGot(Exception):
    """The call passed, but the attacker did not get what it wanted."""


def name_process(name: str) -> None:
    """How the host finds this process and those that it forks, whatever started them."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def syscall(x86_64: int, aarch64: int, *arguments: int | bytes | None) -> int:
    """A system call by its number on either machine. Raises OSError."""
    number = {"x86_64": x86_64, "aarch64": aarch64}.get(MACHINE, -1)
    if number < 0:
        raise NothingGot("not on this machine")
    made = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    made += [ctypes.c_long(0)] * (6 - len(made))
    ctypes.set_errno(0)
    result: int = _libc.syscall(ctypes.c_long(number), *made)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
