"""Child runs and messages: what a run does with its own kind.

Rules
- `agent.spawn` starts a program that the policy names; the child is contained in its parent (see
  `runs`): its capability is the one that was presented, attenuated, so it covers no more, shares
  what was counted, and dies with it. Only the parent waits for it, and only parent and child send
  each other messages.
- A message is committed before it is put into the other's mailbox, and carries its sender's label;
  receiving it joins that label to the receiver's, and so does being told that there is none the labels
  of all who may send some. A full mailbox refuses: nothing is dropped.
- What the parent learns about a child's end is shaped by the child, so it carries the child's label.
- Waiting is bounded: `timeout_ms` up to a minute, then an empty answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec

from authority.effects.base import Call, EffectFailed, Performed
from authority.errors import AuthorityError
from authority.gate.run import Event, Run, Start
from authority.gate.runs import Runs
from authority.kernel import flows
from authority.kernel.budgets import BudgetError, check
from authority.kernel.canonical import printable
from authority.kernel.capabilities import TokenError
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.state import State
from authority.tokens import restriction_from_plain

MAILBOX = 256
WAIT_LIMIT_MS = 60_000


class Spawn:
    """`agent.spawn` and `agent.wait`. `child_policy` loads the policy that an agent section names,
    `keep` makes it durable in the content store before the child's first entry names it."""

    def __init__(
        self,
        runs: Runs,
        state: State,
        child_policy: Callable[[Policy, str], Policy | None],
        give: Callable[[Policy, Mapping[str, str]], None],
        keep: Callable[[Policy], Awaitable[None]],
    ) -> None:
        self._give = give
        self._keep = keep
        self._runs = runs
        self._state = state
        self._child_policy = child_policy

    async def perform(self, call: Call) -> Performed:
        if call.effect == "agent.wait":
            return await self._wait(call)
        parent = self._runs.running.get(call.run)
        name = call.resource.text.removeprefix("agent:")
        agent = call.policy.agents.get(name)
        if parent is None or agent is None:
            raise EffectFailed("There is no such agent.")
        try:
            check(call.arguments.budgets)
            policy = self._child_policy(parent.spec.policy, name)
            if policy is not None:
                await self._keep(policy)
            spec = Start(
                argv=(*agent.command, *call.arguments.arguments),
                cwd=parent.spec.cwd,
                policy=policy or parent.spec.policy,
                environment=parent.spec.environment,
                caller=parent.spec.caller,
                parent=parent.id,
                agent=name,
                budgets=_least(agent.budgets, call.arguments.budgets),
                capability=call.capability,
                restriction=restriction_from_plain(call.arguments.restriction)
                if call.arguments.restriction
                else None,
                room=parent.spec.room,
                isolation="namespace" if parent.spec.house.images is None else "vm",
                emulate=parent.spec.emulate,
            )
            forward = _to_parent(parent, name)
            spec = await self._runs.housed(spec, forward)
            # Nothing is awaited from here to the child's first entry.
            info = self._state.runs.get(call.run)
            if info is None or self._runs.running.get(call.run) is not parent:
                raise EffectFailed("The run is over.")
            if policy is not None:
                self._give(policy, parent.spec.caller)
            spec = replace(spec, label=info.label)
            child = await self._runs.start(spec, forward)
        except (AuthorityError, BudgetError, TokenError, msgspec.MsgspecError, OSError) as error:
            raise EffectFailed(
                f"The child could not be started: {printable(str(error))}"
            ) from error
        return Performed({"run": child.id}, facts={"run": child.id})

    async def _wait(self, call: Call) -> Performed:
        child_id = call.resource.text.removeprefix("run:")
        child = self._runs.running.get(child_id)
        if child is not None:
            await _within(child.ended, call.arguments.timeout_ms)
        info = self._state.runs.get(child_id)
        if info is None:
            raise EffectFailed("There is no such child.")
        value = {"ended": not info.running, "code": info.code if not info.running else None}
        return Performed(value, carried=info.label)


class Messages:
    """`msg.send` and `msg.receive`."""

    def __init__(self, runs: Runs, state: State) -> None:
        self._runs = runs
        self._state = state

    async def perform(self, call: Call) -> Performed:
        if call.effect == "msg.send":
            return self._send(call)
        return await self._receive(call)

    def _send(self, call: Call) -> Performed:
        sent_by = self._state.runs.get(call.run)
        other = self._runs.running.get(call.resource.text.removeprefix("run:"))
        # That it can't take more is its own word, and that of whoever sent it values of handles.
        told = flows.missing(self._state, sent_by, call.effect, call.resource) if sent_by else CLEAN
        if other is None:
            raise EffectFailed("The other run has ended.", carried=told)
        if len(other.mailbox) >= MAILBOX:
            raise EffectFailed("The other run's mailbox is full.", carried=told)
        label: Label = sent_by.label if sent_by else CLEAN
        other.mailbox.append((call.run, call.arguments.data, label.join(call.given)))
        other.mail.set()
        return Performed({})

    async def _receive(self, call: Call) -> Performed:
        run = self._runs.running.get(call.run)
        if run is None:
            raise EffectFailed("The run has ended.")
        if not run.mailbox:
            run.mail.clear()
            await _within(run.mail, call.arguments.timeout_ms)
        if not run.mailbox:
            # Whoever may send some, and did not, has said that.
            info = self._state.runs.get(call.run)
            silent = flows.missing(self._state, info, call.effect, call.resource) if info else CLEAN
            return Performed({}, carried=silent)
        sender, data, label = run.mailbox.popleft()
        return Performed({"from": sender, "data": data}, facts={"from": sender}, carried=label)


def _least(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """All limits of both, the smaller one where both set it."""
    return {**first, **{k: min(v, first.get(k, v)) for k, v in second.items()}}


def _to_parent(parent: Run, name: str) -> Callable[[Event], None]:
    """A child's events go where its parent's go, marked with its name."""

    def forward(event: Event) -> None:
        parent.emit({**event, "child": name})

    return forward


async def _within(event: asyncio.Event, timeout_ms: int) -> None:
    """Wait for `event`, no longer than the request may."""
    limit = min(max(timeout_ms, 0), WAIT_LIMIT_MS) / 1000
    try:
        async with asyncio.timeout(limit):
            await event.wait()
    except TimeoutError:
        return
