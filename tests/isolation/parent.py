"""Starts one run that sleeps, prints the host's pid of its process 1, and waits to be killed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from authority.isolation import SandboxSpec, plan, probe, start

SLEEP = "import time\nwhile True: time.sleep(1)"


async def main(mode: str) -> None:
    channel = mode != "tool"
    prepared = plan(
        SandboxSpec((sys.executable, "-I", "-S", "-c", SLEEP), cwd=os.getcwd(), channel=channel),
        probe(),
    )
    gate, run = socket.socketpair()
    sandbox = await start(prepared, run if channel else None)
    print(json.dumps({"first": sandbox.pid, "outer": sandbox._outer}), flush=True)
    if mode == "close":
        await asyncio.to_thread(sys.stdin.readline)
        gate.close()
    status = await sandbox.wait()
    print(json.dumps({"killed": status.killed, "reason": status.reason}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
