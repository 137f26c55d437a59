"""The door of a replay: services behind a run's endpoints ask here, and get what they got then.

Rules
- Nothing is performed here. A request is matched and answered; an effect that goes on is a flow whose
  pieces are held against the recorded ones: what goes out must be what went out then.
- Looks are judged by the run's own policy, which is a pure function. They are not compared: which looks
  a program makes depends on caches of the kernel.
- The first difference is told to `diverged`; whoever asked waits, and ends with the replay.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import msgspec

from authority.compat.base import Ending, Refused, Stops
from authority.gate.answers import refused, why_not
from authority.gate.reader import Asked as Now
from authority.gate.reader import Own, Reader
from authority.kernel import entries
from authority.kernel.codes import SENTENCES, Code, Layer
from authority.kernel.facts import Problem
from authority.kernel.labels import Label
from authority.kernel.policy import Policy
from authority.kernel.policy_sections import Judgement
from authority.kernel.requests import FsOpen
from authority.kernel.resources import Resource
from authority.protocol.packets import Peer
from authority.recorded.bodies import Kept, Missing
from authority.recorded.diff import described
from authority.recorded.errors import Diverged, Divergence
from authority.recorded.matcher import Matcher
from authority.recorded.recording import Asked

Telling = Callable[[Divergence], None]


class Flow(Stops):
    """A recorded effect that goes on. See `compat.base.Flow`."""

    def __init__(self, found: Asked, policy: Policy, kept: Kept, diverged: Telling) -> None:
        super().__init__()
        assert isinstance(found.verdict, entries.Admit)
        self.found = found
        self.seq = found.seq
        self.reserved: Mapping[str, int] = found.verdict.reserve
        self.sent = 0
        """Bytes that went out so far."""
        self.moved = asyncio.Event()
        self._policy = policy
        self._kept = kept
        self._diverged = diverged
        self._out: bytes | None = None
        self._amounts = {
            way: sum(c.body.size for c in found.chunks if c.way == way) for way in ("in", "out")
        }
        self._received = 0

    def pieces(self) -> list[tuple[str, bytes]]:
        """What went each way then, in order. Raises `Diverged` for what is not kept."""
        try:
            return [(c.way, self._kept.read(c.body)) for c in self.found.chunks]
        except Missing as missing:
            raise Diverged(self._missing(str(missing))) from None

    async def has_sent(self, count: int) -> None:
        """Wait until so many bytes were committed to go out."""
        while self.sent < count:
            self.moved.clear()
            await self.moved.wait()

    def kept_text(self, body: entries.Body) -> str:
        """A sentence that was told then."""
        try:
            return self._kept.read(body).decode("utf-8", "replace")
        except Missing:
            return "It failed."

    def tell(self, divergence: Divergence) -> None:
        """A difference that whoever plays this found."""
        self._diverged(divergence)

    def _missing(self, why: str) -> Divergence:
        then = f"{described(self.found.verdict)}: a piece of it"
        return Divergence(self.seq, "an answer that is not kept", then, why)

    async def commit(
        self,
        way: str,
        data: bytes,
        *,
        charge: Mapping[str, int] | None = None,
        label: Label | None = None,
        keep: bool = True,
    ) -> None:
        if way == "out":
            await self._outward(data)
        else:
            self._received += len(data)
        done = self.sent if way == "out" else self._received
        no = next((d for d in self.found.refused if d.way == way), None)
        if no is not None and done > self._amounts[way]:
            raise refused(no, self._policy)

    async def _outward(self, data: bytes) -> None:
        if self._out is None:
            try:
                self._out = b"".join(
                    self._kept.read(c.body) for c in self.found.chunks if c.way == "out"
                )
            except Missing:
                self._out = b""
        then = self._out[self.sent : self.sent + len(data)]
        refused = any(d.way == "out" for d in self.found.refused)
        if self._out and then != data[: len(then)]:
            await self._other(then, data)
        if self.sent + len(data) > self._amounts["out"] and not refused:
            await self._other(then, data)
        self.sent += len(data)
        self.moved.set()

    async def _other(self, then: bytes, data: bytes) -> None:
        what = described(self.found.verdict)
        self._diverged(
            Divergence(
                self.seq,
                "other bytes went out",
                f"{what}: {_shown(then)}",
                f"{what}: {_shown(data)}",
            )
        )
        await asyncio.Event().wait()

    async def keep(self, data: bytes) -> None:
        """What was read then stands in the log already."""

    async def finish(self, status: str, **ending: Unpack[Ending]) -> int:
        return self.settle(status, **ending)

    def settle(self, status: str, **ending: Unpack[Ending]) -> int:
        then = self.found.outcome
        total = self._amounts["out"]
        if status == "done" and then is not None and then.status == "done" and self.sent < total:
            what = described(self.found.verdict)
            self._diverged(
                Divergence(
                    self.seq,
                    "fewer bytes went out",
                    f"{what}: {total} bytes",
                    f"{what}: {self.sent} bytes",
                )
            )
        if then is not None and (facts := ending.get("facts")):
            for name in ("sha256", "size"):
                before, now = then.facts.get(name), facts.get(name)
                if before is not None and now is not None and before != now:
                    what = described(self.found.verdict)
                    self._diverged(
                        Divergence(
                            then.seq,
                            "another content was written",
                            f"{what}: {name} {before}",
                            f"{what}: {name} {now}",
                        )
                    )
                    break
        return then.seq if then is not None else -1


class ReplayDoor:
    """See `compat.base.Door`. `take` matches and says when to go on (see `stage`)."""

    def __init__(
        self,
        policy: Policy,
        matcher: Matcher,
        kept: Kept,
        reader: Reader,
        token: bytes,
        *,
        diverged: Telling,
        take: Callable[[Now], Any],
        worker: Callable[[], Any],
        trouble: Callable[[str], None],
        listen: Callable[[int, int], None],
    ) -> None:
        start = matcher.recording.start
        self.run = start.run
        self.policy = policy
        self.cwd = start.cwd
        self._matcher = matcher
        self._kept = kept
        self._own = Own(reader, self.run, self.cwd, token)
        self._diverged = diverged
        self._take = take
        self._worker = worker
        self._trouble = trouble
        self._listen = listen
        self.flows: list[Flow] = []
        self.check: Callable[[Asked, int, int], bool] = lambda _found, _dev, _ino: True

    async def ask(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct,
        verb: str = "",
    ) -> Any:
        found = await self._take(self._own.asked(effect, resource, arguments, verb))
        if isinstance(found.verdict, entries.Denied):
            raise refused(found.verdict, self.policy)
        try:
            told = self._matcher.answer(found)
        except Diverged as other:
            self._diverged(other.divergence)
            told = None
        if told is None:
            await asyncio.Event().wait()
            raise AssertionError
        is_refused, body = told
        if not is_refused:
            return body
        raise why_not(body, found.release)

    async def open(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Flow:
        found = await self._take(self._own.asked(effect, resource, arguments, verb))
        if isinstance(found.verdict, entries.Denied):
            raise refused(found.verdict, self.policy)
        outcome = found.outcome
        if outcome is not None and outcome.status == "aborted" and outcome.code == Code.HALTED:
            sentence = SENTENCES[Code.HALTED]
            raise Refused(outcome.code, Layer.HALT, sentence, 0, None, outcome.seq)
        if isinstance(arguments, FsOpen) and not self.check(found, arguments.dev, arguments.ino):
            await asyncio.Event().wait()
        flow = Flow(found, self.policy, self._kept, self._diverged)
        self.flows.append(flow)
        return flow

    async def deny(
        self,
        effect: str,
        resource: str,
        reason: str,
        *,
        code: str = Code.POLICY_DENY,
        layer: str = Layer.POLICY,
    ) -> Refused:
        problem = Problem(Code(code), Layer(layer), reason)
        found = await self._take(self._own.asked(effect, resource, None, problem=problem))
        if isinstance(found.verdict, entries.Denied):
            return refused(found.verdict, self.policy)
        what = described(found.verdict)
        self._diverged(Divergence(found.seq, "a refusal of its own", what, reason))
        await asyncio.Event().wait()
        raise AssertionError

    def glance(
        self,
        effect: str,
        resource: Resource,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Judgement:
        return self.policy.judge(effect, resource, verb)

    def label_at(self) -> int:
        return -1

    def waits(self, effect: str, resource: str) -> bool:
        """Whether such a request is still to come."""
        return any(
            not asked.done and asked.verdict.effect == effect and asked.verdict.resource == resource
            for asked in self._matcher.recording.own
        )

    async def worker(self) -> Peer:
        peer: Peer = await self._worker()
        return peer

    def listen(self, address: int, port: int) -> None:
        self._listen(address, port)

    def left(self, dimension: str) -> int | None:
        return None

    async def incident(self, what: str, detail: str) -> None:
        self._trouble(f"{what}: {detail}")

    def trouble(self, text: str) -> None:
        self._trouble(text)


def _shown(data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[:48]!r} ({len(data)} bytes, {digest})"
