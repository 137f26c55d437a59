r"""What the worker may say about connections of the proxy: one strict form a call.

Rules
- A parameter that is unknown, missing, of another type or out of bounds is no call of ours: the
  worker broke the rules, and is ended.
- The worker speaks for itself alone: nothing here is taken for a fact about a server or a program,
  except what is only told to people (`finish`'s numbers and sentence).
- Patterns end with `\Z`: `$` would let a line end through.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

PIECE = 64 * 1024
HEADERS = 128

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Host = Annotated[str, msgspec.Meta(max_length=1024)]
Piece = Annotated[bytes, msgspec.Meta(max_length=PIECE)]
_Text = Annotated[str, msgspec.Meta(max_length=2048)]
_Name = Annotated[
    str, msgspec.Meta(min_length=1, max_length=128, pattern=r"\A[!#-'*+.0-9A-Z^-z|~-]+\Z")
]
_Value = Annotated[str, msgspec.Meta(max_length=64 * 1024, pattern=r"\A[\t\x20-\x7e\x80-\xff]*\Z")]
Headers = Annotated[list[tuple[_Name, _Value]], msgspec.Meta(max_length=HEADERS)]


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all calls have: the connection that they are about."""

    conn: Number


class Target(_Call, frozen=True):
    """Where does a connection to host and port lead?"""

    host: _Host
    port: _Port
    via: Annotated[str, msgspec.Meta(pattern=r"\A(connect|socks|http|direct)\Z")]


class Open(_Call, frozen=True):
    """May this request go out? `held` names the server's connection that is kept, or nothing."""

    method: Annotated[str, msgspec.Meta(pattern=r"\A[A-Z][A-Z0-9_-]{0,15}\Z")]
    url: Annotated[str, msgspec.Meta(max_length=64 * 1024)]
    headers: Headers
    upgrade: bool
    held: _Text


class Again(_Call, frozen=True):
    """The kept connection had ended: another one, for the same request."""

    flow: Number


class Head(_Call, frozen=True):
    """The head of an answer, and the first bytes of its body."""

    flow: Number
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    headers: Headers
    data: Piece
    last: bool


class Chunk(_Call, frozen=True):
    """A piece to be sent or delivered next. `last`: none follows that way."""

    flow: Number
    way: Annotated[str, msgspec.Meta(pattern=r"\A(in|out)\Z")]
    data: Piece
    last: bool


class Finish(_Call, frozen=True):
    """What came of a flow. `denied`: what the program sent first was for another host."""

    flow: Number
    status: Annotated[str, msgspec.Meta(pattern=r"\A(done|failed|refused|denied)\Z")]
    sentence: Annotated[str, msgspec.Meta(max_length=512)]
    facts: dict[Annotated[str, msgspec.Meta(pattern=r"\A[a-z_]{1,16}\Z")], Number]


class Deny(_Call, frozen=True):
    """The worker could not read what a program sent: record it."""

    effect: Annotated[str, msgspec.Meta(pattern=r"\A(net.connect|http.request)\Z")]
    resource: _Text
    reason: Annotated[str, msgspec.Meta(max_length=512)]


class Leaf(_Call, frozen=True):
    """A certificate for the host whose requests are judged."""

    host: _Host


class Anchors(_Call, frozen=True):
    """The certificates by which servers are verified."""


class Untrusted(_Call, frozen=True):
    """A client did not finish TLS with the run's own authority."""

    url: _Text


def read(kind: type[msgspec.Struct], params: Any) -> Any:
    """The call. Raises `msgspec.ValidationError`."""
    return msgspec.convert(params, kind, strict=True)
