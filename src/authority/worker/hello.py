"""The first flight of a TLS client: which server name it asks for, read strictly.

Rules
- Handshake records hold one complete ClientHello and begin the stream; its lengths agree to the byte.
- An extension stands once. The server name list holds one host name, in plain ASCII.
- A hello with an encrypted inner hello (ECH, outer form included) is refused: the name that counts
  would be hidden. Clients that only grease it (RFC 9849) send the same extension, so they are told to
  switch it off.
- `fed` wants at most `MAX_HELLO` bytes. Whatever the split, the result is the same.

Source: RFC 8446, RFC 6066.
"""

from __future__ import annotations

from authority.worker.heads import Bad

MAX_HELLO = 64 * 1024
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_ENCRYPTED_HELLO = 0xFE0D


def is_tls(first: int) -> bool:
    """Whether a stream that begins with this byte is a TLS client's."""
    return first == _HANDSHAKE


def server_name(data: bytes) -> str | None:
    """The name asked for, empty where none is; None: the hello is not complete yet. Raises `Bad`."""
    message = bytearray()
    at = 0
    while len(data) - at >= 5:
        if data[at] != _HANDSHAKE or data[at + 1] != 3 or data[at + 2] > 4:
            raise Bad("The first flight is not that of a TLS client.")
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 1 <= size <= 16384:
            raise Bad("A record of the first flight has no possible length.")
        piece = data[at + 5 : at + 5 + size]
        message += piece
        if message and message[0] != _CLIENT_HELLO:
            raise Bad("The first flight is not that of a TLS client.")
        if len(message) >= 4:
            whole = 4 + int.from_bytes(message[1:4], "big")
            if whole > MAX_HELLO:
                raise Bad(f"The first flight is longer than {MAX_HELLO} bytes.")
            if len(message) >= whole:
                return _name(_Reader(bytes(message[4:whole])))
        if len(piece) < size:
            return None
        at += 5 + size
    if at < len(data) and data[at] != _HANDSHAKE:
        raise Bad("The first flight is not that of a TLS client.")
    if len(data) > 2 * MAX_HELLO:
        raise Bad(f"The first flight is longer than {MAX_HELLO} bytes.")
    return None


class _Reader:
    """Reads fields of a byte string; every length must fit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise Bad("A length in the TLS hello does not fit.")
        self._at += count
        return piece

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> _Reader:
        return _Reader(self.take(self.number(width)))

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        if self.left:
            raise Bad("A length in the TLS hello does not fit.")


def _name(hello: _Reader) -> str:
    hello.take(2 + 32)
    hello.vector(1)
    hello.vector(2)
    hello.vector(1)
    if not hello.left:
        return ""
    extensions = hello.vector(2)
    hello.end()
    seen: set[int] = set()
    name = ""
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in seen:
            raise Bad("An extension of the TLS hello stands twice.")
        seen.add(kind)
        if kind == _ENCRYPTED_HELLO:
            raise Bad("The TLS hello hides its server name (ECH); switch that off in the client.")
        if kind == _SERVER_NAME:
            name = _host_name(content)
    return name


def _host_name(content: _Reader) -> str:
    names = content.vector(2)
    content.end()
    if names.number(1) != 0:
        raise Bad("The server name of the TLS hello is not a host name.")
    raw = names.take(names.number(2))
    names.end()
    if not raw or len(raw) > 255 or not all(0x21 <= byte < 0x7F for byte in raw):
        raise Bad("The server name of the TLS hello is not plain ASCII.")
    return raw.decode("ascii").lower()
