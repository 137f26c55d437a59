"""The supervisor in real runs: sharing the channel, output with its window, input, the end."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from .trunk import CLIENT, INPUT, INPUT_EOF, Trunk, running, supervisor_bytes


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_the_program_starts_prints_and_ends() -> None:
    async def scene() -> None:
        async with running(
            "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
        ) as (sandbox, trunk):
            await trunk.rest()
            assert trunk.order[0] == "started"
            assert trunk.order[-1] == "exit"
            assert trunk.output == {1: b"out\n", 2: b"err\n"}
            assert trunk.exit == (7, 0)
            status = await sandbox.wait()
            assert (status.code, status.signal, status.killed) == (7, 0, False)

    run(scene())


def test_a_signal_is_told_apart_from_a_code() -> None:
    async def scene() -> None:
        async with running("import os; os.kill(os.getpid(), 15)") as (sandbox, trunk):
            await trunk.rest()
            assert trunk.exit == (-1, 15)
            assert (await sandbox.wait()).signal == 15

    run(scene())


def test_two_clients_are_told_apart() -> None:
    source = CLIENT + (
        "a, b = connect(), connect()\n"
        "for n in range(50): send(a, b'a%d' % n); send(b, b'b%d' % n)\n"
        "for name, s in (('a', a), ('b', b)):\n"
        "    got = [receive(s) for _ in range(50)]\n"
        "    assert got == [(1, f'{name.upper()}{n}'.encode()) for n in range(50)], got\n"
        "print('good')\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.until(lambda: len(trunk.messages) == 100)
            assert len(trunk.opened) == len(set(trunk.opened)) == 2
            for stream, payload in trunk.messages:
                trunk.send(stream, payload.upper())
            of = {stream: payload[:1] for stream, payload in trunk.messages}
            assert sorted(of.values()) == [b"a", b"b"]
            for stream in of:
                mine = [payload for s, payload in trunk.messages if s == stream]
                assert mine == [b"%c%d" % (of[stream][0], n) for n in range(50)]
            await trunk.rest()
            assert trunk.output[1] == b"good\n", trunk.output
            assert sorted(trunk.closed) == sorted(trunk.opened)

    run(scene())


def test_frames_in_pieces_and_large_ones_arrive_whole() -> None:
    source = CLIENT + (
        "import hashlib\n"
        "s = connect()\n"
        "for byte in struct.pack('>II', 9, 1) + b'piece': s.sendall(bytes([byte]))\n"
        "send(s, b'L' * (3 << 20))\n"
        "send(s, b'')\n"
        "print(hashlib.sha256(receive(s)[1]).hexdigest())\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.until(lambda: len(trunk.messages) == 3)
            assert [payload for _, payload in trunk.messages] == [b"piece", b"L" * (3 << 20), b""]
            trunk.send(trunk.opened[0], b"M" * (5 << 20))
            await trunk.rest()
            assert trunk.output[1].strip() == hashlib.sha256(b"M" * (5 << 20)).hexdigest().encode()

    run(scene())


@pytest.mark.parametrize(
    ("bad", "trouble"),
    [
        ("struct.pack('>II', (16 << 20) + 1, 1)", "too large"),
        ("struct.pack('>II', 0xffffffff, 1)", "too large"),
        ("struct.pack('>II', 6, 0) + b'\\x04x'", "not its own"),
        ("struct.pack('>II', 6, 2) + b'xx'", "not its own"),
        ("struct.pack('>II', 0, 1)", "not its own"),
    ],
)
def test_a_client_that_breaks_the_rules_is_closed_alone(bad: str, trouble: str) -> None:
    source = CLIENT + (
        "good, evil = connect(), connect()\n"
        "send(good, b'before'); receive(good)\n"
        f"evil.sendall({bad})\n"
        "try: print('evil', evil.recv(1))\n"
        "except ConnectionResetError: print('evil', b'')\n"
        "send(good, b'after'); print(receive(good)[1])\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.until(lambda: len(trunk.messages) == 1)
            good = trunk.messages[0][0]
            trunk.send(good, b"1")
            await trunk.until(lambda: len(trunk.messages) == 2)
            assert trunk.messages[1] == (good, b"after")
            assert trunk.closed == [number for number in trunk.opened if number != good]
            assert any(trouble in text for text in trunk.troubles), trunk.troubles
            trunk.send(good, b"2")
            await trunk.rest()
            assert trunk.output[1] == b"evil b''\nb'2'\n"
            assert trunk.exit == (0, 0)

    run(scene())


def test_output_waits_for_its_acknowledgement() -> None:
    async def scene() -> None:
        async with running("import os\nfor _ in range(64): os.write(1, b'x' * 16384)") as (
            _,
            trunk,
        ):
            await trunk.quiet(0.3)
            assert len(trunk.output[1]) == trunk.unacknowledged == 256 << 10
            trunk.acknowledge()
            await trunk.until(lambda: len(trunk.output[1]) > 256 << 10)
            await trunk.rest()
            assert trunk.output[1] == b"x" * (1 << 20)
            assert trunk.exit == (0, 0)

    run(scene())


def test_while_output_is_full_clients_go_on() -> None:
    source = CLIENT + (
        "import threading\n"
        "threading.Thread(target=lambda: os.write(1, b'x' * (1 << 20)), daemon=True).start()\n"
        "s = connect()\n"
        "for _ in range(3): send(s, b'ping'); receive(s)\n"
        "send(s, b'done'); receive(s); os._exit(0)\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            for wanted in (1, 2, 3, 4):
                await trunk.until(
                    lambda wanted=wanted: len(trunk.messages) == wanted, acknowledge=False
                )
                trunk.send(trunk.opened[0], b"pong")
            assert trunk.messages[-1][1] == b"done"

    run(scene())


def test_a_flooding_client_does_not_starve_another() -> None:
    source = CLIENT + (
        "import threading\n"
        "def flood():\n"
        "    s = connect(); frame = struct.pack('>II', 4 + 8192, 1) + b'f' * 8192\n"
        "    while True: s.sendall(frame)\n"
        "for _ in range(4): threading.Thread(target=flood, daemon=True).start()\n"
        "s = connect()\n"
        "for n in range(20): send(s, b'mine%d' % n); assert receive(s)[1] == b'ok'\n"
        "print('served', flush=True); os._exit(0)\n"
    )

    async def scene() -> None:
        async with running(source) as (sandbox, trunk):
            served = 0
            async with asyncio.timeout(20):
                while served < 20:
                    trunk.messages.clear()
                    assert await trunk.frame()
                    for stream, payload in trunk.messages:
                        if payload.startswith(b"mine"):
                            trunk.send(stream, b"ok")
                            served += 1
            assert supervisor_bytes(sandbox) < 120 << 20

    run(scene())


def test_a_flood_that_nobody_reads_stays_bounded() -> None:
    """With the trunk full, the supervisor stops reading: the memory is the sockets', not ours."""
    source = CLIENT + (
        "import threading\n"
        "def flood():\n"
        "    s = connect(); frame = struct.pack('>II', 4 + 60000, 1) + b'f' * 60000\n"
        "    while True: s.sendall(frame)\n"
        "for _ in range(8): threading.Thread(target=flood, daemon=True).start()\n"
        "time.sleep(60)\n"
    )

    async def scene() -> None:
        async with running(source) as (sandbox, _):
            await asyncio.sleep(0.5)
            assert supervisor_bytes(sandbox) < 100 << 20

    run(scene())


