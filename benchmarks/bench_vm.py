"""Runs in virtual machines, emulated, beside name spaces and beside plain QEMU, in one table.

- *first request*: a static program as a run (through bubblewrap, launcher, Landlock, seccomp), from the
  start to the moment at which the frame that it sends through the run's socket and the supervisor
  has arrived at the gate's end of the channel. The target of a start is for this one.
- *fresh Python*: an interpreter as a run, to its first words. Both in both tiers, in turns, so that a
  busy computer is busy for both.
- *guest's answer*: from the start of the hypervisor to what the guest's first program, which is
  static, says to an order that it can't carry out: what the machine alone takes, without a sandbox.
- *plain QEMU* does the same with the same images and the same hardware, without the jail.
- *round trip*: 200 bytes from the host to the static probe and back through launcher's supervisor, in
  both tiers; of the channel alone, to a Python in the guest that reads it without a supervisor.
- *idle memory* is what belongs to the processes of a run that waits (anonymous pages); what machines
  share of images and saved state is not in it.
- *Processor time* says what a start takes on a computer that has nothing else to do; the others are
  longer on a busy one. All are medians.
- Emulation's figures depend on the computer like nothing else here; with KVM nobody has measured yet.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import secrets
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

from authority import protocol
from authority.isolation import IsolationRefused, Plan, Sandbox, SandboxSpec, plan, probe, start
from authority.isolation.processes import status, tree
from authority.vm import Machine, Prepared, furnish, hardware, hypervisor, jail, order, prepare
from authority.vm.machine import boot, come_up
from authority.vm.qmp import Qmp
from authority.vm.template import resume

PYTHON = os.path.realpath(sys.executable)
WAIT = "print('words', flush=True); import time; time.sleep(60)"
PROBE = """
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    char data[4096];
    struct sockaddr_un place = {AF_UNIX, ""};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(place.sun_path, getenv("AUTHORITY_CHANNEL"), sizeof place.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&place, sizeof place)) return 1;
    if (write(fd, "\\0\\0\\0\\xc\\0\\0\\0\\1question", 16) != 16) return 2;
    long size = write(1, "ready", 5);
    while (size > 0) {
        size = read(0, data, sizeof data);
        if (size > 0) size = write(1, data, size);
    }
    return 0;
}
"""
REQUEST = b"question"
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
    """One machine, or one run in name spaces, and our end of its channel."""

    def __init__(self, machine: Machine | Sandbox, ours: socket.socket) -> None:
        self.machine, self.ours = machine, ours
        self._decoder = protocol.FrameDecoder()
        self._inbox: list[tuple[int, bytes]] = []

    async def send(self, payload: bytes) -> None:
        frame = protocol.encode_frame(0, payload)
        await asyncio.get_running_loop().sock_sendall(self.ours, frame)

    async def _next(self) -> tuple[int, bytes]:
        while not self._inbox:
            data = await asyncio.get_running_loop().sock_recv(self.ours, 65536)
            if not data:
                raise RuntimeError("the machine ended")
            self._inbox += self._decoder.feed(data)
        return self._inbox.pop(0)

    async def hear(self, wanted: int) -> bytes:
        """The next message that begins with this opcode."""
        while (payload := (await self._next())[1])[0] != wanted:
            pass
        return payload

    async def asked(self) -> None:
        """Until a program inside has sent its request."""
        while (await self._next())[1] != REQUEST:
            pass

    async def end(self) -> None:
        self.machine.kill()
        await self.machine.wait()
        self.ours.close()


async def up(prepared: Prepared, *, saved: bool = True) -> Talk:
    """A machine that waits for its order."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        if saved:
            machine = await come_up(prepared, theirs)
        else:
            machine = await boot(prepared, theirs)
    finally:
        theirs.close()
    return Talk(machine, ours)


async def begun(tier: Prepared | Plan, *, saved: bool = True) -> Talk:
    """A run whose program was started, in a machine or in name spaces."""
    if isinstance(tier, Plan):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return Talk(await start(tier, theirs), ours)
    talk = await up(tier, saved=saved)
    await talk.send(protocol.encode_control(order.order(tier)))
    return talk


