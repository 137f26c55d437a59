"""The inside of a run: its folders, the small files of `/etc`, what of `/proc` is covered.

Rules
- The root is a small file system of its own, read-only once it is set up. Writable are `/tmp`,
  `/home/agent` and `/dev/shm`: private, of limited size, without execution, gone with the run.
- Mounts and binds (`places`) lie where they lie outside. Without one the working folder holds nothing
  but the program's modules and can't be written, so that a program that tries sees an error instead
  of a file that nobody will ever find.
- `/dev` holds null, zero, full, random and urandom. A run with a terminal has that one too, as
  `/dev/pts/0` and `/dev/tty`, and nothing with which another could be made. There is no `/sys`.
- `/proc` is the run's own; `/proc/sys` and what triggers things are read-only, what tells about the
  host beyond counters is covered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from authority.isolation import landlock
from authority.isolation.bpf import INSIDE_ID
from authority.isolation.places import HOME, PRIVATE, RUN, Bind, Mount
from authority.isolation.probe import FUSE, Host
from authority.isolation.view import View

SOCKET: Final = f"{RUN}/channel.sock"
TERMINAL: Final = "/dev/pts/0"
TTY: Final = "/dev/tty"
OUTER_TERMINAL: Final = "<terminal>"
"""Stands in a plan's command for the terminal's name on the host, which is known at the start."""
PACKAGES: Final = f"{RUN}/lib"
COVERS: Final = f"{RUN}/covers"
DEVICE: Final = "/dev/shm/fuse"  # noqa: S108
"""Where the launcher finds the device that mounts are made with; it is gone before the program."""

HIDDEN: Final = f"{RUN}/calls"
"""Where the launcher finds the real folders that are mediated call by call; gone before the program."""

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
WRITABLE_REMOUNTS: Final = [(path.encode(), NOSUID | NODEV | NOEXEC) for path in PRIVATE]
COVER_FLAGS: Final = RDONLY | NOSUID | NODEV | NOEXEC
ROOT_REMOUNT: Final = [(b"/", RDONLY | NOSUID | NODEV | NOEXEC)]
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_STREAMS: Final = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}

_AS_HERE: Final = (
    *("/etc/localtime", "/etc/timezone", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf"),
    *("/etc/services", "/etc/protocols", "/etc/os-release"),
)
"""Small files that say nothing but what a program could know of any machine of this kind."""

_PROC_READ_ONLY: Final = ("sys", "sysrq-trigger", "irq", "bus")
MASKED: Final = [
    f"/proc/{name}".encode()
    for name in (
        *("kcore", "keys", "key-users", "kallsyms", "kmsg", "timer_list", "sched_debug"),
        *("cmdline", "modules", "config.gz", "slabinfo", "vmallocinfo", "pagetypeinfo"),
        *("partitions", "diskstats", "swaps", "interrupts", "iomem", "ioports", "locks"),
    )
]

_CAPABILITIES: Final = {
    True: ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "CHOWN", "NET_ADMIN", "NET_BIND_SERVICE"),
    False: ("SYS_ADMIN", "SETPCAP", "SYS_RESOURCE", "NET_ADMIN", "NET_BIND_SERVICE"),
}
"""What the launcher holds until it gives up everything: started by root, and by a user."""

_MAX_COPY: Final = 1 << 20


def read_only(cwd: str) -> list[bytes]:
    """What the launcher makes read-only: parts of /proc, and a working folder that lies in a
    writable one."""
    paths = [f"/proc/{name}" for name in _PROC_READ_ONLY]
    if cwd and any(cwd.startswith(path + "/") for path in PRIVATE):
        paths.append(cwd)
    return [os.fsencode(path) for path in paths]


def bind_remounts(binds: Iterable[Bind]) -> list[tuple[bytes, int]]:
    """The flags of plain binds: nothing can be executed where the run may write."""
    return [
        (
            os.fsencode(bind.path),
            NOSUID | NODEV | (0 if bind.executable else NOEXEC) | (0 if bind.writable else RDONLY),
        )
        for bind in binds
    ]


def hidden(mounts: Iterable[Mount]) -> list[tuple[bytes, bytes]]:
    """(where the real folder is bound for the launcher, where it stands in the run) of each mount."""
    return [
        (f"{HIDDEN}/{number}".encode(), os.fsencode(mount.path))
        for number, mount in enumerate(mounts)
    ]


def etc_files() -> list[tuple[str, bytes]]:
    """The small files of `/etc`, the time zone and the loader's cache as they are here."""
    files = [
        ("/etc/passwd", f"agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:{HOME}:/bin/false\n".encode()),
        ("/etc/group", f"agent:x:{INSIDE_ID}:\n".encode()),
        ("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n"),
        ("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n"),
    ]
    for path in _AS_HERE:
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_COPY + 1)
        except OSError:
            # None of them is needed: without them the C library uses UTC and its own folders.
            continue
        if len(content) <= _MAX_COPY:
            files.append((path, content))
    return files