def test_a_client_that_does_not_read_is_closed_and_others_go_on() -> None:
    source = CLIENT + (
        "slow, good = connect(), connect()\n"
        "send(slow, b'slow'); send(good, b'good')\n"
        "print(receive(good)[1], flush=True)\n"
        "time.sleep(60)\n"
    )

    async def scene() -> None:
        async with running(source) as (sandbox, trunk):
            await trunk.until(lambda: len(trunk.messages) == 2)
            number = {payload: stream for stream, payload in trunk.messages}
            for _ in range(40):
                trunk.send(number[b"slow"], b"z" * (1 << 20))
                await trunk.writer.drain()
            trunk.send(number[b"good"], b"still here")
            await trunk.until(lambda: b"still here" in trunk.output[1])
            await trunk.until(lambda: number[b"slow"] in trunk.closed)
            assert any("did not read" in text for text in trunk.troubles)
            assert supervisor_bytes(sandbox) < 150 << 20

    run(scene())


def test_more_clients_than_allowed_wait() -> None:
    source = CLIENT + (
        "many = []\n"
        "for _ in range(256): many.append(connect())\n"
        "extra = connect(); send(extra, b'extra')\n"
        "print('full', flush=True); sys.stdin.readline()\n"
        "many.pop().close()\n"
        "print(receive(extra)[1])\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.until(lambda: b"full" in trunk.output[1])
            await trunk.quiet(0.2)
            assert len(trunk.opened) == 256
            assert not trunk.messages
            trunk.tell(INPUT, b"\n")
            await trunk.until(lambda: bool(trunk.messages))
            assert len(trunk.opened) == 257
            trunk.send(trunk.opened[-1], b"at last")
            await trunk.rest()
            assert b"at last" in trunk.output[1]

    run(scene())


def test_input_arrives_and_ends() -> None:
    async def scene() -> None:
        source = "import sys,hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
        async with running(source) as (_, trunk):
            data = bytes(range(256)) * 2048
            for at in range(0, len(data), 50_000):
                trunk.tell(INPUT, data[at : at + 50_000])
            trunk.tell(INPUT_EOF)
            await trunk.rest()
            assert trunk.output[1].decode().strip() == hashlib.sha256(data).hexdigest()
            assert trunk.input_acknowledged == len(data)

    run(scene())


def test_input_that_nobody_reads_is_bounded_and_said() -> None:
    async def scene() -> None:
        async with running("import time; time.sleep(60)") as (sandbox, trunk):
            for _ in range(24):
                trunk.tell(INPUT, bytes(1 << 20))
                await trunk.writer.drain()
            await trunk.until(lambda: bool(trunk.troubles))
            assert "does not read its input" in trunk.troubles[0]
            assert supervisor_bytes(sandbox) < 120 << 20

    run(scene())


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda t: t.tell(99), id="unknown opcode"),
        pytest.param(lambda t: t.tell(9, b"\0\0\0\1"), id="acknowledges too much"),
        pytest.param(lambda t: t.send(0, b""), id="no opcode"),
        pytest.param(lambda t: t.writer.write(b"\xff\xff\xff\xff\0\0\0\1"), id="too large"),
        pytest.param(lambda t: t.writer.write(b"\0\0\0\1\0\0\0\0"), id="too short"),
    ],
)
def test_a_gate_that_is_not_understood_ends_the_run(bad: Any) -> None:
    async def scene() -> None:
        async with running("import time; time.sleep(60)") as (sandbox, trunk):
            await trunk.until(lambda: "started" in trunk.order)
            bad(trunk)
            async with asyncio.timeout(60):
                status = await sandbox.wait()
            assert status.killed
            assert "GateProtocolError" in status.reason

    run(scene())


