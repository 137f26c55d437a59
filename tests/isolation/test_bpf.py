"""The seccomp filter, run by an interpreter of its own against the rules that it was made from."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.isolation import bpf, notify
from authority.isolation.bpf import ALLOW, KILL_PROCESS, USER_NOTIF, Exec, fails_with
from authority.isolation.syscalls import ALLOWED, ARCHITECTURES, NUMBERS, X86_64

PERM, NOSYS = fails_with(errno.EPERM), fails_with(errno.ENOSYS)
WORD = 0xFFFFFFFF

FILTERS = {
    (arch, execution, network): bpf.build(
        arch, execution, loopback=network != "none", datagrams=network == "both"
    )
    for arch in ARCHITECTURES
    for execution in Exec
    for network in ("none", "tcp", "both")
}


def interpret(code: bytes, number: int, arch: int, arguments: tuple[int, ...]) -> tuple[int, int]:
    """(verdict, instructions executed) as the kernel would; fails on anything it would refuse."""
    data = struct.pack("=IIQ6Q", number & WORD, arch, 0, *(a & (1 << 64) - 1 for a in arguments))
    program = list(struct.iter_unpack("=HBBI", code))
    accumulator, at, steps = 0, 0, 0
    while True:
        opcode, yes, no, value = program[at]
        steps += 1
        at += 1
        if opcode == 0x20:
            assert value % 4 == 0
            assert value <= len(data) - 4
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif opcode == 0x05:
            at += value
        elif opcode == 0x15:
            at += yes if accumulator == value else no
        elif opcode == 0x35:
            at += yes if accumulator >= value else no
        elif opcode == 0x45:
            at += yes if accumulator & value else no
        elif opcode == 0x06:
            return value, steps
        else:
            raise AssertionError(f"opcode {opcode:#x} is not expected")


def expected(
    architecture: str, execution: Exec, network: str, name: str, a: tuple[int, ...]
) -> int:
    """The rules again, in the plainest words there are."""
    low = [value & WORD for value in a]
    stream = low[1] & ~0o2004000 == 1
    if name == "execve":
        return USER_NOTIF if execution is Exec.ONCE else ALLOW
    if name == "socket":
        internet = network != "none" and low[0] in (2, 10) and stream and low[2] in (0, 6)
        datagram = low[1] & ~0o2004000 == 2 and low[0] == 2 and low[2] in (0, 17)
        internet = internet or (network == "both" and datagram)
        return ALLOW if low[0] == 1 or internet else PERM
    verdicts = {
        "clone3": NOSYS,
        "clone": PERM if low[0] & 0x7E020000 else ALLOW,
        "socketpair": ALLOW if low[0] == 1 else PERM,
        "setsockopt": PERM if low[2] in (26, 50, 51, 52) else ALLOW,
        "ioctl": ALLOW if low[1] in bpf.SAFE_IOCTLS else fails_with(errno.ENOTTY),
        "prctl": ALLOW if low[0] in bpf.SAFE_PRCTLS else PERM,
        "arch_prctl": ALLOW if low[0] in bpf.SAFE_ARCH_PRCTLS else fails_with(errno.EINVAL),
        "personality": ALLOW if low[0] in (0, WORD) else PERM,
        "memfd_create": ALLOW if low[1] & 8 else PERM,
        "prlimit64": ALLOW if low[0] == 0 else PERM,
        "setresuid": ALLOW if all(value in (1000, WORD) for value in low[:3]) else PERM,
        "setresgid": ALLOW if all(value in (1000, WORD) for value in low[:3]) else PERM,
    }
    return verdicts.get(name, ALLOW if name in ALLOWED else PERM)


interesting = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        5,
        6,
        8,
        10,
        16,
        17,
        26,
        262,
        0o2004002,
        0o4001,
        0x5412,
        0x541C,
        0x5401,
        0x10000000,
        0x1002,
        WORD,
    ]
)
argument = st.one_of(
    interesting, st.integers(0, (1 << 64) - 1), interesting.map(lambda n: n | 1 << 32)
)
arguments = st.tuples(*[argument] * 6)
kinds = st.sampled_from(sorted(FILTERS, key=str))


@given(kind=kinds, number=st.integers(0, 600), a=arguments)
@settings(max_examples=300)
def test_every_number_meets_its_rule(
    kind: tuple[str, Exec, str], number: int, a: tuple[int, ...]
) -> None:
    architecture, execution, network = kind
    names = {n: name for name, n in NUMBERS[architecture].items()}
    verdict, steps = interpret(FILTERS[kind], number, bpf.AUDIT_ARCH[architecture], a)
    wanted = (
        expected(architecture, execution, network, names[number], a) if number in names else NOSYS
    )
    assert verdict == wanted
    assert steps < 64


@given(kind=kinds, data=st.data(), a=arguments)
@settings(max_examples=300)
def test_calls_judged_by_their_arguments(
    kind: tuple[str, Exec, str], data: st.DataObject, a: tuple[int, ...]
) -> None:
    architecture, execution, network = kind
    table = NUMBERS[architecture]
    judged = [*bpf.RULES, "socket", "execve", "clone3"]
    name = data.draw(st.sampled_from([name for name in judged if name in table]))
    verdict, _ = interpret(FILTERS[kind], table[name], bpf.AUDIT_ARCH[architecture], a)
    assert verdict == expected(architecture, execution, network, name, a)


@given(kind=kinds, number=st.integers(0, WORD), arch=st.integers(0, WORD), a=arguments)
@settings(max_examples=100)
def test_other_architectures_are_killed(
    kind: tuple[str, Exec, str], number: int, arch: int, a: tuple[int, ...]
) -> None:
    if arch != bpf.AUDIT_ARCH[kind[0]]:
        assert interpret(FILTERS[kind], number, arch, a)[0] == KILL_PROCESS


@given(kind=kinds, number=st.integers(600, WORD))
@settings(max_examples=100)
def test_unknown_numbers(kind: tuple[str, Exec, str], number: int) -> None:
    verdict, _ = interpret(FILTERS[kind], number, bpf.AUDIT_ARCH[kind[0]], (0,) * 6)
    x32 = kind[0] == X86_64 and number >= 0x40000000
    assert verdict == (KILL_PROCESS if x32 else NOSYS)


@pytest.mark.parametrize("kind", FILTERS, ids=str)
def test_the_filter_is_one_that_the_kernel_takes(kind: tuple[str, Exec, str]) -> None:
    """Every jump goes forward to an instruction that is there, and the last one returns."""
    program = list(struct.iter_unpack("=HBBI", FILTERS[kind]))
    assert len(program) <= 4096
    for at, (opcode, yes, no, value) in enumerate(program):
        targets = [at + 1 + value] if opcode == 0x05 else [at + 1 + yes, at + 1 + no]
        if opcode not in (0x06, 0x20):
            assert all(target < len(program) for target in targets)
    assert program[-1][0] == 0x06


DANGEROUS = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "kcmp",
    "process_madvise",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "keyctl",
    "add_key",
    "request_key",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsmount",
    "fsconfig",
    "fspick",
    "mount_setattr",
    "unshare",
    "setns",
    "open_by_handle_at",
    "name_to_handle_at",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "swapon",
    "swapoff",
    "quotactl",
    "quotactl_fd",
    "acct",
    "syslog",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "fanotify_init",
    "fanotify_mark",
    "capset",
    "setuid",
    "setgid",
    "setresuid",
    "setresgid",
    "setreuid",
    "setregid",
    "setgroups",
    "setfsuid",
    "setfsgid",
    "seccomp",
    "memfd_secret",
    "execveat",
    "vmsplice",
    "iopl",
    "ioperm",
    "modify_ldt",
    "lookup_dcookie",
    "nfsservctl",
    "vhangup",
    "migrate_pages",
    "move_pages",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
]


@pytest.mark.parametrize("kind", FILTERS, ids=str)
def test_what_must_never_pass(kind: tuple[str, Exec, str]) -> None:
    table = NUMBERS[kind[0]]
    for name in DANGEROUS:
        if name in table:
            verdict, _ = interpret(FILTERS[kind], table[name], bpf.AUDIT_ARCH[kind[0]], (0,) * 6)
            assert verdict == PERM, name
    for name in ("read", "openat", "futex", "exit_group", "clock_gettime"):
        verdict, _ = interpret(FILTERS[kind], table[name], bpf.AUDIT_ARCH[kind[0]], (0,) * 6)
        assert verdict == ALLOW, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("execution", Exec)
def test_calls_about_paths_are_handed_over(architecture: str, execution: Exec) -> None:
    """Only where files are mediated call by call, and a look at a descriptor itself never."""
    plain = FILTERS[(architecture, execution, "both")]
    handing = bpf.build(architecture, execution, loopback=True, datagrams=True, calls=True)
    assert len(handing) // 8 <= 4096
    arch, table = bpf.AUDIT_ARCH[architecture], NUMBERS[architecture]
    assert {"openat", "statx", "getdents64", "fchmod", "execve"} < table.keys()
    for name, number in table.items():
        for word in (0, notify.AT_EMPTY_PATH):
            arguments = (word,) * 6
            before, _ = interpret(plain, number, arch, arguments)
            verdict, _ = interpret(handing, number, arch, arguments)
            if name in notify.MEDIATED and not (word and name in ("newfstatat", "statx")):
                assert verdict == USER_NOTIF, name
            else:
                assert verdict == before, name
        assert name not in notify.MEDIATED or interpret(plain, number, arch, (0,) * 6)[0] == ALLOW


def headers(path: str, prefix: str) -> dict[str, int]:
    file = Path(path)
    text = file.read_text() if file.is_file() else ""
    return {name: int(n) for name, n in re.findall(rf"#define {prefix}_(\w+)\s+(\d+)\b", text)}


def test_the_table_agrees_with_the_kernels_headers() -> None:
    """Where they are installed; a wrong number would allow another call than the one that is meant."""
    x86 = headers("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "__NR")
    generic = headers("/usr/include/asm-generic/unistd.h", "__NR")
    generic |= headers("/usr/include/asm-generic/unistd.h", "__NR3264")
    for table, real in ((NUMBERS["x86_64"], x86), (NUMBERS["aarch64"], generic)):
        for name, number in table.items():
            if name in real:
                assert real[name] == number, name
        assert len(set(table.values())) == len(table)
    # Numbers from 424 on are the same everywhere.
    for name, number in NUMBERS["x86_64"].items():
        if number >= 424 and name in NUMBERS["aarch64"]:
            assert NUMBERS["aarch64"][name] == number, name
