"""What recorded runs would have looked like under another policy, request by request.

A second state is folded beside the log, in which the chosen runs started under the new policy with its
budgets. Each recorded request is decided there, by the kernel, with its recorded facts; the answer is
folded there. What is compared is the kind of answer: allowed, denied, wants an approval.

What this can't know, and says so: a program that is answered otherwise asks otherwise afterwards. So
every line is about a request that was really made; nothing is said of requests that would have been.

Rules
- A request that was let through and would be denied costs nothing in the second state, and its outcome
  is left out. One that was denied and would be allowed has no outcome, so it is only counted.
- The size of a file that a run was kept from reading is in no entry, and counts as nothing.
- Labels of answers are worked out anew for reads, HTTP and tools, where they follow from the policy; so
  is the one that a run starts with.
- What the recorded policy protected (the gate's own places) the new one protects, too. A child with a
  policy of its own is asked under both: its own as recorded, and the new one.
- What was refused while it was read, and by the control API, is the same under every policy.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from authority.audit import query
from authority.errors import AuthorityError
from authority.kernel import decide as kernel
from authority.kernel import entries, flows
from authority.kernel.budgets import BudgetError
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.entries import AnyEntry
from authority.kernel.fold import apply
from authority.kernel.labels import USER, Label
from authority.kernel.policy import Policy, PolicyError, narrow
from authority.kernel.resources import Resource
from authority.kernel.state import FoldError, State
from authority.rejudge.presented import Presented
from authority.rejudge.requests import Again, again
from authority.rejudge.sources import Sources
from authority.tokens import TokenError

DENIED, ALLOWED, ASKS, ASKS_NOT = (
    "newly denied",
    "newly allowed",
    "newly wants an approval",
    "wants no approval any more",
)
CHANGES: Final = (DENIED, ALLOWED, ASKS, ASKS_NOT)
_LABELLED: Final = frozenset({"fs.read", "fs.list", "fs.stat", "http.request", "tool.call"})


class WhatIfError(AuthorityError):
    """The runs can't be asked about the policy."""


class Changed(msgspec.Struct, frozen=True):
    """Requests of one kind that would be answered otherwise: how many, and the first one's entry."""

    run: str
    change: str
    effect: str
    verb: str
    resource: str
    why: str
    count: int
    first: int


class Budget(msgspec.Struct, frozen=True):
    """A limit that differs; `spent` is what the run really used. None is no limit."""

    run: str
    dimension: str
    before: int | None
    after: int | None
    spent: int


