"""Runs in virtual machines, emulated: from a saved state, booted, and beside plain QEMU.

- *static program*: from the start of the hypervisor to the answer of the guest's first program,
  which is static, to an order that it could not carry out. *first words*: to what a fresh Python
  prints, through bubblewrap, launcher, Landlock and seccomp inside, as for every run.
- *plain QEMU* boots the same images with the same hardware and without the jail.
- The round trip is of 200 bytes, from the host through the channel to a Python in the guest and
  back.
- Emulation's figures depend on the machine like nothing else here; with KVM nobody has measured
  yet.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import socket
import statistics
import struct
import subprocess
import sys
import time
from typing import Any

from authority import protocol
from authority.isolation import IsolationRefused, SandboxSpec, probe
from authority.isolation.processes import status
from authority.vm import Images, Prepared, furnish, hardware, hypervisor, jail, prepare
from authority.vm.machine import Machine, boot
from authority.vm.order import order
from authority.vm.template import resume

PYTHON = os.path.realpath(sys.executable)
WORDS = "print('words', flush=True); import time; time.sleep(60)"
SPEC = SandboxSpec((PYTHON, "-c", WORDS), "/", memory=128 << 20)
ECHO = """
import os
left = b""
while True:
    left += os.read(5, 65536)
    while len(left) >= 4 and len(left) >= 4 + int.from_bytes(left[:4], "big"):
        size = 4 + int.from_bytes(left[:4], "big")
        os.write(5, left[:size])
        left = left[size:]
"""


class Talk:
    """One machine and our end of its channel."""

    def __init__(self, machine: Machine, ours: socket.socket) -> None:
        self.machine, self.ours = machine, ours
        self._decoder = protocol.FrameDecoder()
        self._inbox: list[bytes] = []

    async def send(self, payload: bytes) -> None:
        frame = protocol.encode_frame(0, payload)
        await asyncio.get_running_loop().sock_sendall(self.ours, frame)

    async def hear(self, wanted: int) -> bytes:
        """The next message that begins with this opcode."""
        while True:
            while self._inbox:
                payload = self._inbox.pop(0)
                if payload[0] == wanted:
                    return payload
            data = await asyncio.get_running_loop().sock_recv(self.ours, 65536)
            if not data:
                raise RuntimeError("the machine ended")
            self._inbox += [payload for _, payload in self._decoder.feed(data)]

    async def end(self) -> None:
        self.machine.kill()
        await self.machine.wait()
        self.ours.close()


async def up(prepared: Prepared, *, saved: bool) -> Talk:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    template = prepared.images.template
    try:
        if saved and template is not None:
            machine = await boot(
                prepared, theirs, memory="clone", more=[template.memory.fd], incoming=True
            )
            await resume(machine.control, template)
        else:
            machine = await boot(prepared, theirs)
    finally:
        theirs.close()
    return Talk(machine, ours)


def bare(*words: str) -> bytes:
    """An order without a sandbox."""
    command = b"".join(os.fsencode(word) + b"\0" for word in words)
    body = struct.pack(">QHH", time.time_ns(), 0, 0) + secrets.token_bytes(64)
    body += struct.pack(">I", len(command)) + command + struct.pack(">I", 0)
    return protocol.encode_control(protocol.Configure(body))


async def static_program(prepared: Prepared) -> float:
    began = time.monotonic()
    talk = await up(prepared, saved=True)
    await talk.send(bare("/nowhere"))
    answer = await talk.hear(0x11)
    taken = time.monotonic() - began
    await talk.end()
    assert answer[1] == protocol.GuestState.FAILED
    return taken


async def first_words(prepared: Prepared, *, saved: bool) -> tuple[float, int]:
    """Seconds, and KiB of the hypervisor's own memory once the program waits."""
    began = time.monotonic()
    talk = await up(prepared, saved=saved)
    await talk.send(protocol.encode_control(order(prepared)))
    await talk.hear(3)
    taken = time.monotonic() - began
    own = int(status(talk.machine.pid)["RssAnon"].split()[0])
    await talk.end()
    return taken, own


async def to_waiting(prepared: Prepared) -> float:
    began = time.monotonic()
    talk = await up(prepared, saved=False)
    await talk.hear(0x11)
    taken = time.monotonic() - began
    await talk.end()
    return taken


