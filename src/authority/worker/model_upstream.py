"""Asking a model: over the socket that the gate dialled, or the obedient model in this process.

Rules
- TLS is spoken here, to the name that the policy has, with the system's certificates; the socket leads
  to the address that the gate judged.
- Whatever happens, the socket is closed when the answer was taken.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from authority.dialects import json_text
from authority.dialects.demand import Prepared
from authority.worker import model_http as http
from authority.worker import obedient_wire
from authority.worker.model_gate import Opened


@functools.cache
def tls_context(anchors: bytes) -> ssl.SSLContext:
    """The system's certificates and the policy's own, checked against the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if anchors:
        context.load_verify_locations(cadata=anchors.decode("ascii"))
    return context


@asynccontextmanager
async def answer_of(
    opened: Opened, prepared: Prepared, headers: list[tuple[str, str]], body: bytes
) -> AsyncIterator[http.Answer]:
    """The model's answer; its pieces are read inside the block. Raises `http.Broken`."""
    grant = opened.grant
    if grant.builtin:
        yield _obedient(prepared, grant.limit)
        return
    sock = socket.socket(fileno=opened.fd)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(30):
            if grant.tls:
                reader, writer = await asyncio.open_connection(
                    sock=sock, ssl=tls_context(opened.anchors), server_hostname=grant.host
                )
            else:
                reader, writer = await asyncio.open_connection(sock=sock)
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise http.Broken("The certificate of the model's server was not accepted.") from error
    except (OSError, TimeoutError, ssl.SSLError) as error:
        sock.close()
        raise http.Broken("The model's server does not speak TLS as it should.") from error
    try:
        host = f"[{grant.host}]" if ":" in grant.host else grant.host
        if grant.port != (443 if grant.tls else 80):
            host += f":{grant.port}"
        given = [*headers, *grant.headers]
        yield await http.ask(reader, writer, host, grant.path, given, body, grant.idle)
    finally:
        writer.transport.abort()


def _obedient(prepared: Prepared, limit: int) -> http.Answer:
    stream = prepared.demand.stream

    async def pieces() -> AsyncIterator[bytes]:
        if stream:
            for event in obedient_wire.events(prepared, limit):
                yield event
        else:
            yield json_text.encode(obedient_wire.answer(prepared, limit))

    kind = "text/event-stream" if stream else "application/json"
    return http.Answer(200, [("content-type", kind)], pieces())
