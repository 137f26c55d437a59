"""The fold: `state = reduce(apply, log)`.

Rules
- `apply` is the only thing that changes a `State`. It takes nothing but the entry, so a running
  gate and a restarted one that read the same entries hold the same state.
- An entry that does not fit the state (an outcome without its admission, a second start of one run)
  raises `FoldError`: the log was not written by these rules, and the gate does not go on from it.
- A `gate.start` ends everything that was in flight: runs that were running ended with their gate,
  and what they had reserved is in doubt, so it is spent.
- What can't matter any more is forgotten (a run that ended, its capabilities, its usage), so the
  state's size follows what is running, not how long the log is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from authority.kernel import budgets, entries, file_labels, file_overlap
from authority.kernel.budgets import Account
from authority.kernel.handles import Held, all_given
from authority.kernel.incidents import Case, refusal, take
from authority.kernel.labels import Label
from authority.kernel.own_files import follow
from authority.kernel.rates import Usage, add, subtract
from authority.kernel.relatives import move
from authority.kernel.state import (
    PINS_LIMIT,
    STATE_ACCOUNT,
    CapInfo,
    FoldError,
    KeyInfo,
    Open,
    Pending,
    Pin,
    Run,
    State,
    pin_name,
    surroundings,
)

CLOSED_CASES = 100
"""Incidents that are remembered after they were closed."""


def apply(state: State, entry: entries.AnyEntry) -> None:
    """Fold one entry into the state, in place. Raises `FoldError`."""
    if entry.seq != state.seq + 1:
        raise FoldError(f"entry {entry.seq} can't follow entry {state.seq}")
    _FOLDS[type(entry)](state, entry)
    state.seq = entry.seq
    if entry.time > state.floor and not state.clock_suspect:
        state.floor = entry.time


def _run(state: State, name: str) -> Run:
    run = state.runs.get(name)
    if run is None:
        raise FoldError(f"no run {name!r}")
    return run


def _gate_start(state: State, e: entries.GateStart) -> None:
    if e.rules != entries.RULES:
        raise FoldError(f"rules {e.rules}, and this program folds rules {entries.RULES}")
    if state.log and state.log != e.log:
        raise FoldError(f"an entry of log {e.log!r} in log {state.log!r}")
    state.log = e.log
    for name in [r.id for r in state.runs.values() if not r.parent]:
        _forget(state, name)
    state.accounts[STATE_ACCOUNT].limit = dict(e.limits)
    state.boot, state.boot_clock, state.boot_time = e.boot, e.boot_clock, e.time
    state.clock_suspect = False
    state.version, state.two_people = e.build or e.version, e.two_people


def _nothing(_state: State, _entry: Any) -> None:
    """Entries that record something and change nothing."""


def _key(state: State, e: entries.Key) -> None:
    if e.action == "add":
        if e.kid in state.keys:
            raise FoldError(f"key {e.kid!r} was added before")
        state.keys[e.kid] = KeyInfo()
    elif e.action == "retire" and e.kid in state.keys:
        state.keys[e.kid].until = e.until
    else:
        raise FoldError(f"a key can't be {e.action!r}")


def _run_start(state: State, e: entries.RunStart) -> None:
    if e.run in state.runs or not e.run:
        raise FoldError(f"run {e.run!r} can't start twice")
    own = f"run:{e.run}"
    if e.policy_path:
        state.policies[e.policy_path] = e.policy
    chain = [own, STATE_ACCOUNT]
    if e.parent:
        parent = _run(state, e.parent)
        chain = [own, *parent.accounts]
        parent.children.append(e.run)
    state.accounts[own] = Account(limit=dict(e.budgets))
    state.runs[e.run] = Run(
        id=e.run,
        policy=e.policy,
        capability=e.capability,
        started=e.time,
        cwd=e.cwd,
        parent=e.parent,
        attached=e.attached,
        label=Label(frozenset(e.sources), frozenset(e.secrets)),
        label_at=e.seq,
        seen=dict.fromkeys(e.sources, e.seq),
        accounts=chain,
        dry=e.dry,
    )


def _run_end(state: State, e: entries.RunEnd) -> None:
    run = _run(state, e.run)
    if not run.running:
        raise FoldError(f"run {e.run!r} can't end twice")
    run.running, run.code, run.reason = False, e.code, e.reason
    _in_doubt(state, run)
    budgets.settle(state.accounts, run.accounts, {}, {"wall_time": e.wall_time})
    if not run.parent:
        _forget(state, e.run)


def _in_doubt(state: State, run: Run) -> None:
    """What a run had in flight when it ended may have happened: it counts as spent."""
    for seq in [s for s, o in state.open.items() if o.run == run.id]:
        admission = state.open.pop(seq)
        budgets.settle(state.accounts, run.accounts, admission.reserve, admission.reserve)
        what = (admission.effect, admission.resource, admission.target)
        file_labels.in_doubt(state.files, *what, admission.label)


def _forget(state: State, name: str) -> None:
    """Drop a run and its descendants: their tokens are refused because the run is unknown."""
    run = state.runs[name]
    for child in run.children:
        _forget(state, child)
    if state.accounts[STATE_ACCOUNT].limit:
        state.used = state.used.join(run.label)
    _in_doubt(state, run)
    del state.runs[name]
    del state.accounts[run.accounts[0]]
    for cap in [c for c, info in state.caps.items() if info.run == name]:
        del state.caps[cap]
        state.usage.pop(cap, None)
        state.revoked.discard(cap)
    for key in [k for k, p in state.approvals.items() if p.run == name]:
        del state.approvals[key]


def _cap_mint(state: State, e: entries.CapMint) -> None:
    if e.id in state.caps:
        raise FoldError(f"capability {e.id!r} can't be minted twice")
    state.caps[e.id] = CapInfo(run=e.run)


def _cap_derive(state: State, e: entries.CapDerive) -> None:
    if e.parent not in state.caps:
        raise FoldError(f"capability {e.id!r} derives from an unknown one")
    state.caps[e.id] = CapInfo(run=state.caps[e.parent].run, parent=e.parent)


def _cap_revoke(state: State, e: entries.CapRevoke) -> None:
    state.revoked.add(e.id)


def _admit(state: State, e: entries.Admit) -> None:
    run = _run(state, e.run)
    for cap, delta in e.usage.items():
        state.usage[cap] = add(state.usage.get(cap, Usage()), delta)
    _used_up(state, run, [a for a in (e.approval, e.also) if a], e.endorsed)
    if e.final:
        budgets.settle(state.accounts, run.accounts, {}, e.reserve)
        return
    if e.handle:
        _held(state, run, e)
    else:
        _raise_label(run, e)  # what was granted tells of what is left
        move(run, e.seq, e.effect, e.resource, e.verb)
    budgets.reserve(state.accounts, run.accounts, e.reserve)
    label = run.label.join(Label(frozenset(e.sources), frozenset(e.secrets)))
    one = Open(e.run, e.effect, e.resource, e.reserve, e.usage, e.target, e.handle, label)
    file_labels.intend(state.files, e.effect, e.resource, e.target, label, e.facts)
    file_overlap.admitted(state.files, state.open.values(), one)
    state.open[e.seq] = one


def _used_up(state: State, run: Run, approvals: list[str], endorsed: dict[str, int]) -> None:
    """What serves once, and bits that a run has told."""
    for approval in approvals:
        del state.approvals[approval]
    for name, bits in endorsed.items():
        told = state.root(run.id).endorsed  # by all that descends from it
        told[name] = told.get(name, 0) + bits


def _held(state: State, run: Run, e: entries.Admit | entries.Denied) -> None:
    """A handle, with the label of what its call was made with; the answer's is joined when it comes.

    Whether the call was made is behind the handle, so what it would leave in files, or in another
    run's mailbox, is marked in either case."""
    label, given = Label(frozenset(e.sources), frozenset(e.secrets)), Label(frozenset(e.shaped))
    hinges = all_given(run.label, run.handles, e.parts).sources if e.hinges is None else e.hinges
    run.handles[e.handle] = Held(
        e.seq, e.effect, e.resource, e.verb, -1, label, given, frozenset(hinges)
    )
    file_labels.intend_hidden(state.files, e.effect, e.resource, label)
    receiver = state.runs.get(e.resource.removeprefix("run:"))
    if e.effect == "msg.send" and receiver is not None:
        receiver.hints = receiver.hints.join(label)


