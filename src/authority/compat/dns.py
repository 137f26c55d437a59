"""DNS messages, read strictly and written small (RFC 1035, RFC 6891). Pure.

Rules
- A query is one question and at most one EDNS record, nothing else, and ends where it ends. More
  questions, records in other sections, trailing bytes, reserved bits: format error.
- A name in a question is written out. A compression pointer there could only point into the header
  or at itself, so it is a format error; nothing here follows a pointer, and no loop exists.
- Labels are 1 to 63 bytes of letters, digits, `-` and `_`, names at most 255 bytes with the root.
  Every other byte (a dot or NUL inside a label, say) makes a name that no host has: the message is
  well-formed, the name is None, and the answer is a refusal.
- An answer repeats the question byte for byte, so that a resolver which plays with the case of
  letters recognises it, and is never longer than 1,024 bytes: it needs no truncation.
- What can't be answered at all (shorter than a header, itself an answer) gives nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

A: Final = 1
PTR: Final = 12
OPT: Final = 41
ANY: Final = 255
IN: Final = 1

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
_BADVERS: Final = 16

MAX_QUERY: Final = 4096
_UDP_SIZE: Final = 1232
_HEADER: Final = struct.Struct(">HHHHHH")
_TAIL: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHIH")
_LABEL: Final = re.compile(rb"[A-Za-z0-9_-]{1,63}\Z")
_QR, _AA, _TC, _RD, _RA, _Z = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0040
_OPCODE: Final = 0x7800


class Query(NamedTuple):
    """One question. `name` is lower case without the last dot, `""` for the root, None for bytes
    that no host name has; `question` its bytes as they came; `edns` whether the asker speaks it."""

    id: int
    recursion: bool
    name: str | None
    type: int
    question: bytes
    edns: bool = False


class Malformed(Exception):
    """A message that is no query. `answer` is what to send back, or nothing."""

    def __init__(self, reason: str, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


def parse(message: bytes) -> Query:
    """The one question of a message. Raises `Malformed`."""
    if len(message) < _HEADER.size:
        raise Malformed("shorter than a header")
    number, flags, questions, answers, authorities, extra = _HEADER.unpack_from(message)
    if flags & _QR:
        raise Malformed("an answer, not a question")
    if flags & _OPCODE:
        raise Malformed("not a standard query", _bare(number, flags, NOTIMP))
    try:
        if flags & (_AA | _TC | _RA | _Z) or len(message) > MAX_QUERY:
            raise _Wrong("bits or length that no query has")
        if (questions, answers, authorities) != (1, 0, 0) or extra > 1:
            raise _Wrong("not exactly one question")
        name, at = _name(message, _HEADER.size)
        end = at + _TAIL.size
        if len(message) < end:
            raise _Wrong("cut inside the question")
        kind, family = _TAIL.unpack_from(message, at)
        version = _edns(message, end) if extra else -1
        if not extra and len(message) != end:
            raise _Wrong("bytes behind the question")
    except _Wrong as wrong:
        raise Malformed(str(wrong), _bare(number, flags, FORMERR)) from None
    query = Query(number, bool(flags & _RD), name, kind, message[_HEADER.size : end], bool(extra))
    if version > 0:
        raise Malformed("another version of EDNS", _message(query, 0, b"", extended=_BADVERS >> 4))
    if family != IN:
        raise Malformed("another class than IN", _message(query, REFUSED, b""))
    return query


def answer(query: Query, addresses: Sequence[bytes] = (), *, ttl: int = 0) -> bytes:
    """Addresses (4 bytes each) for a question of type A; none is an empty answer."""
    records = b"".join(b"\xc0\x0c" + _RECORD.pack(A, IN, ttl, 4) + each for each in addresses)
    return _message(query, NOERROR, records, len(addresses))


def pointer(query: Query, host: str, *, ttl: int = 0) -> bytes:
    """The name that an address has."""
    data = b"".join(bytes((len(label),)) + label.encode("ascii") for label in host.split("."))
    data += b"\0"
    return _message(query, NOERROR, b"\xc0\x0c" + _RECORD.pack(PTR, IN, ttl, len(data)) + data, 1)


def failure(query: Query, code: int) -> bytes:
    """An answer that says no."""
    return _message(query, code, b"")


class _Wrong(Exception):
    """Not in the form of a query."""


def _message(
    query: Query, code: int, records: bytes, count: int = 0, *, extended: int = 0
) -> bytes:
    flags = _QR | _RA | (_RD if query.recursion else 0) | code
    head = _HEADER.pack(query.id, flags, 1, count, 0, 1 if query.edns else 0)
    edns = b"\0" + _RECORD.pack(OPT, _UDP_SIZE, extended << 24, 0) if query.edns else b""
    return head + query.question + records + edns


def _bare(number: int, flags: int, code: int) -> bytes:
    return _HEADER.pack(number, _QR | _RA | (flags & (_RD | _OPCODE)) | code, 0, 0, 0, 0)


def _name(message: bytes, at: int) -> tuple[str | None, int]:
    """The name that begins at `at`, and where it ends."""
    start, labels, usual = at, [], True
    while True:
        if at >= len(message):
            raise _Wrong("cut inside a name")
        size = message[at]
        at += 1
        if size == 0:
            break
        if size > 63:
            raise _Wrong("a compressed or unknown label in a question")
        label = message[at : at + size]
        at += size
        if len(label) < size or at - start > 254:
            raise _Wrong("cut inside a label, or a name that is too long")
        usual = usual and bool(_LABEL.match(label))
        labels.append(label)
    return (b".".join(labels).decode("ascii").lower() if usual else None), at


def _edns(message: bytes, at: int) -> int:
    """The version of the one EDNS record that ends the message."""
    end = at + 1 + _RECORD.size
    if len(message) < end or message[at] != 0:
        raise _Wrong("not an EDNS record")
    kind, _size, flags, length = _RECORD.unpack_from(message, at + 1)
    if kind != OPT or len(message) != end + length:
        raise _Wrong("not one EDNS record at the end")
    while end < len(message):
        if len(message) - end < 4:
            raise _Wrong("cut inside an option")
        end += 4 + int.from_bytes(message[end + 2 : end + 4], "big")
    if end != len(message):
        raise _Wrong("cut inside an option")
    return int(flags) >> 16 & 0xFF
