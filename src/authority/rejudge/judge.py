"""Every verdict of a log, recomputed from the log and compared.

Recomputed: each `admit` and `denied` entry as a whole (code, layer, reason, rule, reservation, rate
and count, label, number of the denial, capability) by the kernel's `decide`; each `chunk`, and the
refusal of one, by `chunk`; which capabilities an admission derived, and the ids of all that were
derived; the digests of requests; the state itself, entry by entry, by the kernel's fold, and compared
with the digest of each snapshot.

Taken as given, and counted (`given`): that a MAC held or did not (no token is recorded); what was
refused while a request was read; times, sizes and numbers that the gate looked up; what outcomes say
of the world; amounts of arguments that are not at hand; refusals of the control API; what the
operator did.

Rules
- A verdict that differs in any member is a difference, and names the entry. So is an entry that
  can't follow the ones before it, a policy that is not at hand, and a capability that nobody recorded.
- A log from before `at` was recorded is judged by the entry's own time; then the times in `usage` are
  not compared, and the entry is counted as given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from authority.kernel import decide as kernel
from authority.kernel import entries
from authority.kernel.codes import Code
from authority.kernel.entries import AnyEntry
from authority.kernel.facts import Request
from authority.kernel.fold import apply
from authority.kernel.labels import Label
from authority.kernel.policy import Policy
from authority.kernel.rates import UsageDelta
from authority.kernel.requests import EFFECTS
from authority.kernel.state import FoldError, State, digest
from authority.rejudge.presented import Presented
from authority.rejudge.requests import again
from authority.rejudge.sources import Sources
from authority.tokens import TokenError

KEPT = 100
"""Differences that are kept by name; all are counted."""

GIVEN_MAC = "that the capability's MAC held"
GIVEN_NO_MAC = "that the capability's MAC did not hold"
GIVEN_READ = "refused while it was read"
GIVEN_AMOUNT = "amounts of arguments that are not at hand"
GIVEN_NAMES = "names of arguments that are not at hand"
GIVEN_CONTROL = "refusals of the control API"
GIVEN_TIME = "times before they were recorded"


class Difference(msgspec.Struct, frozen=True):
    """An entry that judges differently."""

    seq: int
    what: str


class Judge:
    """A fold over a log that judges on the way. Feed it every entry, then `end`."""

    def __init__(self, sources: Sources) -> None:
        self.state = State()
        self.judged = 0
        self.count = 0
        self.given: Counter[str] = Counter()
        self.differences: list[Difference] = []
        self.verdicts: Counter[str] = Counter()
        self._sources = sources
        self._presented = Presented()
        self._derived: list[entries.CapDerive] = []
        self._going: dict[int, Request] = {}
        self._starting = ""
        self._floor = -1
        self._kinds: dict[type, Callable[[Any], None]] = {
            entries.Admit: self._admit,
            entries.Denied: self._denied,
            entries.Chunk: self._chunk,
            entries.CapDerive: self._derive,
            entries.CapMint: self._mint,
            entries.Outcome: self._outcome,
            entries.Clock: self._clock,
            entries.RunStart: self._start,
            entries.RunEnd: self._end_run,
            entries.Snapshot: self._snapshot,
        }

    def feed(self, entry: AnyEntry) -> bool:
        """Judge and fold one entry; False when the log can't be folded any further."""
        self.count += 1
        kind = type(entry)
        floor, starting = self._floor, self._starting
        try:
            consumes = isinstance(entry, entries.Denied) and entry.hidden
            if self._derived and not consumes and kind not in (entries.Admit, entries.CapDerive):
                self._unused()
            handled = self._kinds.get(kind)
            if handled is not None:
                handled(entry)
            if not self._derived:
                apply(self.state, entry)
        except FoldError as error:
            self._differs(entry.seq, f"it can't follow the entries before it: {error}")
            return False
        if kind is not entries.CapDerive:
            # What these say is about the very next decision.
            self._floor = -1 if self._floor == floor else self._floor
            self._starting = "" if self._starting == starting else self._starting
        return True

    def end(self) -> None:
        """The log is over."""
        if self._derived:
            self._unused()

    def refuse(self, what: str) -> None:
        """The next line can't be judged at all."""
        self._differs(self.state.seq + 1, what)

    def _unused(self) -> None:
        self._differs(self._derived[0].seq, "a capability was derived and nothing admitted")
        derived, self._derived = self._derived, []
        for entry in derived:
            apply(self.state, entry)

    def _differs(self, seq: int, what: str) -> None:
        self.verdicts["different"] += 1
        if len(self.differences) < KEPT:
            self.differences.append(Difference(seq, what))

    def _policy(self, seq: int, run: str) -> Policy | None:
        info = self.state.runs.get(run)
        if info is None:
            return None
        found = self._sources.policy(info.policy)
        if found is None:
            self._differs(seq, f"it can't be judged: the policy {info.policy} is not at hand")
        return found

    def _before(self, entry: AnyEntry) -> int:
        """The floor of time at the decision: a clock entry may stand between it and its verdict."""
        floor = self.state.floor
        if self._floor >= 0:
            self.state.floor = self._floor
        return floor

    def _admit(self, entry: entries.Admit | entries.Denied) -> None:
        """A verdict that may have derived capabilities."""
        derived, self._derived = self._derived, []
        self._verdict(entry, derived)
        for each in derived:
            apply(self.state, each)

    def _denied(self, entry: entries.Denied) -> None:
        if not entry.run:
            self.given[GIVEN_CONTROL] += 1
        elif entry.of >= 0:
            self._refused_piece(entry)
        elif entry.hidden:
            self._admit(entry)
        else:
            self._verdict(entry, [])

    def _verdict(
        self, entry: entries.Admit | entries.Denied, derived: list[entries.CapDerive]
    ) -> None:
        missing = len(self.differences)
        policy = self._policy(entry.seq, entry.run)
        if policy is None and len(self.differences) > missing:
            return
        denied = entry if isinstance(entry, entries.Denied) else None
        try:
            token = self._presented.token(entry.caps, self.state, denied)
        except TokenError as error:
            self._differs(entry.seq, f"it can't be judged: {error.message}")
            return
        if denied is not None and denied.code == Code.CAP_MISSING and not denied.caps:
            asked = again(entry, None, self._sources)
        else:
            asked = again(entry, token, self._sources)
        self._count_given(entry, asked.made_up)
        if asked.wrong:
            self._differs(entry.seq, asked.wrong)
            return
        if asked.made_up and self._names_matter(entry):
            self.given[GIVEN_NAMES] += 1
            return
        self.judged += 1
        floor = self._before(entry)
        decided = kernel.decide(self.state, policy, asked.request, asked.facts)
        self.state.floor = floor
        self._compare([*derived, entry], decided)
        spec = EFFECTS.get(entry.effect)
        if denied is None and spec is not None and spec.flow:
            self._going[entry.seq] = asked.request

    def _names_matter(self, entry: entries.Admit | entries.Denied) -> bool:
        run = self.state.runs.get(entry.run)
        return entry.effect == "tool.call" and run is not None and not run.label.clean

    def _count_given(self, entry: entries.Admit | entries.Denied, made_up: bool) -> None:
        if isinstance(entry, entries.Denied) and entry.given:
            self.given[GIVEN_READ] += 1
            return
        if entry.caps:
            self.given[GIVEN_MAC] += 1
        elif isinstance(entry, entries.Denied) and entry.code == Code.CAP_INVALID:
            self.given[GIVEN_NO_MAC] += 1
        if made_up and entry.reserve:
            self.given[GIVEN_AMOUNT] += 1
        if not entry.at:
            self.given[GIVEN_TIME] += 1

    def _compare(self, recorded: list[AnyEntry], decided: list[AnyEntry]) -> None:
        for was, now in zip(recorded, decided, strict=False):
            now.seq, now.batch, now.time = was.seq, was.batch, was.time
        if recorded == decided:
            self.verdicts["same"] += 1
            return
        last = recorded[-1]
        early = isinstance(last, entries.Admit | entries.Denied) and not last.at
        if early and [*map(_timeless, recorded)] == [*map(_timeless, decided)]:
            self.verdicts["same"] += 1
            return
        self._differs(last.seq, _difference(recorded, decided))

    def _chunk(self, entry: entries.Chunk) -> None:
        request = self._going.get(entry.of)
        if request is None:
            self._differs(entry.seq, f"it goes on with entry {entry.of}, which is not under way")
            return
        self._piece(entry, request, entry.charge, entry.body, entry.sources, entry.secrets)

    def _refused_piece(self, entry: entries.Denied) -> None:
        request = self._going.get(entry.of)
        if request is None or entry.arguments is None:
            self.given[GIVEN_READ] += 1  # what the piece belonged to is over and forgotten
            return
        self._piece(entry, request, entry.reserve, entry.arguments, [], [])

    def _piece(
        self,
        entry: entries.Chunk | entries.Denied,
        request: Request,
        charge: dict[str, int],
        body: entries.Body,
        sources: list[str],
        secrets: list[str],
    ) -> None:
        missing = len(self.differences)
        policy = self._policy(entry.seq, entry.run)
        if policy is None and len(self.differences) > missing:
            return
        self.judged += 1
        floor = self._before(entry)
        label = Label(frozenset(sources), frozenset(secrets))
        canary = entry.facts.get("canary", "") if isinstance(entry, entries.Denied) else ""
        decided = kernel.chunk(
            self.state, policy, request, entry.of, entry.way, dict(charge), body, label, canary
        )
        self.state.floor = floor
        self._compare([entry], [decided])

    def _derive(self, entry: entries.CapDerive) -> None:
        try:
            wrong = self._presented.derive(entry)
        except TokenError as error:
            wrong = error.message
        if wrong:
            self._differs(entry.seq, f"the capability {entry.id}: {wrong}")
        if self._starting and entry.run == self._starting:
            return  # a child's capability, made with its run: folded at once
        self._derived.append(entry)

    def _mint(self, entry: entries.CapMint) -> None:
        try:
            self._presented.mint(entry)
        except TokenError as error:
            self._differs(entry.seq, f"the capability {entry.id}: {error.message}")

    def _outcome(self, entry: entries.Outcome) -> None:
        self._going.pop(entry.of, None)

    def _clock(self, _entry: entries.Clock) -> None:
        self._floor = self.state.floor

    def _start(self, entry: entries.RunStart) -> None:
        self._starting = entry.run

    def _end_run(self, entry: entries.RunEnd) -> None:
        for seq in [s for s, request in self._going.items() if request.run == entry.run]:
            del self._going[seq]

    def _snapshot(self, entry: entries.Snapshot) -> None:
        if entry.at == self.state.seq:
            self.judged += 1
            if digest(self.state) != entry.digest:
                self._differs(entry.seq, "the state is not the one whose digest it holds")


