"""What goes back to whoever asked: an answer to a client, or what a service of the gate is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from authority.compat.base import Failed, Refused
from authority.gate.room import Room
from authority.kernel import entries
from authority.kernel.codes import Code, Layer
from authority.kernel.denials import rendering
from authority.kernel.policy import Policy


class Answer(msgspec.Struct, frozen=True):
    """What goes back to the client: `body` is the value, or what was refused.

    `taken` is called by whoever sends it, when the other side has taken it or never will.
    """

    n: int
    refused: bool
    seq: int
    hash: bytes
    body: Any
    taken: Callable[[], None] | None = None


Reply = Callable[[Answer], None]


def refused(denied: entries.Denied, policy: Policy | None) -> Refused:
    """A denial for a service of the gate."""
    code, layer, sentence, number, rule = rendering(denied, policy)
    return Refused(code, layer, sentence, number, rule, denied.seq)


def why_not(body: Any, seq: int) -> Refused | Failed:
    """What a refused answer is for a service of the gate: not admitted, or tried in vain."""
    code, layer, sentence, number, rule = body
    if layer == Layer.EFFECT and code in {Code.EFFECT_FAILED, Code.INTERNAL}:
        return Failed(sentence, seq)
    return Refused(code, layer, sentence, number, rule, seq)


def held(answer: Answer, room: Room, size: int) -> Answer:
    """The answer, which gives back its room when it was taken."""
    return msgspec.structs.replace(answer, taken=lambda: room.give(size)) if size else answer