async def plain_qemu(prepared: Prepared) -> float:
    """The same to the same point, without the jail."""
    ours, theirs = socket.socketpair()
    control, far = socket.socketpair()
    ours.setblocking(False)
    images = prepared.images
    fds = [theirs.fileno(), far.fileno(), images.kernel.fd, images.initramfs.fd, images.root.fd]
    moves = [(os.dup(fd), at) for at, fd in enumerate(fds, jail.FIRST_FD)]
    high = [(fd if fd > 40 else os.dup2(fd, fd + 100), at) for fd, at in moves]
    program = hypervisor.find(prepared.hardware.architecture).path
    began = time.monotonic()
    pid = os.posix_spawn(
        program,
        [program, *hardware.arguments(prepared.hardware)],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for fd, at in high],
    )
    theirs.close()
    far.close()
    await asyncio.get_running_loop().sock_recv(ours, 100)
    taken = time.monotonic() - began
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    for fd in {fd for fd, _ in (*moves, *high)}:
        os.close(fd)
    ours.close()
    control.close()
    return taken


async def round_trips(prepared: Prepared, count: int) -> list[float]:
    talk = await up(prepared, saved=True)
    await talk.send(bare(PYTHON, "-I", "-S", "-c", ECHO))
    taken = []
    for number in range(count + 20):
        began = time.monotonic()
        await talk.send(b"\x05" + bytes(191))
        await talk.hear(5)
        if number >= 20:
            taken.append(time.monotonic() - began)
    await talk.end()
    return taken


async def measure(found: Images, rounds: int, trips: int) -> dict[str, Any]:
    prepared = prepare(SPEC, probe(), found)
    cold = prepare(SPEC, probe(), dataclasses.replace(found, template=None))
    seen: dict[str, Any] = {"static": [], "saved": [], "cold": [], "waiting": [], "plain": []}
    own = 0
    for _ in range(rounds):
        seen["static"].append(await static_program(prepared))
        taken, own = await first_words(prepared, saved=True)
        seen["saved"].append(taken)
    for _ in range(max(2, rounds // 4)):
        seen["cold"].append((await first_words(cold, saved=False))[0])
        seen["waiting"].append(await to_waiting(cold))
        seen["plain"].append(await plain_qemu(cold))
    return seen | {"own": own, "trips": await round_trips(prepared, trips)}


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    try:
        found = asyncio.run(furnish(SPEC, probe(), emulate=True))
    except (IsolationRefused, subprocess.SubprocessError) as error:
        return [row("machine", None, "", "", None, f"no machine here: {error}")]
    if found.template is None:
        return [row("saved state", None, "", "there is one", False, found.no_template)]
    seen = asyncio.run(measure(found, 4 if quick else 20, 200 if quick else 2000))
    median = {name: statistics.median(seen[name]) for name in ("static", "saved", "cold")}
    trip = statistics.median(seen["trips"]) * 1e6
    waiting, plain = min(seen["waiting"]), min(seen["plain"])

    def milliseconds(name: str, seconds: float, detail: str, most: int = 0) -> dict[str, Any]:
        value = round(seconds * 1e3, 1)
        target = f"<= {most}" if most else ""
        return row(name, value, "ms", target, value <= most if most else None, detail)

    return [
        milliseconds("static program", median["static"], "from the saved state, median", 150),
        milliseconds(
            "first words", median["saved"], "a fresh Python, from the saved state, median"
        ),
        milliseconds("first words, booted", median["cold"], "the same without it, median", 4000),
        milliseconds("boot", waiting, "to waiting for the order, best"),
        milliseconds("boot, plain QEMU", plain, "the same images without the jail, best"),
        row("round trip", round(trip), "us", "<= 400", trip <= 400, "200 bytes, median"),
        row("own memory", round(seen["own"] / 1024), "MiB", "", None, "of an idle machine's QEMU"),
    ]


def row(
    name: str, value: float | None, unit: str, target: str, ok: bool | None, detail: str
) -> dict[str, Any]:
    return {"name": f"vm: {name}", "value": value, "unit": unit, "target": target} | {
        "ok": ok,
        "detail": detail,
    }


if __name__ == "__main__":
    for each in run("--quick" in sys.argv):
        print(*(each[k] for k in ("name", "value", "unit", "target", "ok", "detail")), sep="\t")
