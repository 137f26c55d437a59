"""Root in the guest: what is left when everything inside a machine was overcome.

Each attack is a program that is root of its machine, with every capability and the channel, started by
a real gate from images that differ in that alone (`overcome`). With `ROOT` the guest's own kernel still
guards the hardware; with `UNLOCKED` nothing does, and the hypervisor is attacked itself.

What the guest says of itself is believed where it says that it failed to get past its own kernel; the
host looks at the rest: at the log, at the processes, at a neighbour in another machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from authority.audit.verification import verify
from authority.isolation import processes
from authority.matrix import overcome, seen
from authority.matrix.beside import HYPERVISOR, Beside, beside, watched
from authority.matrix.containment import ended, named
from authority.matrix.inside import guest_kinds as kinds
from authority.matrix.live import POLICY, Live, Ran, live
from authority.matrix.verdict import Attempt, Result, Row, finished, from_lines

_T = TypeVar("_T")
NETWORK = Row("INV-1", "guest root: devices", "one channel, no card, no share, no second port")
KERNEL = Row("INV-1", "guest root: kernel", "memory, ports, bus, modules and kernels stay shut")
CHANNEL = Row("INV-1", "guest root: channel", "what is malformed ends the run, with an entry")
DISK = Row("INV-1", "guest root: disk", "nobody writes it, for this machine or the next")
HARDWARE = Row(
    "INV-1", "guest root: hypervisor", "nothing reaches past it, and nobody else suffers"
)
END = Row("INV-1", "guest root: end", "whatever the machine does, the host ends it, with an entry")

SMALL: Final = POLICY + '[limits]\nmemory = "128MB"\n'
_OVERHEAD_KB: Final = (kinds.MEGABYTES + 512) << 10
_LONG: Final = "1h"
_FLOOD_SECONDS: Final = 1.0
_STAY_TIMES: Final = ("3s", "20s", "80s")
"""Within which a machine's program has to begin, and then is ended: the next, where it did not."""
_REFUSALS: Final = frozenset({"E_FRAME_TOO_LARGE", "E_SCHEMA_INVALID"})
_GATE_FILES, _GATE_GROWS_KB = 256, 256 << 10
_TOGETHER: Final = 3
_PAUSE: Final = 0.1


def _within(policy: str, limit: str) -> str:
    return policy.replace('wall_time = "2m"', f'wall_time = "{limit}"')


def _split(
    found: Iterable[Attempt], controls: frozenset[str]
) -> tuple[list[Attempt], list[Attempt]]:
    """(attempts, controls): by their names."""
    made = list(found)
    return (
        [a for a in made if a.name not in controls],
        [a for a in made if a.name in controls],
    )


_ROOT: Final = "be root with every capability"
_INSIDE: Final = frozenset({_ROOT, "loopback", "write a file", "the bus shows the channel"})


def devices(gate: Live) -> Result:
    """No way out by a device."""
    ran = gate.run("guest_devices", "network", policy=SMALL)
    attempts, _ = _split(from_lines(ran.said), _INSIDE)
    controls = [*named(from_lines(ran.said), sorted(_INSIDE)), *ended(ran)]
    return NETWORK.judge(attempts, controls, at_least=40, evidence=f"run {ran.run}")


_READS: Final = frozenset({"read the ACPI table", "read the bridge's configuration"})
_GUARDED: Final = (
    *("/dev/mem", "/proc/kcore", "write in debugfs", "iopl", "ioperm", "a port of a device"),
    *("configure the bridge", "configure the channel", "configure 00.0 by /proc"),
    *("map a device's memory", "a module, from a file", "a module, from memory"),
    *("a module without its signature", "another kernel", "another kernel, from a file"),
)
"""What works where the guards were taken out: so it is they that refuse it."""


def kernel(gate: Live) -> Result:
    """The guest's kernel; beside it the same one without its guards."""
    given = overcome.module("virtio-rng.ko").hex()
    ran = gate.run("guest_kernel", given, policy=SMALL)
    if gate.house.guest == overcome.UNLOCKED:  # that row can only fail
        control = ran
    else:
        with live(dataclasses.replace(gate.house, guest=overcome.UNLOCKED)) as open_gate:
            control = open_gate.run("guest_kernel", given, policy=SMALL)
    inside = frozenset({_ROOT, "write a file", *_READS})
    attempts, _ = _split(from_lines(ran.said), inside)
    taken = from_lines(control.said)
    through = sum(attempt.worked for attempt in taken)
    controls = [
        *named(from_lines(ran.said), sorted(inside)),
        *named(taken, _GUARDED),
        *ended(ran),
        *ended(control),
    ]
    return KERNEL.judge(
        attempts,
        controls,
        at_least=30,
        evidence=f"run {ran.run}; without the kernel's guards {through} of {len(taken)} work",
    )