class WhatIf(msgspec.Struct, frozen=True):
    """`asked` requests of `runs`; those that can't be asked again are counted in `unasked`."""

    policy: str
    runs: tuple[str, ...]
    asked: int
    unasked: int
    same: int
    changed: tuple[Changed, ...]
    budgets: tuple[Budget, ...]

    def to_json(self) -> dict[str, Any]:
        """As a dictionary for `--json`."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def what_if(
    directory: str | os.PathLike[str], policy: Policy, runs: Iterable[str], sources: Sources
) -> WhatIf:
    """Ask `runs` (all, when there are none) of `policy`. Raises `WhatIfError`, `OSError`."""
    wanted = frozenset(runs)
    fold = _Fold(policy, wanted, sources)
    for line in query.lines(directory):
        fold.feed(entries.decode(line))
    if missing := wanted - fold.seen:
        raise WhatIfError(
            f"the log holds no run {printable(sorted(missing)[0], 64)}",
            "'authority audit query --kind run.start' lists the runs",
        )
    return fold.result()


class _Admitted(NamedTuple):
    run: str
    effect: str
    resource: Resource | None
    verb: str
    seq: int


class _Fold:
    def __init__(self, policy: Policy, wanted: frozenset[str], sources: Sources) -> None:
        self.seen: set[str] = set()
        self._policy, self._wanted, self._sources = policy, wanted, sources
        self._state = State()
        self._presented = Presented()
        self._under: dict[str, Policy | None] = {}
        self._recorded: dict[str, str] = {}
        self._limits: dict[str, dict[str, int]] = {}
        self._spent: dict[str, Counter[str]] = {}
        self._derived: list[entries.CapDerive] = []
        self._started = ""
        self._admitted: dict[int, _Admitted] = {}
        self._dropped: set[int] = set()
        self._changes: dict[tuple[str, ...], list[int]] = {}
        self._asked = self._unasked = self._same = 0

    def feed(self, entry: AnyEntry) -> None:
        started, self._started = self._started, ""
        match entry:
            case entries.RunStart():
                self._started = entry.run
                entry = self._start(entry)
            case entries.CapMint():
                self._presented.mint(entry)
            case entries.CapDerive():
                self._presented.derive(entry)
                self._started = started
                if entry.run != started:
                    self._derived.append(entry)
                    return
            case entries.Admit() | entries.Denied():
                self._verdict(entry)
                return
            case entries.Outcome() | entries.Chunk():
                if not self._goes_on(entry):
                    return
            case _:
                pass
        self._fold(entry)

    def _fold(self, entry: AnyEntry) -> None:
        """Fold into the second state, in which some entries have no number of their own."""
        try:
            apply(self._state, msgspec.structs.replace(entry, seq=self._state.seq + 1))
        except (FoldError, BudgetError, KeyError):
            # An answer to what was never asked here, such as an approval. It changes nothing.
            self._unasked += isinstance(entry, entries.Admit | entries.Denied)

    def _start(self, entry: entries.RunStart) -> entries.RunStart:
        parent = self._under.get(entry.parent) if entry.parent else None
        chosen = not self._wanted or entry.run in self._wanted or parent is not None
        recorded = self._sources.policy(entry.policy)
        self._recorded[entry.run] = entry.policy
        if chosen and not entry.parent:
            self.seen.add(entry.run)
        if entry.run in self._wanted:
            self.seen.add(entry.run)
        policy = None
        if chosen:
            policy = self._under_new(entry, recorded, parent)
        self._under[entry.run] = policy
        self._spent[entry.run] = Counter()
        if policy is None:
            return entry
        if not entry.parent:
            self._limits[entry.run] = dict(entry.budgets)
            entry = msgspec.structs.replace(entry, budgets=policy.budgets)
        label = flows.started(policy, self._brought_along(entry, recorded))
        return msgspec.structs.replace(
            entry,
            policy=policy.digest,
            sources=sorted(label.sources),
            secrets=sorted(label.secrets),
        )

    def _brought_along(self, entry: entries.RunStart, recorded: Policy | None) -> Label:
        """What a run starts with from elsewhere: its parent, or the run that it goes on from."""
        parent = self._state.runs.get(entry.parent) if entry.parent else None
        if parent is not None:
            return parent.label
        ours = recorded is not None and not recorded.trusts_user and not entry.continues
        return Label(frozenset(entry.sources) - {USER if ours else ""}, frozenset(entry.secrets))

    def _under_new(
        self, entry: entries.RunStart, recorded: Policy | None, parent: Policy | None
    ) -> Policy | None:
        if recorded is None:
            raise WhatIfError(
                f"the policy of run {entry.run} is not in the content store", "name it with --store"
            )
        try:
            kept = recorded._protection
            new = self._policy.protect(kept.no_access.texts, kept.no_write.texts)
            if parent is None:
                return new
            above = self._sources.policy(self._recorded.get(entry.parent, ""))
            own = above is not None and above.digest != recorded.digest
            return narrow(parent, recorded) if own else parent
        except PolicyError as error:
            raise WhatIfError(f"run {entry.run}: {error.message}", error.hint) from None

    def _verdict(self, entry: entries.Admit | entries.Denied) -> None:
        derived, self._derived = self._derived, []
        policy = self._under.get(entry.run)
        asked = self._again(entry)
        if asked is None:
            for each in derived:
                self._fold(each)
            self._fold(entry)
            self._note(entry, None)
            return
        judged_by = policy or self._sources.policy(self._run_policy(entry.run))
        decided = kernel.decide(self._state, judged_by, asked.request, asked.facts)
        verdict = decided[-1]
        if policy is not None:
            self._asked += 1
            self._compare(entry, verdict)
        allowed = isinstance(verdict, entries.Admit)
        if isinstance(entry, entries.Denied):
            self._note(entry, None)
            if allowed:
                self._fold(entry)  # it has no outcome, so it costs what it cost
                return
        for made in decided:
            made.batch, made.time = entry.batch, entry.time
            self._fold(made)
        if isinstance(entry, entries.Admit):
            if not allowed:
                self._dropped.add(entry.seq)
                return
            self._note(entry, asked.request.resource)

    def _note(self, entry: entries.Admit | entries.Denied, resource: Resource | None) -> None:
        """What was really spent, and under which number the second state knows an admission."""
        spent = self._spent.setdefault(entry.run, Counter())
        if isinstance(entry, entries.Denied):
            spent.update({"requests": 1, "denials": 0 if entry.again else 1})
        elif entry.final:
            spent.update(entry.reserve)
        else:
            seq = self._state.seq
            self._admitted[entry.seq] = _Admitted(
                entry.run, entry.effect, resource, entry.verb, seq
            )

    def _run_policy(self, run: str) -> str:
        info = self._state.runs.get(run)
        return info.policy if info else ""

    def _again(self, entry: entries.Admit | entries.Denied) -> Again | None:
        """None for what is the same under every policy, or can't be asked again."""
        if isinstance(entry, entries.Denied) and (not entry.run or entry.given or entry.of >= 0):
            return None
        if entry.run not in self._state.runs:
            return None
        denied = entry if isinstance(entry, entries.Denied) else None
        try:
            token = self._presented.token(entry.caps, self._state, denied)
        except TokenError:
            self._unasked += 1
            return None
        if denied is not None and denied.code == Code.CAP_MISSING and not denied.caps:
            return again(entry, None, self._sources)
        asked = again(entry, token, self._sources)
        if denied is not None and not denied.facts and entry.effect == "fs.read":
            facts = msgspec.structs.replace(asked.facts, looked_up={"size": 0})
            asked = asked._replace(facts=facts)
        if asked.request.arguments is None and asked.facts.problem is None:
            self._unasked += 1
            return None
        return asked

    def _compare(self, was: entries.Admit | entries.Denied, now: AnyEntry) -> None:
        before, after = _kind(was), _kind(now)
        change = ""
        if before != after:
            change = {"denied": DENIED, "allowed": ALLOWED, "asks": ASKS}[after]
            if before == "asks" and after == "allowed":
                change = ASKS_NOT
        elif after == "allowed" and _approved(was) and not _approved(now):
            change = ASKS_NOT
        if not change:
            self._same += 1
            return
        why = ""
        if isinstance(now, entries.Denied):
            why = f"{now.code} {now.rule or now.reason}"
        elif isinstance(now, entries.Admit):
            why = now.rule
        key = (was.run, change, was.effect, was.verb, was.resource, why)
        count = self._changes.setdefault(key, [0, was.seq])
        count[0] += 1

    def _goes_on(self, entry: entries.Outcome | entries.Chunk) -> bool:
        spent = entry.spent if isinstance(entry, entries.Outcome) else entry.charge
        self._spent.setdefault(entry.run, Counter()).update(spent)
        if entry.of in self._dropped:
            return False
        found = self._admitted.get(entry.of)
        if found is None:
            return True
        policy = self._under.get(found.run)
        entry.of = found.seq
        if policy is None or found.resource is None or found.effect not in _LABELLED:
            return True
        if isinstance(entry, entries.Outcome) and (entry.sources or entry.status != "aborted"):
            label = flows.answer_label(
                self._state,
                policy,
                found.effect,
                found.resource,
                found.verb,
                facts=entry.facts,
            )
            entry.sources, entry.secrets = sorted(label.sources), sorted(label.secrets)
        return True

    def result(self) -> WhatIf:
        changed = [
            Changed(run, change, effect, verb, resource, why, count, first)
            for (run, change, effect, verb, resource, why), (count, first) in self._changes.items()
        ]
        changed.sort(key=lambda c: (CHANGES.index(c.change), c.first))
        return WhatIf(
            self._policy.digest,
            tuple(sorted(run for run, policy in self._under.items() if policy is not None)),
            self._asked,
            self._unasked,
            self._same,
            tuple(changed),
            tuple(self._budgets()),
        )

    def _budgets(self) -> Iterable[Budget]:
        new = self._policy.budgets
        for run, old in self._limits.items():
            for name in sorted({*old, *new}):
                if old.get(name) != new.get(name):
                    yield Budget(run, name, old.get(name), new.get(name), self._spent[run][name])


def _kind(entry: AnyEntry) -> str:
    if isinstance(entry, entries.Admit):
        return "allowed"
    asks = isinstance(entry, entries.Denied) and entry.code == Code.APPROVAL_REQUIRED
    return "asks" if asks else "denied"


def _approved(entry: AnyEntry) -> bool:
    return isinstance(entry, entries.Admit) and bool(entry.approval)
