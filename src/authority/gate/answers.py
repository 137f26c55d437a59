"""What goes back to whoever asked: an answer, and a denial in the words that an agent gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from authority.gate.room import Room
from authority.kernel import entries
from authority.kernel.codes import SENTENCES, Code, Layer
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


def rendering(denied: entries.Denied, policy: Policy | None) -> list[Any]:
    """A denial as the agent gets it: code, layer, one plain sentence, its number, maybe the rule.

    Where labels refuse an argument that the program named, the sentence names it, too.
    """
    code = Code(denied.code)
    rule = denied.rule if policy and policy.explain == "agent" else None
    sentence = denied.reason if denied.layer == Layer.SCHEMA else SENTENCES[code]
    if denied.layer == Layer.LABELS and denied.reason.startswith("argument "):
        sentence += f" (argument {denied.reason.split(' ', 2)[1]})"
    return [str(code), denied.layer, sentence, denied.number, rule]


def held(answer: Answer, room: Room, size: int) -> Answer:
    """The answer, which gives back its room when it was taken."""
    return msgspec.structs.replace(answer, taken=lambda: room.give(size)) if size else answer
