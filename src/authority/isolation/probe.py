"""What this machine offers for isolation: found cheaply, and explained when it is not enough.

Rules
- `probe()` reads a few files and asks the kernel two questions; it starts no process. It is done
  once in a process. Nothing that an agent can set (environment, working folder) takes part in it:
  bubblewrap is looked for in the system's folders alone, by absolute path, and must belong to root
  and be writable by nobody else, its folders too.
- `explain()` and `try_namespaces()` cost a process each: they are for `authority doctor`, and for
  the message after a start that failed. They name the cause that the kernel's own settings show
  (AppArmor, a sysctl, a container's seccomp profile, WSL 1) and the way out.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authority.isolation import cgroups, landlock, notify, syscalls
from authority.isolation.refusal import IsolationRefused, shown

_BWRAP_PLACES: Final = ("/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap")
_CAP_SYS_ADMIN: Final = 21
_CAP_SYS_PTRACE: Final = 19
FUSE: Final = "/dev/fuse"
_FUSE_DEVICE: Final = os.makedev(10, 229)
_INSTALL: Final = (
    "install it: apt-get install -y bubblewrap (or your system's package of that name)"
)


@dataclass(frozen=True, slots=True)
class Host:
    """What a plan rests on. `bwrap` is empty when it is missing or not to be trusted, and then
    `bwrap_problem` says why; `landlock_abi` is 0 when there is none; `user_namespaces` says whether
    the kernel's settings allow them, not that a start was tried. `fuse_problem` is why files can't be
    mounted through the gate (cause, fix), or two empty texts; `calls_problem` why they can't be
    mediated call by call."""

    kernel: str
    architecture: str
    bwrap: str
    bwrap_problem: str
    landlock_abi: int
    seccomp: bool
    user_namespaces: bool
    namespace_obstacles: tuple[tuple[str, str], ...]
    cgroup: cgroups.Support
    uid: int
    gid: int
    sys_admin: bool
    fuse_problem: tuple[str, str] = ("", "")
    calls_problem: tuple[str, str] = ("", "")

    @property
    def root(self) -> bool:
        """Started by root: ids are given up on the host, not mapped."""
        return self.uid == 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def trusted_program(path: str) -> str:
    """Why this program must not be started by the gate, or nothing."""
    try:
        found = os.stat(path)
        parents = [os.stat(parent) for parent in Path(os.path.realpath(path)).parents]
    except OSError as error:
        return f"{path} can't be looked at: {error.strerror}"
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
        return f"{path} is no program"
    for one in (found, *parents):
        # Sticky folders let only owners replace entries; the program itself has no such excuse.
        loose = one.st_mode & 0o022 and not (stat.S_ISDIR(one.st_mode) and one.st_mode & 0o1000)
        if one.st_uid != 0 or loose:
            return f"{path}, or a folder above it, can be changed by others than root"
    return ""


def _find_bwrap() -> tuple[str, str]:
    problem = "bubblewrap (bwrap) is not installed"
    for place in _BWRAP_PLACES:
        if os.path.exists(place):
            problem = trusted_program(place)
            if not problem:
                return place, ""
    return "", problem


def _architecture() -> str:
    machine = platform.machine()
    return {"amd64": syscalls.X86_64, "arm64": syscalls.AARCH64}.get(machine.lower(), machine)


def _landlock_abi(architecture: str) -> int:
    number = syscalls.NUMBERS.get(architecture, {}).get("landlock_create_ruleset")
    if number is None:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    version_flag = 1
    return max(0, int(libc.syscall(number, None, ctypes.c_size_t(0), version_flag)))


def _obstacles() -> tuple[tuple[str, str], ...]:
    """What in this kernel's settings keeps ordinary users from user name spaces: cause and fix."""
    found = []
    version = _read("/proc/version")
    if "Microsoft" in version and "WSL2" not in version:
        found.append(
            ("this is WSL 1, which has no Linux kernel", "convert it: wsl --set-version NAME 2")
        )
    if not os.path.exists("/proc/self/ns/user"):
        found.append(
            ("the kernel was built without user name spaces", "use a kernel with CONFIG_USER_NS")
        )
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        found.append(
            ("user.max_user_namespaces is 0", "as root: sysctl -w user.max_user_namespaces=10000")
        )
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        found.append(
            (
                "kernel.unprivileged_userns_clone is 0",
                "as root: sysctl -w kernel.unprivileged_userns_clone=1",
            )
        )
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        found.append(
            (
                "AppArmor restricts user name spaces of programs without a profile",
                "give /usr/bin/bwrap a profile with 'userns,' (the package apparmor-profiles has "
                "bwrap-userns-restrict), or as root: "
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            )
        )
    return tuple(found)


