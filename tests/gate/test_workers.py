"""The worker: a real confined process at the other end of a real link."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from authority.compat.base import Failed
from authority.gate.workers import PRINTED, RESTARTS, Worker, Workers, _pass_on
from authority.isolation import probe, processes
from authority.protocol.packets import MAX_PACKET, CallError, LinkOver, Peer


def with_worker(body: Callable[[Worker], Awaitable[None]]) -> None:
    async def work() -> None:
        worker = await Workers(probe(), ()).start(None)
        try:
            await body(worker)
        finally:
            worker.stop()
            await worker.sandbox.wait()

    asyncio.run(work())


def test_a_worker_starts_confined_and_answers() -> None:
    async def body(worker: Worker) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(CallError) as refused:
            await worker.peer.call("serve", {"kind": "nothing"}, [theirs.fileno()])
        assert refused.value.code == "E_SCHEMA_INVALID"
        if os.geteuid() == 0:
            members = processes.tree(worker.sandbox.pid)
            assert members
            assert 0 not in processes.user_ids(members)
        assert not worker.peer._takes, "nothing that it holds comes to the gate"
        names = os.readlink(f"/proc/{worker.sandbox.pid}/ns/net")
        assert names != os.readlink("/proc/self/ns/net")

    with_worker(body)


def test_a_worker_has_no_file_of_the_gates() -> None:
    async def body(worker: Worker) -> None:
        for fd in os.listdir(f"/proc/{worker.sandbox.pid}/fd"):
            target = os.readlink(f"/proc/{worker.sandbox.pid}/fd/{fd}")
            ours = ("/dev/null", "/memfd:authority-diagnostics (deleted)")
            assert not target.startswith("/") or target in ours, target

    with_worker(body)


def test_what_a_worker_prints_is_made_printable_and_bounded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def work() -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        _pass_on(read)
        os.write(write, b"\x1b]0;title\x07 caf\xc3\xa9\n")
        for _ in range(20):
            os.write(write, b"x" * 4000 + b"\n")
            await asyncio.sleep(0.01)
        os.close(write)
        await asyncio.sleep(0.05)

    asyncio.run(work())
    text = capsys.readouterr().err
    assert text.startswith("worker: ")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text) < 2 * PRINTED


def test_an_unknown_call_ends_the_link_and_the_worker() -> None:
    async def body(worker: Worker) -> None:
        with pytest.raises(LinkOver):
            await worker.peer.call("no such call", {})
        async with asyncio.timeout(60):
            await worker.sandbox.wait()

    with_worker(body)


def test_workers_are_not_restarted_for_ever() -> None:
    async def work() -> None:
        workers = Workers(probe(), ())
        last = Worker(None, None, RESTARTS)  # type: ignore[arg-type]
        with pytest.raises(Failed):
            await workers.start(last)

    asyncio.run(work())


def linked(body: Callable[[Peer, Peer, socket.socket], Awaitable[None]]) -> None:
    """Two peers on a link, and the raw socket of the second, for what is no packet."""

    async def work() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        raw = right.dup()
        raw.setblocking(False)
        one, two = Peer(left), Peer(right)
        try:
            async with asyncio.timeout(60):
                await body(one, two, raw)
        finally:
            one.close()
            two.close()
            raw.close()

    asyncio.run(work())


async def echo(params: Any, fds: list[int]) -> tuple[Any, list[int]]:
    return params, fds


def test_calls_go_both_ways_with_descriptors() -> None:
    async def body(one: Peer, two: Peer, _raw: socket.socket) -> None:
        two.on("echo", echo)
        one.on("echo", echo)
        read, write = os.pipe()
        result, fds = await one.call("echo", {"a": [1, b"x"]}, [write])
        os.close(write)
        os.write(fds[0], b"through")
        os.close(fds[0])
        assert result == {"a": [1, b"x"]}
        assert os.read(read, 16) == b"through"
        assert os.read(read, 16) == b"", "a descriptor was kept"
        os.close(read)
        answers = await asyncio.gather(*(two.call("echo", n) for n in range(1000)))
        assert [a for a, _ in answers] == list(range(1000))

    linked(body)


@pytest.mark.parametrize(
    "packet",
    [b"\xc1", b"\x90", b"\x94\x00\x01\xa1x\xc0", b"\x93\x01\x05\xc0", b"x" * (MAX_PACKET + 1)],
    ids=["not MessagePack", "empty", "unknown method", "an answer to nothing", "too large"],
)
def test_what_is_no_packet_ends_the_link(packet: bytes) -> None:
    async def body(one: Peer, _two: Peer, raw: socket.socket) -> None:
        raw.send(packet)
        await one.closed.wait()
        with pytest.raises(LinkOver):
            await one.call("echo", None)

    linked(body)


def test_a_defect_in_a_handler_tells_the_other_side_nothing() -> None:
    async def body(one: Peer, two: Peer, raw: socket.socket) -> None:
        raw.close()

        async def broken(_params: Any, _fds: list[int]) -> tuple[Any, list[int]]:
            raise RuntimeError("a secret path")

        two.on("broken", broken)
        with pytest.raises(LinkOver) as over:
            await one.call("broken", None)
        assert "secret" not in str(over.value)

    linked(body)