def _outcome(state: State, e: entries.Outcome) -> None:
    admission = state.open.pop(e.of, None)
    if admission is None or admission.run != e.run:
        raise FoldError(f"entry {e.seq} is the outcome of {e.of}, which is not open")
    run = _run(state, e.run)
    budgets.settle(state.accounts, run.accounts, admission.reserve, e.spent)
    if e.status == "aborted":
        for cap, delta in admission.usage.items():
            state.usage[cap] = subtract(state.usage[cap], delta)
    if admission.handle:
        _born(run.handles[admission.handle], e)
    else:
        _raise_label(run, e)
    if e.status == "done":
        what = (admission.effect, admission.resource, admission.target, e.facts)
        if not admission.handle:  # what it may remove would tell that such a call was made
            follow(run.created, *what)
        if not admission.handle and run.dry != "kept":
            label = admission.label
            if run.dry == "applied" and (marked := state.files.get(admission.resource)):
                label = label.join(marked.label)  # what the dry run moved, unread, keeps its own
            alone = file_overlap.alone(state.files, state.open, state.runs.values(), admission)
            file_labels.done(state.files, *what, label, alone=alone)


_Telling = entries.Admit | entries.Outcome | entries.Chunk | entries.Tally | entries.Denied
"""Entries of what a program is told."""