def landlock_rules(
    rules: landlock.Ruleset,
    view: View,
    executables: Iterable[str],
    cwd: str,
    binds: Iterable[Bind] = (),
    files: Iterable[str] = (),
    *,
    channel: bool,
    terminal: bool = False,
    stands: Iterable[str] = (),
) -> list[tuple[bytes, int]]:
    """(path, rights) for every path that exists inside; rights of one path are joined. Mounts have
    rules of their own (`places`), and what only stands for a folder (`stands`) has none. An executable
    that is a folder stands for all that it holds."""
    wanted: dict[str, tuple[int, bool]] = {}

    def grant(path: str, rights: int, *, directory: bool) -> None:
        before = wanted.get(path, (0, directory))[0]
        wanted[path] = (before | rights, directory)

    # Folders may be listed wherever they are: importing does, and nothing else is here to be seen.
    grant("/", landlock.READ_DIR, directory=True)
    for path in (*view.trees, "/proc", "/etc", "/dev", cwd, *([RUN] if channel else [])):
        if path:
            grant(path, landlock.READ, directory=True)
    for path in view.trees:
        # Importing lists the folder that holds a package; inside it holds only what is shown.
        grant(os.path.dirname(path), landlock.READ_DIR, directory=True)
    for path in (*view.files, *view.copies):
        # What lies beside them inside was shown too.
        if os.path.dirname(path) != "/":
            grant(os.path.dirname(path), landlock.READ, directory=True)
    for path in set(PRIVATE) - set(stands):
        grant(path, landlock.WRITE, directory=True)
    for name in _DEVICES:
        grant(f"/dev/{name}", landlock.DEVICE, directory=False)
    for path in (TERMINAL, TTY) if terminal else ():
        grant(path, landlock.DEVICE | landlock.IOCTL_DEV, directory=False)
    for path in executables:
        folder = os.path.isdir(path)
        grant(path, landlock.EXECUTE | landlock.READ_FILE, directory=folder)
    for path in files:
        grant(path, landlock.READ_FILE, directory=False)
    for bind in binds:
        rights = (landlock.WRITE if bind.writable else landlock.READ) | (
            landlock.EXECUTE if bind.executable else 0
        )
        grant(bind.path, rights, directory=os.path.isdir(bind.path))
    return [
        (os.fsencode(path), rules.grant(rights, directory=directory))
        for path, (rights, directory) in wanted.items()
    ]


def _parents(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        parent = os.path.dirname(path)
        while parent != "/" and parent not in found:
            found.add(parent)
            parent = os.path.dirname(parent)
    return found


def bubblewrap(
    view: View,
    host: Host,
    tmp_bytes: int,
    *,
    cwd: str,
    packages: dict[str, str],
    mounts: Sequence[Mount] = (),
    calls: bool = False,
    binds: Sequence[Bind] = (),
    files: Iterable[str] = (),
    terminal: bool = False,
) -> list[str]:
    """bubblewrap's arguments up to the command. `files` are paths that the launcher will write."""
    arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--die-with-parent", "--as-pid-1", "--hostname", "run"]
    if host.root:
        arguments += ["--cap-drop", "ALL"]
    else:
        arguments += ["--unshare-user", "--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID)]
    for name in _CAPABILITIES[host.root]:
        arguments += ["--cap-add", f"CAP_{name}"]
    size = str(tmp_bytes)
    arguments += ["--proc", "/proc", "--dir", "/etc/ssl"]
    for path in PRIVATE:
        mode = "0755" if path == HOME else "1777"
        arguments += ["--perms", mode, "--size", size, "--tmpfs", path]
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    if mounts and not calls:
        arguments += ["--dev-bind", FUSE, DEVICE]
    if terminal:
        arguments += ["--dev-bind", TTY, TTY, "--dir", os.path.dirname(TERMINAL)]
        arguments += ["--dev-bind", OUTER_TERMINAL, TERMINAL]
    for path, target in _STREAMS.items():
        arguments += ["--symlink", target, path]
    # bubblewrap makes missing parents private (0700), and the run's user is not its owner.
    targets = [*view.trees, *view.files, *view.links, *view.copies, *packages, f"{RUN}/x"]
    targets += [*files, *(bind.path for bind in binds)]
    folders = [mount.path for mount in mounts] + ([cwd] if cwd else [])
    for path in sorted(_parents([*targets, *folders]) | set(folders), key=len):
        if not view.covered(path) and path not in PRIVATE:
            arguments += ["--dir", path]
        if calls and any(mount.path == path for mount in mounts):
            arguments += ["--perms", "0755", "--size", size, "--tmpfs", path]
    for number, mount in enumerate(mounts if calls else ()):
        arguments += ["--bind", mount.outside, f"{HIDDEN}/{number}"]
    for bind in sorted(binds, key=lambda one: len(one.path)):
        arguments += ["--bind" if bind.writable else "--ro-bind", bind.path, bind.path]
    for path in sorted(view.trees, key=len):
        arguments += ["--ro-bind", path, path]
    for path in sorted(view.files, key=len):
        arguments += ["--ro-bind", path, path]
    for target in sorted(packages, key=len):
        arguments += ["--ro-bind", packages[target], target]
    for path, target in sorted(view.links.items()):
        arguments += ["--symlink", target, path]
    return arguments
