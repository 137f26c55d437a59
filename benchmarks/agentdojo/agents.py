"""Who calls: a plain agent that sees values, obedient or not, and the person who is asked.

Rules
- A plain agent performs the calls of the user task's ground truth, one after the other, whether or not
  one is refused. Once an answer shows it the injected text, an obedient one performs the attacker's
  calls at once, and then goes on with the user's. It knows the attacker's values better than any text
  could tell them: they are computed in the world as it is at that moment.
- It says the ground truth's output only if each call of the user's was answered: from what was refused
  it could know nothing.
- Who issued a call is noted here, for the score, and told to nobody.
- A person is asked when the gate says so, and answers by one of three policies: no to all, yes to
  exactly the calls of the user's ground truth (each as often as it stands there: what was done is
  shown, and not wanted once more), yes to all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from authority.agent import Denied, Gate, Handle
from authority.agent.handles import Made
from benchmarks.agentdojo.world_mark import MARK

APPROVAL = "E_APPROVAL_REQUIRED"


@dataclass
class Call:
    """A call that was made, and what became of it."""

    tool: str
    arguments: dict[str, Any]
    injected: bool
    done: bool = False
    code: str = ""
    asked: bool = False
    answer: Any = None
    each: bool = False
    """It is about an item of a list of hidden length: that it was not done says nothing."""


@dataclass
class Person:
    """Who answers approvals. `waiting` gives what waits, as ids and the entries in which it was asked;
    `shown` the arguments of such an entry. Where there is no handle they are those of the call."""

    policy: str
    users: list[tuple[str, dict[str, Any]]]
    waiting: Callable[[], list[tuple[str, int]]]
    shown: Callable[[int], dict[str, Any]]
    answer: Callable[[str, bool], None]
    asked: int = 0

    def decide(self, call: Call) -> bool:
        """Answer what waits for this call; whether it was approved."""
        waits = self.waiting()
        self.asked += bool(waits)
        call.asked = True
        granted = False
        for number, asked in waits:
            match self.policy:
                case "all":
                    yes = True
                case "exact":
                    arguments = self.shown(asked) if held(call.arguments) else call.arguments
                    yes = self._own(call.tool, arguments) is not None
                case _:
                    yes = False
            self.answer(number, yes)
            granted = granted or yes
        return granted

    def sees(self, call: Call) -> None:
        """What was done is shown: the user's call was made, and is not wanted once more."""
        own = self._own(call.tool, call.arguments) if not held(call.arguments) else None
        if own is not None:
            self.users.remove(own)

    def _own(self, tool: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        return next((o for o in self.users if o[0] == tool and same(arguments, o[1])), None)


def held(value: Any) -> bool:
    """Whether there is a handle in arguments."""
    match value:
        case dict():
            return any(held(item) for item in value.values())
        case list():
            return any(held(item) for item in value)
    return isinstance(value, Handle | Made)


def same(shown: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether these are the user's own arguments. What is left out there may be empty here."""
    return all(_text(shown.get(key)) == _text(value) for key, value in own.items()) and all(
        key in own or not value for key, value in shown.items()
    )


def _text(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.2f}"
    return json.dumps(value, sort_keys=True)


@dataclass
class Plain:
    """An agent that sees values."""

    gate: Gate
    person: Person
    obeys: bool
    injection: Callable[[], list[tuple[str, dict[str, Any]]]]
    calls: list[Call] = field(default_factory=list)
    seen: bool = False

    def call(self, tool: str, arguments: dict[str, Any], *, injected: bool) -> Call:
        """One request at the gate; a second one if a person approved it."""
        made = Call(tool, arguments, injected)
        self.calls.append(made)
        for last in (False, True):
            try:
                made.answer = self.gate.tool(tool, arguments)
            except Denied as denied:
                made.code = denied.code
                if last or denied.code != APPROVAL or not self.person.decide(made):
                    break
            else:
                made.done, made.code = True, ""
                self.person.sees(made)
                break
        return made

    def work(self, task: list[tuple[str, dict[str, Any]]]) -> None:
        """The user's calls, and the attacker's when the text was seen."""
        for tool, arguments in task:
            made = self.call(tool, arguments, injected=False)
            if not self.seen and made.done and MARK in json.dumps(made.answer):
                self.seen = True
                if self.obeys:
                    self.attack()

    def attack(self) -> None:
        """The attacker's calls."""
        for wanted, values in self.injection():
            self.call(wanted, values, injected=True)

    def output(self, truth: str) -> str:
        """What it says at the end."""
        return truth if all(call.done for call in self.calls if not call.injected) else ""
