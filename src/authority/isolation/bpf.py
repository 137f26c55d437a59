"""The seccomp filter of a run, generated as classic BPF from the table of system calls.

Rules
- It is an allow list: calls in `syscalls.ALLOWED` pass, calls in `RULES` pass when their arguments
  do, every other known call fails with EPERM and every unknown number with ENOSYS.
- A program of another architecture (32-bit x86 by `int 0x80` included) is killed, and so is x32.
- `clone3` fails with ENOSYS, because its flags lie behind a pointer that a filter can't read: C
  libraries then use `clone`, whose flags are judged.
- `execve` either passes (`Exec.LISTED`: the policy lists programs and Landlock says which files)
  or is handed to the listener (`Exec.ONCE`): the launcher continues exactly the one call that
  starts the program and closes the listener, after which the kernel answers every execve with
  ENOSYS, for good. A descriptor that only the first exec may use would be weaker: execveat ignores
  its descriptor when the path behind its pointer is absolute, and a filter sees no path.
- With `calls` every call of `notify.MEDIATED` is handed to the listener as well, which the gate has
  then; but not a look at a descriptor itself (`AT_EMPTY_PATH`).
- Only arguments that the kernel reads as 32-bit values are judged, by their lower half: that is
  all the kernel looks at.
- The layout is a balanced tree of comparisons over ranges of numbers with the same fate, so a call
  costs about eight comparisons (and the kernel caches calls that are allowed whatever they pass).

Sources: linux/Documentation/userspace-api/seccomp_filter.rst, seccomp(2), seccomp_unotify(2).
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from authority.isolation.notify import AT_EMPTY_PATH, MEDIATED
from authority.isolation.syscalls import AARCH64, ALLOWED, NUMBERS, X86_64

AUDIT_ARCH: Final = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}
X32_BIT: Final = 0x40000000

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
USER_NOTIF: Final = 0x7FC00000
_ERRNO: Final = 0x00050000

_LOAD, _JUMP, _JEQ, _JGE, _JSET, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16
_MAX_SHORT_JUMP = 255


def fails_with(number: int) -> int:
    """The filter's answer that makes a call fail with this errno."""
    return _ERRNO | number


class Exec(Enum):
    """What happens to execve: handed to the launcher's listener, or allowed (files by Landlock)."""

    ONCE = "once"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class OneOf:
    """The lower 32 bits of argument `index` are one of `values`."""

    index: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NoneOf:
    """The lower 32 bits of argument `index` are none of `values`."""

    index: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Without:
    """No bit of `bits` is set in argument `index`."""

    index: int
    bits: int


@dataclass(frozen=True, slots=True)
class With:
    """Every bit of `bits` is set in argument `index` (`bits` is a single bit)."""

    index: int
    bits: int


Condition = OneOf | NoneOf | Without | With


@dataclass(frozen=True, slots=True)
class Rule:
    """A call passes when all conditions hold and fails with `otherwise` when one does not."""

    conditions: tuple[Condition, ...]
    otherwise: int = errno.EPERM


AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
SOCK_STREAM, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_CLOEXEC = 1, 2, 0o4000, 0o2000000
IPPROTO_TCP, IPPROTO_UDP = 6, 17
CLONE_NEW_ANY: Final = 0x7E020000
"""NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (NEWTIME exists only in clone3)."""
MFD_NOEXEC_SEAL: Final = 0x8
INSIDE_ID: Final = 1000
"""The only user and group inside."""

# TCGETS, TIOCGPGRP, TIOCOUTQ, TIOCGWINSZ, FIONREAD, FIONBIO, TIOCGSID, FIONCLEX, FIOCLEX, FIOASYNC,
# FIOQSIZE, FS_IOC_GETFLAGS, FICLONE, RNDGETENTCNT; SECCOMP_IOCTL_NOTIF_RECV and _SEND are the
# launcher's, and mean nothing without a listener, which nobody can have after the start.
SAFE_IOCTLS: Final = (
    *(0x5401, 0x540F, 0x5411, 0x5413, 0x541B, 0x5421, 0x5429, 0x5450, 0x5451, 0x5452, 0x5460),
    *(0x80086601, 0x40049409, 0x80045200),
    *(0xC0502100, 0xC0182101),
)

# TCSETS, TCSETSW, TCSETSF, TCSBRK, TCXONC, TCFLSH, TIOCSCTTY, TIOCSPGRP, TIOCSWINSZ, TIOCNOTTY,
# TCGETS2, TCSETS2, TCSETSW2, TCSETSF2. Not here: TIOCSTI (types into the terminal), TIOCLINUX (pastes
# into it), TIOCSETD (loads line disciplines), TIOCCONS, and everything that makes another terminal.
TERMINAL_IOCTLS: Final = (
    *(0x5402, 0x5403, 0x5404, 0x5409, 0x540A, 0x540B, 0x540E, 0x5410, 0x5414, 0x5422),
    *(0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D),
)