def bare(*words: str) -> bytes:
    """An order without a sandbox."""
    command = b"".join(os.fsencode(word) + b"\0" for word in words)
    body = struct.pack(">QHH", time.time_ns(), 0, 0) + secrets.token_bytes(64)
    body += struct.pack(">I", len(command)) + command + struct.pack(">I", 0)
    return protocol.encode_control(protocol.Configure(body))


async def answer(prepared: Prepared, *, saved: bool) -> float:
    began = time.monotonic()
    talk = await up(prepared, saved=saved)
    await talk.send(protocol.encode_control(order.impossible()))
    while (await talk.hear(0x11))[1] == protocol.GuestState.WAITING:
        pass
    taken = time.monotonic() - began
    await talk.end()
    return taken


async def first_sign(
    tier: Prepared | Plan, *, request: bool = False, saved: bool = True
) -> tuple[float, int, float]:
    """Seconds to the first words or the first request, KiB of the run's own memory, and seconds of
    processor time, once the program waits."""
    began = time.monotonic()
    talk = await begun(tier, saved=saved)
    await (talk.asked() if request else talk.hear(3))
    taken = time.monotonic() - began
    members = tree(talk.machine.pid)
    own = sum(int(status(pid)["RssAnon"].split()[0]) for pid in members)
    worked = sum(processor_seconds(pid) for pid in members)
    await talk.end()
    return taken, own, worked


def processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def plain_qemu(prepared: Prepared, *, saved: bool) -> float:
    """`answer` without the jail."""
    images, state = prepared.images, prepared.images.template
    assert state is not None
    ours, theirs = socket.socketpair()
    control, far = socket.socketpair()
    ours.setblocking(False)
    fds = [theirs.fileno(), far.fileno(), images.kernel.fd, images.initramfs.fd, images.root.fd]
    fds.append(state.memory.fd)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
    program = hypervisor.find(prepared.hardware.architecture).path
    arguments = hardware.arguments(
        prepared.hardware, memory="clone" if saved else "", incoming=saved
    )
    began = time.monotonic()
    pid = os.posix_spawn(
        program,
        [program, *arguments],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(moved, jail.FIRST_FD)],
    )
    theirs.close()
    far.close()
    qmp = Qmp(control)
    try:
        await qmp.begin()
        if saved:
            await resume(qmp, state)
        frame = protocol.encode_frame(0, protocol.encode_control(order.impossible()))
        await asyncio.get_running_loop().sock_sendall(ours, frame)
        heard = b""
        while b"denied" not in heard:
            heard += await asyncio.get_running_loop().sock_recv(ours, 1000)
        return time.monotonic() - began
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in moved:
            os.close(fd)
        ours.close()
        qmp.close()


async def echoed(tier: Prepared | Plan, count: int) -> list[float]:
    """Seconds of each round trip to the static probe."""
    talk = await begun(tier)
    await talk.hear(3)
    taken = []
    for number in range(count + 20):
        began = time.monotonic()
        await talk.send(b"\x05" + bytes(191))
        await talk.hear(3)
        if number >= 20:
            taken.append(time.monotonic() - began)
    await talk.end()
    return taken


async def round_trips(prepared: Prepared, count: int) -> list[float]:
    talk = await up(prepared)
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


