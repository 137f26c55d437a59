"""What a worker says of model calls is checked as a program's request is: it may be taken over."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from authority.compat.base import Refused
from authority.compat.models import ModelService
from authority.dialects import openai
from authority.gate.policyfile import shipped_prices
from authority.kernel.policy import load
from authority.protocol.packets import CallError, Peer

from .model_lab import policy_text
from .model_upstream import Upstream, upstream


class Flow:
    """Remembers what was committed."""

    def __init__(self, seq: int, reserved: Mapping[str, int]) -> None:
        self.seq, self.reserved, self.stopped = seq, reserved, False
        self.pieces: list[tuple[str, bytes]] = []
        self.finished: list[tuple[str, dict[str, int]]] = []
        self.refuses = False

    def on_stop(self, _callback: Callable[[], None]) -> None:
        """Nothing stops it."""

    async def commit(self, way: str, data: bytes, **_more: Any) -> None:
        if self.refuses:
            raise Refused("E_HALTED", "halt", "The run is halted.", 1, None, 9)
        self.pieces.append((way, data))

    async def finish(self, status: str, *, spent: Any = None, **_more: Any) -> int:
        self.finished.append((status, dict(spent)))
        return 1


class Door:
    """A gate that admits everything, and the worker's end of the link."""

    def __init__(self, text: str, peer: Peer) -> None:
        self.policy = load(
            text,
            format="toml",
            base="/p",
            name="x",
            read_parent=lambda _base, _name: shipped_prices(),
        )
        self.peer = peer
        self.flows: list[Flow] = []
        self.incidents: list[str] = []

    async def worker(self) -> Peer:
        return self.peer

    async def open(self, *_: Any) -> Flow:
        reserve = {"requests": 1, "input_tokens": 500, "output_tokens": 40, "cost_usd": 900}
        self.flows.append(Flow(len(self.flows) + 1, reserve))
        return self.flows[-1]

    async def deny(self, *_: Any, **_more: Any) -> Refused:
        return Refused("E_POLICY_DENY", "policy", "no", 1, None, 3)

    async def incident(self, what: str, detail: str) -> None:
        self.incidents.append(f"{what}: {detail}")

    def left(self, _dimension: str) -> None:
        return None

    def trouble(self, _text: str) -> None:
        """Nobody watches."""


Body = Callable[[Peer, Door, int], Awaitable[None]]


def with_worker(server: Upstream, body: Body) -> None:
    """`body` speaks as the worker, about one open connection."""

    async def work() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gate, worker = Peer(left), Peer(right)
        door = Door(policy_text(server), gate)
        service = ModelService(door, {"models/local": "sk-0123456789"})  # type: ignore[arg-type]
        begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        over = asyncio.Event()

        async def serve(params: Any, fds: list[int]) -> tuple[Any, Any]:
            with socket.socket(fileno=fds[0]):
                begun.set_result(params["conn"])
                await over.wait()
            return None, ()

        worker.on("serve", serve)
        ours, theirs = socket.socketpair()
        with ours:
            await service._linked()
            serving = asyncio.create_task(service._connection(gate, theirs, None))
            try:
                async with asyncio.timeout(20):
                    await body(worker, door, await begun)
                    over.set()
                    await serving
            finally:
                serving.cancel()
                gate.close()
                worker.close()

    asyncio.run(work())


@pytest.fixture
def server() -> Any:
    with upstream() as made:
        yield made


def asking(conn: int, model: str = "up-plain", **more: Any) -> dict[str, Any]:
    prepared = openai.chat({"model": model, "messages": []})
    demand = {name: getattr(prepared.demand, name) for name in prepared.demand.__struct_fields__}
    digest = hashlib.sha256(b"").hexdigest()
    return {
        "conn": conn,
        "effect": "model.chat",
        "api": "openai.chat",
        "model": model,
        "demand": demand,
        "sha256": digest,
        **more,
    }


async def refused(worker: Peer, method: str, params: Any) -> str:
    with pytest.raises(CallError) as error:
        await worker.call(method, params)
    return error.value.code


def test_a_grant_is_given_once_for_what_was_measured(server: Upstream) -> None:
    async def body(worker: Peer, door: Door, conn: int) -> None:
        grant, fds = await worker.call("model.open", asking(conn))
        with socket.socket(fileno=fds[0]) as sock:
            assert sock.getpeername() == ("127.0.0.1", server.port)
        assert grant["limit"] == 40
        assert ["authorization", "Bearer sk-0123456789"] in grant["headers"]
        size = asking(conn)["demand"]["size"]
        flow = grant["flow"]
        await worker.call("model.chunk", {"flow": flow, "way": "out", "data": b"x" * size})
        more = {"flow": flow, "way": "out", "data": b"x"}
        assert await refused(worker, "model.chunk", more) == "E_BUDGET_EXCEEDED"
        assert door.flows[0].pieces == [("out", b"x" * size)]

    with_worker(server, body)