# PDEATHSIG (1, 2), DUMPABLE (3, 4), NAME (15, 16), GET_SECCOMP, CAPBSET_READ, TIMERSLACK (29, 30),
# CHILD_SUBREAPER (36, 37), NO_NEW_PRIVS (38, 39), GET_TID_ADDRESS, THP_DISABLE (41, 42), 47 is
# CAP_AMBIENT (there is nothing left to raise), SPECULATION_CTRL (52, 53), MDWE (65, 66), SET_VMA.
SAFE_PRCTLS: Final = (
    *(1, 2, 3, 4, 15, 16, 21, 23, 29, 30, 36, 37, 38, 39, 40, 41, 42, 47, 52, 53, 65, 66),
    0x53564D41,
)

# ARCH_SET_GS, SET_FS, GET_FS, GET_GS, CET_STATUS, SHSTK_ENABLE, DISABLE, LOCK, UNLOCK, STATUS.
SAFE_ARCH_PRCTLS: Final = (
    *(0x1001, 0x1002, 0x1003, 0x1004, 0x3001),
    *(0x5001, 0x5002, 0x5003, 0x5004, 0x5005),
)

_CBPF_AND_EBPF_OPTIONS: Final = (26, 50, 51, 52)

RULES: Final[dict[str, Rule]] = {
    "clone": Rule((Without(0, CLONE_NEW_ANY),)),
    "socketpair": Rule((OneOf(0, (AF_UNIX,)),)),
    "setsockopt": Rule((NoneOf(2, _CBPF_AND_EBPF_OPTIONS),)),
    "ioctl": Rule((OneOf(1, SAFE_IOCTLS),), errno.ENOTTY),
    "prctl": Rule((OneOf(0, SAFE_PRCTLS),)),
    "arch_prctl": Rule((OneOf(0, SAFE_ARCH_PRCTLS),), errno.EINVAL),
    "personality": Rule((OneOf(0, (0, 0xFFFFFFFF)),)),
    "memfd_create": Rule((With(1, MFD_NOEXEC_SEAL),)),
    "prlimit64": Rule((OneOf(0, (0,)),)),
    "setresuid": Rule(tuple(OneOf(at, (INSIDE_ID, 0xFFFFFFFF)) for at in range(3))),
    "setresgid": Rule(tuple(OneOf(at, (INSIDE_ID, 0xFFFFFFFF)) for at in range(3))),
}
"""Calls that pass only with the right arguments, besides `socket`, `execve` and `clone3`.

`setsockopt` may not attach BPF programs to a socket; `memfd_create` makes only files that can never
be executed; `prlimit64` reaches the caller alone; `setresuid` and `setresgid` set the id that the
process has anyway, which `posix_spawn` does for make and others."""

