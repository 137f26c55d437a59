"""A hypervisor that was taken over, or is another program altogether: the start path stays the same.

In QEMU's place, in the same jail with the same descriptors, stands a small program that says what it
likes on the control socket and the channel.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from authority.isolation import Host, IsolationRefused, leftovers, probe, processes
from authority.vm import Images, Machine, jail, prepare, template
from authority.vm import machine as machines
from authority.vm.machine import boot
from authority.vm.qmp import Qmp, QmpError
from gate.lab import wait_for

from .guest import SPEC

PYTHON = os.path.realpath(sys.executable)
BEGIN = """
import ctypes, json, os, struct, sys, time
CHANNEL, CONTROL = 10, 11
def filtered():
    "Every call is allowed: what counts for the host is that there is a filter."
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
    assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0
def say(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode() + b"\\n"
    while data:
        data = data[os.write(CONTROL, data):]
def hear():
    line = b""
    while not line.endswith(b"\\n"):
        part = os.read(CONTROL, 1)
        if not part:
            sys.exit()
        line += part
    return json.loads(line)
def answer(value):
    say({"return": value, "id": hear()["id"]})
def greet():
    say({"QMP": {}})
    answer({})
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a user's jail has one host user alone")
STAY = "\ntime.sleep(600)\n"


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What runs in QEMU's place from now on, in a jail that lacks a word or who becomes nobody."""
    command = jail.command

    def put(program: str, *, lacks: str = "") -> None:
        def false(
            host: Host, architecture: Any, arguments: Sequence[str], **more: Any
        ) -> list[str]:
            made = command(host, architecture, [], **more)
            at = made.index("--")
            setpriv = made[at + 1 : made.index(f"/usr/bin/{architecture.qemu}", at)]
            shown = ["--ro-bind", PYTHON, PYTHON]
            if os.path.isdir("/usr/local/lib"):
                shown += ["--ro-bind", "/usr/local/lib", "/usr/local/lib"]
            own = [PYTHON, "-I", "-S", "-c", BEGIN + program]
            become = [] if lacks == "setpriv" else setpriv
            return [*(word for word in made[:at] if word != lacks), *shown, "--", *become, *own]

        monkeypatch.setattr(jail, "command", false)

    return put


def left() -> dict[str, Any]:
    """What this process holds, and what of it lies in the kernel."""
    wait_for(leftovers.remove_leftovers)
    fds = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                 if os.path.lexists(f"/proc/self/fd/{fd}"))  # fmt: skip
    groups = [
        str(path)
        for _, base in probe().cgroup.folders
        for path in Path(base).glob(f"authority-{os.getpid()}-*")
    ]
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        # Ours: whoever else has a gate on this computer has claims of its own.
        claims = [
            line
            for line in f
            if "authority/host-id/" in line and f"socket:[{line.split()[6]}]" in fds
        ]
    return {
        "processes": set(processes.tree(os.getpid())),
        "files": len(fds),
        "memory files": sum("memfd" in name for name in fds),
        "groups": groups,
        "claims": len(claims),
    }


async def start(found: Images) -> tuple[Machine, socket.socket]:
    prepared = prepare(SPEC, probe(), dataclasses.replace(found, template=None))
    ours, theirs = socket.socketpair()
    try:
        return await boot(prepared, theirs), ours
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


async def refusal(found: Images) -> str:
    """Why there is no machine; empty when there was one, which is gone again."""
    try:
        machine, ours = await start(found)
    except IsolationRefused as refused:
        return str(refused)
    machine.kill()
    await machine.wait()
    ours.close()
    return ""


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("say(b'\\0\\xff\\x1b[2J' * 9 + b'\\n')" + STAY, "sent no JSON"),
        ("say(b'x' * (3 << 20))" + STAY, "line without an end"),
        ("say(b'[' * 900000 + b'\\n')" + STAY, "sent no JSON"),
        ("say(b'{\"a\":' * 150000 + b'\\n')" + STAY, "sent no JSON"),
        ("say([1, 2])" + STAY, "sent no object"),
        ("say({'event': 'SHUTDOWN'})" + STAY, "did not greet"),
        ("say({'QMP': {}}); n = hear()['id']; say({'error': {'desc': '\\x1b[2J' * 999}, 'id': n})"
         + STAY, "did not start"),
        ("sys.exit(3)", "is gone"),
        ("os.close(CONTROL)" + STAY, "is gone"),
        ("greet()" + STAY, "no system call filter"),
        ("filtered(); greet()" + STAY, "Booted"),
        ("filtered()\nif os.fork() == 0: time.sleep(600)\ngreet()" + STAY, "not one process"),
    ],
    ids=["garbage", "an endless line", "nested lists", "nested objects", "a list", "no greeting",
         "an escape in an error", "it ends", "it hangs up", "no filter", "control", "two processes"],
)  # fmt: skip
def test_what_it_says_ends_the_start_and_nothing_else(
    built: Images, instead: Any, program: str, sentence: str
) -> None:
    asyncio.run(refusal(built))  # what is made once for all is there
    before = left()
    instead(program)
    said = asyncio.run(refusal(built)) or "Booted"
    assert sentence in said
    assert said.isascii()
    assert said.isprintable()
    wait_for(lambda: left() == before)


