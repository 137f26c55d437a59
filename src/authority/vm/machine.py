"""A started run in a machine: the same handling as a sandbox in name spaces.

Rules
- `start` returns when the program has been executed inside, or raises `IsolationRefused` with the
  cause. What the guest says of itself is believed only for that: everything it sends otherwise is a
  frame on the channel like any other run's.
- The hypervisor has its end of the channel itself; nothing here stands in between. The order to the
  guest (`order`) is a frame that the gate writes, the first one.
- It begins with a saved state where there is one (`template`), else it boots.
- What the kernel says about the hypervisor's process (`jail.missing`) is checked before the guest is
  told anything, as it is for a run in name spaces.
- To freeze is to stop the machine's processors. To kill is to kill the hypervisor; the guest has no
  say.
- The run ends when the hypervisor ends, however that comes: the guest resets itself, panics, is
  killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol

from authority import protocol
from authority.isolation import (
    ExitStatus,
    Host,
    IsolationRefused,
    Plan,
    SandboxSpec,
    cgroups,
    leftovers,
    processes,
)
from authority.isolation import spawn as launching
from authority.isolation.refusal import shown
from authority.vm import hardware, jail, order, steps, template
from authority.vm.preparation import Images, Prepared, images, prepare
from authority.vm.qmp import Qmp, QmpError

START_SECONDS: Final = 60.0
EMULATED_SECONDS: Final = 180.0
_FREEZE_SECONDS: Final = 2.0
_THREADS: Final = 64
_BUBBLEWRAPS: Final = 2
"""The one that waits outside, and process 1 of the jail's pid name space; QEMU is its child."""


class Line(Protocol):
    """The gate's end of the channel, as far as a start needs it."""

    def send_control(self, message: protocol.Control) -> None: ...

    def begun(self) -> Awaitable[None]:
        """Until the guest says that the program runs; raises `IsolationRefused` when it won't."""
        ...


class Machine:
    """One run. `pid` is the hypervisor as the host numbers it; `uid` its host user."""

    def __init__(self, prepared: Prepared, outer: int, control: Qmp, diagnostics: int) -> None:
        self.plan: Plan = prepared.plan
        self.host_plan = prepared
        self.pid = 0
        self.uid = prepared.host.uid
        self._outer = outer
        self._outer_fd = os.pidfd_open(outer)
        self._pid_fd = -1
        self.control = control
        self._diagnostics = diagnostics
        self._group: cgroups.Group | None = None
        self._claim: socket.socket | None = None
        self._ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._reason = ""
        asyncio.get_running_loop().add_reader(self._outer_fd, self._on_end)

    async def _begin(self) -> None:
        """Waits for the hypervisor and looks who it is. Raises `IsolationRefused`."""
        try:
            await self.control.begin()
        except QmpError as error:
            said = self._said()
            raise IsolationRefused(
                f"the hypervisor did not start: {said or error}", "run `authority doctor`"
            ) from error
        members = processes.tree(self._outer)
        if len(members) != _BUBBLEWRAPS + 1:
            raise IsolationRefused("the hypervisor is not one process in its jail")
        self.pid = members[-1]
        self._pid_fd = os.pidfd_open(self.pid)
        prepared = self.host_plan
        lacks = jail.missing(
            self.pid, prepared.host, uid=self.uid, kvm=prepared.hardware.accelerated
        )
        if lacks:
            raise IsolationRefused(
                f"the hypervisor is not in the jail that it was started in: {lacks}",
                "run `authority doctor`; use the distribution's QEMU",
            )

    # --- the end ---

    def _said(self) -> str:
        """What the hypervisor printed, also when its end was seen first and all is given back."""
        if self._ended.done():
            return self._ended.result().reason
        return shown(launching.diagnostics(self._diagnostics).strip())

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._outer_fd)
        said = self._said()
        self._release()
        if not self._ended.done():
            reason = self._reason or said
            killed = bool(self._reason)
            number = signal.SIGKILL if killed else 0
            self._ended.set_result(ExitStatus(-1, number, killed, reason))

    def _release(self) -> None:
        """Gives back what the run held; the hypervisor is dead, and with it the guest."""
        self._kill_all()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._outer, 0)  # bubblewrap ends when it has seen the hypervisor's end
        for fd in (self._outer_fd, self._pid_fd, self._diagnostics):
            if fd >= 0:
                os.close(fd)
        self._outer_fd = self._pid_fd = self._diagnostics = -1
        self.control.close()
        if self._claim is not None:
            self._claim.close()
        if self._group is not None and not self._group.remove():
            leftovers.take(self._group)

    def _kill_all(self) -> None:
        """The hypervisor, whose end bubblewrap waits for; bubblewrap, while there is none yet."""
        fd = self._pid_fd if self._pid_fd >= 0 else self._outer_fd
        if fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)

    def _abandon(self) -> None:
        """A start that failed: nothing may be left of it."""
        if self._outer_fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._outer_fd)
        launching.end(self._outer)
        self._release()
        if not self._ended.done():
            self._ended.set_result(ExitStatus(-1, signal.SIGKILL, True, "it did not start"))

    # --- what the gate does with it ---

    async def wait(self) -> ExitStatus:
        """Until the hypervisor has ended. The program's own end is told on the channel."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Kills the hypervisor. Idempotent."""
        self._reason = self._reason or "the run was killed"
        self._kill_all()
        with contextlib.suppress(OSError):
            if self._group is not None:
                self._group.set_frozen(False)

    async def freeze(self) -> bool:
        """Stops the machine's processors; True when the hypervisor confirms it."""
        try:
            async with asyncio.timeout(_FREEZE_SECONDS):
                await self.control.ask("stop")
                status = await self.control.ask("query-status")
        except (QmpError, TimeoutError):
            return False
        return isinstance(status, dict) and status.get("running") is False


