"""Runs: from the request to start one to the entry that ends it.

Rules
- A run's first entry (what it is, under which policy, contained by what) is durable before anything
  of it is started. Its last entry says how it ended; until then it counts as running.
- The gate holds the run's capability for what the run's own shims do (its output); the program gets
  the same token in its environment and presents it itself.
- A child is contained in its parent: policy (both must allow), budget (every account up the chain is
  charged), capability (bound to the child), label (it starts with its parent's). It ends with it.
- Ending: the sandbox is killed, what is in flight is cancelled, children end first, then the entry.
  What could not be stopped is in doubt, and spent.
- Attached programs were started by somebody else. Their entry says that they are not contained.
- While everything is halted nothing is started, and a run that a halt meets while it is being started
  ends before its program begins.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from authority.audit.store import ContentStore
from authority.audit.writer import Receipt
from authority.compat.base import Door
from authority.compat.endpoints import Endpoints
from authority.errors import AuthorityError
from authority.gate import clock, figures, houses
from authority.gate.answers import Reply
from authority.gate.channel import Channel
from authority.gate.detectors import Detectors
from authority.gate.given import Given, seed_of
from authority.gate.grants import capability_of
from authority.gate.ledger import Ledger
from authority.gate.pipeline import Pipeline
from authority.gate.places import Reach, reach
from authority.gate.reader import Reader
from authority.gate.run import Event, Listener, Run, Start
from authority.gate.wanted import places_of, sketch_of, wanted_of
from authority.isolation import Host
from authority.kernel import capabilities, entries, flows
from authority.kernel.capabilities import MacKey
from authority.kernel.policy import Policy

FINISH_SECONDS = 5.0


class StartRefused(AuthorityError):
    """A run can't be started as asked."""