@pytest.mark.parametrize(
    ("lacks", "sentence"),
    [
        ("--unshare-net", "shares the host's net name space"),
        ("--unshare-ipc", "shares the host's ipc name space"),
        pytest.param("setpriv", "has the host users 0", marks=as_root),
        ("nothing", ""),
    ],
)
def test_a_jail_that_is_not_whole_refuses_the_start(
    built: Images, instead: Any, lacks: str, sentence: str
) -> None:
    instead("filtered(); greet()" + STAY, lacks=lacks)
    said = asyncio.run(refusal(built))
    assert bool(said) == bool(sentence), said
    assert sentence in said


def test_stale_answers_and_floods_of_events_are_passed_over() -> None:
    async def act() -> None:
        ours, theirs = socket.socketpair()
        qmp = Qmp(ours)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await qmp.ask("stop")
        theirs.sendall(b'{"return": {"running": false}, "id": 1}\n' + b'{"event": "X"}\n' * 9000)
        theirs.sendall(b'{"return": {"running": true}, "id": 2}\n')
        assert await qmp.ask("query-status") == {"running": True}
        theirs.close()
        with pytest.raises(QmpError, match="is gone"):
            await qmp.ask("query-status")
        qmp.close()

    asyncio.run(act())


@pytest.mark.parametrize(
    "program",
    [
        "filtered(); greet()\nwhile True: say(b'{\"event\": 1}\\n' * 20000)",
        "filtered(); greet()" + STAY,
        "filtered(); greet()\nwhile True: say({'return': {'running': False}, 'id': 0})",
    ],
    ids=["events without end", "silence", "answers to nobody"],
)
def test_a_freeze_that_it_does_not_confirm_is_none(
    built: Images, instead: Any, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(machines, "_FREEZE_SECONDS", 0.5)
    instead(program)

    async def act() -> None:
        machine, ours = await start(built)
        assert not await machine.freeze()
        machine.kill()
        assert (await machine.wait()).killed
        ours.close()

    asyncio.run(act())


@pytest.mark.parametrize("saved", [True, False])
def test_a_saved_state_that_does_not_go_on_is_given_up(
    built: Images, instead: Any, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    monkeypatch.setattr(machines, "EMULATED_SECONDS", 0.5)
    given: list[str] = []
    monkeypatch.setattr(template, "give_up", lambda _, why: given.append(why))
    instead(STAY)

    async def act() -> None:
        used = built if saved else dataclasses.replace(built, template=None)
        ours, theirs = socket.socketpair()
        with ours, pytest.raises(IsolationRefused, match="did not start in time"):
            await machines.start(prepare(SPEC, probe(), used), theirs, None)  # type: ignore[arg-type]

    asyncio.run(act())
    assert given == (["the saved state did not go on in time"] if saved else [])


def test_a_stopped_one_is_killed_all_the_same(built: Images) -> None:
    async def act() -> None:
        machine, ours = await start(built)
        os.kill(machine.pid, signal.SIGSTOP)
        assert not await machine.freeze()
        machine.kill()
        async with asyncio.timeout(20):
            assert (await machine.wait()).killed
        ours.close()

    before = left()
    asyncio.run(act())
    wait_for(lambda: left() == before)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["outer bubblewrap", "process 1", "QEMU"])
def test_whoever_of_them_is_killed_all_end(built: Images, which: int) -> None:
    async def act() -> None:
        machine, ours = await start(built)
        members = processes.tree(machine._outer)
        assert len(members) == 3
        os.kill(members[which], signal.SIGKILL)
        async with asyncio.timeout(20):
            await machine.wait()
        ours.close()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in members))

    asyncio.run(act())
    before = left()
    asyncio.run(act())
    wait_for(lambda: left() == before)