def _group_for(prepared: Prepared) -> cgroups.Group | None:
    memory = (prepared.hardware.memory_mib << 20) + hardware.OVERHEAD_BYTES
    return leftovers.make(
        prepared.host.cgroup,
        memory=memory,
        processes=_THREADS,
        millicpus=prepared.plan.spec.millicpus,
    )


async def start(prepared: Prepared, channel: socket.socket, line: Line) -> Machine:
    """Starts a run and returns when its program has been executed inside.

    `channel` is the run's end of a stream socket pair, taken over and closed here; `line` is the other
    end, which is read already. Raises `IsolationRefused`; nothing of the run is left then.
    """
    seconds = START_SECONDS if prepared.hardware.accelerated else EMULATED_SECONDS
    machine: Machine | None = None
    try:
        async with asyncio.timeout(seconds):
            machine = await come_up(prepared, channel)
            channel.close()
            line.send_control(order.order(prepared))
            await line.begun()
    except BaseException as error:
        if machine is not None:
            machine._abandon()
        if isinstance(error, TimeoutError):
            if prepared.images.template is not None:
                # A state that does not come to life would hold up every run from now on.
                template.give_up(prepared, "the saved state did not go on in time")
            raise IsolationRefused(
                "the machine did not start in time", "is this computer very busy?"
            ) from error
        raise
    finally:
        channel.close()
    return machine


async def come_up(prepared: Prepared, channel: socket.socket) -> Machine:
    """A machine whose guest waits for its order, or soon will."""
    saved = prepared.images.template
    if saved is None:
        return await boot(prepared, channel)
    machine = await boot(prepared, channel, memory="clone", more=[saved.memory.fd], incoming=True)
    try:
        await template.resume(machine.control, saved)
    except BaseException as error:
        machine._abandon()
        if isinstance(error, QmpError):
            template.give_up(prepared, f"the saved state could not be continued: {error}")
            raise IsolationRefused(
                f"the saved state could not be continued: {error}",
                "start it again: it will boot instead",
            ) from error
        raise
    return machine


async def boot(
    prepared: Prepared,
    channel: socket.socket,
    *,
    memory: str = "",
    more: Sequence[int] = (),
    incoming: bool = False,
) -> Machine:
    """Starts the hypervisor; the guest boots and waits for its order, or nothing runs yet when it is
    `incoming`. `memory` and `more` (its file) are those of `hardware.arguments`."""
    if threading.current_thread() is not threading.main_thread():
        raise IsolationRefused("a machine must be started from the main thread")
    host = prepared.host
    ours, theirs = socket.socketpair()
    diagnostics = launching.diagnostics_file()
    group: cgroups.Group | None = None
    claim: socket.socket | None = None
    entrances: list[int] = []
    machine: Machine | None = None
    try:
        uid = host.uid
        if host.root:
            uid, claim = launching.take_host_id()
        group = _group_for(prepared)
        entrances = group.open_entrances() if group is not None else []
        made = jail.command(
            host,
            prepared.hardware.architecture,
            hardware.arguments(prepared.hardware, memory=memory, incoming=incoming),
            uid=uid,
            kvm=prepared.hardware.accelerated,
        )
        images = prepared.images
        held = [one.fd for one in (images.kernel, images.initramfs, images.root)]
        own = [channel.fileno(), theirs.fileno(), *held, *more]
        data = (prepared.hardware.memory_mib << 20) + hardware.DATA_BYTES
        outer = jail.spawn(
            made, diagnostics, own, entrances, architecture=host.architecture, data=data
        )
        machine = Machine(prepared, outer, Qmp(ours), diagnostics)
        machine.uid, machine._group, machine._claim = uid, group, claim
        theirs.close()
        await machine._begin()
    except BaseException:
        if machine is not None:
            machine._abandon()
        else:
            ours.close()
            os.close(diagnostics)
            if claim is not None:
                claim.close()
            if group is not None:
                group.remove()
        raise
    finally:
        theirs.close()
        for fd in entrances:
            os.close(fd)
    return machine


async def furnish(
    spec: SandboxSpec, host: Host, *, emulate: bool, tell: steps.Tell = steps.nobody
) -> Images:
    """Images and a saved state for runs like this one; `tell` hears of what has to be made. Raises
    `IsolationRefused`."""
    told = steps.to_loop(tell)
    found = await asyncio.to_thread(images, spec, host, emulate=emulate, tell=told)
    saved = await template.ready(prepare(spec, host, found), told)
    if isinstance(saved, str):
        return dataclasses.replace(found, no_template=saved)
    return dataclasses.replace(found, template=saved)