def _born(held: Held, e: entries.Outcome) -> None:
    """The answer is kept; the program has seen nothing of it."""
    held.born = e.seq
    held.label = held.label.join(Label(frozenset(e.sources), frozenset(e.secrets)))


def _raise_label(run: Run, e: _Telling) -> None:
    """What the program saw joins the run's label."""
    if e.sources or e.secrets:
        for source in e.sources:
            run.seen.setdefault(source, e.seq)
        run.label = run.label.join(Label(frozenset(e.sources), frozenset(e.secrets)))
        run.label_at = e.seq


def _chunk(state: State, e: entries.Chunk) -> None:
    admission = state.open.get(e.of)
    if admission is None or admission.run != e.run:
        raise FoldError(f"entry {e.seq} goes on with {e.of}, which is not open")
    run = _run(state, e.run)
    budgets.settle(state.accounts, run.accounts, {}, e.charge)
    if not admission.handle:
        _raise_label(run, e)


def _tally(state: State, e: entries.Tally) -> None:
    _raise_label(_run(state, e.run), e)


def _denied(state: State, e: entries.Denied) -> None:
    run = state.runs.get(e.run)
    if run is None:
        return
    if e.hidden:
        for cap, delta in e.usage.items():
            state.usage[cap] = add(state.usage.get(cap, Usage()), delta)
        budgets.settle(state.accounts, run.accounts, {}, e.reserve)
        _used_up(state, run, e.consumed, e.endorsed)
        _held(state, run, e)
        run.handles[e.handle].born = e.seq
        return
    _raise_label(run, e)
    run.number = e.number
    spent = {"requests": 1}
    if not e.again:
        run.denied.add(e.request)
        spent["denials"] = 1
        if e.approval and e.arguments and e.arguments.kept in {"store", "sealed"}:
            spent["stored_bytes"] = e.arguments.size  # kept for the person who is asked
    budgets.settle(state.accounts, run.accounts, {}, spent)
    if e.approval and e.approval not in state.approvals:
        state.approvals[e.approval] = Pending(e.run, e.effect, e.resource, e.request, e.seq)


def _halt(state: State, e: entries.Halt) -> None:
    if not e.run:
        state.halted = e.seq
    for run in state.runs.values():
        if not e.run or e.run in state.ancestry(run.id):
            run.halted = True
            state.revoked.update(c for c, info in state.caps.items() if info.run == run.id)
    case = state.cases.get(str(e.incident))
    if case is not None and case.step == "detected":
        take(case, "halted", e.seq, e.time, e.by, {})
        take(case, "revoked", e.seq, e.time, e.by, {})


