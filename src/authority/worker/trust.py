"""TLS on both sides: what programs see, and how servers are verified.

Rules
- Towards a server: TLS 1.2 or later, the certificate checked against the gate's anchors and the host's
  name, HTTP/1.1 by ALPN. No session keys are written anywhere, whatever the environment says.
- Towards the program: a leaf certificate of the run's own authority for exactly the host asked for.
  HTTP/2 is not offered, so clients that would rather have it come down to HTTP/1.1.
- Contexts are kept for the process; a leaf's key lies in a file for the moment of its loading.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from authority.worker.asks import Gate

MAX_KEPT = 256
PROTOCOL = "http/1.1"

_clients: list[ssl.SSLContext] = []
_servers: OrderedDict[str, ssl.SSLContext] = OrderedDict()


async def towards_server(anchors_of: Callable[[], Awaitable[bytes]]) -> ssl.SSLContext:
    """The context for connections to servers. `anchors_of` gives the gate's anchors, once."""
    if not _clients:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([PROTOCOL])
        if anchors := await anchors_of():
            context.load_verify_locations(cadata=anchors.decode("ascii"))
        _clients[:] = [context]
    return _clients[0]


async def towards_program(gate: Gate, host: str) -> ssl.SSLContext:
    """The context in which TLS of a connection to `host` ends. Raises `Refusal`."""
    context = _servers.get(host)
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([PROTOCOL])
        _load(context, await gate.leaf(host))
        _servers[host] = context
        if len(_servers) > MAX_KEPT:
            _servers.popitem(last=False)
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    fd, path = tempfile.mkstemp()
    try:
        os.write(fd, pem)
        context.load_cert_chain(path)
    finally:
        os.close(fd)
        os.unlink(path)


def why(error: Exception) -> str:
    """A failed handshake with a server, in our words and OpenSSL's name for the reason."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = "".join(c for c in str(error.verify_message)[:120] if c.isprintable())
        return f"The server's certificate was not accepted: {text.rstrip('.')}."
    if isinstance(error, ssl.SSLError):
        return "The server does not speak TLS as it should."
    return "The connection broke."
