"""Opaque tunnels through the real worker: CONNECT, SOCKS5, direct connections, and who is let in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from effects.support import policy, run, served
from effects.test_http import Authorities

from .proxy_lab import Client, Lab, lab, server_tls


class Echo:
    """A server that sends back what comes, and says goodbye at the end of it."""

    def __init__(self, greeting: bytes = b"", tls: Any = None) -> None:
        self.greeting, self.tls = greeting, tls
        self.peers = 0
        self.got = b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers += 1
        writer.write(self.greeting)
        try:
            while data := await reader.read(65536):
                self.got += data
                writer.write(data)
                await writer.drain()
            writer.write(b"bye")
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def __aenter__(self) -> Echo:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


def allowing(port: int, more: str = "") -> Any:
    return policy(f'[network]\nallow = ["db.test:{port}"]\nprivate = ["db.test:{port}"]\n{more}')


def tunnelled(
    body: Callable[[Lab, Echo], Awaitable[None]],
    *,
    greeting: bytes = b"",
    tls: Any = None,
    seconds: float = 30,
) -> None:
    async def main() -> None:
        async with Echo(greeting, tls) as server, lab(allowing(server.port)) as it:
            async with asyncio.timeout(seconds):
                await body(it, server)

    run(main())


def test_connect_carries_bytes_and_both_ends() -> None:
    async def body(it: Lab, server: Echo) -> None:
        client = await Client.to(it.port)
        assert b" 200 " in await client.connect("db.test", server.port)
        await client.send(b"\x00hello")
        assert await client.reader.readexactly(6) == b"\x00hello"
        client.writer.write_eof()
        assert await client.rest() == b"bye"
        await it.settled()
        (flow,) = it.door.flows
        assert (flow.effect, flow.resource) == ("net.connect", f"tcp://db.test:{server.port}")
        assert (flow.moved("out"), flow.moved("in")) == (b"\x00hello", b"\x00hellobye")
        assert flow.outcome is not None
        assert flow.outcome[0] == "done"
        assert flow.outcome[2]["address"] == "127.0.0.1"

    tunnelled(body)


def test_a_server_that_speaks_first() -> None:
    async def body(it: Lab, server: Echo) -> None:
        client = await Client.to(await it.direct_to("db.test", server.port))
        assert await client.reader.readexactly(5) == b"hello"
        await client.send(b"EHLO me\r\n")
        assert await client.reader.readexactly(9) == b"EHLO me\r\n"

    tunnelled(body, greeting=b"hello")


def test_nothing_is_delivered_before_it_is_committed() -> None:
    async def body(it: Lab, server: Echo) -> None:
        client = await Client.to(it.port)
        await client.connect("db.test", server.port)
        it.door.commit_seconds = 0.3
        await client.send(b"\x00x")
        await asyncio.sleep(0.15)
        assert server.got == b""
        await it.until(lambda: bool(server.got))
        assert it.door.flows[0].moved("out") == b"\x00x"
        assert await client.reader.readexactly(2) == b"\x00x"
        # What waits while a commit is under way goes together into the next.
        it.door.flows[0].pieces.clear()
        for _ in range(20):
            await client.send(b"y" * 10)
            await asyncio.sleep(0)
        await client.reader.readexactly(200)
        assert len([1 for way, _ in it.door.flows[0].pieces if way == "out"]) <= 4

    tunnelled(body)


@pytest.mark.parametrize("kind", [1, 3])
def test_socks(kind: int) -> None:
    async def main() -> None:
        async with Echo() as server:
            host = "127.0.0.1" if kind == 1 else "db.test"
            under = policy(
                f'[network]\nallow = ["{host}:{server.port}"]\nprivate = ["{host}:{server.port}"]\n'
            )
            async with lab(under) as it:
                client = await Client.to(it.port)
                await client.send(b"\x05\x01\x00")
                assert await client.reader.readexactly(2) == b"\x05\x00"
                where = b"\x01\x7f\0\0\x01" if kind == 1 else b"\x03\x07db.test"
                await client.send(b"\x05\x01\x00" + where + server.port.to_bytes(2, "big"))
                assert (await client.reader.readexactly(10))[1] == 0
                await client.send(b"\x00hi")
                assert await client.reader.readexactly(3) == b"\x00hi"

                refused = await Client.to(it.port)
                await refused.send(b"\x05\x01\x00")
                await refused.reader.readexactly(2)
                await refused.send(b"\x05\x01\x00\x03\x09evil.test\x01\xbb")
                assert (await refused.reader.readexactly(10))[1] == 2
                assert it.door.denied[-1][1] == "tcp://evil.test:443"

    run(main())


def test_a_denial_is_told_as_json() -> None:
    async def body(it: Lab, server: Echo) -> None:
        for host, port in (("db.test", server.port + 1), ("evil.test", 443), ("127.0.0.1", 80)):
            client = await Client.to(it.port)
            await client.send(
                f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
            )
            status, head, told = await client.answer()
            assert status == 403
            assert b"application/json" in head
            assert json.loads(told)["error"] | {"number": 0} == {
                "code": "E_POLICY_DENY",
                "layer": "policy",
                "message": "The policy does not allow this.",
                "number": 0,
            }
            assert it.door.denied[-1][1] == f"tcp://{host}:{port}"
        assert server.peers == 0
        assert b" 200 " in await (await Client.to(it.port)).connect("db.test", server.port)

    tunnelled(body)


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT db.test:PORT HTTP/1.1\r\nHost: evil.test:PORT\r\n",
        "CONNECT db.test:PORT HTTP/1.1\r\nHost: db.test:PORT\r\nHost: db.test:PORT\r\n",
        "CONNECT u@db.test:PORT HTTP/1.1\r\n",
        "CONNECT db.test:PORT HTTP/1.1\r\nContent-Length: 5\r\n",
        "CONNECT db.test HTTP/1.1\r\n",
        "CONNECT  db.test:PORT HTTP/1.1\r\n",
        "GET /x HTTP/1.1\r\nHost: db.test\r\n",
        "GET ftp://db.test/ HTTP/1.1\r\nHost: db.test\r\n",
        "GET https://db.test/ HTTP/1.1\r\nHost: db.test\r\n",
        "nonsense\r\n",
    ],
)
def test_what_the_proxy_does_not_understand(line: str) -> None:
    async def body(it: Lab, server: Echo) -> None:
        client = await Client.to(it.port)
        await client.send(line.replace("PORT", str(server.port)).encode() + b"\r\n")
        status, _, told = await client.answer()
        assert status == 400
        assert json.loads(told)["error"]["layer"] == "schema"
        assert len(it.door.denied) == 1
        assert server.peers == 0

    tunnelled(body)


def test_the_first_flight_is_for_the_host_that_was_asked_for(tmp_path: Path) -> None:
    authorities = Authorities()
    context = authorities.client()

    async def body(it: Lab, server: Echo) -> None:
        good = await Client.to(it.port)
        await good.connect("db.test", server.port)
        await good.tls(context, "db.test")
        await good.send(b"through TLS")
        assert await good.reader.readexactly(11) == b"through TLS"
        seen = server.peers
        for name in ("other.test", None):
            context.check_hostname = False
            bad = await Client.to(it.port)
            await bad.connect("db.test", server.port)
            with pytest.raises((ConnectionError, OSError)):
                async with asyncio.timeout(60):
                    await bad.writer.start_tls(context, server_hostname=name or "")
            count = 1 if name else 2
            await it.until(lambda count=count: len(it.door.denied) >= count)
            assert "TLS hello names" in it.door.denied[-1][2]
        await it.until(lambda: sum(1 for f in it.door.flows if f.outcome) >= 2)
        for flow in it.door.flows[1:]:
            assert flow.moved("out") == b"", "nothing of it went out"
        assert seen >= 1

    tunnelled(body, tls=server_tls(authorities, tmp_path, "db.test"))


def test_plain_http_in_a_tunnel_names_the_same_host() -> None:
    async def body(it: Lab, server: Echo) -> None:
        for host, fine in ((f"db.test:{server.port}", True), ("inner.test", False)):
            client = await Client.to(it.port)
            await client.connect("db.test", server.port)
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            await client.send(request)
            if fine:
                assert await client.reader.readexactly(len(request)) == request
            else:
                assert await client.rest() in (b"", b"(reset)")
        await it.until(lambda: bool(it.door.denied))
        assert "Host is another host" in it.door.denied[-1][2]

    tunnelled(body)


def test_an_absolute_url_goes_into_a_tunnel_made_relative() -> None:
    async def body(it: Lab, server: Echo) -> None:
        client = await Client.to(it.port)
        await client.send(
            f"GET http://db.test:{server.port}/a?b HTTP/1.1\r\nHost: db.test:{server.port}\r\n"
            "Proxy-Connection: keep-alive\r\nX-A: b\r\n\r\n".encode()
        )
        head = await client.head()
        assert head.startswith(b"GET /a?b HTTP/1.1\r\n")
        assert b"X-A: b\r\n" in head
        assert b"Proxy" not in head
        assert b"Connection: close" in head

    tunnelled(body)


def test_a_budget_ends_a_tunnel_and_bounds_what_went_through() -> None:
    async def body(it: Lab, server: Echo) -> None:
        it.door.left = 500_000
        client = await Client.to(it.port)
        await client.connect("db.test", server.port)

        async def flood() -> None:
            for _ in range(2000):
                await client.send(b"\0" * 65536)
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await flood()
        await it.settled()
        assert len(server.got) <= 500_000
        assert it.door.denied[-1][0] == "E_BUDGET_EXCEEDED"
        assert it.door.flows[0].outcome is not None
        assert it.door.flows[0].outcome[0] == "failed"

    tunnelled(body)


def test_a_stopped_flow_is_cut_whatever_the_worker_does() -> None:
    async def body(it: Lab, server: Echo) -> None:
        client = await Client.to(it.port)
        await client.connect("db.test", server.port)
        await client.send(b"\0x")
        await client.reader.readexactly(2)
        it.door.flows[0].stop()
        assert await client.rest() in (b"", b"(reset)")
        await it.settled()

    tunnelled(body)


def test_nobody_listens_and_an_address_that_is_not_private() -> None:
    async def body(it: Lab, server: Echo) -> None:
        async with served(b"") as gone:
            pass
        it.door.policy = policy(
            f'[network]\nallow = ["db.test:{gone.port}", "in.test:{server.port}"]\n'
            f'private = ["db.test:{gone.port}"]\n'
        )
        client = await Client.to(it.port)
        await client.send(f"CONNECT db.test:{gone.port} HTTP/1.1\r\n\r\n".encode())
        # HTTP/1.1 wants a Host, which old tunnelling clients leave out with CONNECT: it is no matter.
        status, _, told = await client.answer()
        assert (status, json.loads(told)["error"]["code"]) == (502, "E_EFFECT_FAILED")
        client = await Client.to(it.port)
        await client.send(f"CONNECT in.test:{server.port} HTTP/1.1\r\n\r\n".encode())
        status, _, told = await client.answer()
        assert (status, json.loads(told)["error"]["code"]) == (403, "E_POLICY_DENY")
        assert it.door.flows[-1].outcome is not None
        assert it.door.flows[-1].outcome[0] == "aborted"
        assert server.peers == 0

    tunnelled(body)