def _timeless(entry: AnyEntry) -> AnyEntry:
    """The entry without what logs held later: times that were judged by, and what `Denied` added."""
    if isinstance(entry, entries.Admit):
        usage = {k: UsageDelta(0, d.count, d.quotas) for k, d in entry.usage.items()}
        return msgspec.structs.replace(entry, at=0, usage=usage)
    if isinstance(entry, entries.Denied):
        # How long is left to wait stands in the reason.
        reason = "" if entry.code == Code.CAP_RATE else entry.reason
        return msgspec.structs.replace(
            entry, at=0, given=False, reserve={}, links=[], kid="", bound="", reason=reason
        )
    return entry


def _difference(recorded: list[AnyEntry], decided: list[AnyEntry]) -> str:
    """The first member in which they differ, in words."""
    if len(recorded) != len(decided):
        return f"{len(recorded) - 1} capabilities were derived, and it takes {len(decided) - 1}"
    for was, now in zip(recorded, decided, strict=True):
        if type(was) is not type(now):
            return f"the gate said {_said(was)}, judged again it is {_said(now)}"
        for name in was.__struct_fields__:
            one, other = getattr(was, name), getattr(now, name)
            if one != other:
                return f"its {name} is {one!r:.200}, judged again it is {other!r:.200}"
    return "it differs"


def _said(entry: AnyEntry) -> str:
    if isinstance(entry, entries.Denied):
        return f"{entry.code} ({entry.reason})"
    return entry.__struct_config__.tag  # type: ignore[return-value]