def test_what_was_sent_before_the_end_is_forwarded() -> None:
    """The program ends at once, and leaves a child that holds its output open."""
    source = CLIENT + (
        "s = connect()\n"
        "for n in range(100): send(s, b'%d' % n)\n"
        "os.write(1, b'y' * 60000)\n"
        "if os.fork() == 0: time.sleep(60)\n"
        "os._exit(3)\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.rest()
            assert [payload for _, payload in trunk.messages] == [b"%d" % n for n in range(100)]
            assert len(trunk.output[1]) == 60000
            assert trunk.exit == (3, 0)
            assert trunk.order[-1] == "exit"

    run(scene())


def test_the_gate_may_still_write_when_the_program_has_ended() -> None:
    """An answer that is on its way at the end breaks nothing: the exit is read all the same."""

    async def scene() -> None:
        async with running(CLIENT + "send(connect(), b'parting words')\n") as (sandbox, trunk):
            await trunk.until(lambda: trunk.exit is not None)
            await asyncio.sleep(0.1)
            for _ in range(50):
                trunk.send(trunk.opened[0], b"an answer that comes late")
                await trunk.writer.drain()
            assert not await trunk.frame()
            async with asyncio.timeout(60):
                trunk.writer.close()
                status = await sandbox.wait()
            assert (status.code, status.killed) == (0, False)

    run(scene())


def test_orphans_are_reaped() -> None:
    source = (
        "import os, time\n"
        "for _ in range(200):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0: os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "def there(): return len([n for n in os.listdir('/proc') if n.isdigit()])\n"
        "end = time.monotonic() + 15\n"
        "while there() > 2 and time.monotonic() < end: time.sleep(0.01)\n"
        "print(there())\n"
    )

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.rest()
            assert trunk.output[1] == b"2\n", trunk.output

    run(scene())


def test_the_gate_may_close_a_client() -> None:
    source = CLIENT + "s = connect(); send(s, b'x'); print(receive(s)[1]); print(s.recv(1))\n"

    async def scene() -> None:
        async with running(source) as (_, trunk):
            await trunk.until(lambda: bool(trunk.messages))
            trunk.send(trunk.opened[0], b"last words")
            trunk.tell(2, trunk.opened[0].to_bytes(4, "big"))
            await trunk.rest()
            assert trunk.output[1] == b"b'last words'\nb''\n"
            assert trunk.closed == []

    run(scene())


def test_trunk_is_what_the_tests_think(tmp_path: Any) -> None:
    """A frame that nobody sent is not there: the helper invents nothing."""

    async def scene() -> None:
        async with running("pass") as (_, trunk):
            assert isinstance(trunk, Trunk)
            await trunk.rest()
            assert trunk.messages == []
            assert trunk.order == ["started", "exit"]

    run(scene())
