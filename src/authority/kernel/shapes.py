"""Recorded fields: trusted fields of tools whose *shape* is trusted, and what their presence hinges on.

Pure. Rules
- A trusted field (`ToolRules.fields`) is a value that nobody else can write. Whether it is there is
  another matter: somebody who brings an object of their own, or keeps the tool from answering, decides
  that as well. `shape = "trusted"` says that they do not: whether the tool answers, how much it lists
  and which trusted fields there are follows from what it was asked and what the service records.
- The gate takes this literally. A recorded field is read from what is left of an answer when everything
  but its trusted fields is cut away (`cut`), so nothing else in the answer decides whether it is there:
  no word of it, no length, no error's text.
- What a recorded field *hinges on*: all that decided whether the lookup was made and with what, and
  whether calls of the run and its family were made before that may have changed what there is to
  record (`moved`): calls on handles, and those of a relative that had read untrusted words. It carries
  this label alone where its absence could be seen: in what a call on handles leaves, and when it is
  read. Where it steers it has the label of every trusted field (`sinks.part_label`).
- A typed part is no field: it carries the whole handle's label. So does a field of an answer that is
  recorded in a log from before there were shapes, as far as its call was made with handles.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

from authority.kernel import pointers, resources
from authority.kernel.handles import Held, Part
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.relatives import IDLE, family
from authority.kernel.state import Moved, Run, State


def recorded(policy: Policy, held: Held, path: str, *, typed: bool) -> bool:
    """Whether a part of a handle's value is a recorded field."""
    return not typed and any(pointers.covers(pattern, path) for pattern in facts(policy, held))


def facts(policy: Policy, held: Held) -> tuple[str, ...]:
    """The patterns of the recorded fields of a handle's value."""
    return patterns(policy, held.effect, resources.parse_text(held.resource))


def patterns(policy: Policy, effect: str, resource: resources.Resource) -> tuple[str, ...]:
    """The patterns of the recorded fields of an answer."""
    rules = policy.tool_rules(resource) if effect == "tool.call" else None
    return rules.fields if rules is not None and rules.shape == "trusted" else ()


def given(state: State, policy: Policy | None, run: Run, parts: tuple[Part, ...]) -> Label:
    """The label of all that decides whether a call is made, and with what."""
    label, moves = run.label, None
    for part in parts:
        held = run.handles.get(part.handle)
        if held is None:
            continue
        if policy is None or not recorded(policy, held, part.path, typed=part.typed):
            label = label.join(held.label)
            continue
        moves = moves or moved(state, policy, run)
        label = label.join(_hinge(held, moves))
    return label


def hinge(state: State, policy: Policy, run: Run, held: Held) -> Label:
    """What it hinges on that a recorded field of the handle is there, and what may be seen of it."""
    return _hinge(held, moved(state, policy, run))


def _hinge(held: Held, moves: Moves) -> Label:
    before = bisect_left(moves.asked, held.born)
    return moves.labels[before].join(Label(held.hinges, held.label.secrets))


class Moves(NamedTuple):
    """The entries of calls that may have changed something, in order, and what all the first n of them
    hinged on: `labels[n]`."""

    asked: list[int]
    labels: list[Label]


def moved(state: State, policy: Policy, run: Run) -> Moves:
    """The calls of the run's family that may have changed what a tool finds: those on handles, and
    those of a run that had read untrusted words."""
    known: dict[tuple[str, str, str], bool] = {}
    found: list[Held | Moved] = []
    for one in family(state, run.id):
        calls: list[Held | Moved] = [*one.handles.values(), *one.moved.values()]
        for each in calls:
            what = (each.effect, each.resource, each.verb)
            if what not in known:
                known[what] = _changes(policy, *what)
            if known[what]:
                found.append(each)
    found.sort(key=lambda each: each.asked)
    labels = [CLEAN]
    for each in found:
        hinged = each.label.sources if isinstance(each, Moved) else each.hinges
        labels.append(labels[-1].join(Label(hinged, each.label.secrets)))
    return Moves([each.asked for each in found], labels)


def _changes(policy: Policy, effect: str, resource: str, verb: str) -> bool:
    if effect == "tool.call":
        rules = policy.tool_rules(resources.parse_text(resource))
        return rules is None or rules.effect not in ("read", "none")
    if effect == "http.request":
        return verb not in ("GET", "HEAD")
    return effect not in IDLE


def cut(fields: tuple[str, ...], value: Any) -> Any:
    """An answer with nothing left in it but these fields and the lists and tables that hold them."""
    return _cut([pointers.steps(pattern) for pattern in fields], value)


def _cut(left: list[tuple[str, ...]], value: Any) -> Any:
    if () in left:
        return value

    def below(name: str) -> list[tuple[str, ...]]:
        return [rest[1:] for rest in left if rest[0] in ("*", name)]

    if isinstance(value, Mapping):
        return {name: _cut(below(name), item) for name, item in value.items() if below(name)}
    if isinstance(value, list):
        return [_cut(below(str(at)), item) for at, item in enumerate(value)]
    return None
