"""Dialling for tunnels: the judged address and no other, or the company's proxy, which says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.dial import Dialled, dial
from authority.kernel.policy import Policy
from authority.kernel.resources import parse

from .speaker import http_effect
from .support import call, policy, run

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def resolver(*answers: Sequence[str]) -> Any:
    """Gives the answers one after the other, as a rebinding name server does."""
    left = list(answers)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def served(handler: Handler = hello, host: str = "127.0.0.1") -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def heard(dialled: Dialled) -> bytes:
    reader, writer = await asyncio.open_connection(sock=dialled.sock)
    try:
        return await reader.read(-1)
    finally:
        writer.close()


def under(port: int, more: str = "", *, private: bool = True) -> Policy:
    named = f'private = ["db.test:{port}"]\n' if private else ""
    return policy(f'[network]\nallow = ["db.test:{port}", "127.0.0.1:{port}"]\n{named}{more}')


def test_a_judged_address_is_dialled_and_told() -> None:
    async def main() -> None:
        async with served() as port:
            found = await dial(
                under(port),
                parse("net.connect", f"db.test:{port}"),
                resolver=resolver(["127.0.0.1"]),
            )
            assert found.facts == {"address": "127.0.0.1"}
            assert not found.sock.getblocking()
            assert await heard(found) == b"hello"

    run(main())


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["93.184.216.34", "127.0.0.1"],
        ["0.0.0.0"],
    ],
)
def test_a_name_that_leads_inward_is_refused(addresses: list[str]) -> None:
    async def main() -> None:
        async with served() as port:
            with pytest.raises(EffectRefused) as caught:
                await dial(
                    under(port, private=False),
                    parse("net.connect", f"db.test:{port}"),
                    resolver=resolver(addresses),
                )
            assert "127" not in caught.value.sentence
            assert caught.value.facts["address"] in addresses

    run(main())


def test_a_name_of_the_intranet_does_not_reach_a_metadata_service() -> None:
    async def main() -> None:
        with pytest.raises(EffectRefused):
            await dial(
                under(80),
                parse("net.connect", "db.test:80"),
                resolver=resolver(["169.254.169.254"]),
            )

    run(main())


def test_rebinding_between_check_and_dial_changes_nothing() -> None:
    """The name is resolved once; what it would lead to a moment later is never asked."""

    async def main() -> None:
        async with served() as port:
            found = await dial(
                under(port),
                parse("net.connect", f"db.test:{port}"),
                resolver=resolver(["127.0.0.1"], ["127.0.0.2"]),
            )
            assert found.sock.getpeername()[0] == "127.0.0.1"
            found.sock.close()

    run(main())


def test_what_does_not_answer_fails_without_addresses_in_the_sentence() -> None:
    async def main() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            for found in (["127.0.0.1"], []):
                with pytest.raises(EffectFailed) as caught:
                    await dial(
                        under(port),
                        parse("net.connect", f"db.test:{port}"),
                        resolver=resolver(found),
                    )
                assert "127.0.0.1" not in caught.value.sentence

    run(main())


def test_the_next_address_is_tried() -> None:
    async def main() -> None:
        async with served(host="127.0.0.2") as port:
            found = await dial(
                under(port),
                parse("net.connect", f"db.test:{port}"),
                resolver=resolver(["127.0.0.9", "127.0.0.2"]),
            )
            assert found.facts["address"] == "127.0.0.2"
            found.sock.close()

    run(main())


# --- through a company's proxy ---


def proxy(answer: bytes, seen: list[bytes]) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    return handle


def through(answer: bytes, target: str = "far.test:443", more: str = "") -> tuple[Any, list[bytes]]:
    seen: list[bytes] = []

    async def main() -> Any:
        async with served(proxy(answer, seen)) as port:
            rules = policy(
                f'[network]\nallow = ["far.test:443", "10.0.0.1:443", "[2001:db8::1]:443"]\n'
                f'proxy = "http://proxy.test:{port}"\n{more}'
            )
            found = await dial(
                rules, parse("net.connect", target), resolver=resolver(["127.0.0.1"])
            )
            return await heard(found), found.facts, port

    return run(main()), seen


def test_the_proxy_is_asked_by_name_and_the_facts_say_that_it_resolved() -> None:
    (data, facts, port), seen = through(
        b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nfrom afar"
    )
    assert seen == [b"CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n"]
    assert data == b"from afar", "not one byte of the tunnel was read with the head"
    assert facts == {
        "proxy": f"http://proxy.test:{port}",
        "proxy_address": "127.0.0.1",
        "resolved_by": "proxy",
    }


@pytest.mark.parametrize("tail", [b"", b"\r", b"\r\n", b"\n", b"\r\n\r\n", b"\r\r\n\r\n"])
def test_the_end_of_the_head_is_found_exactly(tail: bytes) -> None:
    (data, _, _), _ = through(b"HTTP/1.0 200\r\nA: \r\r\n\r\n" + tail)
    assert data == tail


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 403 Forbidden\r\n\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    ],
)
def test_another_answer_is_no_tunnel(answer: bytes) -> None:
    with pytest.raises(EffectFailed) as caught:
        through(answer)
    assert caught.value.facts["resolved_by"] == "proxy"
    assert "Forbidden" not in caught.value.sentence


def test_an_address_in_the_request_is_judged_all_the_same() -> None:
    with pytest.raises(EffectRefused):
        through(b"HTTP/1.1 200\r\n\r\n", "10.0.0.1:443")
    with pytest.raises(EffectRefused):
        through(b"HTTP/1.1 200\r\n\r\n", "[2001:db8::1]:443")


def test_a_private_host_is_not_the_proxys_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        async with served() as port, served(proxy(b"", seen)) as other:
            rules = under(port, f'proxy = "http://proxy.test:{other}"\n')
            found = await dial(
                rules, parse("net.connect", f"db.test:{port}"), resolver=resolver(["127.0.0.1"])
            )
            assert await heard(found) == b"hello"

    run(main())
    assert seen == []


def test_a_slow_proxy_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async def main() -> None:
        async with served(silent) as port:
            rules = policy(f'[network]\nallow = ["far.test:443"]\nproxy = "http://p.test:{port}"\n')
            with pytest.raises(EffectFailed, match="broke off"):
                await dial(
                    rules,
                    parse("net.connect", "far.test:443"),
                    resolver=resolver(["127.0.0.1"]),
                    connect_us=200_000,
                )

    run(main())


# --- the gate's own client goes the same way ---


def requested(url: str, answers: list[bytes], credential: str = "") -> tuple[Any, list[bytes]]:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    async def main() -> Any:
        async with served(handle) as port:
            rules = policy(
                f'[network]\nhttp = ["http://far.test/**", "http://10.0.0.1/**"]\n'
                f'proxy = "http://proxy.test:{port}"\n{credential}'
            )
            effect = http_effect(secrets={"hub": "a-real-secret"}, resolver=resolver(["127.0.0.1"]))
            return await effect.perform(call("http.request", url, under=rules))

    return run(main()), seen


def test_a_request_goes_through_the_proxy_as_a_tunnel() -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    done, seen = requested("http://far.test/x", [b"HTTP/1.1 200 OK\r\n\r\n", ok])
    assert done.value["body"] == b"ok"
    assert done.facts["resolved_by"] == "proxy"
    assert seen[0] == b"CONNECT far.test:80 HTTP/1.1\r\nHost: far.test:80\r\n\r\n"
    assert seen[1].startswith(b"GET /x HTTP/1.1\r\nHost: far.test\r\n")


def test_a_request_that_the_proxy_refuses_fails() -> None:
    with pytest.raises(EffectFailed, match="does not open") as caught:
        requested("http://far.test/x", [b"HTTP/1.1 403 No\r\n\r\n"])
    assert caught.value.spent["requests"] == 1
    with pytest.raises(EffectRefused):
        requested("http://10.0.0.1/x", [])


def test_no_secret_goes_through_a_proxy_in_the_clear() -> None:
    table = '[credentials.hub]\nfrom_env = "HUB"\nhosts = ["far.test:80"]\n'
    with pytest.raises(EffectRefused, match="https"):
        requested("http://far.test/x", [], table)
