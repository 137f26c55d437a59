"""One exchange as the gate sees it: what a worker may take of the request, and what it brought back.

The worker speaks TLS and HTTP; it is not trusted. Rules
- The request is given piece by piece and counted when it is given: it may have left, whatever happens
  next.
- Of the answer at most `max_bytes` are taken, head first, nothing after the end. What the worker says
  it has read is at least what it brought, and never more than was reserved. Everything else is a
  `Breach`.
- A host that gets a credential may not answer compressed or in parts: a secret could hide or be cut.
- How it ended is one word of a closed list. The sentences are ours: no text of the peer, of a library
  or of the worker goes into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

PIECE = 64 * 1024
HEAD_LIMIT = 32 * 1024
"""Bytes that may be read until the final response head has ended, interim answers included."""

End = Literal[
    "broke",
    "certificate",
    "cut",
    "done",
    "endless",
    "fields",
    "long",
    "protocol",
    "refused",
    "reserved",
    "switch",
    "tls",
    "unreached",
]
_SENTENCES = {
    "broke": "The connection broke.",
    "cut": "The server broke off its answer or framed it wrongly.",
    "endless": "The server's headers have no end.",
    "fields": "The server sent more than 128 headers.",
    "long": "The answer is longer than max_bytes.",
    "protocol": "The server did not answer with HTTP/1.1.",
    "refused": "The answer was not taken.",
    "reserved": "The server sent more than was reserved for this call.",
    "switch": "The server wants to change the protocol.",
    "tls": "The server does not speak TLS as it should.",
    "unreached": "The server could not be reached.",
}
_REASONS = {
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "self-signed certificate",
    19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate",
    21: "unable to verify the first certificate",
    62: "Hostname mismatch",
    64: "IP address mismatch",
}
"""What OpenSSL's numbers mean, where a person can do something about it."""


class Breach(Exception):
    """The worker did or said what it may not: it is ended."""


class Declined(Exception):
    """Nothing more of this answer is taken; the exchange's `problem` says why."""


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the worker says when it is done: how it ended, OpenSSL's reason for a certificate that was
    not accepted, and how many bytes of the answer it has read, framing and interim answers included."""

    end: End
    verify: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    received: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]

    @property
    def sentence(self) -> str:
        """Why there is no answer."""
        if self.end == "certificate":
            reason = _REASONS.get(self.verify, f"reason {self.verify} of OpenSSL")
            return f"The server's certificate was not accepted: {reason}."
        return _SENTENCES[self.end]


@dataclass(slots=True)
class Exchange:
    """One request and its answer. `reserved` bounds the bytes of both, `secret` says that a credential
    is in the request, `anchors` (PEM) verify the server."""

    host: str
    tls: bool
    method: str
    request: bytes
    max_bytes: int
    reserved: int
    anchors: bytes
    secret: bool
    sent: int = 0
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    problem: str = ""

    @property
    def room(self) -> int:
        """How much of an answer may be read, framing included."""
        return self.reserved - len(self.request)

    def decline(self, problem: str) -> None:
        """Take nothing more."""
        self.problem = self.problem or problem

    def more(self) -> tuple[bytes, bool]:
        """The next piece of the request, and whether it is the last."""
        self._wanted()
        if self.sent == len(self.request):
            raise Breach("more than the request")
        piece = self.request[self.sent : self.sent + PIECE]
        self.sent += len(piece)
        return piece, self.sent == len(self.request)

    def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """The head of the answer. Raises `Breach`, `Declined`."""
        self._wanted()
        if self.status or not self.sent:
            raise Breach("an answer to nothing")
        self.status, self.headers = status, list(headers)
        if not self.secret:
            return
        if status == 206:
            self.decline("A host that gets a credential may not answer in parts.")
        for name, value in headers:
            if name.lower() == "content-encoding" and value.strip().lower() != "identity":
                self.decline("A host that gets a credential may not answer compressed.")
        self._wanted()

    def piece(self, data: bytes, *, last: bool) -> None:
        """A piece of the body. Raises `Breach`, `Declined`."""
        self._wanted()
        if not self.status or self.whole:
            raise Breach("a body without a head, or after its end")
        if len(self.body) + len(data) > self.max_bytes:
            raise Breach("more than max_bytes")
        self.body += data
        self.whole = last

    def over(self, ended: Ended) -> None:
        """The worker is done. Raises `Breach` when what it says can't be."""
        if not len(self.body) <= ended.received <= self.room:
            raise Breach("a number of bytes that can't be")
        if ended.end == "done" and not self.whole:
            raise Breach("done before the end")

    def _wanted(self) -> None:
        if self.problem:
            raise Declined
