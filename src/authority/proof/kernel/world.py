"""A gate without a disk: every step it can take, around the real kernel.

Real are `decide`, `chunk`, `recheck`, `apply`, the entries' bytes, tokens and their MACs. Played are
the disk (a count of entries that are durable; a crash loses the others) and the order of the request
pipeline: an intent is appended; a side effect waits until it is durable; halt and revocation are asked
again; then it is performed; then its outcome is appended. Each step is one action here, so that a
crash, a halt or anything else can come between any two.

Rules
- A world is never changed: a step makes a new one, or none when nothing can come of it.
- What is performed is remembered outside of the log (`done`), as the world outside remembers it.
- `memory` is what the invariants know by themselves: who was revoked and halted, and when a key's
  grace ends. It is kept from the actions alone, never read out of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from authority.kernel import decide as kernel
from authority.kernel import entries
from authority.kernel import state as folding
from authority.kernel.entries import AnyEntry, Body
from authority.kernel.facts import Facts
from authority.kernel.fold import apply
from authority.kernel.labels import CLEAN
from authority.kernel.requests import EFFECTS
from authority.kernel.state import State
from authority.proof.kernel import setting
from authority.proof.kernel.setting import ASKS, PIECE, START, TICK, Ask

_BODY = Body("0" * 64, 0)
MAX_TICKS = 3


class Memory(NamedTuple):
    """What happened, as far as it matters to what may happen."""

    revoked: frozenset[str] = frozenset()
    halted: frozenset[str] = frozenset()
    all_halted: bool = False
    grace: int = 0


class Flight(NamedTuple):
    """An admission that has no outcome yet."""

    seq: int
    ask: int
    generation: int
    performed: bool = False


class Line(NamedTuple):
    """The log as a list that grows at its end and is shared."""

    data: bytes
    before: Line | None


class World(msgspec.Struct, frozen=True):
    """One situation. `synced` is the last durable situation: state, lines, memory."""

    state: State
    lines: Line | None
    memory: Memory
    ticks: int
    generation: int
    minted: bool
    rotated: bool
    flights: tuple[Flight, ...]
    done: int
    synced: tuple[State, Line | None, Memory, int]

    @property
    def time(self) -> int:
        return START + self.ticks * TICK


class Event(NamedTuple):
    """What a step did, for the invariants."""

    kind: str
    world: World
    entry: AnyEntry | None = None
    flight: Flight | None = None
    ask: Ask | None = None


class Step(NamedTuple):
    """An action by name, what it did, and where it leads; None where it changes nothing."""

    name: str
    events: tuple[Event, ...]
    world: World | None


def copied(state: State) -> State:
    """A state that may be changed."""
    return folding.load(folding.dump(state))


def begin() -> World:
    """A gate that has opened its log and started both runs; all of it is durable."""
    empty = World(State(), None, Memory(), 0, 0, False, False, (), 0, (State(), None, Memory(), -1))
    return synced(_opened(empty))


def synced(world: World) -> World:
    """Everything appended is on the disk."""
    state = world.state
    return msgspec.structs.replace(world, synced=(state, world.lines, world.memory, state.seq))


def committed(world: World, *new: AnyEntry, **changes: Any) -> World:
    """Stamp, fold and append: the ledger's step."""
    state, lines = copied(world.state), world.lines
    for entry in new:
        entry.seq = entry.batch = state.seq + 1
        entry.time = world.time
        apply(state, entry)
        lines = Line(entries.encode(entry), lines)
    return msgspec.structs.replace(world, state=state, lines=lines, **changes)


def steps(world: World) -> Iterator[Step]:
    """Everything that can happen next."""
    for number, ask in enumerate(ASKS):
        if ask.cap == "D" and not world.minted:
            continue
        yield asked(world, number, world.generation)
    if world.generation:
        yield asked(world, 0, 0)  # a capability from before the restart
    for place, flight in enumerate(world.flights):
        yield from _of_flight(world, place, flight)
    if world.state.seq != world.synced[3]:
        yield _quiet("sync", synced(world))
    if not world.generation:
        yield _crash(world)
    for letter in "ABC":
        name = setting.token(letter, world.generation)[0].id
        if name not in world.memory.revoked:
            memory = world.memory._replace(revoked=world.memory.revoked | {name})
            run = setting.ORIGIN[letter]
            yield _quiet(
                f"revoke {letter}",
                committed(world, entries.CapRevoke(run=run, id=name), memory=memory),
            )
    yield from _operator(world)


def asked(world: World, number: int, generation: int) -> Step:
    """A request is decided. A denial changes nothing that a later decision rests on."""
    ask = ASKS[number]
    request = setting.request(ask, generation)
    facts = Facts(time=world.time, mac_ok=setting.token(ask.cap, generation)[1])
    decided = kernel.decide(world.state, setting.policy(), request, facts)
    verdict = decided[-1]
    name = f"ask {ask.name}" + ("" if generation == world.generation else ", an old one")
    if not isinstance(verdict, entries.Admit):
        return Step(name, (), None)
    after = committed(world, *decided)
    flight = Flight(after.state.seq, number, generation)
    after = msgspec.structs.replace(after, flights=(*world.flights, flight))
    return Step(name, (Event("admitted", world, verdict, flight, ask),), after)


