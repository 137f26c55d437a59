"""One model call at the gate, and the messages of the worker about it, read strictly.

Rules
- A message that has not exactly its form ends nothing and moves nothing: it is refused.
- A call through the channel is admitted and answered by the pipeline; `Native` takes its pieces. The
  answer's bytes are bounded by what was reserved.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from authority.compat.base import Flow, Refused
from authority.dialects.demand import Demand
from authority.kernel.budgets import MAX_AMOUNT
from authority.kernel.models import WHOLE_ANSWER, Ask
from authority.protocol.packets import CallError

_T = TypeVar("_T")
_Name = Annotated[str, msgspec.Meta(max_length=128)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all messages have: nothing unknown is let through."""


class Open(_Message, frozen=True):
    """A call that the worker wants to make for a connection."""

    conn: int
    effect: Literal["model.chat", "model.embed", "model.count"]
    api: Annotated[str, msgspec.Meta(max_length=32)]
    model: _Name
    demand: Demand
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Chunk(_Message, frozen=True):
    """A piece of a call, to be committed before it goes on."""

    flow: int
    way: Literal["in", "out"]
    data: Annotated[bytes, msgspec.Meta(max_length=128 * 1024)]


_Said = Annotated[int, msgspec.Meta(ge=-1, le=MAX_AMOUNT)]
_Counted = Annotated[int, msgspec.Meta(ge=0, le=MAX_AMOUNT)]


class Used(_Message, frozen=True):
    """`dialects.usage.Usage`, as the worker says it."""

    input: _Said = -1
    output: _Said = -1
    cached: _Counted = 0
    written: _Counted = 0
    text: _Counted = 0
    complete: bool = False


class Finish(_Message, frozen=True):
    """A call is over: what the answer says it used, and the upstream's HTTP status (0: none)."""

    flow: int
    status: Literal["done", "failed"]
    usage: Used
    http: Annotated[int, msgspec.Meta(ge=0, le=999)] = 0


def strictly(params: Any, kind: type[_T]) -> _T:
    """A message of the worker. Raises `CallError`."""
    try:
        return msgspec.convert(params, kind, builtin_types=(bytes,))
    except msgspec.ValidationError:
        raise CallError("E_SCHEMA_INVALID", "The worker's message has not its form.") from None


def call_error(no: Refused) -> CallError:
    """A refusal as the worker is told of it."""
    return CallError(no.code, no.sentence, {"layer": no.layer, "number": no.number})


class Native:
    """A request that came through the channel, and what came of it."""

    def __init__(self, reserved: dict[str, int], effect: str, model: str) -> None:
        self.reserved, self.effect, self.model = reserved, effect, model
        self.begun = False
        self.body = bytearray()
        self.sent = 0
        self.status = "failed"
        self.sentence = ""
        self.http = 0
        self.spent: dict[str, int] = {}
        self.facts: dict[str, Any] = {}
        self.call: Call | None = None

    def take(self, way: str, data: bytes) -> None:
        """A piece, either way. Raises `CallError`."""
        if way == "out":
            self.sent += len(data)
            return
        if len(self.body) + len(data) > WHOLE_ANSWER:
            self.sentence = f"The answer is longer than {WHOLE_ANSWER} bytes."
            raise CallError("E_BUDGET_EXCEEDED", self.sentence)
        self.body += data

    def end(self, status: str, http: int, spent: Mapping[str, int], facts: dict[str, Any]) -> None:
        """The call is over and settled."""
        self.status, self.http, self.facts = status, http, facts
        self.spent = dict(spent)
        if "network_bytes" in self.reserved:
            self.spent["network_bytes"] = self.sent + len(self.body)

    def cut(self) -> None:
        """End what is under way."""
        if self.call is not None:
            self.call.cut()


@dataclass(slots=True)
class Call:
    """A call under way: with a flow of its own, or `native`."""

    conn: int
    sha256: str
    effect: str
    model: str
    demand: Ask
    flow: Flow | None = None
    native: Native | None = None
    sock: socket.socket | None = None
    reserved: Mapping[str, int] = field(default_factory=dict)
    out: int = 0

    def cut(self) -> None:
        """Break the connection upstream, for the worker too."""
        if self.sock is not None and self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
