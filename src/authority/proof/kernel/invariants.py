"""The four invariants, in words that share nothing with the kernel's.

Each is asked of every step. What they know of capabilities stands in `setting` and in a world's
`memory`; the state is read only where the invariant is about the state itself (the accounts), and to
see that the durable bytes fold to it again.

1. No effect without a durable intent: when something is performed, its admission is among the durable
   bytes; and whatever was performed is spent or reserved in the state, also after a crash.
2. No admission, no piece and no effect without a valid capability: its MAC holds and its key is known
   and within its grace, nothing of its chain is revoked, it is bound to the run or its parent in this
   generation, it has not expired, and it covers the file.
3. Spent and reserved together never pass the limit, in any account; nor does what was really written
   and admitted.
4. The chain holds, and nothing is admitted, goes on or is performed after a halt: the durable bytes
   fold to the state that they were written from, and an entry out of its place is refused.
"""

from __future__ import annotations

from authority.kernel import entries
from authority.kernel import state as folding
from authority.kernel.fold import apply
from authority.kernel.state import FoldError, State
from authority.proof.kernel import setting
from authority.proof.kernel.world import Event, Line, World, copied

INTENT, CAPABILITY, BUDGET, HALT = (
    "no effect without a durable intent",
    "no admission without a valid capability",
    "spent and reserved within the budget",
    "chain valid and nothing after a halt",
)
INVARIANTS = (INTENT, CAPABILITY, BUDGET, HALT)


class Violation(Exception):
    """An invariant was seen broken."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
        self.what = what


def check(event: Event) -> None:
    """Raise `Violation` when a step broke an invariant."""
    if event.kind in ("admitted", "piece", "performed"):
        _capability(event)
        _halted(event)
    if event.kind == "performed":
        _intent(event)
    if event.kind == "crashed":
        _chain(event.world)
    if event.kind in ("changed", "restarted"):
        _accounted(event.world)


def check_state(world: World) -> None:
    """What has to hold of every world."""
    _budget(world.state)
    _promised(world)
    _accounted(world)


def _intent(event: Event) -> None:
    assert event.flight is not None
    assert event.ask is not None
    line = event.world.synced[1]
    while line is not None:
        entry = entries.decode(line.data)
        if entry.seq == event.flight.seq:
            if isinstance(entry, entries.Admit) and entry.run == event.ask.run:
                return
            break
        line = line.before
    raise Violation(
        INTENT, f"{event.ask.name} was performed, entry {event.flight.seq} is not durable"
    )


def _accounted(world: World) -> None:
    account = world.state.accounts[folding.STATE_ACCOUNT]
    counted = account.spent.get("file_bytes", 0) + account.reserved.get("file_bytes", 0)
    if counted < world.done:
        raise Violation(INTENT, f"{world.done} bytes were written, {counted} are in the account")


def _capability(event: Event) -> None:
    world, flight, ask = event.world, event.flight, event.ask
    assert flight is not None
    assert ask is not None
    memory, token = world.memory, setting.token(ask.cap, flight.generation)[0]
    late = event.kind != "admitted"
    why = ""
    if ask.cap == "F":
        why = "its MAC is forged"
    elif flight.generation != world.generation:
        why = "it is of runs that are no more"
    elif ask.run == "p" and ask.cap == "B":
        why = "it is bound to the child"
    elif memory.revoked & set(token.ids):
        why = "it was revoked"
    elif ask.cap == "C" and ask.raw != "/w/a":
        why = "it does not cover the file"
    elif not late and ask.cap == "C" and world.time >= setting.EXPIRES:
        why = "it has expired"
    elif not late and memory.grace and world.time > memory.grace:
        why = "the grace of its key is over"
    if why:
        raise Violation(CAPABILITY, f"{event.kind}: {ask.name}, but {why}")


def _budget(state: State) -> None:
    for name, account in state.accounts.items():
        for dimension in setting.LIMITED:
            limit = account.limit.get(dimension)
            used = account.spent.get(dimension, 0) + account.reserved.get(dimension, 0)
            if limit is not None and used > limit:
                raise Violation(BUDGET, f"{used} {dimension} of {limit} in {name}")


def _promised(world: World) -> None:
    """What was written, and what may still be: counted here, not read in the accounts."""
    asked = [setting.ASKS[f.ask] for f in world.flights if not f.performed]
    total = world.done + sum(ask.size for ask in asked if ask.effect == "fs.write")
    if total > setting.LIMIT:
        raise Violation(BUDGET, f"{total} bytes were written or admitted, of {setting.LIMIT}")


def _halted(event: Event) -> None:
    assert event.ask is not None
    memory = event.world.memory
    if memory.all_halted or event.ask.run in memory.halted:
        raise Violation(HALT, f"{event.kind}: {event.ask.name}, but the run is halted")


def _chain(world: World) -> None:
    state, line, _, _ = world.synced
    lines: list[bytes] = []
    while line is not None:
        lines.append(line.data)
        line = line.before
    folded = State()
    for data in reversed(lines):
        apply(folded, entries.decode(data))
    if folding.digest(folded) != folding.digest(state):
        raise Violation(HALT, "the durable bytes fold to another state than they were written from")
    last = entries.decode(lines[0])
    for seq, what in ((last.seq, "again"), (last.seq + 2, "with a gap before it")):
        try:
            apply(copied(state), entries.Resume(seq=seq, batch=seq, time=last.time, reason="x"))
        except FoldError:
            continue
        raise Violation(HALT, f"an entry was folded {what}")


__all__ = [
    "BUDGET",
    "CAPABILITY",
    "HALT",
    "INTENT",
    "INVARIANTS",
    "Line",
    "Violation",
    "check",
    "check_state",
]
