"""Handles: values that stay at the gate, their labels, and what a program may learn about them.

Pure. Rules
- A request that asks for a handle gets one, and the run's label stays as it is: the program has read
  nothing. A handle's label is that of the answer, joined with the labels of all arguments.
- A request one of whose arguments is a handle is answered with a handle. Each argument then has its
  own label: what the program wrote has the run's, the rest that of its handles.
- What a program can see of such a request follows from what it knows: which handles it named, their
  labels, the policy, the budgets. So the *open* refusals (halt, capability, policy, budget, labels)
  are answered as such, and everything that depends on the values behind handles is *hidden*: a field
  that is not there, a value that does not fit, a rule about an argument, a canary, an effect that was
  refused or failed. It is in the log, and the answer is a handle to an error.
- A hidden refusal costs what the call would have cost, is no denial of the budget, and has no number.
  A call that is let through costs its whole reservation, which is made of bounds: lengths and counts
  of what is behind handles are in no budget. What is measured all the same, and said in the documents:
  the prompt of a model (`input_tokens`, `cost_usd`), what an MCP server prints (`output_bytes`), and
  the time that things take.
- An answer's receipt (entry and hash) would count entries and commit to hidden bytes. From its first
  handle on a run, with its parents and children, gets none.
- Quotas of a capability sum up what the program shows: an argument that is a handle has none, and a
  capability that wants one refuses openly.
- Reading (`value.reveal`) raises the run's label by the handle's, for good, also when it fails; of a
  recorded field (`shapes`) by no more than what it hinges on that it is there.
- A handle ends with its run. Its bytes never change, so a request that names it is exact: an approval
  of it is an approval of these bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy_sections import Judgement
from authority.kernel.values import SOME

HANDLES_LIMIT: Final = 4096
"""Handles that a run may have."""
BOUND: Final = 8 * 1024 * 1024
"""The most bytes of an argument that is filled from handles; what a call on handles is charged."""


class Held(msgspec.Struct):
    """A handle as the log knows it. `asked` and `born`: entries of the call and of its outcome.

    `given` is the label of what the call was made with: a tool's own words may be trusted in part, what
    it was given never is. `hinges`: the sources of all that decided whether it was made (`shapes`).
    """

    asked: int
    effect: str
    resource: str
    verb: str = ""
    born: int = -1
    label: Label = CLEAN
    given: Label = CLEAN
    hinges: frozenset[str] = frozenset()


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of an argument that a handle stands for.

    `at` and `path` are pointers: where it stands, and into the handle's value. `kind` and `bits`: of
    the narrow type that was demanded of it; `fits`: the kinds that it really is. `born`: the entry in
    which its bytes came. `argument` is the name of the argument that it is, or is part of; `whole`:
    it is all of it.
    """

    at: str
    argument: str
    handle: str
    path: str = ""
    typed: bool = False
    kind: str = ""
    bits: int = 0
    fits: tuple[str, ...] = ()
    whole: bool = False
    born: int = -1

    @property
    def optional(self) -> bool:
        """Whether it is left out where it is not there: an item of a `$some`."""
        return self.at.rpartition("/")[0].endswith(f"/{SOME}")


def judge(effect: str, scheme: str, *, compute: bool) -> Judgement:
    """Whether a policy lets handles be read, or be computed on."""
    if effect == "value.reveal" and scheme == "handle":
        return Judgement(True, "built in", "what a run holds it may read; that raises its label")
    if effect == "value.compute" and scheme == "room" and compute:
        return Judgement(True, "labels.compute")
    return Judgement(False, "", "labels.compute is not true")


def hidden_reserve(effect: str, reserve: Mapping[str, int]) -> dict[str, int]:
    """What a call on handles reserves: the bound in place of the size of what it is given."""
    found = dict(reserve)
    dimension = {
        "fs.write": "file_bytes",
        "fs.append": "file_bytes",
        "http.request": "network_bytes",
        "msg.send": "stored_bytes",
    }.get(effect)
    if dimension:
        found[dimension] = found.get(dimension, 0) + BOUND
    return found


def all_given(run: Label, held: Mapping[str, Held], parts: Iterable[Part]) -> Label:
    """The label of everything that a call is made with, as it stands."""
    for part in parts:
        run = run.join(held[part.handle].label) if part.handle in held else run
    return run


def shown(effect: str, arguments: Any) -> Any:
    """The arguments as far as the program wrote them: what is filled from handles weighs nothing."""
    empty = {"fs.write": "data", "fs.append": "data", "http.request": "body", "msg.send": "data"}
    name = empty.get(effect)
    return msgspec.structs.replace(arguments, **{name: b""}) if name else arguments