_SOCKET_LOCAL: Final = Rule((OneOf(0, (AF_UNIX,)),))
_IOCTL_TERMINAL: Final = Rule((OneOf(1, (*SAFE_IOCTLS, *TERMINAL_IOCTLS)),), errno.ENOTTY)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One `struct sock_filter`."""

    code: int
    yes: int
    no: int
    value: int

    def pack(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.yes, self.no, self.value)


Code = list[Instruction]


def answer(value: int) -> Code:
    """Code that ends a call with this answer."""
    return [Instruction(_RET, 0, 0, value)]


def _load(offset: int) -> Code:
    return [Instruction(_LOAD, 0, 0, offset)]


def _condition(condition: Condition, failed: int) -> Code:
    """Code that goes on behind its end when the condition holds and returns `failed` when not."""
    load = _load(_OFFSET_ARGUMENTS + 8 * condition.index)
    match condition:
        case Without(bits=bits):
            return [*load, Instruction(_JSET, 0, 1, bits), *answer(failed)]
        case With(bits=bits):
            return [*load, Instruction(_JSET, 1, 0, bits), *answer(failed)]
        case OneOf(values=values):
            # The last comparison falls into `failed`; each hit jumps over it.
            tests = [
                Instruction(_JEQ, len(values) - place, 0, value)
                for place, value in enumerate(values)
            ]
            return [*load, *tests, *answer(failed)]
        case NoneOf(values=values):
            tests = [
                Instruction(_JEQ, len(values) - place, 0, value)
                for place, value in enumerate(values)
            ]
            return [*load, *tests, Instruction(_JUMP, 0, 0, 1), *answer(failed)]


def judged(rule: Rule) -> Code:
    """Code that ends a call by its arguments."""
    failed = fails_with(rule.otherwise)
    code: Code = []
    for condition in rule.conditions:
        code += _condition(condition, failed)
    return [*code, *answer(ALLOW)]


def _socket(loopback: bool, datagrams: bool) -> Code:
    """AF_UNIX of every type; AF_INET and AF_INET6 only as TCP streams, only with `loopback`, and
    AF_INET as UDP with `datagrams`. Raw sockets and other protocols (ICMP) never."""
    if not loopback:
        return judged(_SOCKET_LOCAL)
    code = [*_load(_OFFSET_ARGUMENTS), Instruction(_JEQ, 0, 1, AF_UNIX), *answer(ALLOW)]
    streams = Rule((OneOf(0, (AF_INET, AF_INET6)), _kinds(SOCK_STREAM), OneOf(2, (0, IPPROTO_TCP))))
    if datagrams:
        kinds = _kinds(SOCK_DGRAM)
        plain = judged(Rule((OneOf(0, (AF_INET,)), kinds, OneOf(2, (0, IPPROTO_UDP)))))
        # A datagram socket is judged here, and its rule ends; everything else goes on behind it.
        code += _load(_OFFSET_ARGUMENTS + 8)
        code += [
            Instruction(_JEQ, len(kinds.values) - place, 0, value)
            for place, value in enumerate(kinds.values)
        ]
        code += [Instruction(_JUMP, 0, 0, len(plain)), *plain]
    return [*code, *judged(streams)]


def _kinds(kind: int) -> OneOf:
    flags = (0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC)
    return OneOf(1, tuple(kind | flag for flag in flags))


def fates(
    architecture: str,
    execution: Exec,
    *,
    loopback: bool,
    datagrams: bool = False,
    terminal: bool = False,
    calls: bool = False,
) -> dict[int, Code]:
    """For each known number the code that ends every call with that number."""
    found: dict[int, Code] = {}
    for name, number in NUMBERS[architecture].items():
        if name == "execve":
            code = answer(USER_NOTIF if execution is Exec.ONCE else ALLOW)
        elif calls and name in MEDIATED:
            code = _mediated(name)
        elif name == "socket":
            code = _socket(loopback, datagrams)
        elif name == "ioctl" and terminal:
            code = judged(_IOCTL_TERMINAL)
        elif name == "clone3":
            code = answer(fails_with(errno.ENOSYS))
        elif name in RULES:
            code = judged(RULES[name])
        else:
            code = answer(ALLOW if name in ALLOWED else fails_with(errno.EPERM))
        found[number] = code
    return found


_LOOKS: Final = {"newfstatat": 3, "statx": 2}


def _mediated(name: str) -> Code:
    index = _LOOKS.get(name)
    if index is None:
        return answer(USER_NOTIF)
    load = _load(_OFFSET_ARGUMENTS + 8 * index)
    return [
        *load,
        Instruction(_JSET, 0, 1, AT_EMPTY_PATH),
        *answer(ALLOW),
        *answer(USER_NOTIF),
    ]


Range = tuple[int, Code]
"""From this number on, up to the next range, this code."""


def _ranges(table: dict[int, Code]) -> list[Range]:
    unknown = answer(fails_with(errno.ENOSYS))
    ranges: list[Range] = [(0, unknown)]
    for number in sorted(table):
        for start, code in ((number, table[number]), (number + 1, unknown)):
            if ranges[-1][0] == start:
                ranges.pop()
            if not ranges or ranges[-1][1] != code:
                ranges.append((start, code))
    return ranges


def _tree(ranges: Sequence[Range]) -> Code:
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    if len(below) <= _MAX_SHORT_JUMP:
        jump = [Instruction(_JGE, len(below), 0, ranges[middle][0])]
    else:
        jump = [
            Instruction(_JGE, 0, 1, ranges[middle][0]),
            Instruction(_JUMP, 0, 0, len(below)),
        ]
    return [*jump, *below, *above]


@functools.cache
def build(
    architecture: str,
    execution: Exec,
    *,
    loopback: bool,
    datagrams: bool = False,
    terminal: bool = False,
    calls: bool = False,
) -> bytes:
    """The filter as an array of `struct sock_filter`, at most 4,096 of them (a kernel limit).

    `terminal`: the run has one, and may set its modes. `calls`: files are mediated call by call.
    """
    table = fates(
        architecture,
        execution,
        loopback=loopback,
        datagrams=datagrams,
        terminal=terminal,
        calls=calls,
    )
    return program(architecture, table)


def program(architecture: str, table: dict[int, Code]) -> bytes:
    """A filter of this table: other architectures are killed, other numbers unknown."""
    code: Code = [
        *_load(_OFFSET_ARCH),
        Instruction(_JEQ, 1, 0, AUDIT_ARCH[architecture]),
        *answer(KILL_PROCESS),
        *_load(_OFFSET_NUMBER),
    ]
    if architecture == X86_64:
        code += [Instruction(_JGE, 0, 1, X32_BIT), *answer(KILL_PROCESS)]
    code += _tree(_ranges(table))
    if len(code) > 4096:
        raise AssertionError(f"a filter of {len(code)} instructions would not load")
    return _pack(code)


def _pack(code: Iterable[Instruction]) -> bytes:
    return b"".join(instruction.pack() for instruction in code)
