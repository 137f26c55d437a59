"""SOCKS5 (RFC 1928): CONNECT without authentication, names kept as names.

Rules
- The greeting must offer "no authentication". Only CONNECT exists; BIND and UDP get reply 7.
- A name goes to the gate as it came and is resolved there (SOCKS5h). A client that sends an address
  has resolved it elsewhere; the address is judged as an address.
- Both messages have fixed forms; a byte too many before an answer is an error, because no client may
  send on before it got one.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from authority.worker.heads import Bad

VERSION = 5
NO_AUTHENTICATION = b"\x05\x00"
NO_METHOD = b"\x05\xff"
GRANTED, FAILED, NOT_ALLOWED, UNREACHABLE = 0, 1, 2, 4
NO_COMMAND, NO_ADDRESS_TYPE = 7, 8


class Wanted(NamedTuple):
    """Where a client wants to go. `problem` is the reply when the request itself is refused."""

    host: str
    port: int
    problem: int = GRANTED


def greeting(data: bytes) -> bytes | None:
    """The answer to a greeting; None: not complete. Raises `Bad`."""
    if data[:1] not in (b"", b"\x05"):
        raise Bad("The greeting is not that of SOCKS5.")
    if len(data) < 2:
        return None
    end = 2 + data[1]
    if len(data) > end:
        raise Bad("The client sent on before its greeting was answered.")
    if len(data) < end:
        return None
    return NO_AUTHENTICATION if 0 in data[2:end] else NO_METHOD


def request(data: bytes) -> Wanted | None:
    """What is asked for; None: not complete. Raises `Bad`."""
    if len(data) < 5:
        if data[:1] not in (b"", b"\x05") or data[2:3] not in (b"", b"\0"):
            raise Bad("The request is not that of SOCKS5.")
        return None
    version, command, reserved, kind = data[:4]
    if version != VERSION or reserved:
        raise Bad("The request is not that of SOCKS5.")
    sizes = {1: 4, 3: 1 + data[4], 4: 16}
    if kind not in sizes:
        return Wanted("", 0, NO_ADDRESS_TYPE)
    end = 4 + sizes[kind] + 2
    if len(data) < end:
        return None
    if len(data) > end:
        raise Bad("The client sent on before its request was answered.")
    port = int.from_bytes(data[end - 2 : end], "big")
    raw = data[4 : end - 2]
    if command != 1:
        return Wanted("", 0, NO_COMMAND)
    if kind == 1:
        return Wanted(str(ipaddress.IPv4Address(raw)), port)
    if kind == 4:
        return Wanted(f"[{ipaddress.IPv6Address(raw).compressed}]", port)
    try:
        return Wanted(raw[1:].decode("ascii"), port)
    except UnicodeDecodeError:
        raise Bad("The host name in the request is not ASCII.") from None


def reply(code: int) -> bytes:
    """A reply; the bound address is nobody's business."""
    return bytes((VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0))
