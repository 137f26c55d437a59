"""How long a run takes to start, beside plain bubblewrap with the same interpreter.

Measured at the gate: from the call to `start` to the program's first own instruction, which reports
CLOCK_MONOTONIC. Both are measured in turns, so that a busy machine is busy for both, and the first
rounds, which fill caches, are not counted.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import sys
import time
from typing import Any

from authority.isolation import Plan, SandboxSpec, plan, probe, start

PROGRAM = "import time;print(time.clock_gettime_ns(time.CLOCK_MONOTONIC))"
TARGET_RATIO = 1.5


def _clock() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _spec(*, channel: bool) -> SandboxSpec:
    return SandboxSpec(
        (sys.executable, "-c", PROGRAM),
        cwd=os.path.realpath(os.curdir),
        memory=1 << 30,
        processes=64,
        millicpus=2000,
        channel=channel,
    )


async def _tool(prepared: Plan) -> int:
    read, write = os.pipe()
    began = _clock()
    sandbox = await start(prepared, stdout=write)
    os.close(write)
    await sandbox.wait()
    with os.fdopen(read, "rb") as output:
        return int(output.read()) - began


async def _run(prepared: Plan) -> int:
    gate, run = socket.socketpair()
    gate.setblocking(False)
    began = _clock()
    sandbox = await start(prepared, run)
    loop = asyncio.get_running_loop()
    data = b""
    while part := await loop.sock_recv(gate, 65536):
        data += part
    gate.close()
    await sandbox.wait()
    while data:
        size = int.from_bytes(data[:4], "big")
        frame, data = data[4 : 4 + size], data[4 + size :]
        if frame[4] == 3:
            return int(frame[6:]) - began
    raise RuntimeError("the program printed nothing")


def _plain(command: list[str]) -> int:
    read, write = os.pipe()
    began = _clock()
    pid = os.posix_spawn(
        command[0], command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)], setsid=True
    )
    os.close(write)
    with os.fdopen(read, "rb") as output:
        first = int(output.read()) - began
    os.waitpid(pid, 0)
    return first


def _bubblewrap(bwrap: str) -> list[str]:
    command = [bwrap, "--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]
    command += ["--tmpfs", "/tmp"]
    folders = ["/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix]
    for folder in dict.fromkeys(folders):
        if os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    return [*command, "--", sys.executable, "-c", PROGRAM]


async def _measure(rounds: int) -> dict[str, list[int]]:
    host = probe()
    began = _clock()
    run_plan = plan(_spec(channel=True), host)
    plan_time = _clock() - began
    tool_plan = plan(_spec(channel=False), host)
    command = _bubblewrap(host.bwrap)
    times: dict[str, list[int]] = {"run": [], "tool": [], "bubblewrap": [], "plain": []}
    for number in range(rounds + 3):
        taken = {
            "bubblewrap": _plain(command),
            "run": await _run(run_plan),
            "plain": _plain([sys.executable, "-c", PROGRAM]),
            "tool": await _tool(tool_plan),
        }
        if number >= 3:
            for name, value in taken.items():
                times[name].append(value)
    return {**times, "plan": [plan_time]}


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark; `quick` takes a few seconds and is less exact."""
    times = asyncio.run(_measure(15 if quick else 60))
    median = {name: statistics.median(values) for name, values in times.items()}

    def milliseconds(name: str, detail: str) -> dict[str, Any]:
        value = round(median[name] / 1e6, 2)
        return {"name": name, "value": value, "unit": "ms", "target": "", "ok": True} | {
            "detail": detail
        }

    rows = [
        milliseconds("plain", "the interpreter alone, to its first instruction"),
        milliseconds("bubblewrap", "bubblewrap with the same interpreter"),
        milliseconds("run", "start of a run, with supervisor and channel"),
        milliseconds("tool", "start of a process tool, with plain streams"),
        milliseconds("plan", "planning, once for any number of starts"),
    ]
    for name in ("run", "tool"):
        ratio = median[name] / median["bubblewrap"]
        rows.append(
            {
                "name": f"{name} / bubblewrap",
                "value": round(ratio, 2),
                "unit": "ratio",
                "target": f"<= {TARGET_RATIO}",
                "ok": ratio <= TARGET_RATIO,
                "detail": "medians, measured in turns",
            }
        )
    return [{**row, "name": f"start: {row['name']}"} for row in rows]


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(*(row[key] for key in ("name", "value", "unit", "target", "ok", "detail")), sep="\t")