def channel(gate: Live) -> Result:
    """Frames that nobody should send, and too many that anybody may."""
    good = gate.run("guest_channel", "well-formed", policy=SMALL)
    pid = gate.pid()
    before = _kilobytes(pid)

    def one(kind: str) -> tuple[str, Ran]:
        return kind, gate.run("guest_channel", kind, policy=SMALL)

    with beside(gate, _within(SMALL, _LONG)) as neighbour:
        controls = [
            Attempt("what is well-formed is taken", good.end.get("code") == 7, good.text.strip()),
            Attempt("the neighbour is there", neighbour.goes_on(gate.house.seconds)),
        ]
        found = _together(one, list(kinds.MALFORMED))
        attempts = [_recorded(gate, kind, ran) for kind, ran in found]
        files: list[int] = []
        for kind in kinds.FLOODS:
            controls.append(_flood(gate, kind, neighbour, attempts, files))
        attempts.append(_stopped("all of that", neighbour.goes_on(gate.house.seconds)))
    grown = _kilobytes(pid) - before
    attempts += [
        Attempt("take the gate's descriptors", max(files) > _GATE_FILES, f"{max(files)} open"),
        Attempt("take the gate's memory", grown > _GATE_GROWS_KB, f"{grown >> 10} MiB more"),
        Attempt("be another gate", gate.pid() != pid, f"pid {pid}"),
        _log(gate),
    ]
    runs = [ran.run for _, ran in found]
    return CHANNEL.judge(
        attempts, controls, at_least=24, evidence=f"runs {', '.join(runs[:2])} ..."
    )


def _flood(
    gate: Live, kind: str, neighbour: Beside, attempts: list[Attempt], files: list[int]
) -> Attempt:
    """While it lasts the neighbour is heard and the gate obeys; returns its control. Nothing here has
    to be quick: a flood goes on until the neighbour was heard."""
    pid = gate.pid()
    with beside(gate, _within(SMALL, _LONG), kind, "begins") as flood:
        began = flood.goes_on(gate.house.seconds, words=1)
        counted, over = neighbour.count, time.monotonic() + _FLOOD_SECONDS
        while time.monotonic() < over:
            with contextlib.suppress(OSError):  # one was closed meanwhile
                files.append(len(os.listdir(f"/proc/{pid}/fd")))
            time.sleep(_PAUSE)
        heard = neighbour.goes_on(gate.house.seconds)
        attempts.append(
            Attempt(
                f"{kind}: silence the neighbour", not heard, f"{neighbour.count - counted} lines"
            )
        )
    attempts.append(_ended_by_host(kind, Ran(end=flood.end), {"stopped", "killed", "denials"}))
    return Attempt(f"{kind} began", began)


def disk(gate: Live) -> Result:
    """By the guest's kernel, then by the disk's own protocol; then the next machine's disk."""
    ran = gate.run("guest_devices", "disk", policy=SMALL)
    poked = gate.run("poke_hardware", "write the disk", policy=SMALL)
    after = gate.run("guest_devices", "disk", policy=SMALL)
    asked = frozenset(
        {*_INSIDE, "call it writable", "read the disk", "ask the disk itself", "take the ports"}
        | {"it is the file system"}
    )
    attempts, controls = _split(from_lines([*ran.said, *poked.said]), asked)
    controls += [*ended(ran), *ended(poked), *ended(after)]
    for each in (ran, after):
        (read,) = named(from_lines(each.said), ["read the disk"])
        image = _root_image(gate, each)
        attempts.append(Attempt(f"another disk in {each.run}", read.detail != image, "as recorded"))
    controls += named(from_lines(poked.said), ["ask the disk itself", "it is the file system"])
    return DISK.judge(
        attempts, controls, at_least=40, evidence=f"runs {ran.run}, {poked.run}, {after.run}"
    )


_ANSWERS: Final = frozenset(
    {"take the ports", "the bus answers", "fw_cfg answers", "the power registers are there"}
)
_TO_THE_END: Final = ("scan", "firmware", "nonsense for random", "greedy for random")
"""Parts that a machine outlives."""


