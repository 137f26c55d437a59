"""Kernels with one thing wrong, by name: the search has to catch each, or it shows nothing.

Rules
- A mutant is made of the kernel's own source: a piece of one function is replaced, and the function is
  compiled again in its module, in memory, for as long as the search runs. Nothing is written.
- A piece that is not there (the kernel was changed) is an error, so mutants can't rot into doing
  nothing.
- Some have two edits: where the kernel asks twice, dropping one question changes nothing that can be
  seen, and that is as it should be.
- `world.may_perform` stands for the order of the pipeline, so it has a mutant too.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from authority.kernel import budgets, capabilities, decide, decide_budget
from authority.kernel import fold as folding
from authority.proof.kernel import world
from authority.proof.kernel.invariants import BUDGET, CAPABILITY, HALT, INTENT


class Edit(NamedTuple):
    """In `function` (or `Class.method`) of `module`, `old` becomes `new`."""

    module: ModuleType
    function: str
    old: str
    new: str


class Mutant(NamedTuple):
    """What is wrong, and the invariant that it breaks."""

    name: str
    invariant: str
    edits: tuple[Edit, ...]


def _one(name: str, invariant: str, *edit: Any) -> Mutant:
    return Mutant(name, invariant, (Edit(*edit),))


MUTANTS: tuple[Mutant, ...] = (
    _one(
        "performed before the intent is durable", INTENT,
        world, "may_perform", "flight.seq <= world.synced[3]", "True",
    ),
    _one(
        "what was in flight at a crash is given back", INTENT,
        folding, "_in_doubt", "admission.reserve, admission.reserve)", "admission.reserve, {})",
    ),
    _one(
        "what was done costs nothing", INTENT,
        folding, "_outcome", "admission.reserve, e.spent)", "admission.reserve, {})",
    ),
    _one(
        "an admission reserves nothing", BUDGET,
        folding, "_admit", "budgets.reserve(state.accounts, run.accounts, e.reserve)", "pass",
    ),
    _one(
        "a run's end forgets what it had in flight, before it is spent", INTENT,
        folding, "_forget", "_in_doubt(state, run)",
        "[(budgets.settle(state.accounts, run.accounts, o.reserve, {}), state.open.pop(s))"
        " for s, o in list(state.open.items()) if o.run == name]",
    ),
    _one(
        "the MAC is not asked", CAPABILITY,
        decide, "_capability", "key is None or not facts.mac_ok", "key is None",
    ),
    _one(
        "revocation is not asked, neither first nor again", CAPABILITY,
        decide, "_capability", "if cap in state.revoked:", "if False:",
    ),
    _one(
        "only the last link's revocation counts", CAPABILITY,
        decide, "_capability", "for cap in token.ids:", "for cap in token.ids[-1:]:",
    ),
    _one(
        "revocation is not asked again before performing", CAPABILITY,
        decide, "recheck", "any(cap in state.revoked for cap in caps)", "False",
    ),
    _one(
        "a piece does not ask about revocation", CAPABILITY,
        decide, "chunk", "if stopped:", "if False:",
    ),
    _one(
        "a capability is bound to nobody", CAPABILITY,
        decide, "_capability", "token.run not in state.ancestry(request.run)", "False",
    ),
    _one(
        "binding is asked of the wrong side", CAPABILITY,
        decide, "_capability",
        "token.run not in state.ancestry(request.run)",
        "request.run not in state.ancestry(token.run)",
    ),
    _one(
        "a capability of a run that is no more is taken", CAPABILITY,
        decide, "_capability", "root is None or root.run != token.run or ", "",
    ),
    _one(
        "expiry is off by one", CAPABILITY,
        capabilities, "scope", "now >= each.expires", "now > each.expires",
    ),
    _one(
        "expiry is compared the wrong way", CAPABILITY,
        capabilities, "scope", "now >= each.expires", "now < each.expires - 10**17",
    ),
    _one(
        "only the first link is asked for its scope", CAPABILITY,
        capabilities, "scope", "for each in token.links:", "for each in token.links[:1]:",
    ),
    _one(
        "the grace of a retired key never ends", CAPABILITY,
        decide, "_capability", "now > key.until", "now < 0",
    ),
    _one(
        "one more than is left is taken", BUDGET,
        budgets, "shortfall", "wanted > left", "wanted > left + 1",
    ),
    _one(
        "what is reserved does not count", BUDGET,
        budgets, "Account.left", "- self.reserved.get(dimension, 0)", "",
    ),
    _one(
        "what is spent does not count", BUDGET,
        budgets, "Account.left", "- self.spent.get(dimension, 0)", "",
    ),
    _one(
        "only the run's own account is asked", BUDGET,
        decide_budget, "fits", "run.accounts, reserve", "run.accounts[:1], reserve",
    ),
    _one(
        "only the last account is asked", BUDGET,
        decide_budget, "fits", "run.accounts, reserve", "run.accounts[-1:], reserve",
    ),
    _one(
        "a piece is not asked about its budget", BUDGET,
        decide, "chunk", "fits(state, run, charge)", "pass",
    ),
    _one(
        "a second reservation takes the place of the first", BUDGET,
        budgets, "reserve", "reserved.get(dimension, 0) + amount", "amount",
    ),
    _one(
        "a halted run is not asked about", HALT,
        decide, "_halted", "if run.halted:", "if False:",
    ),
    _one(
        "a general halt is not asked about", HALT,
        decide, "_halted", "if state.halted >= 0:", "if False:",
    ),
    _one(
        "a general halt is compared the wrong way", HALT,
        decide, "_halted", "if state.halted >= 0:", "if state.halted > 10**9:",
    ),
    _one(
        "a halt spares the children", HALT,
        folding, "_halt", "e.run in state.ancestry(run.id)", "e.run == run.id",
    ),
    _one(
        "a resume revives halted runs", HALT,
        folding, "_resume", "state.halted = -1",
        "state.halted = -1\n    for run in state.runs.values():\n        run.halted = False",
    ),
    _one(
        "a restart forgets the halt", HALT,
        folding, "_gate_start", "state.clock_suspect = False",
        "state.clock_suspect = False\n    state.halted = -1",
    ),
    _one(
        "entries fold in any order", HALT,
        folding, "apply", "entry.seq != state.seq + 1", "entry.seq < 0",
    ),
    _one(
        "a gap between entries is folded", HALT,
        folding, "apply", "entry.seq != state.seq + 1", "entry.seq <= state.seq",
    ),
    Mutant(
        "a halt revokes nothing, and is not asked about again before performing", HALT,
        (
            Edit(folding, "_halt", "state.revoked.update(", "list("),
            Edit(decide, "recheck", "state.halted >= 0 or info is None or info.halted", "info is None"),
        ),
    ),
)  # fmt: skip


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """The mutant is the kernel inside of this."""
    with ExitStack() as stack:
        for edit in mutant.edits:
            stack.enter_context(_edited(edit))
        yield


@contextmanager
def _edited(edit: Edit) -> Iterator[None]:
    owner: Any = edit.module
    *outer, name = edit.function.split(".")
    for each in outer:
        owner = getattr(owner, each)
    right: FunctionType = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(right))
    if source.count(edit.old) != 1:
        raise LookupError(f"{edit.module.__name__}.{edit.function} does not hold {edit.old!r} once")
    made: dict[str, Any] = {}
    text = "from __future__ import annotations\n" + source.replace(edit.old, edit.new)
    exec(compile(text, f"<{edit.function} with a mutation>", "exec"), vars(edit.module), made)  # noqa: S102
    wrong = made[name]
    users = [
        module
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("authority.")
        and vars(module).get(name) is right
    ]
    folds = [kind for kind, fold in folding._FOLDS.items() if fold is right]
    try:
        setattr(owner, name, wrong)
        for module in users:
            setattr(module, name, wrong)
        for kind in folds:
            folding._FOLDS[kind] = wrong
        yield
    finally:
        setattr(owner, name, right)
        for module in users:
            setattr(module, name, right)
        for kind in folds:
            folding._FOLDS[kind] = right