def _resume(state: State, _e: entries.Resume) -> None:
    if any(case.wide and case.open for case in state.cases.values()):
        raise FoldError("a halt can't be lifted while an incident that concerns all is open")
    state.halted = -1


def _approval(state: State, e: entries.Approval) -> None:
    pending = state.approvals.get(e.id)
    if pending is None or pending.answer:
        raise FoldError(f"approval {e.id!r} is not pending")
    pending.answer = "granted" if e.granted else "refused"


def _definition(state: State, e: entries.Definition) -> None:
    name = pin_name(e.key, e.tool)
    if name not in state.pins and len(state.pins) >= PINS_LIMIT:
        raise FoldError("more definitions than a state directory keeps")
    pin = state.pins.setdefault(name, Pin(e.server, e.tool, e.key))
    if e.action == "seen":
        pin.waiting, pin.seen = e.digest, e.seq
    elif e.action == "approved" and (e.by == "policy" or pin.waiting == e.digest):
        pin.approved, pin.waiting, pin.refused = e.digest, "", ""
    elif e.action == "refused" and pin.waiting == e.digest:
        pin.refused, pin.waiting = e.digest, ""
    else:
        raise FoldError(f"definition {e.digest!r} is not waiting")


def _incident(state: State, e: entries.Incident) -> None:
    if e.noted:
        return
    run = state.runs.get(e.run)
    state.cases[str(e.seq)] = Case(
        id=e.seq,
        what=e.what,
        run=e.run,
        wide=e.wide,
        detail=e.detail,
        at={"detected": e.seq},
        times={"detected": e.time},
        by={"detected": "gate"},
        policy=run.policy if run else "",
        version=state.version,
    )


def _incident_step(state: State, e: entries.IncidentStep) -> None:
    case = state.cases.get(str(e.incident))
    if case is None:
        raise FoldError(f"entry {e.seq} is a step of incident {e.incident}, which is not known")
    why = refusal(case, e.step, e.evidence, e.by, surroundings(state))
    if why:
        raise FoldError(f"entry {e.seq} can't be a step of incident {e.incident}: {why}")
    take(case, e.step, e.seq, e.time, e.by, e.evidence)
    closed = [name for name, one in state.cases.items() if not one.open]
    for name in closed[: max(0, len(closed) - CLOSED_CASES)]:
        del state.cases[name]


def _canary(state: State, e: entries.Canary) -> None:
    if e.action == "plant":
        state.canaries[e.name] = e.resource
    elif state.canaries.pop(e.name, None) is None:
        raise FoldError(f"canary {e.name!r} was never planted")


def _clock(state: State, e: entries.Clock) -> None:
    state.clock_suspect = not e.confirmed and e.jump > 0
    if e.confirmed:
        state.boot_clock, state.boot_time = e.boot_clock, e.time


_FOLDS: dict[type, Callable[[State, Any], None]] = {
    entries.GateStart: _gate_start,
    entries.GateStop: _nothing,
    entries.Repair: _nothing,
    entries.Key: _key,
    entries.RunStart: _run_start,
    entries.RunEnd: _run_end,
    entries.CapMint: _cap_mint,
    entries.CapDerive: _cap_derive,
    entries.CapRevoke: _cap_revoke,
    entries.Admit: _admit,
    entries.Outcome: _outcome,
    entries.Chunk: _chunk,
    entries.Tally: _tally,
    entries.Denied: _denied,
    entries.Input: _nothing,
    entries.Halt: _halt,
    entries.Resume: _resume,
    entries.Approval: _approval,
    entries.Definition: _definition,
    entries.Incident: _incident,
    entries.IncidentStep: _incident_step,
    entries.Canary: _canary,
    entries.Clock: _clock,
    entries.Control: _nothing,
    entries.Proof: _nothing,
    entries.Snapshot: _nothing,
    entries.Replay: _nothing,
    entries.ReplayEnd: _nothing,
}
