"""A mount to attack: a real gate in this process, a run of it, and a kernel of our own in front.

The gate is whole (log, ledger, pipeline, door); only the run's sandbox is missing, so that any message
can be sent and each is answered in the order in which it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from authority.audit import query
from authority.compat.base import Folder, Places
from authority.compat.mount import Mounts
from authority.effects.tree import Files
from authority.gate.opening import initialise, open_state
from authority.gate.run import Run, Start
from authority.gate.server import Gate
from authority.kernel.policy import load

from .fuse_kernel import ALL_FLAGS, Kernel, Stream

OPEN = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
[labels]
trusted = ["user", "fs:./**"]
"""


class Seat:
    """One run with one mount of `work`."""

    def __init__(self, root: Path, gate: Gate, run: Run) -> None:
        self.root = root
        self.work = root / "work"
        self.gate = gate
        self.run = run
        self.events: list[dict[str, Any]] = []
        self.kernel: Kernel
        self.mounts: Mounts
        self.served: asyncio.Task[None]

    async def mount(
        self,
        *,
        shown: tuple[str, ...] = (),
        over: tuple[str, ...] = (),
        flags: int = ALL_FLAGS,
        minor: int = 41,
        files: Callable[[Folder], Files] | None = None,
        begin: bool = True,
    ) -> Kernel:
        places = Places(
            (Folder(str(self.work), str(self.work)),),
            tuple(str(self.work / p) for p in shown),
            tuple(str(self.work / p) for p in over),
        )
        self.mounts = Mounts(self.gate.door(self.run), places, files)
        stream = Stream()
        self.kernel = Kernel(stream)
        self.kernel.start()
        self.served = asyncio.get_running_loop().create_task(self.mounts.serve(stream))
        if begin:
            await self.kernel.init(flags, minor)
        return self.kernel

    @property
    def info(self) -> Any:
        return self.gate.ledger.state.runs[self.run.id]

    def spent(self, dimension: str) -> int:
        account = self.gate.ledger.state.accounts[f"run:{self.run.id}"]
        return int(account.spent.get(dimension, 0))

    def reserved(self, dimension: str) -> int:
        account = self.gate.ledger.state.accounts[f"run:{self.run.id}"]
        return int(account.reserved.get(dimension, 0))

    async def log(self, **wanted: Any) -> list[dict[str, Any]]:
        """The durable entries whose members are as `wanted`."""
        await self.gate.ledger.durable(self.gate.ledger.last.seq)
        return [
            e
            for e in query.read(self.gate.opened.directory.log)
            if all(e.get(k) == v for k, v in wanted.items())
        ]

    def file(self, name: str, data: str | bytes = "", mode: int = 0o644) -> Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)
        return path


@asynccontextmanager
async def seat(policy: str = OPEN, budgets: dict[str, int] | None = None) -> AsyncIterator[Seat]:
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="authority-mount-test-")))
    gate: Gate | None = None
    made: Seat | None = None
    try:
        (root / "work").mkdir()
        # Without a loop around it, as a gate does it.
        directory, _ = await asyncio.to_thread(initialise, root / "state")
        gate = Gate(await asyncio.to_thread(open_state, directory))
        loaded = load(
            policy,
            format="toml",
            base=str(root / "work"),
            name="policy.toml",
            read_parent=lambda *_: pytest.fail("nothing is extended"),
        ).protect([str(root / "state")], [])
        events: list[dict[str, Any]] = []
        spec = Start((), str(root / "work"), loaded, budgets={**loaded.budgets, **(budgets or {})})
        run = await gate.runs.attach(spec, events.append)
        made = Seat(root, gate, run)
        made.events = events
        yield made
    finally:
        if made is not None and hasattr(made, "served"):
            made.kernel.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({made.served}, timeout=60)
        if gate is not None:
            if made is not None:
                made.run.stop("tested")
                async with asyncio.timeout(60):
                    await made.run.ended.wait()
            gate._files.close()
            gate.ledger.log.close()
        shutil.rmtree(root, ignore_errors=True)


class Later:
    """A further run of the gate, with a mount of its own."""

    def __init__(self, seat: Seat, run: Run, kernel: Kernel) -> None:
        self._seat = seat
        self.run = run
        self.kernel = kernel

    @property
    def info(self) -> Any:
        return self._seat.gate.ledger.state.runs[self.run.id]

    def label(self) -> Any:
        """Its label with all that it looked at."""
        self._seat.gate.door(self.run).label_at()
        return self.info.label

    def tainted(self) -> bool:
        return not self.label().clean


@asynccontextmanager
async def successor(seat: Seat) -> AsyncIterator[Later]:
    """A later run under the same policy, which has read nothing yet."""
    run = await seat.gate.runs.attach(seat.run.spec, lambda _event: None)
    mounts = Mounts(
        seat.gate.door(run), Places((Folder(str(seat.work), str(seat.work)),), (), ()), None
    )
    stream = Stream()
    kernel = Kernel(stream)
    kernel.start()
    served = asyncio.get_running_loop().create_task(mounts.serve(stream))
    try:
        await kernel.init(ALL_FLAGS, 41)
        yield Later(seat, run, kernel)
    finally:
        kernel.stop()
        await asyncio.wait({served}, timeout=60)
        run.stop("tested")
        async with asyncio.timeout(60):
            await run.ended.wait()


def sit(
    body: Callable[[Seat], Awaitable[None]],
    policy: str = OPEN,
    *,
    mount: bool = True,
    budgets: dict[str, int] | None = None,
    before: Callable[[Seat], None] | None = None,
) -> None:
    """Run a test's body on a seat, with the mount made unless `mount` says otherwise."""

    async def work() -> None:
        async with asyncio.timeout(60), seat(policy, budgets) as made:
            if before is not None:
                before(made)
            if mount:
                await made.mount()
            await body(made)

    asyncio.run(work())


async def number(work: Awaitable[Any]) -> str:
    """The name of the errno that it failed with, or nothing."""
    try:
        await work
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return ""
