"""Hostile servers and hostile requests: sizes, framing, time, addresses, smuggling."""

from __future__ import annotations

import asyncio
import gzip
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from authority.effects import dial
from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.http_dial import judged_addresses
from authority.effects.http_exchange import HEAD_LIMIT
from authority.kernel import canonical
from authority.kernel.codes import Code
from authority.kernel.requests import HTTP_OVERHEAD

from .speaker import http_effect
from .support import call, policy, run, served
from .test_http import OK, ask, exchange, local, resolver

FOREVER = b"x" * 65536


def failure(answer: Any, **options: Any) -> EffectFailed:
    with pytest.raises(EffectFailed) as failed:
        exchange(answer, **options)
    canonical.encode(failed.value.facts)
    facts = failed.value.facts
    assert failed.value.spent["network_bytes"] == facts["bytes_in"] + facts["bytes_out"]
    return failed.value


async def endless(writer: asyncio.StreamWriter, start: bytes, part: bytes) -> None:
    writer.write(start)
    while True:
        writer.write(part)
        await writer.drain()


# --- sizes ---


def test_a_body_is_exactly_bounded() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    assert len(exchange(answer, max_bytes=1000)[0].value["body"]) == 1000
    assert "longer than max_bytes" in failure(answer, max_bytes=999).sentence


def test_a_body_that_is_announced_too_long_is_not_read() -> None:
    async def answer(_reader: Any, writer: asyncio.StreamWriter) -> None:
        await endless(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", FOREVER)

    failed = failure(answer)
    assert "longer than max_bytes" in failed.sentence
    assert failed.facts["bytes_in"] <= HEAD_LIMIT


@pytest.mark.parametrize("head", [b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_without_end(head: bytes) -> None:
    part = FOREVER if head == b"\r\n" else b"10000\r\n" + FOREVER + b"\r\n"

    async def answer(_reader: Any, writer: asyncio.StreamWriter) -> None:
        await endless(writer, b"HTTP/1.1 200 OK\r\n" + head, part)

    failed = failure(answer, max_bytes=200_000)
    assert "longer than max_bytes" in failed.sentence
    assert failed.facts["bytes_in"] <= 200_000 + HTTP_OVERHEAD


def test_framing_that_costs_more_than_its_content() -> None:
    """One byte a chunk: six on the wire. What counts is what was reserved."""

    async def answer(_reader: Any, writer: asyncio.StreamWriter) -> None:
        start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await endless(writer, start, b"1\r\nx\r\n" * 5000)

    reserved = {"network_bytes": 100_000}
    failed = failure(answer, max_bytes=100_000 - HTTP_OVERHEAD, reserved=reserved)
    assert "more than was reserved" in failed.sentence
    assert failed.spent["network_bytes"] <= 100_000


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nX-A: ", FOREVER),
        (b"HTTP/1.1 ", FOREVER),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100),
    ],
)
def test_headers_without_end(start: bytes, part: bytes) -> None:
    async def answer(_reader: Any, writer: asyncio.StreamWriter) -> None:
        await endless(writer, start, part)

    failed = failure(answer)
    assert failed.sentence in (
        "The server's headers have no end.",
        "The server did not answer with HTTP/1.1.",
    )
    assert failed.facts["bytes_in"] <= HEAD_LIMIT


def test_too_many_headers() -> None:
    head = b"".join(b"X-%d: y\r\n" % n for n in range(200))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + head + b"\r\n"
    assert "more than 128 headers" in failure(answer).sentence


def test_a_compressed_bomb_stays_as_it_came() -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    done, _ = exchange(answer + bomb, max_bytes=100_000)
    assert done.value["body"] == bomb


# --- framing ---


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9" + b"9" * 5000 + b"\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw",
    ],
)
def test_what_is_not_http(answer: bytes) -> None:
    assert failure(answer).sentence


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_a_body_that_is_cut(answer: bytes) -> None:
    assert failure(answer).sentence == "The server broke off its answer or framed it wrongly."