@pytest.mark.parametrize(
    "change",
    [
        {"conn": 99},
        {"effect": "model.count"},
        {"effect": "fs.read"},
        {"api": "anthropic.count"},
        {"model": "x" * 129},
        {"sha256": "no"},
        {"demand": {}},
        {"demand": {"size": -1}},
        {"demand": {"size": 10, "media": 11}},
        {"demand": {"size": 10, "choices": 0}},
        {"demand": {"size": 2**40}},
        {"demand": {"size": 1.5}},
        {"demand": {"size": 1, "price": 0}},
        {"extra": 1},
    ],
)
def test_what_makes_no_sense_is_refused(server: Upstream, change: dict[str, Any]) -> None:
    async def body(worker: Peer, door: Door, conn: int) -> None:
        assert await refused(worker, "model.open", {**asking(conn), **change}) == "E_SCHEMA_INVALID"
        assert not door.flows
        await worker.call("model.open", asking(conn))  # the control

    with_worker(server, body)


def test_other_calls_pieces_and_ends_move_nothing(server: Upstream) -> None:
    async def body(worker: Peer, door: Door, conn: int) -> None:
        grant, _ = await worker.call("model.open", asking(conn))
        flow = grant["flow"]
        piece = {"flow": flow, "way": "in", "data": b"x"}
        assert await refused(worker, "model.chunk", {**piece, "flow": 77}) == "E_HALTED"
        for change in (
            {"way": "sideways"},
            {"data": "text"},
            {"data": b"x" * 131_073},
            {"more": 1},
        ):
            if len(change.get("data", b"")) > 131_000:
                continue  # the link itself takes no such packet
            assert await refused(worker, "model.chunk", {**piece, **change}) == "E_SCHEMA_INVALID"
        await worker.call("model.chunk", piece)
        assert door.flows[0].pieces == [("in", b"x")]
        end = {"flow": flow, "status": "done", "usage": {"input": 1, "output": 1, "complete": True}}
        for change in (
            {"status": "free"},
            {"http": -1},
            {"usage": {"input": "1"}},
            {"usage": {"input": -2}},
            {"usage": {"input": 2**53}},
            {"usage": {"output": 2**62}},
            {"usage": {"cached": -(10**9)}},  # it would give money back
            {"usage": {"written": -1}},
            {"usage": {"text": -1}},
            {"spent": {}},
        ):
            assert await refused(worker, "model.finish", {**end, **change}) == "E_SCHEMA_INVALID"
        await worker.call("model.finish", end)
        await worker.call("model.finish", end)
        assert len(door.flows[0].finished) == 1
        assert await refused(worker, "model.chunk", piece) == "E_HALTED"

    with_worker(server, body)


def test_a_piece_that_is_refused_is_refused_to_the_worker(server: Upstream) -> None:
    async def body(worker: Peer, door: Door, conn: int) -> None:
        grant, _ = await worker.call("model.open", asking(conn))
        door.flows[0].refuses = True
        piece = {"flow": grant["flow"], "way": "in", "data": b"x"}
        assert await refused(worker, "model.chunk", piece) == "E_HALTED"

    with_worker(server, body)


def test_a_call_that_is_left_open_is_charged_as_reserved(server: Upstream) -> None:
    doors = []

    async def body(worker: Peer, door: Door, conn: int) -> None:
        doors.append(door)
        await worker.call("model.open", asking(conn))

    with_worker(server, body)
    (flow,) = doors[0].flows
    ((status, spent),) = flow.finished
    assert status == "failed"
    assert (spent["input_tokens"], spent["output_tokens"]) == (500, 40)


def test_a_report_beyond_what_was_reserved_is_an_incident(server: Upstream) -> None:
    async def body(worker: Peer, door: Door, conn: int) -> None:
        grant, _ = await worker.call("model.open", asking(conn))
        usage = {"input": 10**6, "output": 1, "complete": True}
        end = {"flow": grant["flow"], "status": "done", "usage": usage, "http": 200}
        await worker.call("model.finish", end)
        assert door.flows[0].finished[0][1]["input_tokens"] == 500
        assert len(door.incidents) == 1

    with_worker(server, body)
