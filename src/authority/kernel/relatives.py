"""What a run is told by what it shares with its family: budgets, capabilities, what tools tell.

Pure. Rules
- A child works out of its parent's budgets and capability. So a refusal for want of them, and how many
  tokens a model's answer is granted of what is left, tell how much the others used, and whoever is told
  has read it: it brings the labels of all that could have used it.
- That something is still there tells less: that they did not use it up. That is no answer of theirs,
  and has no label. (So a run that is told stops at the first thing that it is told.)
- An account of the whole state directory is shared by all runs; of those that are over it keeps the
  label as long as it has limits.
- What a run did in the world after it read untrusted words (`moved`) may show in what tools tell its
  relatives: `shapes`. Reading, looking, printing, waiting and talking to relatives move nothing.
- Numbers of entries count what the others did, so no receipts for a run while a relative's label is not
  below its own: `estranged`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from authority.kernel.labels import CLEAN, Label
from authority.kernel.state import STATE_ACCOUNT, Moved, Run, State

IDLE = frozenset(
    {"model.chat", "value.compute", "fs.read", "fs.list", "fs.stat", "mcp.read"}
    | {"msg.receive", "agent.wait"}
)
"""Effects that are answered with a handle and change nothing that a tool could tell of."""
_STILL = IDLE | {"value.reveal", "output", "msg.send", "mcp.list", "model.count", "model.embed"}
_STILL |= {"fs.open", "fs.mount", "net.resolve", "mcp.serve", "sys.time", "sys.random", "sys.uuid"}


def family(state: State, run: str) -> Iterator[Run]:
    """All that descend from the run that this one descends from, itself among them."""
    return below(state, [*state.ancestry(run)][-1])


def below(state: State, run: str) -> Iterator[Run]:
    """A run and all that descends from it."""
    todo = [run]
    while todo:
        one = state.runs.get(todo.pop())
        if one is not None:
            yield one
            todo += one.children


def estranged(state: State, run: str) -> bool:
    """Whether a relative has read what the run has not."""
    info = state.runs.get(run)
    if info is None or not (info.parent or info.children):
        return False
    return any(not one.label <= info.label for one in family(state, run))


def used(state: State, account: str) -> Label:
    """The label of all that may have used an account."""
    if account == STATE_ACCOUNT:
        return state.used.join(_of_all(state.runs.values()))
    return _of_all(below(state, account.removeprefix("run:")))


def kin(state: State, run: str) -> Label:
    """The label of all that may have used a run's capabilities."""
    return _of_all(family(state, run))


def _of_all(runs: Iterable[Run]) -> Label:
    label = CLEAN
    for one in runs:
        label = label.join(one.label)
    return label


def move(run: Run, seq: int, effect: str, resource: str, verb: str) -> None:
    """A run was let do something. Of one that read untrusted words it is remembered, once a tool."""
    if run.label.clean or effect in _STILL:
        return
    key = resource if effect == "tool.call" else f"{effect} {verb}"
    moved = run.moved.setdefault(key, Moved(seq, effect, resource, verb))
    moved.label = moved.label.join(run.label)
