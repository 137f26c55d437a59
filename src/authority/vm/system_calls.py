"""The hypervisor's system calls: an allow list of ours, beside the list that QEMU forbids itself.

Rules
- QEMU's own filter (`-sandbox`) names what is forbidden, so what nobody thought of passes: sockets of
  every family (virtual machine sockets among them, which no network name space holds back), the keys
  of whoever started the gate, `io_uring`, `userfaultfd`, `perf`. Ours names what is allowed, and both
  have to agree.
- Allowed is what a program in name spaces may call, without what a hypervisor never needs that was
  handed all its files and sockets (`UNUSED`: to make, name or find another), and with what QEMU or
  the way to it need besides (`BESIDES`).
- bubblewrap loads it, for itself too, before anything of QEMU runs. So the call that executes has to
  pass, and those that give up ids; QEMU's own filter forbids these afterwards, and no_new_privs and
  the lack of every capability leave nothing to be had by them.
- A known call that is not allowed fails with EPERM, an unknown one with ENOSYS; what comes by another
  architecture's entry is killed.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Final

from authority.isolation import bpf
from authority.isolation.spawn import sealed
from authority.isolation.syscalls import ALLOWED, NUMBERS

_MAKE_FIND_NAME: Final = """
connect accept accept4 bind listen inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
mknod mknodat link linkat symlink symlinkat rename renameat renameat2 mkdir mkdirat
chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
"""
UNUSED: Final = frozenset(_MAKE_FIND_NAME.split())

_START_AND_KVM: Final = """
ioctl prctl arch_prctl seccomp execve wait4
capget capset setgroups setuid setgid setreuid setregid setresuid setresgid
"""
BESIDES: Final = frozenset(_START_AND_KVM.split())
"""KVM is driven by `ioctl`; the filter of QEMU's own is loaded by `prctl` or `seccomp`; `setpriv`
gives up what root's bubblewrap started with."""


def fates(architecture: str) -> dict[int, bpf.Code]:
    """For each known number the code that ends every call with that number."""
    allowed = (ALLOWED - UNUSED) | BESIDES
    rules = {name: rule for name, rule in bpf.RULES.items() if name not in BESIDES}
    del rules["socketpair"]
    found: dict[int, bpf.Code] = {}
    for name, number in NUMBERS[architecture].items():
        if name == "clone3":  # its flags lie where no filter reads them; C libraries then use clone
            found[number] = bpf.answer(bpf.fails_with(errno.ENOSYS))
        elif name in rules:
            found[number] = bpf.judged(rules[name])
        else:
            passes = name in allowed
            found[number] = bpf.answer(bpf.ALLOW if passes else bpf.fails_with(errno.EPERM))
    return found


@functools.cache
def build(architecture: str) -> bytes:
    """The filter as an array of `struct sock_filter`."""
    return bpf.program(architecture, fates(architecture))


@functools.cache
def _file(architecture: str) -> int:
    return sealed("authority-filter", build(architecture))


def opened(architecture: str) -> int:
    """A descriptor that reads the filter from its beginning; the caller closes it."""
    return os.open(f"/proc/self/fd/{_file(architecture)}", os.O_RDONLY | os.O_CLOEXEC)
