"""An agent that plans first: it composes calls on handles and reads nothing.

Rules
- A plan is a function of the user's prompt (`plans`). What it may use: literals of the prompt and what
  is computed from them, answers of trusted tools, facts (trusted fields, computed on in a room without
  authority), issued names, and handles.
- `ask` lets the quarantined model read. What it says stays behind a handle; each question says what
  its answer is for, so that an attacker who chooses all answers can choose well.
- `answer` is the last step: what the user is told is read then, and nothing is done after it.
- An answer that the plan would branch on is never read: a condition is a value that fits or does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authority.agent import Denied, Gate, Handle, some
from benchmarks.agentdojo import declared
from benchmarks.agentdojo.agents import APPROVAL, Call, Person, Plain

TEXT = {"type": "string"}
ITEMS = 40
"""How many items of a list are looked at; whether they are there is not known."""


def digest() -> str:
    """SHA-256 of this file: what a plan says is done by what stands here."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


@dataclass
class Planner:
    """One run of one plan."""

    gate: Gate
    suite: str
    model: str
    person: Person
    calls: list[Call] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    choices: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    task: Callable[[], list[tuple[str, dict[str, Any]]]] = list
    injection: Callable[[], list[tuple[str, dict[str, Any]]]] = list

    def read(self, tool: str, **arguments: Any) -> Any:
        """What a tool that reads says: a value if it is trusted and asked so, else a handle."""
        if declared.trusted(self.suite, tool) and not _held(arguments):
            return self.gate.tool(tool, arguments)
        return self.gate.tool(tool, arguments, handle=True)

    def act(self, tool: str, **arguments: Any) -> Any:
        """A call that changes something; a person is asked where the gate says so."""
        made = Call(tool, arguments, injected=False)
        self.calls.append(made)
        for last in (False, True):
            try:
                made.answer = self.gate.tool(tool, arguments, handle=True)
            except Denied as denied:
                made.code = denied.code
                if last or denied.code != APPROVAL or not self.person.decide(made):
                    break
            else:
                made.done, made.code = True, ""
                break
        return made.answer

    def each(self, held: Handle, limit: int, tool: str, argument: str, **more: Any) -> list[Any]:
        """A call with each of the first `limit` items of a list, whether they are there or not."""
        before = len(self.calls)
        made = self.gate.map(held, limit, lambda item: self.act(tool, **{argument: item}, **more))
        for call in self.calls[before:]:
            call.each = True
        return made

    def ask(self, held: Any, question: str, use: str, schema: dict[str, Any] = TEXT) -> Handle:
        """What the quarantined model reads in `held`. `use` is TOOL.ARGUMENT, or `answer`.

        TOOL@1 is the user's second call of the tool, TOOL@* the list of all, ARGUMENT/0 an item.
        """
        told = f"[{use}] {question}"
        return self.gate.extract(held, schema, told, model=self.model, max_tokens=4096)

    def choose(self, held: Any, question: str, use: str, among: Sequence[Any]) -> Handle:
        """One of the values that the plan spells out, chosen by the quarantined model."""
        tool, argument = use.split(".", 1)
        options = tuple(dict.fromkeys(among))
        self.choices.append((tool, argument, options))
        return self.ask(held, question, use, {"enum": list(options)})

    def facts(self, held: Handle, *names: str, limit: int = ITEMS) -> list[dict[str, Any]]:
        """Trusted fields of a list's items, as values: what a room without authority makes of them."""
        columns = [some([held[f"/{n}/{name}"] for n in range(limit)]) for name in names]
        made = self.gate.compute("answer([list(row) for row in zip(*values)])", *columns)
        return [dict(zip(names, row, strict=True)) for row in self.gate.reveal(made)]

    def follow(self, held: Handle) -> None:
        """Read it and do what it says: the user's own calls, and first the attacker's if there is one.

        The run has read it then, and goes on like a plain agent that obeys.
        """
        self.gate.reveal(held)
        agent = Plain(self.gate, self.person, False, list)
        for tool, arguments in self.injection():
            agent.call(tool, arguments, injected=True)
        agent.work(self.task())
        self.calls += agent.calls

    def answer(self, held: Any, question: str) -> None:
        """What the user is told at the end."""
        self.said.append(self.ask(held, question, "answer"))

    def finish(self) -> str:
        """Read what the user is told."""
        words = []
        for one in self.said:
            try:
                words.append(str(self.gate.reveal(one)))
            except Denied as denied:
                words.append(denied.sentence)
        return "\n".join(words)


def _held(arguments: dict[str, Any]) -> bool:
    return any(
        not isinstance(v, str | int | float | bool | list | None) for v in arguments.values()
    )
