"""The worker turned against the gate, and more connections than there is room for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from authority.compat import proxy
from authority.protocol.packets import CallError, LinkOver, Peer
from effects.support import run

from .proxy_lab import Client, Lab, lab
from .test_proxy_judged import CREDENTIAL, RULES, SECRET, Web, judged, request
from .test_proxy_judged import policy as make_policy
from .test_proxy_tunnels import Echo, allowing, tunnelled

Rogue = Callable[[Peer, dict[str, Any], socket.socket], Awaitable[Any]]


class _Seat:
    """Sits where a worker sits: the other end of its link is the test's."""

    def __init__(self, rogue: Rogue, results: list[Any]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer, self.far = Peer(ours), Peer(theirs)

        async def serve(params: Any, fds: list[int]) -> tuple[Any, list[int]]:
            with socket.socket(fileno=fds[0]) as sock:
                sock.setblocking(False)
                try:
                    results.append(await rogue(self.far, params, sock))
                except (CallError, LinkOver) as error:
                    results.append(error)
                except asyncio.CancelledError:
                    results.append(LinkOver(self.far.reason))
                    raise
            return None, []

        self.far.on("serve", serve)


async def seated(it: Lab, rogue: Rogue) -> Any:
    """What a rogue worker gets when it is handed a connection."""
    results: list[Any] = []
    real = it.door._worker
    seat = _Seat(rogue, results)
    seats = [seat]

    async def worker() -> Any:
        return seats[0] if not seats[0].peer.reason else await real()

    it.door._worker = worker
    client = await Client.to(it.port)
    await it.until(lambda: bool(results))
    client.close()
    return results[0], seat


WEB = "http://api.test:{port}/ok/a"


def opening(conn: int, port: int, **more: Any) -> dict[str, Any]:
    url = WEB.format(port=port)
    base = {"conn": conn, "method": "GET", "url": url, "headers": [], "upgrade": False, "held": ""}
    return base | more


def targeting(conn: int, port: int, host: str = "api.test", via: str = "connect") -> dict[str, Any]:
    return {"conn": conn, "host": host, "port": port, "via": via}


async def opened(peer: Peer, conn: int, port: int) -> int:
    await peer.call("net.target", targeting(conn, port))
    told, fds = await peer.call("net.open", opening(conn, port))
    for fd in fds:
        os.close(fd)
    return int(told["flow"])


def piece(conn: int, flow: int, **more: Any) -> dict[str, Any]:
    return {"conn": conn, "flow": flow, "way": "in", "data": b"x", "last": False} | more


BREACHES: dict[str, tuple[str, Callable[[int, int, int], Any]]] = {
    "another connection": ("net.target", lambda c, _f, p: targeting(c + 1, p)),
    "a negative connection": ("net.target", lambda _c, _f, p: targeting(-1, p)),
    "an unknown parameter": ("net.target", lambda c, _f, p: targeting(c, p) | {"x": 1}),
    "a missing parameter": ("net.chunk", lambda c, f, _p: {"conn": c, "flow": f}),
    "another type": ("net.target", lambda c, _f, p: targeting(c, p, host=5)),  # type: ignore[arg-type]
    "no map": ("net.target", lambda _c, _f, _p: None),
    "a place as if direct": ("net.target", lambda c, _f, p: targeting(c, p, via="direct")),
    "another flow": ("net.chunk", lambda c, f, _p: piece(c, f + 1)),
    "a body before its head": ("net.chunk", lambda c, f, _p: piece(c, f)),
    "a piece that is too long": ("net.chunk", lambda c, f, _p: piece(c, f, data=b"x" * 65537)),
    "a third way": ("net.chunk", lambda c, f, _p: piece(c, f, way="up")),
    "a second connection": ("net.again", lambda c, f, _p: {"conn": c, "flow": f}),
    "another host's certificate": ("net.leaf", lambda c, _f, _p: {"conn": c, "host": "bank.test"}),
    "another host's request": (
        "net.open",
        lambda c, _f, p: opening(c, p, url=f"http://other.test:{p}/"),
    ),
    "a header with a line end": (
        "net.open",
        lambda c, _f, p: opening(c, p, headers=[["X", "a\r\nHost: b"]]),
    ),
    "a header that ends with one": (
        "net.open",
        lambda c, _f, p: opening(c, p, headers=[["X", "a\n"]]),
    ),
    "a name that ends with one": (
        "net.open",
        lambda c, _f, p: opening(c, p, headers=[["X\n", "a"]]),
    ),
    "a method that ends with one": ("net.open", lambda c, _f, p: opening(c, p, method="GET\n")),
    "a way that ends with one": ("net.chunk", lambda c, f, _p: piece(c, f, way="out\n")),
    "a header without a name": ("net.open", lambda c, _f, p: opening(c, p, headers=[["", "a"]])),
    "an answer with a line end": (
        "net.head",
        lambda c, f, _p: {
            "conn": c, "flow": f, "status": 200, "headers": [["X", "a\n"]], "data": b"", "last": True
        },
    ),
    "a status that is none": (
        "net.head",
        lambda c, f, _p: {
            "conn": c, "flow": f, "status": 7, "headers": [], "data": b"", "last": True
        },
    ),
    "an outcome that is none": (
        "net.finish",
        lambda c, f, _p: {"conn": c, "flow": f, "status": "ok", "sentence": "", "facts": {}},
    ),
    "a method that is not there": ("net.everything", lambda c, _f, _p: {"conn": c}),
}  # fmt: skip


@pytest.mark.parametrize("name", BREACHES)
def test_a_worker_that_breaks_the_rules_is_ended_and_recorded(name: str) -> None:
    method, params = BREACHES[name]

    async def body(it: Lab, web: Web) -> None:
        async def rogue(peer: Peer, given: dict[str, Any], _sock: socket.socket) -> Any:
            flow = await opened(peer, given["conn"], web.port)
            return await peer.call(method, params(given["conn"], flow, web.port))

        result, seat = await seated(it, rogue)
        assert isinstance(result, LinkOver), result
        assert seat.peer.reason
        await it.until(lambda: bool(it.door.incidents))
        assert it.door.incidents[0][0] == "worker"
        assert "worker ended" in it.door.incidents[0][1]
        await it.settled()
        assert [flow.outcome[0] for flow in it.door.flows if flow.outcome] == ["failed"]
        client = await Client.to(await it.direct_to("api.test", web.port))
        await client.send(request(web, "/ok/a"))
        assert (await client.answer())[0] == 200, "the run goes on with another worker"

    judged(body)


def test_control_the_same_calls_made_rightly_pass() -> None:
    async def body(it: Lab, web: Web) -> None:
        async def right(peer: Peer, given: dict[str, Any], _sock: socket.socket) -> Any:
            conn = given["conn"]
            flow = await opened(peer, conn, web.port)
            head = {"status": 200, "headers": [["X", "a"]], "data": b"x", "last": False}
            await peer.call("net.head", {"conn": conn, "flow": flow, **head})
            await peer.call("net.chunk", piece(conn, flow, data=b"x" * 65536))
            await peer.call("net.leaf", {"conn": conn, "host": "api.test"})
            end = {"status": "done", "sentence": "", "facts": {"bytes_in": 1}}
            await peer.call("net.finish", {"conn": conn, "flow": flow, **end})
            return "passed"

        result, seat = await seated(it, right)
        assert (result, seat.peer.reason) == ("passed", "")
        assert it.door.flows[0].moved("in") == b"HTTP/1.1 200\r\nX: a\r\n\r\n" + b"x" * 65537

    judged(body)


def test_a_worker_can_not_do_what_the_policy_does_not_allow() -> None:
    """It asks in the right form, for itself: the answer is that of the policy."""

    async def body(it: Lab, web: Web) -> None:
        async def rogue(peer: Peer, given: dict[str, Any], _sock: socket.socket) -> Any:
            told = []
            conn = given["conn"]
            for host, port in (("evil.test", 443), ("127.0.0.1", web.port), ("api.test", 1)):
                with pytest.raises(CallError) as no:
                    await peer.call("net.target", targeting(conn, port, host))
                told.append(no.value.code)
            await peer.call("net.target", targeting(conn, web.port))
            request = opening(conn, web.port, method="DELETE")
            with pytest.raises(CallError) as no:
                await peer.call("net.open", request)
            return [*told, no.value.code]

        result, _ = await seated(it, rogue)
        assert result == ["E_POLICY_DENY"] * 4
        assert web.peers == 0

    judged(body)


def test_a_socket_that_the_worker_keeps_is_cut_with_its_flow() -> None:
    kept: list[socket.socket] = []

    async def body(it: Lab, web: Web) -> None:
        async def rogue(peer: Peer, given: dict[str, Any], _sock: socket.socket) -> Any:
            await peer.call("net.target", targeting(given["conn"], web.port))
            _, fds = await peer.call("net.open", opening(given["conn"], web.port))
            kept.append(socket.socket(fileno=fds[0]))
            return "kept"

        await seated(it, rogue)
        await it.settled()
        with kept[0] as sock:
            sock.setblocking(True)
            with pytest.raises(OSError, match="Broken pipe"):
                sock.sendall(b"GET /ok/late HTTP/1.1\r\nHost: a\r\n\r\n")
        assert web.seen == []

    judged(body)


def test_an_answer_made_of_credentials_is_not_passed_on() -> None:
    async def flood(_s: Any, _r: Any, writer: asyncio.StreamWriter) -> None:
        short = SECRET.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(short) * 9000))
        writer.write(short * 9000)
        await writer.drain()

    async def body(it: Lab, web: Web) -> None:
        web.answers["/ok/flood"] = flood
        client = await Client.to(await it.direct_to("api.test", web.port))
        await client.send(request(web, "/ok/flood"))
        assert SECRET.encode() not in await client.rest()
        await it.settled()
        assert not it.started[0].peer.reason, "the worker lives"

    judged(body, more=CREDENTIAL, secrets={"hub": SECRET})


