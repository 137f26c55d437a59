"""Opaque bytes, both ways, each piece committed before it goes on.

Rules
- A piece is what was there when the last one had been passed on, at most a read's worth: what waits
  while a commit is under way goes together into the next.
- A side that has ended is told to the other as a half-close; when both have, the flow is done. A side
  that breaks, or a commit that is refused, ends both.
- What a program sends first is looked at before any of it goes out: a TLS server name, and the Host of
  plain HTTP, must be the host that was asked for. A server that speaks first is passed on meanwhile.
- TLS to a name must say the name. A tunnel to an address needs none.
"""

from __future__ import annotations

import asyncio
import re

from authority.worker import heads, hello
from authority.worker.asks import FAILED, Gate, Refusal, Target
from authority.worker.lines import Line

MAX_LOOK = 8 * 1024
_MAYBE_HTTP = re.compile(rb"[A-Z][A-Z0-9_-]{0,15}(?: |\Z)")
_HTTP_LINE = re.compile(rb"[^\r\n]* HTTP/[0-9]")


async def relay(gate: Gate, flow: int, client: Line, server: Line, *, look: Target | None) -> None:
    """Relay until both sides have ended, and finish the flow. `look`: check the first flight."""
    moved = {"in": 0, "out": 0}

    async def carry(way: str, source: Line, sink: Line) -> None:
        while data := await source.read():
            moved[way] += len(data)
            await sink.write(await gate.commit(flow, way, data))
        if way == "in" and (rest := await gate.commit(flow, way, b"", last=True)):
            await sink.write(rest)
        await sink.finish()

    async def outward() -> None:
        if look is not None:
            await first_flight(client, look)
        await carry("out", client, server)

    status, sentence = "done", ""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(carry("in", server, client))
            group.create_task(outward())
    except* heads.Bad as bad:
        sentence = _first(bad).args[0]
        status = "denied"
    except* Refusal as no:
        status, sentence = "refused", _first(no).args[0]
    except* OSError:
        status, sentence = "failed", "The connection broke."
    finally:
        client.close()
        server.close()
    await gate.finish(flow, status, sentence, bytes_in=moved["in"], bytes_out=moved["out"])


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def first_flight(client: Line, target: Target) -> None:
    """Look at what the client sends first and put it back. Raises `Bad` where it names another host."""
    data = await client.read()
    if data and hello.is_tls(data[0]):
        data = await tls_flight(client, data, target.host)
    elif _MAYBE_HTTP.match(data):
        data = await _http_flight(client, data, target)
    client.unread(data)


async def tls_flight(client: Line, data: bytes, host: str) -> bytes:
    """Everything up to the end of a TLS hello for `host`, at least. Raises `Bad`."""
    while (name := hello.server_name(data)) is None:
        more = await client.read()
        if not more:
            raise heads.Bad("The TLS hello breaks off.")
        data += more
    if not name and not is_address(host):
        raise heads.Bad("The TLS hello names no server.")
    if name and name != host:
        raise heads.Bad("The TLS hello names another server than the one asked for.")
    return data


async def _http_flight(client: Line, data: bytes, target: Target) -> bytes:
    while b"\n" not in data and len(data) < MAX_LOOK and _MAYBE_HTTP.match(data):
        more = await client.read()
        if not more:
            return data
        data += more
    if not _HTTP_LINE.match(data):
        return data
    head = heads.Head()
    found = head.feed(data)
    while found is None:
        more = await client.read()
        if not more:
            raise heads.Bad("The request breaks off.")
        data += more
        found = head.feed(more)
    check_host(heads.request(found[0]), "http", target.host, target.port)
    return data


def is_address(host: str) -> bool:
    """Whether a canonical host is an address and not a name."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def check_host(request: heads.Request, scheme: str, host: str, port: int) -> None:
    """Host must stand once and be the host and port that the connection is for. Raises `Bad`."""
    found = heads.values(request.fields, "host")
    if len(found) > 1 or (not found and request.minor):
        raise heads.Bad("Host does not stand exactly once.")
    if found and not names(found[0], scheme, host, port):
        raise heads.Bad("Host is another host than the one that the connection is for.")


def names(authority: str, scheme: str, host: str, port: int) -> bool:
    """Whether `authority` is that host and port, the scheme's own port understood."""
    shown = f"[{host}]" if ":" in host else host
    text = authority.lower()
    default = {"http": 80, "https": 443}[scheme]
    return text == f"{shown}:{port}" or (port == default and text == shown)


def failed(sentence: str) -> Refusal:
    """What the program is told when something admitted did not work."""
    return Refusal(FAILED, sentence, None)
