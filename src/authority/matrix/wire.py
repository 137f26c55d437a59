"""A bare client of the channel for attacks: it sends what it is told to, well-formed or not.

It checks nothing that it sends and keeps nothing back, unlike the agent's side, which would refuse
most of it before it reached the gate.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from authority import protocol
from authority.errors import AuthorityError

BATCH = 128
"""Requests in one frame and under way at one time; below what the gate allows."""
SECONDS = 30.0


class WireError(AuthorityError):
    """The gate closed the channel, or did not answer in time."""


@dataclass(frozen=True)
class Ask:
    """A request: `capability` None sends none."""

    effect: str
    resource: str | bytes
    arguments: dict[str, Any] | bytes = b"\x80"
    capability: bytes | None = None


@dataclass(frozen=True)
class Said:
    """An answer: the value, or the denial's code and layer; the receipt."""

    done: bool
    value: Any
    code: str
    layer: str
    seq: int | None
    hash: bytes


class Wire:
    """One channel to the gate. Raises `WireError`."""

    def __init__(self, path: str, token: bytes, *, connected: socket.socket | None = None) -> None:
        self.socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SECONDS)
        self._decoder = protocol.FrameDecoder()
        self._n = 0
        self._inbox: list[Any] = []
        try:
            if connected is None:
                self.socket.connect(path)
            self._send(protocol.encode_hello("matrix", token))
            welcome = self._message()
            if isinstance(welcome, protocol.Fatal):
                raise WireError(f"the gate refused the channel: {welcome.code}")
        except OSError as error:
            self.socket.close()
            raise WireError(f"no channel to the gate: {error}") from error
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def ask(self, *asks: Ask) -> list[Said]:
        """Send all, a batch at a time; the answers in the order of the requests."""
        said: list[Said] = []
        for at in range(0, len(asks), BATCH):
            numbers = self.send(asks[at : at + BATCH])
            said += self.answers(numbers)
        return said

    def one(self, ask: Ask) -> Said:
        return self.ask(ask)[0]

    def send(self, asks: Sequence[Ask]) -> list[int]:
        """Send one frame; the numbers that its requests got."""
        requests = []
        for ask in asks:
            self._n += 1
            raw = (
                msgspec.Raw(ask.arguments)
                if isinstance(ask.arguments, bytes)
                else protocol.encode_arguments(ask.arguments)
            )
            requests.append(
                protocol.Request(self._n, ask.effect, ask.resource, raw, ask.capability, 0)
            )
        self._send(protocol.encode_requests(requests))
        return [r.n for r in requests]

    def answers(self, numbers: Sequence[int]) -> list[Said]:
        """Wait for the answers to these requests."""
        found: dict[int, Said] = {}
        while len(found) < len(numbers):
            message = self._message()
            if isinstance(message, protocol.Fatal):
                raise WireError(f"the gate ended the channel: {message.code} {message.sentence}")
            for reply in message:
                found[reply.n] = _said(reply)
        return [found[n] for n in numbers]

    def _send(self, payload: bytes) -> None:
        self.socket.sendall(protocol.encode_frame(1, payload))

    def _message(self) -> Any:
        while not self._inbox:
            try:
                data = self.socket.recv(1 << 18)
            except TimeoutError as error:
                raise WireError("the gate did not answer in time") from error
            except OSError as error:
                raise WireError(f"the channel broke: {error}") from error
            if not data:
                raise WireError("the gate closed the channel")
            self._inbox += [
                protocol.decode_server_message(payload) for _, payload in self._decoder.feed(data)
            ]
        return self._inbox.pop(0)


def _said(reply: protocol.Reply) -> Said:
    if reply.status == protocol.DONE:
        return Said(True, reply.body, "", "", reply.seq, reply.hash)
    refused = protocol.decode_refused(reply.body)
    return Said(False, None, refused.code, refused.layer, reply.seq, reply.hash)