def test_ten_thousand_tunnels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is room for are open, the others are closed at once, and it is recorded."""
    monkeypatch.setattr(proxy, "MAX_CONNECTIONS", 50)
    monkeypatch.setattr(proxy, "TELL_SECONDS", 0.2)

    async def body(it: Lab, server: Echo) -> None:
        held = [await Client.to(it.port) for _ in range(50)]
        for client in held:
            assert b" 200 " in await client.connect("db.test", server.port)
        closed = 0
        for _ in range(100):
            batch = await asyncio.gather(*(Client.to(it.port) for _ in range(100)))
            for client in batch:
                closed += await client.rest() in (b"", b"(reset)")
                client.close()
        assert closed == 10_000
        codes = [code for code, *_ in it.door.denied]
        assert 1 <= len(codes) < 500
        assert set(codes) == {"E_RATE_LIMIT"}
        for client in held:
            await client.send(b"\0still")
            assert await client.reader.readexactly(6) == b"\0still"
        held.pop().close()
        await it.until(lambda: len(it.proxy._connections) < 50)
        again = await Client.to(it.port)
        assert b" 200 " in await again.connect("db.test", server.port)

    tunnelled(body, seconds=120)


def test_a_worker_that_dies_takes_its_connections_and_no_more() -> None:
    async def main() -> None:
        async with Echo() as server, lab(allowing(server.port)) as it, asyncio.timeout(60):
            client = await Client.to(it.port)
            await client.connect("db.test", server.port)
            it.started[0].sandbox.kill()
            assert await client.rest() in (b"", b"(reset)")
            await it.settled()
            await it.until(lambda: bool(it.door.incidents))
            again = await Client.to(it.port)
            assert b" 200 " in await again.connect("db.test", server.port)
            assert len(it.started) == 2

    run(main())


def test_the_rules_of_the_tests_load() -> None:
    make_policy(RULES.replace("PORT", "80"))