def test_what_follows_an_answer_is_nobodys() -> None:
    """A second answer that a server sends ahead must not become that of the next request."""

    async def main() -> None:
        ahead = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned"
        async with served(OK + ahead) as server:
            for _ in range(2):
                assert (await ask(server)).value["body"] == b"hello"

    run(main())


# --- time ---


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhel"])
def test_a_server_that_drips(start: bytes) -> None:
    async def answer(_reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    with pytest.raises(EffectFailed, match="took longer"):
        exchange(answer, options={"timeout_us": 400_000})


def test_a_resolver_that_hangs() -> None:
    async def hang(_host: str, _port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    async def main() -> None:
        async with served(OK) as server:
            await ask(server, options={"resolver": hang, "timeout_us": 200_000})

    with pytest.raises(EffectFailed, match="took longer"):
        run(main())


def test_a_cancelled_request_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, _writer: Any) -> None:
            await reader.read()
            closed.set()

        async with served(answer) as server:
            task = asyncio.create_task(ask(server))
            while not server.seen:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await asyncio.wait_for(closed.wait(), 60)

    run(main())


# --- addresses ---

FORBIDDEN = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::a00:1",
    "not an address",
]


def refused_address(server: Any, under: Any, *addresses: str) -> EffectRefused:
    async def main() -> None:
        effect = http_effect(secrets={}, resolver=resolver(*addresses), timeout_us=2_000_000)
        url = f"http://api.test:{server}/"
        await effect.perform(call("http.request", url, under=under))

    with pytest.raises(EffectRefused) as refused:
        run(main())
    assert refused.value.code == Code.POLICY_DENY
    canonical.encode(refused.value.facts)
    assert "127" not in refused.value.sentence
    return refused.value


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_name_that_leads_inside(address: str) -> None:
    refused = refused_address(80, policy(), address)
    assert refused.facts["address"] == address
    # One bad address among good ones refuses too: 192.0.2.1 is never dialled here.
    refused_address(80, policy(), "8.8.8.8", address)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1"])
def test_an_address_that_is_written_out(host: str) -> None:
    async def main(under: Any) -> list[str]:
        one = call("http.request", f"http://{host}:9/", under=under)
        return await judged_addresses(resolver(), one.policy, one.resource)

    with pytest.raises(EffectRefused):
        run(main(policy()))
    with pytest.raises(EffectRefused):
        run(main(policy('[network]\nprivate = ["' + host + ':10"]\n')))
    # Control: named, so it would be dialled.
    assert run(main(policy(f'[network]\nprivate = ["{host}:9"]\n'))) == [host.strip("[]")]


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:10.0.0.1", "224.0.0.1"])
def test_a_name_that_may_be_private_may_not_be_the_metadata_service(address: str) -> None:
    refused_address(80, policy('[network]\nprivate = ["api.test"]\n'), address)


def test_private_counts_for_its_port_only() -> None:
    async def main() -> None:
        async with served(OK) as server:
            assert (await ask(server)).value["status"] == 200
            other = policy(f'[network]\nprivate = ["api.test:{server.port + 1}"]\n')
            effect = http_effect(secrets={}, resolver=resolver("127.0.0.1"))
            with pytest.raises(EffectRefused):
                await effect.perform(
                    call("http.request", f"http://api.test:{server.port}/", under=other)
                )
            assert server.peers == 1

    run(main())


