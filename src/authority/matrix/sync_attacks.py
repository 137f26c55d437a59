"""INV-4, no response before fsync: a disk that does not answer, and the order of system calls.

A gate runs in a thread of this process on a file layer whose `fdatasync` can be held. While it is
held, an entry is in the page cache and not on the disk: not a byte of the answer that rests on it
may leave, and no side effect that waits for it may happen. The control is the same gate with the
wait taken out: there both must be seen.
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from authority.audit.files import OsLayer
from authority.gate import opening
from authority.gate.channel import Channel
from authority.gate.ledger import Ledger
from authority.gate.run import Start
from authority.gate.server import Gate
from authority.matrix import syscalls
from authority.matrix.live import POLICY, Live
from authority.matrix.verdict import Attempt, Result, Row
from authority.matrix.wire import Ask, Wire, WireError
from authority.tokens import from_text

RESPONSE = Row("INV-4", "response before fsync", "no byte leaves before its entry is on the disk")

ROUNDS = 4
LOOK_SECONDS = 0.08
WAIT_SECONDS = 10.0


class HeldLayer(OsLayer):
    """The real files, with a disk that takes its time when told to."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        """From now on a sync does not return."""
        self.waiting.clear()
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def fdatasync(self, fd: int) -> None:
        self._wait()
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._wait()
        super().fsync(fd)

    def _wait(self) -> None:
        if not self._open.is_set():
            self.waiting.set()
            self._open.wait()


class HastyLedger(Ledger):
    """The guard taken out: whoever waits for the disk is told at once that it is done."""

    def when_durable(self, seq: int, callback: Any) -> None:
        callback(None)

    async def durable(self, seq: int) -> None:
        return


class HeldGate:
    """A gate in a thread, on a layer that can be held, with one attached run."""

    def __init__(self, live: Live, *, hasty: bool) -> None:
        self.layer = HeldLayer()
        self.path = live.root / f"held-{hasty}.sock"
        self.token = b""
        self._live = live
        self._hasty = hasty
        self._body = live.request([], POLICY)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def start(self) -> None:
        """Returns when it serves. Raises what kept it from that."""
        self._thread.start()
        self._ready.wait(WAIT_SECONDS)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self.layer.release()
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(WAIT_SECONDS)
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        try:
            opened = opening.open_state(self._live.directory, layer=self.layer)
            if self._hasty:
                opened.ledger = HastyLedger(opened.ledger.log, opened.ledger.state)
            asyncio.run(self._serve(opened))
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, opened: opening.Opened) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        gate = Gate(opened)
        started: list[dict[str, Any]] = []
        policy = gate.policies.load(self._body, opened.ledger.state)
        gate.give(policy, {})
        await gate.policies.keep(policy)
        spec = Start((), str(self._live.workspace), policy, budgets=dict(policy.budgets))
        run = await gate.runs.attach(spec, started.append)
        self.token = from_text(str(started[0]["capability"]))
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: Channel(gate.pipeline, gate.reader, identify=gate.runs.identify), str(self.path)
        )
        self._ready.set()
        await self._over.wait()
        server.close()
        run.stop("stopped")
        await gate.runs.halted(run.id)
        opened.checkpointer.close()
        opened.ledger.log.close()
        if gate.failure is not None:
            raise gate.failure


@contextmanager
def held_gate(live: Live, *, hasty: bool) -> Iterator[HeldGate]:
    """The gate, stopped at the end."""
    gate = HeldGate(live, hasty=hasty)
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()


def early(live: Live, gate: HeldGate) -> tuple[list[Attempt], list[Attempt]]:
    """For reads, refusals and writes: what came while the disk was held, and that it came after."""
    attempts, after = [], []
    wire = Wire(str(gate.path), gate.token)
    try:
        for turn in range(ROUNDS):
            target = live.workspace / "out" / f"held-{turn}"
            target.unlink(missing_ok=True)
            for name, ask in (
                ("read", Ask("fs.read", "data/a.txt", capability=gate.token)),
                ("refusal", Ask("fs.read", "/etc/hostname", capability=gate.token)),
                ("write", Ask("fs.write", f"out/held-{turn}", {"data": b"x"}, gate.token)),
            ):
                made, numbers = one(gate, wire, name, ask, target if name == "write" else None)
                said = wire.answers(numbers)[0]
                attempts += made
                after.append(Attempt(name, said.seq is not None, f"entry {said.seq}"))
    finally:
        wire.close()
    return attempts, after


def one(
    gate: HeldGate, wire: Wire, name: str, ask: Ask, target: Path | None
) -> tuple[list[Attempt], list[int]]:
    """One request while the disk is held, and its number; released at the end."""
    gate.layer.hold()
    try:
        numbers = wire.send([ask])
        if not gate.layer.waiting.wait(WAIT_SECONDS):
            raise WireError("the gate wrote nothing")
        time.sleep(LOOK_SECONDS)
        came = bool(select.select([wire.socket], [], [], 0)[0])
        attempts = [Attempt(f"answer to a {name}", came, "held" if not came else "it came early")]
        if target is not None:
            done = target.exists()
            attempts.append(
                Attempt("the write itself", done, "held" if not done else "it was there early")
            )
        return attempts, numbers
    finally:
        gate.layer.release()


def response_before_sync(live: Live) -> Result:
    """Test 13."""
    live.stop()
    with held_gate(live, hasty=False) as gate:
        attempts, after = early(live, gate)
    with held_gate(live, hasty=True) as gate:
        broken, _ = early(live, gate)
    seen = {a.name: a for a in broken if a.worked}
    controls = [
        Attempt(
            "the answers came after the release", all(a.worked for a in after), f"{len(after)}"
        ),
        *[
            Attempt(
                f"without the wait: {name}", name in seen, seen[name].detail if name in seen else ""
            )
            for name in dict.fromkeys(a.name for a in attempts)
        ],
    ]
    calls, call_controls, said = syscalls.watch(live)
    return RESPONSE.judge(
        attempts + calls,
        controls + call_controls,
        at_least=ROUNDS * 4,
        evidence=f"fdatasync held {len(after)} times for {int(LOOK_SECONDS * 1000)} ms; {said}",
    )
