"""A run with a terminal of its own: it is one, it is the only one, and nobody can type into it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import subprocess
import termios
from typing import Any

import pytest

from authority.isolation import IsolationRefused, SandboxSpec, bpf, plan, probe
from authority.isolation.syscalls import ARCHITECTURES, NUMBERS

from .conftest import Caller
from .test_bpf import interpret
from .trunk import INPUT, INPUT_EOF, Trunk, running

RESIZE = 15
SIZE = {"terminal": (30, 100)}


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def ends(source: str, **spec: Any) -> Trunk:
    """The trunk of a program that ran to its end without input."""

    async def scene() -> Trunk:
        async with running(source, **{**SIZE, **spec}) as (_, trunk):
            await trunk.rest()
            return trunk

    found: Trunk = run(scene())
    return found


def test_the_programs_streams_are_one_controlling_terminal() -> None:
    trunk = ends(
        "import os, sys\n"
        "print([os.isatty(n) for n in (0, 1, 2)], os.ttyname(0), *os.get_terminal_size())\n"
        "print(os.tcgetpgrp(0) == os.getpgrp(), os.getsid(0) == os.getpid())\n"
        "os.write(os.open('/dev/tty', os.O_RDWR), b'by name\\n')\n"
        "print('err', file=sys.stderr)\n"
        "sys.exit(5)\n"
    )
    assert trunk.output[1].decode().split("\r\n") == [
        "[True, True, True] /dev/pts/0 100 30", "True True", "by name", "err", "",
    ]  # fmt: skip
    assert trunk.output[2] == b""
    assert trunk.exit == (5, 0)


def test_without_a_terminal_there_is_none() -> None:
    trunk = ends(
        "import os\n"
        "print([os.isatty(n) for n in (0, 1, 2)], os.path.exists('/dev/pts'), end=' ')\n"
        "try: os.open('/dev/tty', os.O_RDWR)\n"
        "except OSError as e: print(e.errno)\n",
        terminal=None,
    )
    assert trunk.output[1] == b"[False, False, False] False %d\n" % errno.ENOENT


def test_no_other_terminal_can_be_made_or_reached() -> None:
    trunk = ends(
        "import os\n"
        "print(os.listdir('/dev/pts'))\n"
        "for name in ('/dev/ptmx', '/dev/pts/ptmx', '/dev/tty0', '/dev/console', '/dev/pts/1'):\n"
        "    try: os.open(name, os.O_RDWR); print('open', name)\n"
        "    except OSError: pass\n"
        "try: os.openpty(); print('made one')\n"
        "except OSError: print('none')\n"
    )
    assert trunk.output[1] == b"['0']\r\nnone\r\n"


def test_nothing_can_be_typed_into_it_and_its_modes_can_be_set() -> None:
    trunk = ends(
        "import fcntl, termios, tty, os, struct\n"
        "for name, number, value in (\n"
        "    ('TIOCSTI', 0x5412, b'x'), ('TIOCLINUX', 0x541C, b'\\x03'), ('TIOCCONS', 0x541D, b''),\n"
        "    ('TIOCSETD', 0x5423, struct.pack('i', 3)), ('TIOCSTI with high bits', 0x5412, b'y'),\n"
        "    ('TIOCGPTPEER', 0x5441, b''), ('TIOCSSERIAL', 0x541F, bytes(72))):\n"
        "    try: fcntl.ioctl(0, number, value); print('passed', name)\n"
        "    except OSError as e: print(name, e.errno)\n"
        "before = termios.tcgetattr(0)\n"
        "tty.setraw(0); raw = termios.tcgetattr(0)\n"
        "termios.tcsetattr(0, termios.TCSADRAIN, before)\n"
        "termios.tcflush(0, termios.TCIFLUSH); termios.tcdrain(1)\n"
        "fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 7, 9, 0, 0))\n"
        "print(raw != before, os.get_terminal_size())\n"
    )
    lines = trunk.output[1].decode().split("\r\n")
    assert lines[:7] == [
        f"{name} {errno.ENOTTY}"
        for name in (
            *("TIOCSTI", "TIOCLINUX", "TIOCCONS", "TIOCSETD", "TIOCSTI with high bits"),
            *("TIOCGPTPEER", "TIOCSSERIAL"),
        )
    ]
    assert lines[7] == "True os.terminal_size(columns=9, lines=7)"


def test_typing_reaches_the_program_and_interrupts_it() -> None:
    source = (
        "import sys, time\n"
        "try:\n"
        "    print('got', input(), flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)\n"
        "print('rest', repr(sys.stdin.read()))\n"
    )

    async def scene() -> None:
        async with running(source, **SIZE) as (_, trunk):
            trunk.tell(INPUT, b"some words\r")
            await trunk.until(lambda: b"got some words" in trunk.output[1])
            trunk.tell(INPUT, b"\x03")
            await trunk.until(lambda: b"interrupted" in trunk.output[1])
            trunk.tell(INPUT, b"last\r")
            trunk.tell(INPUT_EOF)
            await trunk.rest()
            assert b"rest 'last\\n'" in trunk.output[1]
            assert trunk.exit == (0, 0)

    run(scene())


def test_a_new_size_is_told_to_the_program() -> None:
    source = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n"
        "print('up', flush=True)\n"
        "signal.sigwait([signal.SIGWINCH])\n"
        "print('size', *os.get_terminal_size(), flush=True)\n"
    )

    async def scene() -> None:
        async with running(source, **SIZE) as (_, trunk):
            await trunk.until(lambda: b"up" in trunk.output[1])
            trunk.tell(RESIZE, (41).to_bytes(2, "big") + (300).to_bytes(2, "big"))
            await trunk.until(lambda: b"size 300 41" in trunk.output[1])

    run(scene())


def test_a_megabyte_arrives_whole_and_what_was_written_last_too() -> None:
    trunk = ends(
        "import os, tty\n"
        "tty.setraw(1)\n"
        "for n in range(64): os.write(1, bytes([97 + n % 26]) * 16384)\n"
        "os.write(1, b'the end'); os._exit(0)\n"
    )
    wanted = b"".join(bytes([97 + n % 26]) * 16384 for n in range(64)) + b"the end"
    assert trunk.output[1] == wanted


def test_a_program_may_close_its_terminal_and_come_back() -> None:
    trunk = ends(
        "import os, time\n"
        "for n in (0, 1, 2): os.close(n)\n"
        "time.sleep(0.3)\n"
        "fd = os.open('/dev/tty', os.O_RDWR); os.write(fd, b'back\\n')\n"
    )
    assert trunk.output[1] == b"back\r\n"


def test_a_resize_without_a_terminal_means_nothing() -> None:
    async def scene() -> None:
        async with running("print(input())") as (_, trunk):
            trunk.tell(RESIZE, bytes((0, 9, 0, 9)))
            trunk.tell(INPUT, b"still here\n")
            await trunk.rest()
            assert trunk.output[1] == b"still here\n"

    run(scene())


def test_the_terminal_is_gone_from_the_host_afterwards() -> None:
    """Neither end stays open here: the number is free again."""
    before = set(os.listdir("/dev/pts"))
    for _ in range(3):
        ends("print('x')")
    assert set(os.listdir("/dev/pts")) == before
    held = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{n}")]  # fmt: skip
    assert not [name for name in held if "ptmx" in name]


def test_a_tool_has_no_terminal() -> None:
    with pytest.raises(IsolationRefused, match="needs a channel"):
        plan(SandboxSpec(("true",), cwd="/var/tmp", channel=False, terminal=(1, 1)), probe())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_listed_controls_pass(architecture: str) -> None:
    """The filter itself, for every control of a terminal that the kernel knows."""
    names = [name for name in vars(termios) if name.startswith(("TIOC", "TC"))]
    numbers = {vars(termios)[name] for name in names} | set(range(0x5400, 0x5470))
    code = bpf.build(architecture, bpf.Exec.ONCE, loopback=False, terminal=True)
    allowed = set()
    for number in numbers:
        for value in (number, number | 1 << 32):
            verdict, _ = interpret(
                code, NUMBERS[architecture]["ioctl"], bpf.AUDIT_ARCH[architecture],
                (0, value, 0, 0, 0, 0),
            )  # fmt: skip
            if verdict == bpf.ALLOW:
                allowed.add(number)
    assert allowed <= {*bpf.SAFE_IOCTLS, *bpf.TERMINAL_IOCTLS}
    assert {termios.TCSETSW, termios.TIOCSPGRP} <= allowed
    assert not {termios.TIOCSTI, termios.TIOCSETD, termios.TIOCCONS, 0x541C, 0x5441} & allowed


def test_the_controls_are_what_the_kernel_calls_them() -> None:
    ours, theirs = os.openpty()
    try:
        assert fcntl.ioctl(theirs, 0x802C542A, bytes(44)) != bytes(44)
    finally:
        os.close(ours)
        os.close(theirs)
    for name in ("TCSETS", "TCSETSW", "TCSETSF", "TCSBRK", "TCXONC", "TCFLSH", "TIOCSCTTY",
                 "TIOCSPGRP", "TIOCSWINSZ", "TIOCNOTTY"):  # fmt: skip
        assert getattr(termios, name) in bpf.TERMINAL_IOCTLS, name


def test_it_works_for_root_and_for_an_ordinary_user(caller: Caller) -> None:
    """The terminal belongs to the run's user, whoever starts it."""
    with caller.popen("on_terminal.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    found = json.loads(out)
    assert found["written"].split("\r\n") == [
        "[True, True, True] /dev/pts/0 os.terminal_size(columns=80, lines=24)",
        "reopened", "by name", "['0']", "",
    ]  # fmt: skip
    assert found["code"] == 0
    assert found["uid"] not in {0, os.getuid()} or caller.name == "user"
