"""A hypervisor that was taken over: a program in its place, in its jail, says what it reaches.

QEMU's own filter is not there, so what is refused is refused by the jail alone; the same program beside
it, without the jail, is the control. Both are started by one that was handed a folder of the host and
holds a key, as a shell or a service manager may.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authority.isolation import bpf
from authority.isolation.syscalls import ARCHITECTURES, NUMBERS
from authority.vm import system_calls
from isolation.test_bpf import NOSYS, PERM, interpret

from .world import trusted_folder

STARTER = """
import ctypes, json, os, sys
from authority.isolation import probe, spawn
from authority.vm import architectures, hypervisor, jail
program, folder = sys.argv[1:]
libc = ctypes.CDLL(None)
host = probe()
architecture = architectures.of(host.architecture)
key, joined = ((248, 250) if host.architecture == "x86_64" else (217, 219))
assert libc.syscall(joined, 1, b"authority-intruder") > 0
assert libc.syscall(key, b"user", b"authority-intruder", b"secret", 6, -3) > 0
os.set_inheritable(os.open(folder, os.O_RDONLY), True)
def said(argv):
    out = spawn.diagnostics_file()
    if argv is None:
        uid, claim = spawn.take_host_id() if host.root else (host.uid, None)
        made = jail.command(host, architecture, [], uid=uid, kvm=False)
        made[made.index(hypervisor.find(architecture).path)] = program
        pid = jail.spawn(made, out, [], [], architecture=host.architecture, data=1 << 30)
    else:
        os.set_inheritable(out, True)
        pid = os.posix_spawn(argv[0], argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, out, 2)])
    os.waitpid(pid, 0)
    return os.pread(out, 1 << 16, 0).decode()
print(json.dumps([said(None), said([program])]))
"""
Reached = dict[str, str]


@pytest.fixture(scope="module")
def reached() -> Iterator[tuple[Reached, Reached]]:
    """What comes of each attempt, in the jail and without it."""
    folder = trusted_folder()
    try:
        program = folder / "intruder"
        source = Path(__file__).with_name("intruder.c")
        words = ["gcc", "-static", "-w", "-o", str(program), str(source)]
        subprocess.run(words, check=True)
        program.chmod(0o755)
        (folder / "beside").write_text("the host's")
        starter = [sys.executable, "-c", STARTER, str(program), str(folder)]
        done = subprocess.run(starter, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        inside, outside = (
            dict(line.rsplit(" ", 1) for line in text.splitlines())
            for text in json.loads(done.stdout)
        )
        assert inside.pop("end", "") == outside.pop("end", "") == "ok", done.stdout
        assert inside.keys() == outside.keys()
        yield inside, outside
    finally:
        shutil.rmtree(folder)


def test_a_hypervisor_that_was_taken_over_reaches_nothing_more(
    reached: tuple[Reached, Reached],
) -> None:
    inside, _ = reached
    assert {name: said for name, said in inside.items() if said == "ok"} == {}


def test_without_the_jail_it_does(reached: tuple[Reached, Reached]) -> None:
    """The control: what is refused inside is refused by the jail, not because it does not exist. What
    this kernel does not have, or gives nobody, shows nothing."""
    _, outside = reached
    must = {"folder", "key", "key names", "netlink", "unix", "inet", "inotify", "shared memory"}
    assert {name for name in must if outside[name] != "ok"} == set()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_filter_names_what_is_allowed(architecture: str) -> None:
    code, numbers = system_calls.build(architecture), NUMBERS[architecture]

    def fate(name: str, *arguments: int) -> int:
        given = (*arguments, *[0] * (6 - len(arguments)))
        return interpret(code, numbers[name], bpf.AUDIT_ARCH[architecture], given)[0]

    for name in ("socket", "socketpair", "keyctl", "io_uring_setup", "bpf", "setns", "execveat"):
        assert fate(name, 1) == PERM, name
    for name in ("ioctl", "execve", "read", "recvmsg", "sendmsg", "futex", "setresuid", "ppoll"):
        assert fate(name) == bpf.ALLOW, name
    assert fate("clone", bpf.CLONE_NEW_ANY) == PERM
    assert fate("clone3") == NOSYS
    assert interpret(code, 900, bpf.AUDIT_ARCH[architecture], (0,) * 6)[0] == NOSYS
    assert interpret(code, 0, 0x40000003, (0,) * 6)[0] == bpf.KILL_PROCESS


FILTERED = """
import ctypes, os, sys
from types import SimpleNamespace
from authority.vm import jail
libc = ctypes.CDLL(None)
ALLOW = ctypes.create_string_buffer((6).to_bytes(4, "little") + (0x7FFF0000).to_bytes(4, "little"))
PROGRAM = (1).to_bytes(8, "little") + ctypes.addressof(ALLOW).to_bytes(8, "little")
def filtered():
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, PROGRAM, 0, 0) == 0
for _ in range(int(sys.argv[1])):
    filtered()
host = SimpleNamespace(root=False)
for more in (1, 2):
    (theirs, said), (going, ours) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for _ in range(more):
            filtered()
        os.write(said, b"1")
        os.close(ours)
        os.read(going, 1)
        os._exit(0)
    os.read(theirs, 1)
    print("filter" in jail.missing(child, host, uid=os.geteuid(), kvm=False))
    os.close(ours)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("outer", [0, 2])
def test_filters_that_the_gate_was_started_under_are_not_counted(outer: int) -> None:
    """A container's filter is everybody's in it: with it there is one more, and both of ours."""
    words = [sys.executable, "-c", FILTERED, str(outer)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")
