"""Control groups: version 1 or 2, where this process may make them, and one group for each run.

Rules
- A group is used only where it can be had without moving anybody else: version 1 hierarchies that
  we may write, or the nearest version 2 ancestor that has the controllers switched on for its
  children and lets us make one. Otherwise the run gets resource limits and a watcher, and its
  first entry says so.
- The launcher joins by writing `0` to a descriptor that the gate opened. In version 1 it writes to
  `tasks`: a thread that moves itself alone doesn't wait for the kernel's grace period, which costs
  up to 20 ms. Nothing of the agent's runs before it.
- Names are `authority-<gate's pid>-<number>`. A group is removed when its run has ended; groups of
  gates that are gone are removed by the next one.

Sources: linux/Documentation/admin-guide/cgroup-v1/, cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

V1_CONTROLLERS: Final = ("memory", "pids", "cpu", "freezer")
V2_CONTROLLERS: Final = ("memory", "pids", "cpu")
PERIOD_US: Final = 100_000

_NAME: Final = re.compile(r"authority-(\d+)-\d+")
_count = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Support:
    """Where groups can be made: `version` 1, 2 or 0 for nowhere; `folders` by controller."""

    version: int
    folders: tuple[tuple[str, str], ...]

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.folders)


NONE: Final = Support(0, ())


def _mounts() -> dict[str, str]:
    """Controller to mount point; version 2 under the empty name."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            point = before.split(" ")[4]
            if kind == "cgroup2":
                found.setdefault("", point)
            elif kind == "cgroup":
                for option in options.split(","):
                    if option in V1_CONTROLLERS:
                        found.setdefault(option, point)
    return found


def _own_groups() -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for name in controllers.split(","):
                found[name] = path
    return found


def detect() -> Support:
    """Where this process may make groups. Reads and asks; makes nothing."""
    mounts, own = _mounts(), _own_groups()
    first = _version_1(mounts, own)
    if {"memory", "pids"} <= first.controllers:
        return first
    second = _version_2(mounts.get("", ""), own.get("", "/"))
    return second if second.version else first


def _version_1(mounts: dict[str, str], own: dict[str, str]) -> Support:
    folders = []
    for name in V1_CONTROLLERS:
        if name in mounts and name in own:
            folder = os.path.join(mounts[name], own[name].lstrip("/"))
            # In a container the path may be the host's; then the mount itself is our group.
            folder = folder if os.path.isdir(folder) else mounts[name]
            if os.access(folder, os.W_OK) and os.access(os.path.join(folder, "tasks"), os.W_OK):
                folders.append((name, os.path.normpath(folder)))
    return Support(1, tuple(folders)) if folders else NONE


def _version_2(mount: str, own: str) -> Support:
    if not mount:
        return NONE
    folder = os.path.normpath(os.path.join(mount, own.lstrip("/")))
    while folder.startswith(mount):
        with contextlib.suppress(OSError):
            switched_on = Path(folder, "cgroup.subtree_control").read_text().split()
            usable = [name for name in V2_CONTROLLERS if name in switched_on]
            if (
                {"memory", "pids"} <= set(usable)
                and os.access(folder, os.W_OK)
                and os.access(os.path.join(folder, "cgroup.procs"), os.W_OK)
            ):
                return Support(2, tuple((name, folder) for name in usable))
        if folder == mount:
            break
        folder = os.path.dirname(folder)
    return NONE


@dataclass(slots=True)
class Group:
    """One run's group: a folder in each hierarchy."""

    version: int
    folders: dict[str, str] = field(default_factory=dict)

    def _write(self, controller: str, name: str, text: str) -> None:
        fd = os.open(os.path.join(self.folders[controller], name), os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def limit(self, *, memory: int, processes: int, millicpus: int) -> None:
        """Sets what the hierarchies can hold; 0 stands for no limit. `OSError` when refused."""
        quota = millicpus * PERIOD_US // 1000
        if self.version == 1:
            if memory and "memory" in self.folders:
                self._write("memory", "memory.limit_in_bytes", str(memory))
                # Without swap accounting the file is not there, and swap is not counted at all.
                with contextlib.suppress(FileNotFoundError):
                    self._write("memory", "memory.memsw.limit_in_bytes", str(memory))
            if processes and "pids" in self.folders:
                self._write("pids", "pids.max", str(processes))
            if millicpus and "cpu" in self.folders:
                self._write("cpu", "cpu.cfs_period_us", str(PERIOD_US))
                self._write("cpu", "cpu.cfs_quota_us", str(quota))
            return
        if memory:
            self._write("memory", "memory.max", str(memory))
            with contextlib.suppress(FileNotFoundError):
                self._write("memory", "memory.swap.max", "0")
        if processes:
            self._write("pids", "pids.max", str(processes))
        if millicpus and "cpu" in self.folders:
            self._write("cpu", "cpu.max", f"{quota} {PERIOD_US}")

    def open_entrances(self) -> list[int]:
        """Descriptors that whoever writes `0` to them joins by; the caller closes them."""
        name = "tasks" if self.version == 1 else "cgroup.procs"
        fds: list[int] = []
        try:
            for folder in sorted(set(self.folders.values())):
                fds.append(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def set_frozen(self, frozen: bool) -> bool:
        """Stops or continues all of the group at once; False when the hierarchies can't."""
        if self.version == 1 and "freezer" in self.folders:
            self._write("freezer", "freezer.state", "FROZEN" if frozen else "THAWED")
            return True
        if self.version == 2:
            self._write("memory", "cgroup.freeze", "1" if frozen else "0")
            return True
        return False

    def is_frozen(self) -> bool:
        """Whether everything in the group has stopped."""
        if self.version == 1:
            return Path(self.folders["freezer"], "freezer.state").read_text().strip() == "FROZEN"
        return "frozen 1" in Path(self.folders["memory"], "cgroup.events").read_text()

    def remove(self) -> bool:
        """Removes the folders; False when something still lives in one."""
        gone = True
        for folder in set(self.folders.values()):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


def create(support: Support, *, memory: int, processes: int, millicpus: int) -> Group:
    """A new group with these limits; `OSError` when the kernel refuses one."""
    name = f"authority-{os.getpid()}-{next(_count)}"
    group = Group(support.version)
    try:
        for controller, base in support.folders:
            folder = os.path.join(base, name)
            if folder not in group.folders.values():
                os.mkdir(folder, 0o755)
            group.folders[controller] = folder
        group.limit(memory=memory, processes=processes, millicpus=millicpus)
    except OSError:
        group.remove()
        raise
    return group


def sweep(support: Support) -> int:
    """Removes the groups of gates that no longer live; how many. Populated ones stay."""
    removed = 0
    for folder in {base for _, base in support.folders}:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            match = _NAME.fullmatch(name)
            if match and not os.path.exists(f"/proc/{match[1]}"):
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(folder, name))
                    removed += 1
    return removed