async def measure(tiers: Tiers, rounds: int, trips: int) -> dict[str, list[float]]:
    seen: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        seen.setdefault(name, []).append(value)

    for turn in range(rounds + 1):
        for name, tier in (("space", tiers.spaces), ("machine", tiers.machines)):
            for what, one in zip(("probe", "python"), tier, strict=True):
                taken, own, worked = await first_sign(one, request=what == "probe")
                add(f"{name} {what}", taken)
                add(f"{name} {what} memory", own)
                add(f"{name} {what} worked", worked)
        add("answer", await answer(tiers.machines[1], saved=True))
        add("plain answer", await plain_qemu(tiers.machines[1], saved=True))
        if not turn:
            seen.clear()  # the first turn fills caches
    for _ in range(max(2, rounds // 4)):
        add("cold python", (await first_sign(tiers.cold, saved=False))[0])
        add("cold answer", await answer(tiers.cold, saved=False))
        add("plain cold answer", await plain_qemu(tiers.machines[1], saved=False))
    seen["space trip"] = await echoed(tiers.spaces[0], min(trips, 400))
    seen["machine trip"] = await echoed(tiers.machines[0], min(trips, 400))
    seen["channel trip"] = await round_trips(tiers.machines[1], trips)
    return seen


@dataclasses.dataclass(frozen=True)
class Tiers:
    """Static probe and Python, in name spaces and in machines; the Python without a saved state."""

    spaces: tuple[Plan, Plan]
    machines: tuple[Prepared, Prepared]
    cold: Prepared


async def tiers(folder: str) -> Tiers:
    """Raises `IsolationRefused` where there is no machine, or no saved state."""
    with open(f"{folder}/probe.c", "w") as source:
        source.write(PROBE)
    probe_ = f"{folder}/probe"
    subprocess.run(["gcc", "-static", "-O2", "-o", probe_, source.name], check=True)
    os.chmod(probe_, 0o755)
    host, spaces, machines = probe(), [], []
    for argv in ((probe_,), (PYTHON, "-c", WAIT)):
        spec = SandboxSpec(argv, "/", memory=128 << 20)
        found = await furnish(spec, host, emulate=True)
        if found.template is None:
            raise IsolationRefused(found.no_template)
        spaces.append(plan(spec, host))
        machines.append(prepare(spec, host, found))
    cold = dataclasses.replace(found, template=None)
    return Tiers((spaces[0], spaces[1]), (machines[0], machines[1]), prepare(spec, host, cold))


async def everything(folder: str, rounds: int, trips: int) -> dict[str, list[float]]:
    return await measure(await tiers(folder), rounds, trips)


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    try:
        with tempfile.TemporaryDirectory(prefix="authority-bench-", dir="/var/tmp") as folder:
            os.chmod(folder, 0o755)
            rounds, trips = (4, 200) if quick else (20, 2000)
            seen = asyncio.run(everything(folder, rounds, trips))
    except (IsolationRefused, subprocess.SubprocessError) as error:
        return [row("machine", None, "", "", None, f"no machine here: {error}")]
    median = {name: statistics.median(values) for name, values in seen.items()}

    def milliseconds(name: str, key: str, detail: str, most: int = 0) -> dict[str, Any]:
        value = round(median[key] * 1e3, 1)
        target = f"<= {most}" if most else ""
        best = f"; best {min(seen[key]) * 1e3:.0f}"
        return row(name, value, "ms", target, value <= most if most else None, detail + best)

    def trip(name: str, key: str, detail: str, most: int = 0) -> dict[str, Any]:
        value = round(median[key] * 1e6)
        target = f"<= {most}" if most else ""
        best = f"; best {min(seen[key]) * 1e6:.0f}"
        return row(name, value, "us", target, value <= most if most else None, detail + best)

    def memory(name: str, key: str, detail: str) -> dict[str, Any]:
        return row(name, round(median[key] / 1024, 1), "MiB", "", None, detail)

    saved, cold = "from a saved state", "booted"
    return [
        milliseconds("first request, name spaces", "space probe", "of a static program as a run"),
        milliseconds("first request, machine", "machine probe", f"the same, {saved}", 150),
        milliseconds("fresh Python, name spaces", "space python", "to its first words"),
        milliseconds("fresh Python, machine", "machine python", f"the same, {saved}"),
        milliseconds("fresh Python, machine, cold", "cold python", f"the same, {cold}", 4000),
        milliseconds("guest's answer", "answer", f"{saved}, no sandbox"),
        milliseconds("guest's answer, plain QEMU", "plain answer", f"{saved}, without the jail"),
        milliseconds("guest's answer, cold", "cold answer", cold),
        milliseconds("guest's answer, cold, plain QEMU", "plain cold answer", f"{cold}, no jail"),
        trip("round trip, name spaces", "space trip", "200 bytes to the probe and back"),
        trip("round trip, machine", "machine trip", "the same"),
        trip("round trip, channel alone", "channel trip", "200 bytes, no supervisor", 400),
        milliseconds(
            "processor time, machine", "machine python worked", "of a fresh Python, its hypervisor"
        ),
        memory("idle memory, name spaces", "space python memory", "a Python, all processes"),
        memory("idle memory, machine", "machine python memory", "a Python, its hypervisor"),
        memory("idle memory, machine, probe", "machine probe memory", "the probe, its hypervisor"),
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
