"""The stage of a replay: the same program in the same kind of sandbox, and a gate that does nothing.

Rules
- Program, arguments, working folder, policy, hash seed and variables are those of the recorded run.
- Answers come in the recorded order: one is given when everything that was asked before it then has
  been asked now. What waits longer than `HOLD_SECONDS` is given all the same, and counted.
- Nothing leaves: there is no socket to anywhere, files are changed in a private copy that is thrown
  away, and no entry is written to the recorded log.
- The first difference stops the program. A run that was stopped from outside is stopped where it was.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from authority import protocol
from authority.audit.store import ContentStore
from authority.compat.endpoints import Endpoints
from authority.gate.answers import Answer, Reply
from authority.gate.channel import Channel
from authority.gate.places import reach
from authority.gate.reader import Asked as Now
from authority.gate.reader import Reader
from authority.gate.run import Event, Run, Start
from authority.gate.wanted import places_of, wanted_of
from authority.gate.workers import Worker, Workers
from authority.isolation import Host, plan, start
from authority.kernel import capabilities
from authority.kernel.canonical import digest as digest_of
from authority.kernel.capabilities import MacKey, Restriction
from authority.kernel.policy import Policy
from authority.kernel.requests import EFFECTS
from authority.protocol.packets import Peer
from authority.recorded.bodies import Kept
from authority.recorded.errors import Diverged, Divergence
from authority.recorded.matcher import Matcher
from authority.recorded.recording import Asked, Recording
from authority.replay.door import ReplayDoor
from authority.replay.files import Copies
from authority.replay.limits import limits_of
from authority.replay.network import services
from authority.replay.printed import Output
from authority.replay.report import DIVERGED, PARTLY, SAME, STOPPED, Report
from authority.replay.typed import Typed

HOLD_SECONDS = 2.0
FINISH_SECONDS = 20.0
_OUTSIDE = frozenset(
    [
        *("stopped", "halted", "wall_time", "disconnected", "parent ended", "gate stopped"),
        *("denials", "log", "canary"),  # an incident
    ]
)
"""Reasons of an end that did not come from the program."""


def _digest(path: str) -> str:
    try:
        return digest_of(Path(path).read_bytes())
    except OSError:
        return ""


@dataclass
class Wish:
    """How somebody wants a run to be played. `values` are variables by name; `shown` is told each
    request when it is asked, and returns when the next may come."""

    values: Mapping[str, str]
    until: int = -1
    shown: Callable[[Asked], None] | None = None
    said: Callable[[Event], None] = lambda _event: None
    forbidden: tuple[str, ...] = ()
    home: Callable[[str], str] = lambda _name: ""
    image: Mapping[str, str] = field(default_factory=dict)


class Stage:
    """One replay."""

    def __init__(
        self,
        recording: Recording,
        policy: Policy,
        kept: Kept,
        store: ContentStore | None,
        wish: Wish,
        host: Host,
        scratch: Path,
    ) -> None:
        self.recording = recording
        self.policy = policy
        self.kept = kept
        self.scratch = scratch
        self.matcher = Matcher(recording, kept, policy)
        self.divergence: Divergence | None = None
        self.worker: Worker | None = None
        self._wish = wish
        self._host = host
        self._output = Output(recording.printed, kept)
        self._limits = limits_of(recording, policy)
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        self._held: asyncio.TimerHandle | None = None
        self._late = 0
        self._reached = False
        terminal = bool(recording.start.terminal)
        self._typed = Typed(recording.inputs, store, self.diverge, terminal=terminal)
        end = recording.end
        self._outside = end is None or end.reason in _OUTSIDE
        self._blind = False
        self.run: Run | None = None

    # --- what was asked ---

    def submit(self, asked: Now, reply: Reply) -> None:
        """A request of the program's own. See `gate.channel.Takes`."""
        self._blind = self._blind or asked.request.handle
        found = self._match(asked)
        if found is None:
            return
        try:
            told = self.matcher.answer(found)
        except Diverged as other:
            self.diverge(other.divergence)
            return
        if told is None:
            return
        refused, body = told
        answer = Answer(asked.request.n, refused, found.release, found.hash, body)
        self._give(found.release, lambda: reply(answer))

    def blind(self, _run: str) -> bool:
        """Whether it gets no receipts: from its first handle on. See `gate.channel.Takes`."""
        return self._blind

    async def take(self, asked: Now) -> Asked:
        """A request of a service: the recorded one, when its turn to be answered has come."""
        found = self._match(asked)
        if found is None:
            await asyncio.Event().wait()
            raise AssertionError
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A flow begins before its outcome: its own entry is what it waits for.
        self._give(found.seq, lambda: None if gone.done() else gone.set_result(None))
        await gone
        return found

    def _match(self, asked: Now) -> Asked | None:
        if self.divergence is not None or self._reached:
            return None
        try:
            found = self.matcher.match(asked)
        except Diverged as other:
            self.diverge(other.divergence)
            return None
        if self._wish.shown is not None:
            self._wish.shown(found)
        self._went_on()
        return None if 0 <= self._wish.until < found.seq else found

    def _went_on(self) -> None:
        """Something more was asked or printed: what waited for it goes on."""
        frontier = self.matcher.frontier
        while self._waiting and self._waiting[0][0] < frontier:
            heapq.heappop(self._waiting)[2]()
        if 0 <= self._wish.until < frontier:
            self._reached = True
            self._stop("until")
        if not self._typed.over:
            self._type(frontier)
        if frontier > self.recording.last and self._outside and self._output.left() is None:
            self._stop("as then")

    def _type(self, frontier: int) -> None:
        if self.run is not None and self.run.channel is not None:
            self._typed.give(min(frontier, self._output.frontier), self.run.channel)

    def _stop(self, reason: str) -> None:
        if self.run is not None:
            self.run.stop(reason)

    def _give(self, seq: int, callback: Callable[[], None]) -> None:
        if self.matcher.frontier > seq:
            callback()
            return
        heapq.heappush(self._waiting, (seq, next(self._numbers), callback))
        if self._held is None:
            loop = asyncio.get_running_loop()
            self._held = loop.call_later(HOLD_SECONDS, self._let_go)

    def _let_go(self) -> None:
        self._held = None
        waiting, self._waiting = sorted(self._waiting), []
        self._late += len(waiting)
        for _, _, callback in waiting:
            callback()

    def diverge(self, divergence: Divergence) -> None:
        """The first difference ends it."""
        if self.divergence is None and not self._reached:
            self.divergence = divergence
            self._stop("diverged")

    # --- what is printed and typed ---

    def _printed(self, run: Run, fd: int, data: bytes, n: int, reply: Reply) -> None:
        if self.divergence is None and not self._reached:
            other = self._output.feed(fd, data)
            if other is not None:
                self.diverge(other)
            else:
                self._went_on()
        reply(Answer(n, False, -1, b"", None))

    # --- the run ---

    async def play(self) -> Report:
        """Play it to its end. Raises `AuthorityError` where it can't even begin."""
        recording = self.recording
        spec = self._spec()
        key = MacKey("replay", secrets.token_bytes(32))
        token = capabilities.mint(
            key,
            id=recording.start.capability,
            run=recording.start.run,
            restriction=Restriction(methods=tuple(sorted(EFFECTS))),
        )
        reader = Reader({key.kid: key}, lambda _data: "")
        run = self.run = Run(self._printed, recording.start.run, token, spec, self._wish.said)
        run.seed = recording.start.seed
        ends = self._endpoints()
        reached = reach(
            self.policy,
            spec.cwd,
            self._host,
            self._wish.home(self.policy.process.home),
            served=True,
            asked=str(recording.start.protection.get("files", "")),
        )
        # What is bound is reached without a gate: it may be looked at, as it is now.
        bound = tuple(replace(bind, writable=False) for bind in reached.binds)
        reached = replace(reached, binds=bound)
        planned = plan(wanted_of(run, ends, reached, self._wish.forbidden), self._host)
        ends.places = places_of(planned)
        self._compare_protection(planned.protection)
        door = ReplayDoor(
            self.policy,
            self.matcher,
            self.kept,
            reader,
            token,
            diverged=self.diverge,
            take=self.take,
            worker=self._start_worker,
            trouble=run.on_trouble,
            listen=self._listen,
        )
        copies = Copies(recording, self.kept, self.scratch, self.diverge, self.matcher.renewed)
        run.services = services(ends, door, copies)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            channel = Channel(self, reader, run=run.id, cwd=spec.cwd, owner=run)
            run.channel = channel
            await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
            run.sandbox = await start(planned, channel=theirs)
            run.on_line.set()
            self._type(self.matcher.frontier)
            await self._to_the_end(run)
        finally:
            theirs.close()
            if run.sandbox is not None:
                run.sandbox.kill()
                await run.sandbox.wait()
            for flow in door.flows:
                flow.stop()
            run.end_services()
            if self.worker is not None:
                self.worker.stop()
            copies.close()
        return self._report(run)

    async def _to_the_end(self, run: Run) -> None:
        output = asyncio.get_running_loop().create_task(run.carry_output())
        limit = run.spec.budgets.get("wall_time")
        try:
            async with asyncio.timeout(limit / 1_000_000 if limit else None):
                await run.closed()
        except TimeoutError:
            run.stop("wall_time")
        assert run.sandbox is not None
        run.sandbox.kill()
        await run.sandbox.wait()
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await output
        except TimeoutError:
            output.cancel()

    def _spec(self) -> Start:
        start_entry = self.recording.start
        rows = start_entry.terminal
        return Start(
            argv=tuple(start_entry.program),
            cwd=start_entry.cwd,
            policy=self.policy,
            environment={name: self._wish.values[name] for name in start_entry.environment},
            budgets=dict(start_entry.budgets),
            caller={"PATH": start_entry.search_path},
            terminal=(rows[0], rows[1]) if len(rows) == 2 else None,
        )

    def _endpoints(self) -> Endpoints:
        """The endpoints of the recorded run, with the same placeholders."""
        names = (c.from_env for c in self.policy.credentials.values())
        ends = iter([self._wish.values.get(name, "").rpartition("-")[2] for name in names])
        stand_ins = {name: f"replayed-{secrets.token_hex(16)}" for name in self.policy.credentials}
        # A run that was watched, for suggestions, had a network to ask for, whatever its policy said.
        watched = any(a.verdict.effect.startswith("net.") for a in self.recording.own)
        return Endpoints(self.policy, stand_ins, watch=watched, random=lambda: next(ends))

    def _compare_protection(self, now: dict[str, Any]) -> None:
        others = [path for path, digest in self._wish.image.items() if _digest(path) != digest]
        if others:
            self._limits.append(f"{len(others)} files differ from the bundle's: {others[0]}")
        then = self.recording.start.protection
        for part, words in (("program", "program file"), ("runtime", "files of its runtime")):
            if part in then and then[part] != now.get(part):
                self._limits.append(f"the {words} that it is shown are not the ones of then")

    def _listen(self, address: int, port: int) -> None:
        if self.run is not None and self.run.channel is not None:
            self.run.channel.send_control(protocol.Listen(address, port))

    async def _start_worker(self) -> Peer:
        if self.worker is None or self.worker.peer.reason:
            self.worker = await Workers(self._host, self._wish.forbidden).start(self.worker)
        return self.worker.peer

    def _report(self, run: Run) -> Report:
        recording, end = self.recording, self.recording.end
        code, reason = run.exit_code
        then = end.code if end is not None else -1
        ended = not self._reached and self.divergence is None
        by_itself = ended and not self._outside
        if ended:
            self.divergence = self.matcher.missing()
            if self.divergence is None and by_itself:
                self.divergence = self._output.left()
            if self.divergence is None and by_itself and code != then:
                self.divergence = Divergence(
                    recording.last,
                    "another end",
                    f"exit code {then}",
                    f"exit code {code} ({reason})",
                )
        if self._output.unknown:
            self._limits.append(
                f"{self._output.unknown} bytes of output were compared by size alone"
            )
        if self._late:
            self._limits.append(
                f"{self._late} answers were given before what came before them then"
            )
        verdict = PARTLY if self._limits else SAME
        if self._reached:
            verdict = STOPPED
        if self.divergence is not None:
            verdict = DIVERGED
        return Report(
            run=recording.start.run,
            verdict=verdict,
            matched=self.matcher.matched,
            requests=self.matcher.total,
            printed=self._output.compared,
            code=code,
            then_code=then,
            first=recording.start.seq,
            last=recording.last,
            limits=tuple(self._limits),
            reordered=self.matcher.reordered,
            divergence=self.divergence,
        )
