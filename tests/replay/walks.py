"""Random histories of the small setting (`proof.kernel`), denials and pieces too, as stored entries."""

from __future__ import annotations

import random

import msgspec

from authority.kernel import decide as kernel
from authority.kernel import entries
from authority.kernel.entries import AnyEntry, Body
from authority.kernel.facts import Facts
from authority.kernel.labels import CLEAN
from authority.proof.kernel import setting, world
from authority.proof.kernel.world import World


def history(seed: int, length: int) -> list[AnyEntry]:
    """The entries of one random walk, decoded from their bytes."""
    r, here = random.Random(seed), world.begin()
    for _ in range(length):
        kind = r.random()
        if kind < 0.4:
            here = _asked(r, here)
        elif kind < 0.5:
            here = _piece(r, here)
        elif kind < 0.6 and here.ticks < world.MAX_TICKS:
            here = msgspec.structs.replace(here, ticks=here.ticks + 1)
        else:
            steps = [s.world for s in world.steps(here) if s.world is not None]
            here = r.choice(steps) if steps else here
    found, line = [], here.lines
    while line is not None:
        found.append(entries.decode(line.data))
        line = line.before
    return found[::-1]


def _asked(r: random.Random, here: World) -> World:
    number = r.randrange(len(setting.ASKS))
    generation = r.choice([here.generation, here.generation, 0])
    ask = setting.ASKS[number]
    request = setting.request(ask, generation)
    facts = Facts(time=here.time, mac_ok=setting.token(ask.cap, generation)[1])
    decided = kernel.decide(here.state, setting.policy(), request, facts)
    after = world.committed(here, *decided)
    if not isinstance(decided[-1], entries.Admit):
        return after
    flight = world.Flight(after.state.seq, number, generation)
    return msgspec.structs.replace(after, flights=(*here.flights, flight))


def _piece(r: random.Random, here: World) -> World:
    """A piece of a tunnel that was admitted, also one that will be refused."""
    going = [f for f in here.flights if setting.ASKS[f.ask].effect == "net.connect"]
    if not going:
        return here
    flight = r.choice(going)
    if flight.seq not in here.state.open:
        return here
    request = setting.request(setting.ASKS[flight.ask], flight.generation)
    charge, way = {"network_bytes": r.choice([1, 2])}, r.choice(["in", "out"])
    entry = kernel.chunk(
        here.state, setting.policy(), request, flight.seq, way, charge, Body("0" * 64, 0), CLEAN
    )
    return world.committed(here, entry)
