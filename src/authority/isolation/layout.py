"""The inside of a run: its folders, the small files of `/etc`, what of `/proc` is covered.

Rules
- The root is a small file system of its own, read-only once it is set up. Writable are `/tmp`,
  `/home/agent` and `/dev/shm`: private, of limited size, without execution, gone with the run.
- The working folder has the name that it has outside and holds nothing but the program's modules:
  files there are reached through the gate. It can't be written, so that a program that tries sees
  an error instead of a file that nobody will ever find.
- `/dev` holds null, zero, full, random and urandom: no terminal, no pts. There is no `/sys`.
- `/proc` is the run's own; `/proc/sys` and what triggers things are read-only, what tells about the
  host beyond counters is covered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from authority.isolation import landlock
from authority.isolation.probe import Host
from authority.isolation.view import View

HOME: Final = "/home/agent"
RUN: Final = "/run/authority"
SOCKET: Final = f"{RUN}/channel.sock"
PACKAGES: Final = f"{RUN}/lib"
INSIDE_ID: Final = 1000

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
_WRITABLE: Final = ("/tmp", HOME, "/dev/shm")  # noqa: S108
WRITABLE_REMOUNTS: Final = [(path.encode(), NOSUID | NODEV | NOEXEC) for path in _WRITABLE]
ROOT_REMOUNT: Final = [(b"/", RDONLY | NOSUID | NODEV | NOEXEC)]
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_STREAMS: Final = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}

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
    if any(cwd.startswith(path + "/") for path in _WRITABLE):
        paths.append(cwd)
    return [os.fsencode(path) for path in paths]


def etc_files() -> list[tuple[bytes, bytes]]:
    """The small files of `/etc`, the time zone and the loader's cache as they are here."""
    files = [
        (b"/etc/passwd", f"agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:{HOME}:/bin/false\n".encode()),
        (b"/etc/group", f"agent:x:{INSIDE_ID}:\n".encode()),
        (b"/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n"),
        (b"/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n"),
    ]
    for path in ("/etc/localtime", "/etc/timezone", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf"):
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_COPY + 1)
        except OSError:
            # None of them is needed: without them the C library uses UTC and its own folders.
            continue
        if len(content) <= _MAX_COPY:
            files.append((path.encode(), content))
    return files


def landlock_rules(
    rules: landlock.Ruleset,
    view: View,
    executables: Iterable[str],
    cwd: str,
    *,
    channel: bool,
) -> list[tuple[bytes, int]]:
    """(path, rights) for every path that exists inside; rights of one path are joined."""
    wanted: dict[str, tuple[int, bool]] = {}

    def grant(path: str, rights: int, *, directory: bool) -> None:
        before = wanted.get(path, (0, directory))[0]
        wanted[path] = (before | rights, directory)

    # Folders may be listed wherever they are: importing does, and nothing else is here to be seen.
    grant("/", landlock.READ_DIR, directory=True)
    for path in (*view.trees, "/proc", "/etc", "/dev", cwd, *([RUN] if channel else [])):
        grant(path, landlock.READ, directory=True)
    for path in view.trees:
        # Importing lists the folder that holds a package; inside it holds only what is shown.
        grant(os.path.dirname(path), landlock.READ_DIR, directory=True)
    for path in (*view.files, *view.copies):
        # What lies beside them inside was shown too.
        if os.path.dirname(path) != "/":
            grant(os.path.dirname(path), landlock.READ, directory=True)
    for path in _WRITABLE:
        grant(path, landlock.WRITE, directory=True)
    for name in _DEVICES:
        grant(f"/dev/{name}", landlock.DEVICE, directory=False)
    for path in executables:
        grant(path, landlock.EXECUTE | landlock.READ_FILE, directory=False)
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
    view: View, host: Host, tmp_bytes: int, *, cwd: str, packages: dict[str, str]
) -> list[str]:
    """bubblewrap's arguments up to the command."""
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
    for path in _WRITABLE:
        mode = "0755" if path == HOME else "1777"
        arguments += ["--perms", mode, "--size", size, "--tmpfs", path]
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for path, target in _STREAMS.items():
        arguments += ["--symlink", target, path]
    # bubblewrap makes missing parents private (0700), and the run's user is not its owner.
    targets = [*view.trees, *view.files, *view.links, *view.copies, *packages, f"{RUN}/x"]
    for path in sorted(_parents(targets) | ({cwd} if cwd else set()), key=len):
        if not view.covered(path):
            arguments += ["--dir", path]
    for path in sorted(view.trees, key=len):
        arguments += ["--ro-bind", path, path]
    for path in sorted(view.files, key=len):
        arguments += ["--ro-bind", path, path]
    for target in sorted(packages, key=len):
        arguments += ["--ro-bind", packages[target], target]
    for path, target in sorted(view.links.items()):
        arguments += ["--symlink", target, path]
    return arguments
