"""The gate, wired together: serve, go when idle, and never half-alive.

Rules
- A poisoned ledger, or a defect in a step, is a failure: it stops serving at once, and says no last
  words. The process ends with it (`process`).
- With nothing running and nobody asking for `IDLE_SECONDS` it signs a checkpoint and leaves.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from authority.audit.errors import LogError
from authority.audit.opening import everything
from authority.compat import trust
from authority.compat.endpoints import Endpoints
from authority.compat.models import ModelService, key_name
from authority.effects.compute import Compute
from authority.effects.files import FileEffects
from authority.effects.http import HttpEffect
from authority.effects.tools import ToolEffect
from authority.gate import clock, snapshots
from authority.gate.bodies import Bodies
from authority.gate.canaries import Canaries
from authority.gate.channel import Channel
from authority.gate.control import Control
from authority.gate.definitions import Definitions
from authority.gate.detectors import Detectors
from authority.gate.doorway import Doorway
from authority.gate.dry import DryRuns, Guarded
from authority.gate.family import Messages, Spawn
from authority.gate.going import Goings
from authority.gate.hidden import Hidden
from authority.gate.incident_routes import IncidentRoutes
from authority.gate.incidents import Incidents
from authority.gate.mcp import Hubs, ToolRouter
from authority.gate.opening import Opened
from authority.gate.performers import Fetchers, Models, PerPolicy, look_ups, table
from authority.gate.pipeline import Pipeline
from authority.gate.policies import Policies
from authority.gate.reader import Reader
from authority.gate.routes import Routes
from authority.gate.run import Run
from authority.gate.run_routes import RunRoutes
from authority.gate.runs import Runs
from authority.gate.strangers import Strangers
from authority.gate.tallies import Tallies
from authority.gate.toolbox import SandboxStarter
from authority.gate.values import Values
from authority.gate.vault import Vault
from authority.gate.workers import Workers
from authority.isolation import probe
from authority.kernel import entries
from authority.kernel.policy import Policy
from authority.protocol import Service as Kind

IDLE_SECONDS = 300
TICK_SECONDS = 1.0
SOCKET_BACKLOG = 128
GC_THRESHOLD = 50_000
"""Objects between collections: requests make little that only a collection frees."""


class Gate:
    """Everything of one running gate, wired together."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.ledger = opened.ledger
        self._idle_since = clock.boot()
        self._snapshot_at = opened.ledger.state.seq
        self._checkpoint_trouble = False
        self._over = asyncio.Event()
        self.failure: BaseException | None = None
        host = probe()
        self._forbidden = (str(opened.directory.root.resolve()),)
        self.canaries = Canaries(opened.directory, self.ledger.state)
        reader = Reader(opened.keys, self.canaries.found_in)
        self.policies = Policies(opened.directory, opened.store)
        self.dry = DryRuns(self, opened.directory.root / "dry")
        self.runs = Runs(
            self.ledger,
            reader,
            host,
            lambda: opened.minting,
            self.policies.by_digest,
            self.release,
            self.checkpoint,
            self._forbidden,
            self._endpoints,
            self.door,
            opened.directory.home,
            opened.store,
        )
        files = FileEffects()
        self._files = files
        self._host = host
        self._http, self._tools, self._rooms = PerPolicy(), PerPolicy(), PerPolicy()
        self._fetchers = Fetchers(self.runs.running, self.door)
        self._doors: dict[str, Doorway] = {}
        policies = self.policies
        family = Spawn(self.runs, self.ledger.state, policies.for_child, self.give, policies.keep)
        messages = Messages(self.runs, self.ledger.state)
        models = Models(self._model_service)
        tallies = Tallies(self.ledger)
        self.definitions = Definitions(self.ledger, opened.store)
        self.hubs = Hubs(
            self.runs,
            self.ledger,
            self.definitions,
            self.policies,
            self.door,
            self.give,
            self.release,
        )
        tools = ToolRouter(self._tools, self.hubs)
        self._values = Values(self._rooms, self.ledger.state)
        self.pipeline = Pipeline(
            self.ledger,
            Bodies(self.ledger, opened.store),
            tallies,
            self.policies.by_digest,
            table(
                Guarded(files, self.runs.running.get),
                self._http,
                tools,
                models,
                Guarded(family, self.runs.running.get),
                messages,
                self.hubs,
                self._values,
            ),
            look_ups(files, models, self.hubs.look_up),
            self.fail,
        )
        self.runs.pipeline = self.pipeline
        vault = Vault(opened.store, Vault(opened.store))
        self.pipeline.hidden = Hidden(self.pipeline, vault, self.canaries.found_in)
        self._values.vault = vault
        self._goings = Goings(self.pipeline, self.canaries.found_in)
        self._tallies = tallies
        self._workers = Workers(host, self._forbidden)
        self._secrets: dict[str, Mapping[str, str]] = {}
        self.incidents = Incidents(
            self.ledger,
            opened.store,
            self.runs.under,
            self._goings.stop,
            self._stop_runs,
            self.checkpoint,
        )
        self.detectors = Detectors(self.ledger, self.incidents, self.runs.running)
        self.pipeline.on_overspent = lambda detail, of: self.distrust("overspent", detail, of)
        tallies.on_canary = self.detectors.looked
        self.runs.detectors = self.detectors
        self._greeting = Strangers(self.ledger, "attach.sock")
        self._calling = Strangers(self.ledger, "gate.sock")
        self.control = Control(self.ledger, reader, self._touch, self._calling.alone)
        self.reader = reader
        Routes(self).register(self.control)
        RunRoutes(self).register(self.control)
        IncidentRoutes(self).register(self.control)
        self.dry.register(self.control)

    def give(self, policy: Policy, environment: Mapping[str, str]) -> None:
        """Keep what a run's caller gave for its policy: credentials, the tools' environment."""
        secrets = self.policies.secrets_of(policy, environment)
        keys = self.policies.model_keys(policy, environment)
        self._secrets[policy.digest] = {**secrets, **{key_name(k): v for k, v in keys.items()}}
        starter = SandboxStarter(self._host, policy, environment.get("PATH", ""), self._forbidden)
        anchors = trust.system_bundle() + trust.extra_certificates(policy.network.ca)
        link = self._fetchers.linked
        self._http.give(policy.digest, lambda: HttpEffect(link, secrets=secrets, anchors=anchors))
        self._tools.give(policy.digest, lambda: ToolEffect(starter, environment=environment))
        self._rooms.give(policy.digest, lambda: Compute(starter))

    def release(self, digest: str) -> None:
        """Forget what was given for a policy under which nothing runs."""
        if digest in self.policies.by_digest:
            return
        self.policies.forget(digest)
        self._http.drop(digest)
        self._tools.drop(digest)
        self._rooms.drop(digest)
        self._secrets.pop(digest, None)

    def _endpoints(self, run: Run) -> Endpoints:
        """What a run finds on its loopback."""
        policy = run.spec.policy
        mcp = self.hubs.service if policy.mcp and not run.spec.own else None
        secrets = self._secrets.get(policy.digest, {})
        found = Endpoints(policy, secrets, mcp, watch=run.spec.watch)
        if run.spec.dry:
            found.open_files = self.dry.files_of(run)
            run.on_end(lambda: self.dry.write_end(run, found.mounts))
        return found

    def door(self, run: Run) -> Doorway:
        """What the services of a run ask at; one for all of them, as they share its worker."""
        door = self._doors.get(run.id)
        if door is None:
            door = Doorway(run, self.reader, self._goings, self._tallies, self._workers)
            self._doors[run.id] = door
            run.on_end(lambda: self._doors.pop(run.id, None))
            if run.spec.watch:
                run.on_end(
                    lambda: run.emit({"event": "unseen", "names": self._tallies.names(run.id)})
                )
        return door

    def _model_service(self, name: str) -> ModelService:
        """The service of a run's model endpoint, which also asks for what came by the channel."""
        run = self.runs.running[name]
        service = run.services.get(int(Kind.MODEL))
        if not isinstance(service, ModelService):  # an attached program has no endpoints
            secrets = self._secrets.get(run.spec.policy.digest, {})
            service = ModelService(self.door(run), secrets)
            run.services = {**run.services, int(Kind.MODEL): service}
        return service

    def fail(self, error: BaseException) -> None:
        """Something that must not be: go down, at once and for good."""
        if self.failure is None:
            self.failure = error
            self._over.set()

    def leave(self) -> None:
        """Stop serving, in order."""
        self._over.set()

    def _touch(self) -> None:
        self._idle_since = clock.boot()

    async def serve(self, ready: int) -> None:
        """Serve until `leave`, `fail` or idleness."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave)
        directory = self.opened.directory
        control = await loop.create_unix_server(
            self.control.protocol, sock=_listen(directory.control_socket)
        )
        attach = await loop.create_unix_server(
            lambda: Channel(
                self.pipeline,
                self.reader,
                identify=self.runs.identify,
                alone=self._greeting.alone,
            ),
            sock=_listen(directory.attach_socket),
        )
        self.incidents.take_on()
        self.detectors.synced(self.ledger.log.recovery.poisoned)
        await self.ledger.durable(self.ledger.state.seq)
        os.write(ready, b"ready\n")
        os.close(ready)
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        gc.enable()
        tasks = [loop.create_task(self._tick()), loop.create_task(self._confirm())]
        await self._over.wait()
        for task in tasks:
            task.cancel()
        control.close()
        attach.close()
        for path in (directory.control_socket, directory.attach_socket):
            path.unlink(missing_ok=True)
        if self.failure is None:
            await self._end_runs()
            await self._last_words()

    async def _confirm(self) -> None:
        """A state that came from a snapshot must be what the whole log folds to, and a log that was
        opened from its anchor must be whole."""
        if self.opened.unconfirmed is None:
            return
        last, expected = self.opened.unconfirmed
        try:
            found = await asyncio.to_thread(self._read_everything, last)
        except (ValueError, LogError, OSError) as error:
            found = f"{type(error).__name__}: {error}"
        if found != expected:
            self.distrust("snapshot", f"the fold through entry {last} gives {found}")

    def _read_everything(self, last: int) -> str:
        o = self.opened
        return snapshots.whole_digest(
            everything(o.directory.log, o.signing.public, o.witnesses, last)
        )

    def distrust(self, what: str, detail: str, of: int = -1) -> None:
        """The evidence failed: an incident that concerns everything."""
        self.incidents.open(what, detail, of=of)

    async def _stop_runs(self, run: str, what: str) -> list[str]:
        self.runs.halt_started(run, what)
        return await self.runs.halted(run)

    async def checkpoint(self) -> None:
        """A signed tree head over everything durable. A failure halts: see `distrust`.

        That the disk is full is no attack on the evidence: the gate goes down until there is room.
        """
        try:
            await self.opened.checkpointer.force()
        except (LogError, OSError) as error:
            self._checkpoint_failed(error)

    def _checkpoint_failed(self, error: BaseException) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.fail(error)
        elif not self._checkpoint_trouble:
            self._checkpoint_trouble = True
            self.distrust("checkpoint", f"{type(error).__name__}: {error}")

    async def _end_runs(self) -> None:
        self.runs.halt_started("", "gate stopped")
        await self.runs.halted("")

    def _snapshot(self) -> None:
        if self.ledger.state.seq - self._snapshot_at >= snapshots.EVERY:
            self._snapshot_at = self._take_snapshot()

    def _take_snapshot(self) -> int:
        """Where the next is counted from. Without one a restart takes longer, and nothing else."""
        try:
            return snapshots.take(self.ledger, self.opened.store)
        except OSError as error:
            print(f"gate: no snapshot: {error}", file=sys.stderr, flush=True)
            return self.ledger.state.seq

    async def _last_words(self) -> None:
        if self.ledger.state.seq - self._snapshot_at >= snapshots.EVERY // 10:
            self._take_snapshot()
        for strangers in (self._greeting, self._calling):
            strangers.sum_up()
        receipt = self.ledger.step([entries.GateStop(reason="left")])
        await self.ledger.durable(receipt.seq)
        await self.opened.checkpointer.force()
        self.opened.checkpointer.close()
        self.ledger.log.close()
        self._files.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            poisoned = self.ledger.log.poisoned or self.ledger.failure
            if poisoned is not None:
                self.fail(poisoned)
                return
            self.opened.checkpointer.maybe(clock.wall())
            if self.opened.checkpointer.error is not None:
                self._checkpoint_failed(self.opened.checkpointer.error)
            self._snapshot()
            self.detectors.check()
            if self.runs.running or self.control.open:
                self._touch()
            elif clock.boot() - self._idle_since > IDLE_SECONDS * 1_000_000:
                self.leave()
                return


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    os.fchmod(sock.fileno(), 0o600)  # of the socket before it has a name: the name has it from it
    sock.bind(str(path))
    sock.listen(SOCKET_BACKLOG)
    return sock
