"""Time, chance and names that a program asks the gate for, so that a replay can give them back.

A program has a clock and chance of its own; what it takes from there is not recorded. What it asks for
here stands in the log as the answer of a read, and is no secret: no key should be made of it.
"""

from __future__ import annotations

import secrets
import uuid

from authority.effects.base import Call, Performed
from authority.gate import clock

EFFECTS = ("sys.time", "sys.random", "sys.uuid")


class SystemEffects:
    """`sys.*`."""

    async def perform(self, call: Call) -> Performed:
        if call.effect == "sys.time":
            return Performed({"us": clock.wall()})
        if call.effect == "sys.random":
            return Performed({"data": secrets.token_bytes(call.arguments.size)})
        return Performed({"uuid": str(uuid.uuid4())})
