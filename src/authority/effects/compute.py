"""`value.compute`: a program on values, in a room without authority.

Rules
- The program is Python text. It is started as `python3 -I -c PROGRAM` where a tool would be started
  (`effects.tools`), with an empty environment; values come in, and one value goes out, as a tool's do:
  `{"arguments": {"values": […]}}` on standard input, `{"result": …}` or `{"error": …}` out.
- It changes nothing anywhere, so whatever it was given it may be asked.
"""

from __future__ import annotations

from authority.effects.base import Call, EffectFailed, Performed
from authority.effects.tools import Starter, answered

TIMEOUT_US = 30_000_000
PRELUDE = """\
import json, sys
values = json.loads(sys.stdin.readline())["arguments"]["values"]
def answer(value):
    print(json.dumps({"result": value}))
"""


class Compute:
    """Performs `value.compute`. The program finds `values`, a list, and calls `answer` once."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    async def perform(self, call: Call) -> Performed:
        asked = call.arguments
        if call.resource.name != "python":
            raise EffectFailed("A room speaks python.")
        argv = ("python3", "-I", "-c", PRELUDE + asked.program)
        spent = {"requests": 1, "tool_calls": 1}
        value, facts = await answered(
            self._starter, argv, {"values": asked.values}, "/", TIMEOUT_US, "program", spent
        )
        return Performed(value, spent=spent, facts=facts)
