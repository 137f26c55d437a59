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
- Before it is kept it has been continued once; how long boot and continuation took is kept with it.
- Kept on the disk like an image, and compared like one when it is read. Who made it holds what it
  made, and doesn't read it again.
- One that can't be made is no obstacle: the machine boots, and the statement says so. One that was
  there and could not be continued refuses the one run whose statement names it, and is taken away:
  the next one boots. After some time it is tried again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from authority import protocol
from authority.isolation import IsolationRefused
from authority.isolation.refusal import shown
from authority.vm import cache, hardware, hypervisor, shelf, steps
from authority.vm.cache import Held, Stored
from authority.vm.preparation import Prepared
from authority.vm.qmp import Qmp, QmpError

_MAKE_SECONDS: Final = 180.0
_STATE_SECONDS: Final = 60.0
_PAUSE: Final = 0.002
_BANDWIDTH: Final = 10**10
_AGAIN_SECONDS: Final = 600.0
"""After a failure machines boot for so long; then it is tried again (the disk may have room)."""

_WAITING, _FAILED = (
    bytes(4) + protocol.encode_control(protocol.Guest(state, ""))
    for state in (protocol.GuestState.WAITING, protocol.GuestState.FAILED)
)


@dataclass(frozen=True, slots=True)
class Template:
    """Memory and state of a machine that waits."""

    memory: Held
    state: Held


_turns: dict[str, tuple[asyncio.Lock, steps.Line]] = {}
_failed: dict[str, tuple[float, str]] = {}


def _failure(name: str) -> str:
    """Why this state could not be made or continued a short while ago, or nothing."""
    until, why = _failed.get(name, (0.0, ""))
    return why if time.monotonic() < until else ""


def _fail(name: str, why: str) -> str:
    _failed[name] = (time.monotonic() + _AGAIN_SECONDS, why)
    return why


def key(prepared: Prepared) -> str:
    """What a saved state belongs to."""
    images, made = prepared.images, prepared.hardware
    parts = [
        *(images.kernel.digest, images.initramfs.digest, images.root.digest),
        *hardware.arguments(made, memory="clone"),
        hypervisor.find(made.architecture).identity,
    ]
    if made.accelerated:
        # Its processor is the host's, and a state fits no other.
        parts.append(os.uname().release)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


async def ready(prepared: Prepared, tell: steps.Tell = steps.nobody) -> Template | str:
    """The saved state for such a machine, found or made now; or why there is none."""
    name = key(prepared)
    turn, line = _turns.setdefault(name, (asyncio.Lock(), steps.Line()))
    with line.waits(tell):
        await turn.acquire()
    try:
        with line.makes(tell) as told:
            return await _found_or_made(prepared, name, told)
    finally:
        turn.release()


async def _found_or_made(prepared: Prepared, name: str, tell: steps.Tell) -> Template | str:
    if why := _failure(name):
        return why
    try:
        found = await asyncio.to_thread(_find, name)
        if found is None:
            cache.to_write()  # seen before a machine is booted for it
            tell("state")
            async with asyncio.timeout(_MAKE_SECONDS):
                found = await _make(prepared, name)
    except (IsolationRefused, QmpError, OSError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        return _fail(name, f"no saved state could be made: {why}")
    return found


def give_up(prepared: Prepared, why: str) -> None:
    """This state is of no use: for a while such machines boot."""
    name = key(prepared)
    _fail(name, why)
    for part in ("memory", "state"):
        cache.forget(f"template-{name}.{part}")


def _find(name: str) -> Template | None:
    """It as it lies on the disk; nothing where it is removed or made anew while it is read."""
    memory, state = (cache.find(f"template-{name}.{part}") for part in ("memory", "state"))
    if memory is None or state is None or state.facts.get("memory") != memory.digest:
        return None
    cache.used(memory)
    try:
        return Template(cache.load(memory), cache.load(state))
    except cache.Replaced:
        return None


async def _make(prepared: Prepared, name: str) -> Template:
    from authority.vm import machine

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    memory, state = (Held(cache.memory_file(), "", 0) for _ in range(2))
    booted: machine.Machine | None = None
    began = time.monotonic()
    try:
        os.ftruncate(memory.fd, prepared.hardware.memory_mib << 20)
        booted = await machine.boot(prepared, theirs, memory="save", more=[memory.fd])
        theirs.close()
        await _heard(ours, _WAITING)
        took = time.monotonic() - began
        await _save(booted.control, state.fd)
    finally:
        if booted is not None:
            booted.kill()
            await booted.wait()
        ours.close()
        theirs.close()
    await asyncio.to_thread(_seal, memory, state)
    facts = {
        "root": prepared.images.root.digest,
        "hardware": prepared.hardware.described,
        "boot_ms": round(took * 1000),
        "continue_ms": round(await _tried(prepared, Template(memory, state)) * 1000),
    }
    return await asyncio.to_thread(_keep, name, memory, state, facts)


def _seal(*files: Held) -> None:
    for one in files:
        cache.seal(one.fd)


async def _tried(prepared: Prepared, made: Template) -> float:
    """Continues a new state once, up to the guest's answer to an order that nobody can carry out; the
    seconds from the start of the hypervisor."""
    from authority.vm import machine, order

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    tried: machine.Machine | None = None
    began = time.monotonic()
    try:
        tried = await machine.boot(
            prepared, theirs, memory="clone", more=[made.memory.fd], incoming=True
        )
        theirs.close()
        await resume(tried.control, made)
        frame = protocol.encode_frame(0, protocol.encode_control(order.impossible()))
        await asyncio.get_running_loop().sock_sendall(ours, frame)
        await _heard(ours, _FAILED)
        return time.monotonic() - began
    finally:
        if tried is not None:
            tried.kill()
            await tried.wait()
        ours.close()
        theirs.close()


async def _heard(ours: socket.socket, wanted: bytes) -> None:
    """Until the guest has said this behind a length, and nothing else."""
    heard = b""
    while len(heard) < 4 + len(wanted):
        part = await asyncio.get_running_loop().sock_recv(ours, 4 + len(wanted) - len(heard))
        if not part:
            raise IsolationRefused("the machine ended before it said that it waits, or answers")
        heard += part
    if heard[4:] != wanted:
        raise IsolationRefused("the machine said something else than that it waits, or answers")


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


def _keep(name: str, memory: Held, state: Held, facts: dict[str, Any]) -> Template:
    """Writes both to the disk, and holds what was written: the next start of this gate takes it from
    memory and reads nothing."""
    with cache.building() as folder:
        stored = _stored(folder, f"template-{name}.memory", memory, {})
        _stored(folder, f"template-{name}.state", state, {**facts, "memory": stored.digest})
        shelf.tidy(folder)
    return Template(cache.hold(memory), cache.hold(state))


def _stored(folder: Path, name: str, held: Held, facts: dict[str, Any]) -> Stored:
    made = cache.aside(folder)
    written = cache.store(held.fd, made)
    stored = cache.keep(folder, name, made, facts, sparse=True)
    if stored.digest != written:
        raise IsolationRefused(f"{shown(name)} is not on the disk as it was written")
    held.digest, held.size = stored.digest, stored.size
    return stored