def test_rebinding_the_judged_address_is_the_dialled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that answers differently each time: public first, then loopback.

    It is asked once, and the public address is what gets dialled: the local server that the second
    answer names sees no connection. Only the last step, into the internet, is cut off here.
    """
    asked: list[int] = []
    dialled: list[str] = []
    connect = dial._connected

    async def watched(address: str, port: int, connect_us: int) -> Any:
        dialled.append(address)
        return None if address != "127.0.0.1" else await connect(address, port, connect_us)

    monkeypatch.setattr(dial, "_connected", watched)

    async def rebinding(_host: str, _port: int) -> list[str]:
        asked.append(1)
        return ["8.8.8.8" if len(asked) == 1 else "127.0.0.1"]

    async def main() -> None:
        async with served(OK) as server:
            effect = http_effect(secrets={}, resolver=rebinding)
            url = f"http://api.test:{server.port}/"
            with pytest.raises(EffectFailed, match="could not be reached") as failed:
                await effect.perform(call("http.request", url, under=policy()))
            assert failed.value.facts["address"] == "8.8.8.8"
            assert (asked, dialled) == ([1], ["8.8.8.8"])
            with pytest.raises(EffectRefused) as refused:
                await effect.perform(call("http.request", url, under=policy()))
            assert refused.value.facts["address"] == "127.0.0.1"
            assert (dialled, server.peers) == (["8.8.8.8"], 0)
            # Control: where the policy names it, the very same answer is dialled.
            done = await effect.perform(call("http.request", url, under=local(server)))
            assert (done.value["status"], dialled[1:]) == (200, ["127.0.0.1"])

    run(main())


@pytest.mark.parametrize("peer", ["127.0.0.2", "8.8.8.8"])
def test_another_peer_than_the_dialled_one(monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    """Something between (a NAT rule, a library that resolves again) leads elsewhere."""

    class Lying(socket.socket):
        def getpeername(self) -> Any:
            return (peer, super().getpeername()[1])

    with monkeypatch.context() as patch:
        patch.setattr(dial, "socket", SimpleNamespace(**{**vars(socket), "socket": Lying}))
        with pytest.raises(EffectFailed, match="could not be reached"):
            exchange(OK)
    assert exchange(OK)[0].value["status"] == 200


def test_a_redirect_inside_is_a_new_request_and_is_judged() -> None:
    async def main() -> None:
        async with served(OK) as inner, served(b"") as outer:
            location = f"http://127.0.0.1:{inner.port}/"
            outer.answer = (
                f"HTTP/1.1 307 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            done = await ask(outer)
            assert done.value["status"] == 307
            effect = http_effect(secrets={})
            with pytest.raises(EffectRefused):
                await effect.perform(call("http.request", location, under=local(outer)))
            assert inner.peers == 0

    run(main())


# --- smuggling ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "internal"),
        ("hOsT", "internal"),
        ("Content-Length", "0"),
        ("Content_Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("transfer_encoding", "chunked"),
        ("Connection", "keep-alive, X-Auth"),
        ("Keep-Alive", "1"),
        ("Upgrade", "websocket"),
        ("Expect", "100-continue"),
        ("TE", "trailers"),
        ("Trailer", "X"),
        ("HTTP2-Settings", "AA"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Connection", "keep-alive"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("X_HTTP_Method", "DELETE"),
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
        ("X-Forwarded-Host", "internal"),
        ("", "x"),
        ("X Y", "x"),
        ("X:", "x"),
        ("X\r\nHost", "x"),
        ("X\0", "x"),
        ("Ä", "x"),
        ("X", "a\r\nHost: internal"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0b"),
        ("X", "a\x7fb"),
        ("X", "a\x0bb"),
        ("X", " chunked"),
        ("X", "a "),
        ("X", "\u010d\u010a"),
        ("X", "é"),
        ("X", "a" * 20_000),
    ],
)
def test_headers_that_are_not_the_runs_to_write(name: str, value: str) -> None:
    with pytest.raises(EffectRefused) as refused:
        exchange(OK, headers=[(name, value)])
    assert refused.value.code == Code.SCHEMA_INVALID
    assert refused.value.sentence.isprintable()


def test_control_ordinary_headers_pass() -> None:
    headers = [("Accept", "*/*"), ("X-Empty", ""), ("X-Tab", "a\tb"), ("If-None-Match", '"x, y"')]
    _, server = exchange(OK, headers=headers)
    for name, value in headers:
        assert f"\r\n{name}: {value}\r\n".encode() in server.seen[0]


def test_too_many_request_headers() -> None:
    assert exchange(OK, headers=[("X", "y")] * 64)[0].value["status"] == 200
    with pytest.raises(EffectRefused):
        exchange(OK, headers=[("X", "y")] * 65)


def test_a_compressed_answer_is_not_asked_for() -> None:
    _, server = exchange(OK, headers=[("Accept-Encoding", "gzip, br")])
    assert server.seen[0].count(b"ccept-") == 1
    assert b"Accept-Encoding: identity\r\n" in server.seen[0]
