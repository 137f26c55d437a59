"""Starts sandboxes and says what happened, as a program of its own: JSON in, JSON out.

The tests run it as root (with the interpreter of the tests) and as an ordinary user (with the
system's Python, because that user can't read root's). Each case is a SandboxSpec's fields, with
`landlock_abi` and `input` beside them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Any

from authority.isolation import IsolationRefused, SandboxSpec, plan, probe, processes, start


async def one(case: dict[str, Any]) -> dict[str, Any]:
    abi = case.pop("landlock_abi", None)
    text = case.pop("input", "").encode()
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in case.items()
    }
    try:
        prepared = plan(SandboxSpec(**fields, channel=False), probe(), landlock_abi=abi)
        inputs, outputs, errors = os.pipe(), os.pipe(), os.pipe()
        sandbox = await start(prepared, stdin=inputs[0], stdout=outputs[1], stderr=errors[1])
    except IsolationRefused as error:
        return {"refused": error.reason, "fix": error.fix}
    for fd in (inputs[0], outputs[1], errors[1]):
        os.close(fd)
    ids = processes.user_ids(processes.tree(sandbox.pid))
    texts: dict[str, str] = {}

    def read(name: str, fd: int) -> None:
        with os.fdopen(fd, "rb") as file:
            texts[name] = file.read().decode("utf-8", "replace")

    readers = [
        threading.Thread(target=read, args=pair)
        for pair in (("out", outputs[0]), ("err", errors[0]))
    ]
    for reader in readers:
        reader.start()
    os.write(inputs[1], text)
    os.close(inputs[1])
    status = await sandbox.wait()
    for reader in readers:
        reader.join()
    return {
        **texts,
        "code": status.code,
        "signal": status.signal,
        "killed": status.killed,
        "reason": status.reason,
        "host_ids": sorted(ids),
        "pid": sandbox.pid,
        "protection": prepared.protection,
        "missing": prepared.missing,
    }


async def main() -> None:
    # A descriptor that every child would inherit: none of the runs may see it.
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    cases = json.load(sys.stdin)
    print(json.dumps([await one(case) for case in cases]))


if __name__ == "__main__":
    asyncio.run(main())