class Runs:
    """All runs of one gate."""

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        host: Host,
        minting: Callable[[], MacKey],
        policies: dict[str, Policy],
        released: Callable[[str], None],
        checkpoint: Callable[[], Awaitable[None]],
        forbidden: tuple[str, ...],
        endpoints: Callable[[Run], Endpoints],
        door: Callable[[Run], Door],
        home: Callable[[str], str],
        store: ContentStore,
    ) -> None:
        self.pipeline: Pipeline  # set by the gate once they exist
        self.detectors: Detectors
        self._ledger = ledger
        self._reader = reader
        self._host = host
        self._minting = minting
        self._policies = policies
        self._released = released
        self._checkpoint = checkpoint
        self._forbidden = forbidden
        self._endpoints = endpoints
        self._door = door
        self._home = home
        self._store = store
        self._users: Counter[str] = Counter()
        self.running: dict[str, Run] = {}
        self._beginning: set[asyncio.Task[None]] = set()
        ledger.listen(self._count)

    def _count(self, entry: entries.AnyEntry) -> None:
        run = self.running.get(entry.run)
        if run is None:
            return
        if run.noted is not None:
            run.noted()
        run.counts.add(entry)

    def _new(self, spec: Start, listener: Listener) -> tuple[Run, list[entries.AnyEntry]]:
        """The run with its capability, and the entries that make the capability known."""
        run_id = secrets.token_hex(6)
        token, made = capability_of(spec, run_id, self._minting, self._ledger.state.caps)
        return Run(self._output, run_id, token, spec, listener), made

    def _record_start(
        self,
        run: Run,
        made: list[entries.AnyEntry],
        protection: dict[str, Any],
        attached: bool,
        given: Given | None = None,
    ) -> Receipt:
        spec = run.spec
        token = capabilities.parse(run.token)
        label = flows.started(spec.policy, spec.label)
        digest = spec.policy.digest
        self._policies[digest] = spec.policy
        self._users[digest] += 1
        run.protection = protection
        self.running[run.id] = run
        return self._ledger.step(
            [
                entries.RunStart(
                    run=run.id,
                    capability=token.id,
                    policy=digest,
                    policy_path=spec.policy_path,
                    program=[*spec.argv, *spec.serves],
                    cwd=spec.cwd,
                    parent=spec.parent,
                    attached=attached,
                    budgets=dict(spec.budgets),
                    sources=sorted(label.sources),
                    secrets=sorted(label.secrets),
                    protection=protection,
                    environment=sorted(spec.environment),
                    agent=spec.agent,
                    seed=run.seed,
                    search_path="" if attached else spec.caller.get("PATH", ""),
                    terminal=list(spec.terminal or ()),
                    given=given.body if given is not None else None,
                    continues=spec.continues,
                    replayed=spec.replayed,
                    dry="kept" if spec.dry else "applied" if spec.applies else "",
                ),
                *made,
            ]
        )

    def _refuse_when_halted(self) -> None:
        halted = self._ledger.state.halted
        if halted >= 0:
            raise StartRefused(
                f"everything was halted in entry {halted}: no run is started",
                "'authority resume --reason ...' comes first",
            )

    def _reach(self, spec: Start, *, served: bool, machine: bool) -> Reach:
        return reach(
            spec.policy,
            spec.cwd,
            houses.as_seen(self._host, machine=machine),
            self._home(spec.policy.process.home),
            served=served,
            asked=spec.files,
            watch=spec.watch,
        )

    async def housed(self, spec: Start, listener: Listener) -> Start:
        """The same with a place to live, found or built now; what has to be built is told. Raises
        `IsolationRefused`."""
        sketch = sketch_of(
            spec,
            self._reach(spec, served=True, machine=spec.isolation != "namespace"),
            self._forbidden,
        )
        house = await houses.choose(
            spec.isolation,
            sketch,
            self._host,
            emulate=spec.emulate,
            tell=lambda step: listener({"event": "preparing", "what": step}),
        )
        return replace(spec, house=house)

    async def start(self, spec: Start, listener: Listener) -> Run:
        """Start a sandboxed run. Raises `IsolationRefused` or `StartRefused`; returns at once. Where it
        is cancelled the run is stopped, and ends."""
        self._refuse_when_halted()
        if self._ledger.log.trouble:
            raise StartRefused(self._ledger.log.trouble, "make room for the log")
        run, made = self._new(spec, listener)
        run.seed = spec.seed or seed_of(spec.environment)
        ends = self._endpoints(run)
        given = Given(spec, ends.keyring.environment)
        machine = spec.house.images is not None
        reached = self._reach(spec, served=ends.answers_mounts, machine=machine)
        if spec.dry and reached.way != "mount":
            raise StartRefused(
                "a dry run keeps what its mounts are told to write, and this run has no mounts",
                'it needs rules in [filesystem] and files = "mount"',
            )
        ends.by_call = reached.way == "calls"
        wanted = wanted_of(run, ends, reached, self._forbidden)
        housed = houses.planned(wanted, self._host, spec.house)
        planned = housed.plan
        ends.places = places_of(planned)
        protection = {**planned.protection, "files": reached.way, "contained": True}
        seq = self._record_start(run, made, protection, attached=False, given=given).seq
        told = {
            "event": "started",
            "run": run.id,
            "seq": seq,
            "protection": protection,
            "missing": [*planned.missing, *reached.notes],
        }
        begins = asyncio.get_running_loop().create_task(self._begin(run, ends, housed, given, told))
        self._beginning.add(begins)
        begins.add_done_callback(self._beginning.discard)
        try:
            await asyncio.shield(begins)
        except asyncio.CancelledError:
            run.stop("stopped")
            raise
        return run

    async def _begin(
        self, run: Run, ends: Endpoints, housed: houses.Planned, given: Given, told: Event
    ) -> None:
        """What follows the run's first entry. Its last one comes, too, whoever asked for it is gone."""
        spec = run.spec
        try:
            await given.keep(self._store)
        except AuthorityError as no:
            await self._end(run, 125, "failed", no.message)
            raise
        await self._ledger.durable(told["seq"])
        run.emit(told)
        if run.stop_reason:  # a halt came before anything of it was started
            await self._end(run, 137, run.stop_reason)
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            door = self._door(run)
            run.services = ends.services(door)
            calls = ends.mediation(door, run.stop)
            if ends.mounts is not None:
                run.persistent = ends.mounts.written_to_act_later
            elif calls is not None:
                run.persistent, run.noted = calls.written_to_act_later, calls.noted
                run.on_end(calls.close)
            # Its start may ask already: entering a mounted folder is a question.
            takes = spec.begin(run, self.pipeline) if spec.begin else self.pipeline
            channel = Channel(takes, self._reader, run=run.id, cwd=spec.cwd, owner=run)
            run.channel = channel
            await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
            calling = calls.begin if calls is not None else None
            run.sandbox = await run.unless_stopped(houses.begin(housed, theirs, run, calling))
        except (OSError, AuthorityError) as error:
            if run.channel is not None:
                run.channel.close("the run did not start")
            ours.close()
            if run.sandbox is not None:
                run.sandbox.kill()
            code, reason = run.exit_code if run.stop_reason else (125, "failed")
            await self._end(run, code, reason, str(error))
            raise
        finally:
            theirs.close()
        if run.sandbox is None:  # it was stopped meanwhile
            await self._end(run, *run.exit_code)
            return
        run.on_line.set()
        run.keep(self._supervise(run))

    async def attach(self, spec: Start, listener: Listener) -> Run:
        """A run for a program that the gate did not start; it connects with the run's token.

        Raises `StartRefused`.
        """
        self._refuse_when_halted()
        run, made = self._new(spec, listener)
        protection = {
            "contained": False,
            "note": "the gate did not start this program: what it does elsewhere is not seen",
        }
        seq = self._record_start(run, made, protection, attached=True).seq
        await self._ledger.durable(seq)
        run.emit(
            {
                "event": "started",
                "run": run.id,
                "seq": seq,
                "protection": protection,
                "missing": [],
                **({} if spec.serves else {"capability": capabilities.to_text(run.token)}),
            }
        )
        run.keep(self._supervise_attached(run))
        return run

    async def _supervise(self, run: Run) -> None:
        assert run.sandbox is not None
        output = asyncio.get_running_loop().create_task(run.carry_output())
        await run.until_over()
        run.sandbox.kill()
        await run.sandbox.wait()
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await output
        except TimeoutError:
            output.cancel()
        code, reason = run.exit_code
        self.detectors.exited(run, run.signal)
        await self._end(run, code, reason, run.untold)

    async def _supervise_attached(self, run: Run) -> None:
        await run.until_over()
        await self._end(run, 0, run.stop_reason or "disconnected")

    async def _end(self, run: Run, code: int, reason: str, detail: str = "") -> None:
        if run.ended.is_set() or run.id not in self.running:
            return
        state = self._ledger.state
        info = state.runs.get(run.id)
        for child in [
            self.running[c] for c in (info.children if info else []) if c in self.running
        ]:
            child.stop("parent ended")
            await child.ended.wait()
        run.end_services()
        in_doubt = await self.pipeline.stop(run.id)
        if in_doubt:
            detail = f"{detail} {in_doubt} effects could not be stopped and are in doubt".strip()
        if info is not None and info.halted:
            reason = "halted" if reason == "killed" else reason
            detail = detail or self._why_halted(run.id)
        summary = figures.summary(self._ledger.state, run, code, reason)
        run.code, run.reason = code, reason
        receipt = self._ledger.step(
            [
                entries.RunEnd(
                    run=run.id,
                    reason=reason,
                    code=code,
                    wall_time=clock.boot() - run.started,
                    detail=detail,
                )
            ]
        )
        del self.running[run.id]
        digest = run.spec.policy.digest
        self._users[digest] -= 1
        if not self._users[digest]:
            del self._users[digest]
            self._policies.pop(digest, None)
            self._released(digest)
        try:
            await self._ledger.durable(receipt.seq)
            await self._checkpoint()
        finally:
            run.ended.set()
        summary["head"] = {"seq": receipt.seq, "hash": receipt.hash.hex()}
        run.emit({"event": "end", **summary, "detail": detail})

    def _why_halted(self, run: str) -> str:
        """What the open incident says that halted a run, or one above it; empty when none did."""
        state = self._ledger.state
        above = {"", *state.ancestry(run)}  # without a name: everything
        return next((c.detail for c in state.cases.values() if c.open and c.run in above), "")

    def _output(self, run: Run, fd: int, data: bytes, n: int, reply: Reply) -> None:
        """What the program printed, as a request under the run's own capability."""
        self.pipeline.output(self._reader.printed(run.id, fd, data, n, run.token), reply)

    def identify(self, raw: bytes) -> tuple[str, str, Run] | None:
        """The attached run that a capability belongs to, if it verifies."""
        token, ok = self._reader.token(raw)
        run = self.running.get(token.run) if token and ok else None
        if token and ok and run is None:
            self.detectors.late(token.run)
        if run is None or run.sandbox is not None:
            return None
        return run.id, run.spec.cwd, run

    def under(self, run_id: str) -> list[Run]:
        """A run and its descendants as far as they run; all when `run_id` is empty."""
        state = self._ledger.state
        return [
            run
            for run in self.running.values()
            if not run_id or run_id in set(state.ancestry(run.id))
        ]

    def halt_started(self, run_id: str, reason: str) -> None:
        """Stop what a run and its descendants have going on, and kill their sandboxes (of all, when
        `run_id` is empty)."""
        for run in self.under(run_id):
            if self.pipeline.goings is not None:
                self.pipeline.goings.stop(run.id)
            run.stop(reason)

    async def halted(self, run_id: str) -> list[str]:
        """Wait until the halted runs have ended; those that have not are in doubt."""
        waiting = self.under(run_id)
        pending = [asyncio.ensure_future(r.ended.wait()) for r in waiting]
        if pending:
            await asyncio.wait(pending, timeout=FINISH_SECONDS)
        for each in pending:
            each.cancel()
        return [r.id for r in waiting if not r.ended.is_set()]
