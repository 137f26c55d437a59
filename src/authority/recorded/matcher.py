"""Held against the recording: each request that is asked now, by sequence and by digest.

Rules
- A program's connections are matched in the order in which they begin to ask, preferring one that began
  with the same request: which of its threads or processes came first is not the program's to decide.
  On a connection every request has its number, and must be the one that was asked under it then.
- A capability must be as wide as the one that was presented: the run's own, or narrowed likewise.
- What services of the gate asked for a program is matched by effect and digest, the oldest first.
- What was answered then is the answer now. Nothing is judged again and nothing is performed.
- The first difference ends it (`Diverged`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import msgspec

from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.kernel.codes import Code, Layer
from authority.kernel.denials import rendering
from authority.kernel.policy import Policy
from authority.kernel.requests import FsOpen
from authority.recorded.bodies import Kept, Missing
from authority.recorded.diff import described, differing
from authority.recorded.errors import Diverged, Divergence
from authority.recorded.now import Now
from authority.recorded.recording import Asked, Recording

_STOPPED = frozenset({str(Code.HALTED), str(Code.CAP_REVOKED)})
NOTHING = "nothing"
_opened = msgspec.json.Decoder(FsOpen).decode


class Matcher:
    """One replay's. `matched` counts requests that were asked as recorded."""

    def __init__(
        self, recording: Recording, kept: Kept, policy: Policy, capability: str = ""
    ) -> None:
        """`capability`: the id of the one that is presented now, where it is another than then."""
        self.recording = recording
        self.matched = 0
        self.reordered = 0
        self._kept = kept
        self._own_now = capability or recording.start.capability
        self._policy = policy
        self._streams: dict[int, int] = {}
        self._unclaimed = sorted(recording.streams, key=self._begins)
        self._own: dict[tuple[str, str], deque[Asked]] = defaultdict(deque)
        for asked in recording.own:
            self._own[asked.verdict.effect, asked.verdict.request].append(asked)
        self._order = recording.requests()
        self._changed = _changed(self._order)
        self._first = 0

    @property
    def total(self) -> int:
        return len(self._order)

    @property
    def frontier(self) -> int:
        """The entry of the oldest request that was not asked yet; beyond all when there is none."""
        order = self._order
        while self._first < len(order) and (
            order[self._first].done or _of_the_gate(order[self._first])
        ):
            self._first += 1
        return order[self._first].seq if self._first < len(order) else 2**53

    def _begins(self, stream: int) -> int:
        return min(a.seq for found in self.recording.streams[stream].values() for a in found)

    def match(self, now: Now) -> Asked:
        """The recorded request that this is. Raises `Diverged`."""
        request = now.request
        if not request.stream and request.effect:
            return self._match_own(now)
        found = self._expected(now)
        verdict = found.verdict
        if verdict.request != request.digest or verdict.effect != request.effect:
            raise Diverged(differing(found, now, self._kept, "another request"))
        if not (isinstance(verdict, entries.Denied) and verdict.given):
            self._same_capability(found, now)
        while now.wait and found.verdict.approval and isinstance(found.verdict, entries.Denied):
            # It waited for a person, and was asked again when they had answered.
            self._take(found)
            later = [a for a in self._under(now) if not a.done]
            if not later:
                return found
            found = later[0]
        return self._take(found)

    def _under(self, now: Now) -> list[Asked]:
        """What was recorded under a request's number."""
        recorded = self._streams.get(now.request.stream, -1)
        return self.recording.streams.get(recorded, {}).get(now.request.n, [])

    def _expected(self, now: Now) -> Asked:
        stream, n = now.request.stream, now.request.n
        recorded = self._streams.get(stream)
        if recorded is None:
            recorded = self._streams[stream] = self._claim(now)
        waiting = self.recording.streams.get(recorded, {}).get(n, [])
        for each in waiting:
            if not each.done:
                return each
        # Nothing was asked under this number: what should come next here?
        raise Diverged(self._unasked_on(recorded, now))

    def _claim(self, now: Now) -> int:
        """The recorded connection that a new one stands for; -1 when all are taken."""
        for number in self._unclaimed:
            first = self.recording.streams[number].get(now.request.n, [])
            if first and first[0].verdict.request == now.request.digest:
                self._unclaimed.remove(number)
                return number
        return self._unclaimed.pop(0) if self._unclaimed else -1

    def _unasked_on(self, recorded: int, now: Now) -> Divergence:
        rows = self.recording.streams.get(recorded, {})
        left = [a for found in rows.values() for a in found if not a.done]
        if left:
            return differing(min(left, key=lambda a: a.seq), now, self._kept, "another request")
        last = max((a.seq for found in rows.values() for a in found), default=self.recording.last)
        return Divergence(last, "a request more than there were", NOTHING, described(now))

    def _match_own(self, now: Now) -> Asked:
        request = now.request
        waiting = self._own.get((request.effect, request.digest)) or self._renewed(now)
        if not waiting:
            oldest = next(
                (
                    a
                    for a in self.recording.own
                    if not a.done and a.verdict.effect == request.effect
                ),
                None,
            )
            if oldest is None:
                raise Diverged(
                    Divergence(
                        min(self.frontier, self.recording.last),
                        "a request more than there were",
                        NOTHING,
                        described(now),
                    )
                )
            raise Diverged(differing(oldest, now, self._kept, "another request"))
        found = waiting.popleft()
        while found.done:
            found = waiting.popleft()
        if found.seq > self.frontier:
            self.reordered += 1
        return self._take(found)

    def renewed(self, resource: str) -> None:
        """A file of this name is another one than then, with the same content."""
        self._changed[resource] = -1

    def _renewed(self, now: Now) -> deque[Asked] | None:
        """The opening of a file that the run itself wrote before: it is another file now, of the same
        size."""
        request = now.request
        if request.effect != "fs.open" or not isinstance(request.arguments, FsOpen):
            return None
        changed = self._changed.get(request.shown, 2**53)
        for each in self.recording.own:
            verdict = each.verdict
            if (verdict.effect, verdict.resource) != ("fs.open", request.shown) or each.done:
                continue
            if changed < each.seq and self._size(each) == request.arguments.size:
                return deque([each])
            return None
        return None

    def _size(self, asked: Asked) -> int:
        body = asked.verdict.arguments
        try:
            return _opened(self._kept.read(body)).size if body is not None else -1
        except (Missing, msgspec.MsgspecError):
            return -1

    def _take(self, found: Asked) -> Asked:
        found.done = True
        self.matched += 1
        return found

    def _same_capability(self, found: Asked, now: Now) -> None:
        """Whether what was presented is as wide as what was presented then."""
        then = self._chain(found.verdict)
        token = now.request.token
        presented = None
        if token is not None and now.facts.mac_ok:
            own = self._own_now
            at = token.ids.index(own) if own in token.ids else -1
            below = [r.plain() for r in token.restrictions[at + 1 :]]
            presented = [_without_nonce(r) for r in below] if at >= 0 else None
        if then != presented:
            raise Diverged(
                Divergence(
                    found.seq,
                    "another capability",
                    f"{_width(then)}, for {described(found.verdict)}",
                    f"{_width(presented)}, for {described(now)}",
                )
            )

    def _chain(self, verdict: entries.Admit | entries.Denied) -> list[Any] | None:
        """The restrictions below the run's own capability; None for none, or another's."""
        own, caps = self.recording.start.capability, verdict.caps
        if own not in caps:
            return None
        unknown = verdict.links if isinstance(verdict, entries.Denied) else []
        said = dict(zip(caps[len(caps) - len(unknown) :], unknown, strict=True))
        known = self.recording.derived
        return [
            _without_nonce(said[id_] if id_ in said else known.get(id_, ("", {}))[1])
            for id_ in caps[caps.index(own) + 1 :]
        ]

    # --- answers ---

    def answer(self, found: Asked) -> tuple[bool, Any] | None:
        """Whether it was refused, and what the program was told; None where it got no answer.

        Raises `Diverged` where what it was told is not at hand.
        """
        verdict, outcome = found.verdict, found.outcome
        stopped = outcome is not None and outcome.status == "aborted"
        if verdict.handle and not stopped:
            hidden = isinstance(verdict, entries.Denied) or outcome is not None
            return (False, {"handle": verdict.handle}) if hidden else None
        if isinstance(verdict, entries.Denied):
            return True, rendering(verdict, self._policy)
        if outcome is None:
            return None
        try:
            if outcome.status == "done":
                return False, self._kept.value(verdict.effect, outcome.result)
            said = self._kept.read(outcome.result).decode() if outcome.result else ""
        except Missing as missing:
            raise Diverged(
                Divergence(
                    outcome.seq,
                    "an answer that is not kept",
                    f"{described(verdict)}: {outcome.status}",
                    str(missing),
                )
            ) from None
        halted = outcome.status == "aborted" and outcome.code in _STOPPED
        layer = Layer.HALT if halted else Layer.EFFECT
        return True, [outcome.code, str(layer), said, 0, None]

    def missing(self) -> Divergence | None:
        """The oldest request that was not asked, when the program has ended."""
        left = next((a for a in self._order if not a.done and not _of_the_gate(a)), None)
        if left is None:
            return None
        return Divergence(left.seq, "a request less", described(left.verdict), NOTHING)


def _without_nonce(restriction: Mapping[str, Any]) -> dict[str, Any]:
    """What a restriction says; the nonce only makes its id."""
    return {name: value for name, value in restriction.items() if name != "nonce"}


def _changed(order: list[Asked]) -> dict[str, int]:
    """Files that the run wrote or gave a name, and the entry by which it did so first."""
    found: dict[str, int] = {}
    for asked in order:
        verdict = asked.verdict
        if verdict.effect in ("fs.modify", "fs.rename", "fs.link", "fs.write", "fs.append"):
            found.setdefault(verdict.target or verdict.resource, asked.seq)
    return found


def _of_the_gate(asked: Asked) -> bool:
    """What a service asks on its own account, or when it happens to: no program decides it."""
    return asked.verdict.effect in ("fs.mount", "net.resolve")


def _width(restrictions: list[Any] | None) -> str:
    if restrictions is None:
        return "no valid capability of this run"
    if not restrictions:
        return "the run's own capability"
    return printable(f"the run's capability narrowed by {restrictions}", 300)