def fuse_problem() -> tuple[str, str]:
    """Why the gate's files can't be mounted here, and what to do; empty texts when they can."""
    kinds = {line.split()[-1] for line in _read("/proc/filesystems").splitlines()}
    if not os.path.exists(FUSE):
        if "fuse" in kinds:
            return (
                f"{FUSE} is not here, though the kernel has FUSE",
                f"give the container the device: --device {FUSE}",
            )
        return (
            "the kernel has no FUSE",
            "as root: modprobe fuse, or use a kernel with CONFIG_FUSE_FS",
        )
    found = os.stat(FUSE)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _FUSE_DEVICE:
        return (
            f"{FUSE} is another file or device than the kernel's",
            f"as root: rm {FUSE}; mknod -m 666 {FUSE} c 10 229",
        )
    if not os.access(FUSE, os.R_OK | os.W_OK, effective_ids=True):
        return (f"{FUSE} can't be opened by this user", f"as root: chmod 666 {FUSE}")
    release = platform.release().split(".")
    if os.geteuid() and [int(part) for part in release[:2] if part.isdigit()] < [4, 18]:
        return ("this kernel has no FUSE in user name spaces", "use Linux 4.18 or later")
    return "", ""


def _status() -> dict[str, str]:
    lines = (line.partition(":") for line in _read("/proc/self/status").splitlines())
    return {key: value.strip() for key, _, value in lines}


@functools.cache
def probe() -> Host:
    """This machine, looked at once (well under 5 ms). Raises nothing: what is missing is empty."""
    architecture = _architecture()
    bwrap, problem = _find_bwrap()
    status = _status()
    capabilities = int(status.get("CapEff", "0"), 16)
    obstacles = _obstacles()
    return Host(
        kernel=platform.release(),
        architecture=architecture,
        bwrap=bwrap,
        bwrap_problem=problem,
        landlock_abi=_landlock_abi(architecture),
        seccomp="Seccomp" in status,
        user_namespaces=not obstacles,
        namespace_obstacles=obstacles,
        cgroup=cgroups.detect(),
        uid=os.geteuid(),
        gid=os.getegid(),
        sys_admin=bool(capabilities >> _CAP_SYS_ADMIN & 1),
        fuse_problem=fuse_problem(),
        calls_problem=notify.problem(
            platform.release(),
            _read("/proc/sys/kernel/yama/ptrace_scope"),
            root=os.geteuid() == 0,
            may_trace=bool(capabilities >> _CAP_SYS_PTRACE & 1),
        ),
    )


def require(host: Host) -> None:
    """Raises `IsolationRefused` for the first required part that this machine lacks."""
    if host.architecture not in syscalls.ARCHITECTURES:
        raise IsolationRefused(
            f"there is no system call table for the architecture {shown(host.architecture)}",
            "use x86-64 or arm64",
        )
    if not host.bwrap:
        raise IsolationRefused(host.bwrap_problem, _INSTALL)
    if host.landlock_abi < landlock.MINIMUM_ABI:
        have = f"ABI {host.landlock_abi}" if host.landlock_abi else "none"
        raise IsolationRefused(
            f"Landlock ABI {landlock.MINIMUM_ABI} or later is required; this kernel has {have}",
            "use Linux 5.19 or later with landlock in its lsm= list",
        )
    if not host.seccomp:
        raise IsolationRefused(
            "the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER"
        )
    if host.root and not host.sys_admin:
        raise IsolationRefused(
            "started by root without CAP_SYS_ADMIN, so neither can name spaces be made nor can "
            "host ids be given up",
            "start it as an ordinary user, or give the container that capability",
        )
    if not host.root and not host.user_namespaces:
        cause, fix = host.namespace_obstacles[0]
        raise IsolationRefused(f"user name spaces are not to be had: {cause}", fix)


def try_namespaces(host: Host) -> str:
    """Makes the name spaces once and says what went wrong, or nothing."""
    if not host.bwrap:
        return host.bwrap_problem
    command = [host.bwrap, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"]
    command += ["--proc", "/proc", "--", "/proc/self/exe", "--version"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=20, env={})
    return "" if done.returncode == 0 else shown(done.stderr.strip()) or "bubblewrap failed"


def explain(host: Host, message: str) -> tuple[str, str]:
    """(cause, fix) for a start that failed with bubblewrap's `message`."""
    if host.namespace_obstacles:
        return host.namespace_obstacles[0]
    if _status().get("Seccomp", "0") == "2":
        return (
            "a seccomp filter is in force around us, most likely a container's profile that "
            "forbids making name spaces",
            "start the container with --security-opt seccomp=unconfined, or with a profile that "
            "allows unshare, clone with CLONE_NEW*, mount, umount2 and pivot_root",
        )
    if "setting up uid map" in message or "Permission denied" in message:
        return (
            "the kernel let a user name space be made but not used (a security module, or a "
            "container without the right to map ids)",
            "run `authority doctor` on the host itself and compare",
        )
    return "bubblewrap failed", "run `authority doctor`"
