"""Heads of HTTP/1.1 messages: one strict reading, and nothing that two readers could read differently.

Rules (RFC 9110, RFC 9112, each choice on the strict side)
- A line ends with CR LF. A lone CR or LF, NUL and other control characters refuse the message.
- A head has at most `MAX_HEAD` bytes and `MAX_FIELDS` fields. Folded lines, a blank before the colon,
  and names that are no tokens are refused.
- The request line is METHOD SP TARGET SP VERSION with single blanks; a method is an upper-case token;
  the version is HTTP/1.1 or HTTP/1.0.
- Content-Length stands once and is digits alone; Transfer-Encoding stands once and is `chunked`; both
  together are refused, and so is either in a spelling that some gateway folds (`Content_Length`).
- Whatever the split of the bytes, the result is the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 64 * 1024
MAX_FIELDS = 128
MAX_LENGTH = 2**53 - 1

Fields = list[tuple[str, str]]

_END = re.compile(rb"\r\n\r\n|(?<!\r)\n|\r[^\n]|\0")
_REQUEST = re.compile(rb"([A-Z][A-Z0-9_-]{0,15}) ([\x21-\x7e]+) HTTP/1\.([01])\Z")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\Z")
_FIELD = re.compile(
    rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*\Z"
)
_DIGITS = re.compile(r"[0-9]{1,16}\Z")
_FRAMING = frozenset(["content-length", "transfer-encoding", "host"])

HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "alt-used",
        "alt-svc",
    ]
)
"""Fields that end at this connection, and those that would lead a client past it."""


class Bad(Exception):
    """A message that is refused. The sentence is ours: no byte of the message is in it."""

    what = "malformed"

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class TooManyFields(Bad):
    """A head with more fields than `MAX_FIELDS`."""

    what = "fields"


@dataclass(frozen=True, slots=True)
class Request:
    """A request head. `minor` is that of the version; `target` is as it was written."""

    method: str
    target: str
    minor: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class Response:
    """A response head."""

    status: int
    reason: str
    minor: int
    fields: Fields


class Head:
    """Collects a head from pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._seen = 0

    @property
    def begun(self) -> bool:
        """Whether a first byte is there."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The head without its last line end, and what follows it; None: not all there yet.

        Raises `Bad`.
        """
        buffer = self._buffer
        buffer += data
        found = _END.search(buffer, max(0, self._seen - 3))
        self._seen = len(buffer)
        if found is None:
            if len(buffer) > MAX_HEAD:
                raise Bad(f"The head is longer than {MAX_HEAD} bytes.")
            return None
        if found.end() > MAX_HEAD:
            raise Bad(f"The head is longer than {MAX_HEAD} bytes.")
        if found[0] != b"\r\n\r\n":
            raise Bad("The head holds a line end or a NUL where none may be.")
        return bytes(buffer[: found.start()]), bytes(buffer[found.end() :])


def request(head: bytes) -> Request:
    """The request of a complete head. Raises `Bad`."""
    first, *rest = head.split(b"\r\n")
    line = _REQUEST.match(first)
    if line is None:
        raise Bad("The request line is not METHOD TARGET HTTP/1.1 with single blanks.")
    return Request(line[1].decode(), line[2].decode(), int(line[3]), _fields(rest))


def response(head: bytes) -> Response:
    """The response of a complete head. Raises `Bad`."""
    first, *rest = head.split(b"\r\n")
    line = _STATUS.match(first)
    if line is None:
        raise Bad("The status line is not that of HTTP/1.1.")
    reason = (line[3] or b"").decode("latin-1")
    return Response(int(line[2]), reason, int(line[1]), _fields(rest))


def _fields(lines: list[bytes]) -> Fields:
    if len(lines) > MAX_FIELDS:
        raise TooManyFields(f"The head has more than {MAX_FIELDS} fields.")
    fields: Fields = []
    for line in lines:
        found = _FIELD.match(line)
        if found is None:
            raise Bad("A field is folded, has a blank before its colon, or holds what none may.")
        name = found[1].decode()
        if "_" in name and name.lower().replace("_", "-") in _FRAMING:
            raise Bad("A field's name is one that gateways fold into another.")
        fields.append((name, found[2].decode("latin-1")))
    return fields


def values(fields: Fields, name: str) -> list[str]:
    """The values of all fields of that (lower-case) name, in order."""
    return [value for key, value in fields if key.lower() == name]


def tokens(fields: Fields, name: str) -> list[str]:
    """The members of a list field, lower case."""
    return [
        part.strip(" \t").lower()
        for value in values(fields, name)
        for part in value.split(",")
        if part.strip(" \t")
    ]


def length(message: Request | Response) -> int | None:
    """What frames the body: a number of bytes, -1 for chunked, None for no such field.

    Raises `Bad` for everything that two readers could understand differently.
    """
    lengths = values(message.fields, "content-length")
    codings = values(message.fields, "transfer-encoding")
    if codings:
        if lengths:
            raise Bad("Content-Length and Transfer-Encoding stand together.")
        if len(codings) != 1 or codings[0].lower() != "chunked":
            raise Bad("The transfer coding is not chunked alone.")
        if not message.minor:
            raise Bad("HTTP/1.0 knows no transfer coding.")
        return -1
    if not lengths:
        return None
    if len(lengths) != 1 or not _DIGITS.match(lengths[0]) or int(lengths[0]) > MAX_LENGTH:
        raise Bad("Content-Length is not one plain number.")
    return int(lengths[0])


def end_to_end(fields: Fields) -> Fields:
    """The fields that go on to the other side. Raises `Bad` where Connection names a framing field.

    Framing, Host and what names a hop are left out: whoever sends the message writes them anew.
    """
    named = set(tokens(fields, "connection"))
    if named & _FRAMING:
        raise Bad("Connection names a field that frames the message.")
    gone = HOP_BY_HOP | _FRAMING | named
    return [
        (name, value)
        for name, value in fields
        if name.lower() not in gone and not name.lower().startswith("proxy-")
    ]


def render(first: str, fields: Fields) -> bytes:
    """A head as it is sent."""
    lines = [first, *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1")