def _of_flight(world: World, place: int, flight: Flight) -> Iterator[Step]:
    ask = ASKS[flight.ask]
    others = world.flights[:place] + world.flights[place + 1 :]
    if not flight.performed:
        if may_perform(world, flight):
            yield _perform(world, place, flight, others)
        return
    if flight.seq not in world.state.open:
        return
    for status in ("done", "failed"):
        reserve = dict(world.state.open[flight.seq].reserve)
        outcome = entries.Outcome(run=ask.run, of=flight.seq, status=status, spent=reserve)
        yield _quiet(f"{status}: {ask.name}", committed(world, outcome, flights=others))
    if EFFECTS[ask.effect].flow:
        charge = {EFFECTS[ask.effect].flow: PIECE}
        request = setting.request(ask, flight.generation)
        entry = kernel.chunk(
            world.state, setting.policy(), request, flight.seq, "in", charge, _BODY, CLEAN
        )
        if isinstance(entry, entries.Chunk):
            event = Event("piece", world, entry, flight, ask)
            yield Step(f"piece: {ask.name}", (event,), committed(world, entry))


def may_perform(world: World, flight: Flight) -> bool:
    """A side effect waits until its intent is durable; a read does not."""
    return not EFFECTS[ASKS[flight.ask].effect].side_effect or flight.seq <= world.synced[3]


def _perform(world: World, place: int, flight: Flight, others: tuple[Flight, ...]) -> Step:
    ask = ASKS[flight.ask]
    caps = list(setting.token(ask.cap, flight.generation)[0].ids)
    stopped = kernel.recheck(world.state, ask.run, caps)
    if stopped:
        outcome = entries.Outcome(run=ask.run, of=flight.seq, status="aborted", code=stopped)
        if flight.seq not in world.state.open:
            return Step(f"given up: {ask.name}", (), None)
        return _quiet(f"aborted: {ask.name}", committed(world, outcome, flights=others))
    now = flight._replace(performed=True)
    after = msgspec.structs.replace(
        world,
        flights=(*world.flights[:place], now, *world.flights[place + 1 :]),
        done=world.done + (ask.size if ask.effect == "fs.write" else 0),
    )
    return Step(f"perform {ask.name}", (Event("performed", world, None, flight, ask),), after)


def _crash(world: World) -> Step:
    """What is not durable is gone; the next gate folds what is left, and starts both runs again."""
    state, lines, memory, _ = world.synced
    lost = msgspec.structs.replace(
        world,
        state=state,
        lines=lines,
        memory=memory._replace(halted=frozenset()),  # those runs are no more
        generation=world.generation + 1,
        minted=False,
        flights=(),
    )
    after = synced(_opened(lost))
    return Step("crash and restart", (Event("crashed", world), Event("restarted", after)), after)


def _operator(world: World) -> Iterator[Step]:
    memory = world.memory
    if not world.minted:
        d = setting.token("D", world.generation)[0]
        yield _quiet(
            "mint D", committed(world, entries.CapMint(run="p", id=d.id, kid="k1"), minted=True)
        )
    if not world.rotated:
        until = world.time + TICK
        yield _quiet(
            "rotate the key",
            committed(
                world,
                entries.Key(kid="k2", action="add"),
                entries.Key(kid="k1", action="retire", until=until),
                memory=memory._replace(grace=until),
                rotated=True,
            ),
        )
    for run, stopped in (("p", {"p", "c"}), ("c", {"c"}), ("", {"p", "c"})):
        changed = memory._replace(
            halted=memory.halted | stopped, all_halted=memory.all_halted or not run
        )
        if changed != memory:
            yield _quiet(
                f"halt {run or 'everything'}",
                committed(world, entries.Halt(run=run, reason="x"), memory=changed),
            )
    if memory.all_halted:
        yield _quiet(
            "resume",
            committed(world, entries.Resume(reason="x"), memory=memory._replace(all_halted=False)),
        )
    if world.ticks < MAX_TICKS:
        yield _quiet("the clock ticks", msgspec.structs.replace(world, ticks=world.ticks + 1))


def _quiet(name: str, after: World) -> Step:
    return Step(name, (Event("changed", after),), after)


def _opened(world: World) -> World:
    """A gate starts on what the log holds, and both runs start under it."""
    new: list[AnyEntry] = [
        entries.GateStart(
            log="l",
            rules=entries.RULES,
            version="0",
            boot=f"b{world.generation}",
            boot_clock=0,
            public_key="k",
            limits=dict.fromkeys(setting.LIMITED, setting.LIMIT),
        )
    ]
    if world.lines is None:
        new.append(entries.Key(kid="k1", action="add"))
    for run, letter, parent in (("p", "A", ""), ("c", "B", "p")):
        name = setting.token(letter, world.generation)[0].id
        new += [
            entries.RunStart(
                run=run,
                capability=name,
                policy=setting.policy().digest,
                parent=parent,
                budgets=setting.SHARE[run],
            ),
            entries.CapMint(run=run, id=name, kid="k1"),
        ]
    return committed(world, *new)


Steps = Callable[[World], Iterator[Step]]
