"""The hypervisor's own jail: QEMU in name spaces, as nobody, with nothing but what it was handed.

Rules
- It sees the system's libraries, its own program and firmware, null, zero and random devices, and
  its own `/proc`. No network, no home, no `/etc`, no image by name: images, the channel and the
  control socket are descriptors. `/dev/kvm` is there only when it is used.
- It holds no capability and cannot get one. Started by root it is a host user of its own in every
  id (one a run, in no passwd), because a mapped root would still be root, with the group that may
  use KVM where it is used; started by a user it is that user, mapped.
- Its memory, processes and processor time are limited by control groups where they can be had: a
  shell of one line joins them, closes them and becomes bubblewrap. Its memory has a limit of the
  process too, which holds without any group: a guest can make the hypervisor ask for more.
- What the kernel says of the hypervisor's process is read before the guest is told anything
  (`missing`): arguments that were given are no proof of what came of them.
- Two filters of system calls: ours, an allow list (`system_calls`), and the one by which QEMU denies
  itself to start programs, change ids and raise its limits.
- Of the gate's own it inherits nothing: not what the gate was handed when it was started (`detached`),
  and of its keys it sees not even the names. It leaves no core behind, which would be the guest's
  memory, written by the guest, for the host's programs to read.
- It ends when the gate ends. A parent-death signal would not reach it, because it is another
  user's; so bubblewrap stays process 1 of its pid name space, dies with the gate, and the kernel
  kills the rest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from authority.isolation import Host, processes
from authority.isolation.spawn import detached
from authority.vm import hypervisor, system_calls
from authority.vm.architectures import Architecture

KVM: Final = "/dev/kvm"
FIRST_FD: Final = 10
"""The first descriptor that QEMU is handed; those below are streams and entrances."""

_ENTRANCE: Final = 3
_FILTER: Final = 9
_SHELL: Final = "/bin/sh"
_SETPRIV: Final = "/usr/bin/setpriv"
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_FILTERS: Final = 2
"""Ours, and QEMU's own, beside those that the gate itself was started under (a container's)."""
_SPACES: Final = ("mnt", "pid", "net", "ipc", "uts")
_COVERED: Final = ("/proc/keys", "/proc/key-users", "/proc/kallsyms")
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def kvm_group() -> int:
    """The group, not root's, that may use KVM; 0 when everybody may, or nobody but root."""
    found = os.stat(KVM)
    return found.st_gid if found.st_mode & 0o060 == 0o060 and not found.st_mode & 0o006 else 0


def missing(pid: int, host: Host, *, uid: int, kvm: bool) -> str:
    """What the hypervisor's process lacks of its jail, as the kernel sees it; empty when nothing."""
    found = processes.status(pid)
    ids = {*found.get("Uid", "0").split(), *found.get("Gid", "0").split()}
    if processes.user_ids([pid]) != {uid} or (host.root and ids != {str(uid)}):
        return f"it has the host users {', '.join(sorted(ids))}"
    groups = {str(kvm_group() if kvm else uid)}
    if host.root and not set(found.get("Groups", "0").split()) <= groups:
        return "it is in groups of the host"
    wanted = str(int(processes.status(os.getpid()).get("Seccomp_filters", "0")) + _FILTERS)
    filters = found.get("Seccomp_filters", wanted)  # kernels before 5.9 don't count them
    if found.get("NoNewPrivs") != "1" or (found.get("Seccomp"), filters) != ("2", wanted):
        return (
            "it has no system call filter, or not both, or may gain rights (QEMU without seccomp?)"
        )
    if any(set(found.get(f"Cap{kind}", "")) != {"0"} for kind in ("Inh", "Prm", "Eff", "Amb")):
        return "it holds a capability"
    for space in _SPACES:
        try:
            shared = os.readlink(f"/proc/{pid}/ns/{space}") == os.readlink(f"/proc/self/ns/{space}")
        except OSError as error:
            return f"its name spaces can't be looked at: {error.strerror}"
        if shared:
            return f"it shares the host's {space} name space"
    return ""


def command(
    host: Host, architecture: Architecture, arguments: Sequence[str], *, uid: int, kvm: bool
) -> list[str]:
    """bubblewrap and behind it QEMU. `uid` is the host user that it becomes, when root starts it."""
    program = hypervisor.find(architecture).path
    made = [host.bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    made += ["--unshare-cgroup-try", "--die-with-parent", "--hostname", "machine"]
    made += ["--cap-drop", "ALL"]
    become: list[str] = []
    if host.root:
        for name in ("SETUID", "SETGID", "SETPCAP"):
            made += ["--cap-add", f"CAP_{name}"]
        group = kvm_group() if kvm else 0
        groups = f"--groups={group}" if group else "--clear-groups"
        become = [_SETPRIV, f"--reuid={uid}", f"--regid={uid}", groups]
        become += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    else:
        made += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
    # bubblewrap makes missing parents private, and QEMU will not be their owner.
    for folder in ("/usr", "/usr/bin", "/usr/share", "/dev"):
        made += ["--perms", "0755", "--dir", folder]
    made += ["--ro-bind", "/usr/lib", "/usr/lib"]
    for link in ("/lib", "/lib64", "/usr/lib64", "/lib32"):
        if os.path.islink(link):
            made += ["--symlink", os.readlink(link), link]
        elif os.path.isdir(link):
            made += ["--ro-bind", link, link]
    for path in (program, _SETPRIV, *architecture.firmware):
        if os.path.exists(path):
            made += ["--ro-bind", path, path]
    for device in (*_DEVICES, *([KVM] if kvm else [])):
        made += ["--dev-bind", device, device]
    made += ["--proc", "/proc"]
    for path in _COVERED:
        if os.path.exists(path):
            made += ["--ro-bind", "/dev/null", path]
    made += ["--seccomp", str(_FILTER)]
    return [*made, "--", *become, program, *arguments, "-sandbox", _SANDBOX]


def spawn(
    made: Sequence[str],
    diagnostics: int,
    own: Sequence[int],
    entrances: Sequence[int],
    *,
    architecture: str,
    data: int,
) -> int:
    """Starts it; its pid. `own` go to `FIRST_FD` and on. A control group is joined before anything,
    and the process's own memory limited to `data` bytes."""
    rules = system_calls.opened(architecture)
    join = "".join(f"echo 0 >&{_ENTRANCE + at}||exit 1;" for at in range(len(entrances)))
    join += f"ulimit -c 0&&ulimit -d {data >> 10}||exit 1;"
    leave = "".join(f" {_ENTRANCE + at}>&-" for at in range(len(entrances)))
    given = {
        2: diagnostics,
        **dict(enumerate(entrances, _ENTRANCE)),
        _FILTER: rules,
        **dict(enumerate(own, FIRST_FD)),
    }
    try:
        return detached([_SHELL, "-c", f'{join}exec "$@"{leave}', "sh", *made], given)
    finally:
        os.close(rules)