def hardware(gate: Live) -> Result:
    """Every device, port and table that the hypervisor offers, abused."""
    attempts: list[Attempt] = []
    controls: list[Attempt] = []
    gate.run("guest_channel", "well-formed", policy=SMALL)

    def one(part: str) -> tuple[str, Ran, bool]:
        ran = gate.run("poke_hardware", part, policy=_within(SMALL, "5m"))
        return part, ran, neighbour.goes_on(gate.house.seconds)

    with beside(gate, _within(SMALL, _LONG)) as neighbour, watched(gate) as hypervisors:
        controls.append(Attempt("the neighbour is there", neighbour.goes_on(gate.house.seconds)))
        for part, ran, goes_on in _together(one, kinds.PARTS):
            made, answered = _split(from_lines(ran.said), _ANSWERS)
            attempts += made
            controls += answered
            if part in _TO_THE_END:
                controls.append(finished(ran.said, part))
            attempts.append(_ended_by_host(part, ran, {"exited", "killed", "wall_time"}))
            attempts.append(_stopped(part, goes_on))
    size = hypervisors.kilobytes
    attempts += hypervisors.judged(os.readlink("/proc/self/ns/net"))
    attempts += [
        Attempt("grow past the limit", size > _OVERHEAD_KB, f"{size >> 10} MiB"),
        _log(gate),
    ]
    seen_all = len(hypervisors.seen.processes)
    controls.append(Attempt("the host saw them", seen_all > 2, f"{seen_all} hypervisors"))
    return HARDWARE.judge(
        attempts,
        controls,
        at_least=90,
        evidence=f"{len(kinds.PARTS)} machines; the largest hypervisor had {size >> 10} MiB",
    )


def end(gate: Live) -> Result:
    """Machines that hang, sleep, fall and reset."""
    gate.run("guest_channel", "well-formed", policy=SMALL)

    def one(kind: str) -> tuple[str, Ran]:
        for limit in _STAY_TIMES:
            ran = gate.run("guest_end", kind, policy=_within(SMALL, limit))
            if "begins" in ran.text:
                break
        return kind, ran

    found = _together(one, [*kinds.STAYS, *kinds.ENDS])
    attempts = []
    controls = []
    for kind, ran in found:
        reasons = {"wall_time"} if kind in kinds.STAYS else {"killed", "wall_time"}
        attempts.append(_ended_by_host(kind, ran, reasons))
        over = _entries(gate, ran, "run.end")
        attempts.append(Attempt(f"{kind}: leave no entry", not over, f"{len(over)} entry"))
        controls.append(Attempt(f"{kind} began", "begins" in ran.text))
    left = seen.find(HYPERVISOR, gate.pid())
    attempts += [Attempt("stay behind", bool(left), f"{len(left)} left"), _log(gate)]
    return END.judge(attempts, controls, at_least=30, evidence=f"{len(found)} machines")


def _together(one: Callable[[str], _T], whats: Sequence[str]) -> list[_T]:
    """Some at a time: much of a machine's life is waiting."""
    with ThreadPoolExecutor(_TOGETHER) as pool:
        return list(pool.map(one, whats))


# --- what the host says ---


def _entries(gate: Live, ran: Ran, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in gate.entries(ran.run) if entry["kind"] == kind]


def _recorded(gate: Live, kind: str, ran: Ran) -> Attempt:
    """Held when the run was ended by the host and the log has the denial."""
    denied = [e["code"] for e in _entries(gate, ran, "denied") if e["code"] in _REFUSALS]
    over = _entries(gate, ran, "run.end")
    good = bool(denied) and bool(over) and ran.end.get("code") == 137
    return Attempt(kind, not good, f"{', '.join(denied) or 'no denial'}, {ran.end.get('reason')}")


def _ended_by_host(kind: str, ran: Ran, reasons: set[str]) -> Attempt:
    reason = str(ran.end.get("reason", "no end"))
    return Attempt(f"{kind}: go on", reason not in reasons, reason)


def _stopped(what: str, goes_on: bool) -> Attempt:
    said = "it goes on" if goes_on else "it stopped"
    return Attempt(f"{what}: stop the neighbour", not goes_on, said)


def _root_image(gate: Live, ran: Ran) -> str:
    (first,) = _entries(gate, ran, "run.start")
    return str(first["protection"]["machine"]["root"])


def _log(gate: Live) -> Attempt:
    report = verify(gate.directory.log)
    return Attempt("break the log", not report.ok, f"{report.entries} entries whole")


def _kilobytes(pid: int) -> int:
    return int(processes.status(pid).get("VmRSS", "0").split()[0])
