"""Where a run lives: in name spaces or in a machine of its own, and who decides.

Rules
- `namespace` and `vm` are taken by their word: what can't be had is refused, nothing weaker stands
  in.
- `auto` takes a machine only where a guest has booted with acceleration and its kernel is built;
  otherwise name spaces, and the run's first entry says why. It never emulates and fetches nothing; to
  find out it boots a small guest once for each start of the host.
- Images are found or built before the run's first entry, on a thread: others do not wait for it.
  The run itself is planned later, in the same step as its entry.
- A child lives where its parent does. Tools, servers that the policy names, and the worker live in
  name spaces: they are started by the gate for the run, not by the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from authority import vm
from authority.isolation import Host, IsolationRefused, Plan, Sandbox, SandboxSpec, plan, start
from authority.isolation.notify import Handed

KINDS: Final = ("auto", "namespace", "vm")


@dataclass(frozen=True, slots=True)
class House:
    """`images` for a machine; else name spaces, and `note` says why when a machine was thought of."""

    images: vm.Images | None = None
    note: str = ""


NAMESPACES: Final = House()


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and, for a machine, what it boots."""

    plan: Plan
    machine: vm.Prepared | None


async def choose(
    kind: str, wanted: SandboxSpec, host: Host, *, emulate: bool, tell: vm.Tell
) -> House:
    """Decides, and makes the images; `tell` hears what takes long. Raises `IsolationRefused` for what
    was asked for by its word."""
    if kind == "namespace":
        return NAMESPACES
    if kind == "vm":
        return House(await vm.furnish(wanted, host, emulate=emulate, tell=tell))
    note = await asyncio.to_thread(vm.not_ready, host, vm.to_loop(tell))
    if not note:
        try:
            return House(await vm.furnish(wanted, host, emulate=False, tell=tell))
        except IsolationRefused as error:
            note = error.reason
    return House(None, f"no machine: {note}")


def planned(wanted: SandboxSpec, host: Host, house: House) -> Planned:
    """The plan for one run. Raises `IsolationRefused`."""
    if house.images is not None:
        machine = vm.prepare(wanted, host, house.images)
        return Planned(machine.plan, machine)
    made = plan(wanted, host)
    if house.note:
        said: dict[str, Any] = {**made.protection, "machine": {"none": house.note}}
        made = dataclasses.replace(made, protection=said)
    return Planned(made, None)


async def begin(
    chosen: Planned,
    channel: socket.socket,
    line: vm.Line,
    calls: Callable[[Handed], None] | None,
) -> Sandbox | vm.Machine:
    """Starts it; returns when the program has been executed. Raises `IsolationRefused`."""
    if chosen.machine is not None:
        return await vm.start(chosen.machine, channel, line)
    return await start(chosen.plan, channel=channel, calls=calls)


def as_seen(host: Host, *, machine: bool) -> Host:
    """The host as far as files are concerned: a machine brings FUSE along."""
    return dataclasses.replace(host, fuse_problem=("", "")) if machine else host
