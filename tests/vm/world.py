"""Another machine for one command: its own /dev/kvm, its own hypervisor, without some tools.

In a mount name space of its own, so that nothing of the real machine changes and nothing in the code
under test has to know of it. It takes root to mount. Run as a program it makes the world and becomes
the command; `World` starts it so.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
QEMU: Final = Path("/usr/bin/qemu-system-x86_64")
REAL: Final = Path("/usr/lib/os-release")
"""A file that nobody here reads, shown in the jail, and as deep as QEMU, which finds its modules from
where it lies: in a world with a stand-in the real hypervisor is there."""


@dataclass
class World:
    """`kvm`: None for no device, or its mode; `group`: its group. `qemu`: a program in its place.
    `hidden`: programs that are not there. `disks`: folders that become disks of so many bytes."""

    folder: Path
    kvm: int | None = 0o666
    group: int = 0
    qemu: Path | None = None
    hidden: tuple[str, ...] = ()
    user: int = 0
    user_groups: tuple[int, ...] = ()
    no_namespaces: bool = False
    disks: dict[str, int] = field(default_factory=dict)

    def popen(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        facts = {**vars(self), "folder": str(self.folder), "qemu": str(self.qemu or "")}
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache")}
        environment |= more.pop("env", {})
        return subprocess.Popen(
            ["unshare", "--mount", sys.executable, __file__, json.dumps(facts), *command],
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )

    def run(self, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
        with self.popen(*command, **more) as running:
            out, err = running.communicate(timeout=300)
        return subprocess.CompletedProcess(command, running.returncode, out, err)

    def python(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-c", program, *arguments)


def standin(folder: Path, behaviour: str, version: str = "") -> Path:
    """A hypervisor that behaves so."""
    made = folder / f"standin-{behaviour.replace(' ', '-')}"
    words = ["gcc", "-static", "-w", f'-DBEHAVIOUR="{behaviour}"', "-o", str(made)]
    words += [f'-DVERSION="{version}"'] if version else []
    subprocess.run([*words, str(HERE / "standin.c")], check=True)
    made.chmod(0o755)
    return made


def trusted_folder() -> Path:
    """A folder that only root can change, and everybody can read, as programs are kept."""
    made = Path(tempfile.mkdtemp(prefix="authority-world-", dir="/var/tmp"))
    made.chmod(0o755)
    return made


def gone_after(folder: Path) -> None:
    """Removes it; a gate that was told to stop may still write its last words."""
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
    assert not folder.exists()


# --- inside ---


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def devices(folder: Path, facts: dict[str, Any]) -> None:
    """A /dev with everything that is there, but for its own kvm."""
    made = folder / "dev"
    made.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", "mode=755", "dev", str(made))
    for path in Path("/dev").iterdir():
        if path.name == "kvm":
            continue
        target = made / path.name
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        elif path.is_dir():
            target.mkdir()
            mount("--rbind", str(path), str(target))
        else:
            target.touch()
            mount("--bind", str(path), str(target))
    if facts["kvm"] is not None:
        os.mknod(made / "kvm", stat.S_IFCHR, os.makedev(10, 232))
        os.chown(made / "kvm", 0, facts["group"])
        (made / "kvm").chmod(facts["kvm"])
    mount("--rbind", str(made), "/dev")


def without_namespaces() -> None:
    """A user name space, with everybody in it, that may have none below it."""
    ours, theirs = os.pipe(), os.pipe()
    if child := os.fork():
        os.read(ours[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 0 4294967295")
        os.write(theirs[1], b"x")
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    import ctypes

    if ctypes.CDLL(None).unshare(0x10000000):
        os._exit(99)
    os.write(ours[1], b"x")
    os.read(theirs[0], 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def main() -> None:
    facts, command = json.loads(sys.argv[1]), sys.argv[2:]
    folder = Path(facts["folder"])
    mount("--make-rprivate", "/")
    devices(folder, facts)
    if facts["qemu"]:
        mount("--bind", str(QEMU), str(REAL))
        mount("--bind", facts["qemu"], str(QEMU))
    nothing = folder / "nothing"
    nothing.touch(mode=0o644)
    for name in facts["hidden"]:
        if found := shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin"):
            mount("--bind", str(nothing), os.path.realpath(found))
    for path, size in facts["disks"].items():
        mount("-t", "tmpfs", "-o", f"size={size},mode=700,uid={facts['user']}", "disk", path)
    if facts["no_namespaces"]:
        without_namespaces()
    if facts["user"]:
        os.setgroups(facts["user_groups"])
        os.setresgid(facts["user"], facts["user"], facts["user"])
        os.setresuid(facts["user"], facts["user"], facts["user"])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
