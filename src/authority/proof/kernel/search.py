"""Every interleaving to a depth: breadth first, so that what is found is a shortest way to it.

Rules
- Two worlds are one when nothing that a later step or an invariant can see tells them apart. Numbers
  of entries are named by their order, and what is counted and never limited is left out: the numbers
  of requests and denials. So a denial leads nowhere new, and the order of independent steps is walked
  once for each world that it ends in.
- A world is expanded when it is new; its invariants are asked then, those of a step at every step.
- An exception of the kernel that is not an answer is a finding, too.
"""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import Any

import msgspec

from authority.kernel.state import State
from authority.proof.kernel import invariants, setting, world
from authority.proof.kernel.invariants import Violation
from authority.proof.kernel.world import Memory, World

MAX_WORLDS = 5_000_000
"""How many are kept in memory at most."""


class Found(msgspec.Struct, frozen=True):
    """`violation` empty: every world to `depth` was walked. `trace`: the way to the violation."""

    depth: int
    worlds: int
    steps: int
    seconds: float
    violation: str = ""
    invariant: str = ""
    trace: tuple[str, ...] = ()


def search(depth: int) -> Found:
    """Walk everything that can happen in `depth` steps. Raises `MemoryError` beyond `MAX_WORLDS`."""
    began = time.monotonic()
    first = world.begin()
    before: dict[Any, tuple[Any, str]] = {key(first): (None, "")}
    layer: list[tuple[Any, World]] = [(key(first), first)]
    steps = 0
    for done in range(depth):
        following: list[tuple[Any, World]] = []
        for at, here in layer:
            name = ""
            try:
                for step in world.steps(here):
                    steps += 1
                    name = step.name
                    for event in step.events:
                        invariants.check(event)
                    if step.world is None:
                        continue
                    there = key(step.world)
                    if there in before:
                        continue
                    before[there] = (at, step.name)
                    invariants.check_state(step.world)
                    if done + 1 < depth:
                        following.append((there, step.world))
            except Violation as seen:
                broken = seen
                return _found(began, done + 1, before, steps, (*_trace(before, at), name), broken)
            except Exception as error:  # the kernel broke instead of answering
                broken = Violation("no answer", f"{type(error).__name__}: {error}")
                return _found(began, done + 1, before, steps, (*_trace(before, at), name), broken)
        if len(before) > MAX_WORLDS:
            raise MemoryError(f"more than {MAX_WORLDS} worlds at depth {done + 1}")
        layer = following
    return _found(began, depth, before, steps, (), None)


def _found(
    began: float,
    depth: int,
    before: dict[Any, Any],
    steps: int,
    trace: tuple[str, ...],
    broken: Violation | None,
) -> Found:
    return Found(
        depth,
        len(before),
        steps,
        time.monotonic() - began,
        "" if broken is None else broken.what,
        "" if broken is None else broken.invariant,
        trace,
    )


def _trace(before: dict[Any, tuple[Any, str]], at: Any) -> tuple[str, ...]:
    names = []
    while at is not None:
        at, name = before[at]
        names.append(name)
    return tuple(reversed(names[:-1]))


def key(here: World) -> bytes:
    """A digest (128 bits) of what of a world can matter later."""
    return blake2b(repr(_matters(here)).encode(), digest_size=16).digest()


def _matters(here: World) -> Any:
    flights = tuple(
        sorted(
            (f.ask, f.generation, f.performed, f.seq in here.state.open, f.seq <= here.synced[3])
            for f in here.flights
        )
    )
    same = here.state is here.synced[0]
    return (
        _of_state(here.state),
        None if same else _of_state(here.synced[0]),
        _of_memory(here.memory),
        None if same else _of_memory(here.synced[2]),
        here.ticks,
        here.generation,
        here.minted,
        here.rotated,
        flights,
        here.done,
    )


def _of_memory(memory: Memory) -> Any:
    return sorted(memory.revoked), sorted(memory.halted), memory.all_halted, memory.grace


def _of_state(state: State) -> Any:
    return (
        state.halted >= 0,
        state.floor,
        tuple(sorted((kid, info.until) for kid, info in state.keys.items())),
        tuple(sorted(state.caps)),
        tuple(sorted(state.revoked)),
        tuple((r.id, r.running, r.halted) for r in state.runs.values()),
        tuple(
            (name, account.spent.get(d, 0), account.reserved.get(d, 0))
            for name, account in state.accounts.items()
            for d in setting.LIMITED
        ),
        tuple(sorted((o.run, o.effect, o.resource) for o in state.open.values())),
    )
