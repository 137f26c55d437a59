"""Saved states: a machine that has booted once and waits for its order, continued for every run.

Rules
- The state is that of the very images that a run will use, on the same hardware, by the same QEMU.
  Its name is the digest of all of them; anything else boots.
- It is saved before the guest has seen anything of a run: its first program waits for the order,
  and no interpreter has started. Every run gets fresh random bytes with its order, and the guest's
  kernel mixes them in and seeds its generator anew before anything is started; programs, the
  launcher included, begin after that with their own addresses and hash seeds. What clones share is
  the kernel's own layout.
- The memory is mapped privately from sealed memory: a clone writes to pages of its own, and no
  clone sees another.
- Kept on the disk like an image, and compared like one when it is read.
- One that can't be made or continued is no obstacle: then the machine boots, and the statement says
  so.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
from dataclasses import dataclass
from typing import Final

from authority import protocol
from authority.isolation import IsolationRefused
from authority.vm import cache, hardware, jail
from authority.vm.cache import Held
from authority.vm.preparation import Prepared
from authority.vm.qmp import Qmp, QmpError

KEPT: Final = 6
_MAKE_SECONDS: Final = 180.0
_STATE_SECONDS: Final = 60.0
_PAUSE: Final = 0.002
_BANDWIDTH: Final = 10**10


@dataclass(frozen=True, slots=True)
class Template:
    """Memory and state of a machine that waits."""

    memory: Held
    state: Held


_turns: dict[str, asyncio.Lock] = {}
_failed: dict[str, str] = {}


def key(prepared: Prepared) -> str:
    """What a saved state belongs to."""
    images, made = prepared.images, prepared.hardware
    found = os.stat(jail.qemu(made.architecture))
    parts = [
        *(images.kernel.digest, images.initramfs.digest, images.root.digest),
        *hardware.arguments(made, memory="clone"),
        f"{found.st_size} {found.st_mtime_ns}",
    ]
    if made.accelerated:
        # Its processor is the host's, and a state fits no other.
        parts.append(os.uname().release)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


async def ready(prepared: Prepared) -> Template | str:
    """The saved state for such a machine, found or made now; or why there is none."""
    name = key(prepared)
    if name in _failed:
        return _failed[name]
    async with _turns.setdefault(name, asyncio.Lock()):
        if name in _failed:
            return _failed[name]
        try:
            found = await asyncio.to_thread(_find, name)
            if found is None:
                async with asyncio.timeout(_MAKE_SECONDS):
                    found = await _make(prepared, name)
        except (IsolationRefused, QmpError, OSError, TimeoutError) as error:
            _failed[name] = f"no saved state could be made: {error or type(error).__name__}"
            return _failed[name]
        return found


def give_up(prepared: Prepared, why: str) -> None:
    """This state is of no use: from now on such machines boot."""
    name = key(prepared)
    _failed[name] = why
    for part in ("memory", "state"):
        cache.forget(f"template-{name}.{part}")


def _find(name: str) -> Template | None:
    memory, state = (cache.find(f"template-{name}.{part}") for part in ("memory", "state"))
    if memory is None or state is None or state.facts.get("memory") != memory.digest:
        return None
    os.utime(memory.path)
    return Template(cache.load(memory), cache.load(state))


async def _make(prepared: Prepared, name: str) -> Template:
    from authority.vm import machine

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    memory, state = cache.memory_file(), cache.memory_file()
    booted: machine.Machine | None = None
    try:
        os.ftruncate(memory, prepared.hardware.memory_mib << 20)
        booted = await machine.boot(prepared, theirs, memory="save", more=[memory])
        theirs.close()
        await _waiting(ours)
        await _save(booted.control, state)
    finally:
        if booted is not None:
            booted.kill()
            await booted.wait()
        ours.close()
        theirs.close()
    return await asyncio.to_thread(_keep, name, memory, state)


async def _waiting(ours: socket.socket) -> None:
    """Until the guest says that it waits for its order, and nothing else."""
    wanted = protocol.encode_frame(
        0, protocol.encode_control(protocol.Guest(protocol.GuestState.WAITING, ""))
    )
    heard = b""
    while len(heard) < len(wanted):
        part = await asyncio.get_running_loop().sock_recv(ours, len(wanted) - len(heard))
        if not part:
            raise IsolationRefused("the machine ended while it booted")
        heard += part
    if heard != wanted:
        raise IsolationRefused("the machine did not come as far as waiting for its order")


async def _prepare_state(control: Qmp) -> None:
    # What lies in the memory's file is not copied.
    shared = {"capability": "x-ignore-shared", "state": True}
    await control.ask("migrate-set-capabilities", capabilities=[shared])


async def _completed(control: Qmp) -> None:
    async with asyncio.timeout(_STATE_SECONDS):
        while True:
            found = await control.ask("query-migrate")
            status = found.get("status") if isinstance(found, dict) else None
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise QmpError(f"the state was not carried over: {status}")
            await asyncio.sleep(_PAUSE)


async def _save(control: Qmp, state: int) -> None:
    await control.ask("stop")
    await _prepare_state(control)
    await control.ask("migrate-set-parameters", **{"max-bandwidth": _BANDWIDTH})
    await control.give("state", state)
    await control.ask("migrate", uri="fd:state")
    await _completed(control)


async def resume(control: Qmp, template: Template) -> None:
    """Continues the saved state in a hypervisor that waits for one. Raises `QmpError`."""
    await _prepare_state(control)
    # An opening of its own: every clone reads from the beginning.
    fd = os.open(f"/proc/self/fd/{template.state.fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        await control.give("state", fd)
    finally:
        os.close(fd)
    await control.ask("migrate-incoming", uri="fd:state")
    await _completed(control)
    await control.ask("cont")


def _keep(name: str, memory: int, state: int) -> Template:
    cache.seal(memory)
    cache.seal(state)
    with cache.building() as folder:
        made = cache.aside(folder)
        cache.store(memory, made)
        kept = cache.keep(folder, f"template-{name}.memory", made, {}, sparse=True)
        made = cache.aside(folder)
        cache.store(state, made)
        facts = {"memory": kept.digest}
        kept_state = cache.keep(folder, f"template-{name}.state", made, facts, sparse=True)
        cache.keep_few(folder, "template-*.memory", KEPT)
    return Template(
        Held(memory, kept.digest, kept.size), Held(state, kept_state.digest, kept_state.size)
    )
