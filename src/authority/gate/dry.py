"""Dry runs: what they kept, shown, applied or thrown away.

Rules
- A dry run's mounts write to `STATE/dry/RUN/N` and to nothing else; every other way of changing files
  (the gate's own file effects, child runs) is refused to it. What it does elsewhere, it does.
- When it ends, its policy's digest, its label and what it wrote in its own repositories are written
  beside the changes, so that applying them is judged by the same policy and with the same label.
- Applying is a run of its own: attached, named in the log, ended when it is done. What was applied is
  removed here; what was not stays until it is discarded.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from authority.compat.base import Folder
from authority.compat.dry import Apply, NotApplied
from authority.compat.mount import Mounts
from authority.effects.base import Call, EffectRefused, Performed
from authority.effects.beneath import Beneath
from authority.effects.overlay import Overlay
from authority.effects.overlay_changes import DryRunDamaged, changes, diff, read_table
from authority.effects.tree import Files
from authority.gate.control import Asking, Control, ControlRefused
from authority.gate.pipeline import Performer
from authority.gate.run import Run, Start
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.labels import Label
from authority.kernel.policy import from_canonical
from authority.kernel.policy_files import WRITES

if TYPE_CHECKING:
    from authority.gate.server import Gate

_RUN = re.compile(r"[0-9a-f]{12}\Z")
SETTLE_SECONDS = 5.0
DIFF_MOST = 4 * 1024 * 1024


class Ended(msgspec.Struct):
    """What is kept of a dry run beside its changes."""

    run: str
    policy: str
    cwd: str
    sources: list[str]
    secrets: list[str]
    own: list[str]


class DryRuns:
    """The dry runs of one state directory."""

    def __init__(self, gate: Gate, root: Path) -> None:
        self._gate = gate
        self._root = root

    def files_of(self, run: Run) -> Callable[[Folder], Files]:
        """Where the mounts of a dry run keep their changes."""
        store = self._root / run.id
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        beneath = Beneath()
        count = 0

        def files(folder: Folder) -> Files:
            nonlocal count
            count += 1
            place = store / str(count)
            place.mkdir(mode=0o700)
            return Overlay(beneath, os.fsencode(folder.source), place)

        run.on_end(beneath.close)
        return files

    def write_end(self, run: Run, mounts: Mounts | None) -> None:
        """The run is over: keep what applying needs to know."""
        info = self._gate.ledger.state.runs.get(run.id)
        label = info.label if info is not None else Label()
        ended = Ended(
            run=run.id,
            policy=run.spec.policy.digest,
            cwd=run.spec.cwd,
            sources=sorted(label.sources),
            secrets=sorted(label.secrets),
            own=sorted(mounts.written_to_act_later()) if mounts is not None else [],
        )
        (self._root / run.id / "run.json").write_bytes(msgspec.json.encode(ended))

    # --- calls of the control API ---

    def register(self, control: Control) -> None:
        """The calls below `/v1/dry`."""
        control.route("GET", "/v1/dry", "status", self._list)
        control.route("GET", "/v1/dry/*", "status", self._show)
        control.route("POST", "/v1/dry/*/apply", "run", self._apply)
        control.route("POST", "/v1/dry/*/discard", "run", self._discard)

    async def _list(self, _asking: Asking) -> dict[str, Any]:
        runs = sorted(p.name for p in self._root.glob("*") if _RUN.match(p.name))
        return {"runs": [name for name in runs if name not in self._gate.runs.running]}

    async def _show(self, asking: Asking) -> dict[str, Any]:
        stores = await self._stores(asking.path[0])

        def read() -> dict[str, Any]:
            text, count = "", 0
            for store in stores:
                table = read_table(store)
                found = changes(store, table)
                count += len(found)
                text += diff(store, table, found)
            return {"changes": count, "diff": text[:DIFF_MOST], "cut": len(text) > DIFF_MOST}

        return {"run": asking.path[0], **await asyncio.to_thread(read)}

    async def _stores(self, name: str) -> list[Path]:
        """The folders of a dry run that is over. Raises `ControlRefused`."""
        place = self._root / name
        if not _RUN.match(name) or not place.is_dir():
            raise ControlRefused(
                404, f"there is no dry run {printable(name, 64)}", "'authority dry list' lists them"
            )
        stores = sorted(p for p in place.iterdir() if p.is_dir())
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while not all((store / "table.json").exists() for store in stores):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        if name in self._gate.runs.running:
            raise ControlRefused(
                409, f"the run {name} goes on; its changes are shown when it is over"
            )
        return stores

    async def _discard(self, asking: Asking) -> dict[str, Any]:
        name = asking.path[0]
        await self._stores(name)
        self._gate.control.record(asking, detail=f"discard dry run {name}")
        await asyncio.to_thread(shutil.rmtree, self._root / name)
        return {"run": name}

    async def _apply(self, asking: Asking) -> dict[str, Any]:
        name = asking.path[0]
        stores = await self._stores(name)
        try:
            ended = msgspec.json.decode((self._root / name / "run.json").read_bytes(), type=Ended)
        except (OSError, msgspec.MsgspecError) as error:
            raise DryRunDamaged(f"the dry run {name} did not end in order", "discard it") from error
        self._gate.control.record(asking, detail=f"apply dry run {name}")
        policy = from_canonical(self._gate.opened.store.get(ended.policy))
        label = Label(frozenset(ended.sources), frozenset(ended.secrets))
        spec = Start((), ended.cwd, policy, budgets=dict(policy.budgets), label=label, applies=True)
        run = await self._gate.runs.attach(spec, lambda _event: None)
        beneath = Beneath()
        count = 0
        try:
            for store in stores:
                table = await asyncio.to_thread(read_table, store)
                found = await asyncio.to_thread(changes, store, table)
                door = self._gate.door(run)
                apply = Apply(door, beneath, store, frozenset(ended.own))
                count += await apply.apply(table, found)
        except NotApplied as error:
            raise ControlRefused(409, error.message, error.hint) from None
        finally:
            beneath.close()
            run.stop("applied")
            await run.ended.wait()
        await asyncio.to_thread(shutil.rmtree, self._root / name)
        return {"run": run.id, "changes": count}


class Guarded:
    """File effects and child runs, as a dry run may use them: to look, and not at all."""

    def __init__(self, performer: Performer, running: Callable[[str], Run | None]) -> None:
        self._performer = performer
        self._running = running

    async def perform(self, call: Call) -> Performed:
        run = self._running(call.run)
        if run is not None and run.spec.dry and call.effect in WRITES | {"agent.spawn"}:
            raise EffectRefused(
                Code.POLICY_DENY, "This is a dry run: files are changed through its mounts alone."
            )
        return await self._performer.perform(call)
