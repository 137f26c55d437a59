"""A program that has ended before its gate, on a busy computer, hears that it began.

The start waits here until the whole run is dead; only then the loop goes on. It has run, and that is
what is said: neither that it could not be started, nor that whoever has its number now is the run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from authority.isolation import ExitStatus, SandboxSpec, plan, probe, processes, start
from authority.isolation.sandbox import Sandbox


def children() -> set[int]:
    own = os.getpid()
    return {pid for pid in processes.tree(own) if processes.parent(pid) == own}


async def begun_late() -> Sandbox:
    spec = SandboxSpec(("/bin/sh", "-c", "exit 7"), "/", channel=False)
    before = children()
    work = asyncio.create_task(start(plan(spec, probe())))
    await asyncio.sleep(0)  # it is spawned, and waits for a word
    (outer,) = children() - before
    os.waitid(os.P_PID, outer, os.WEXITED | os.WNOWAIT)
    return await work


async def told(sandbox: Sandbox) -> ExitStatus:
    sandbox.kill()
    assert not await sandbox.freeze()
    async with asyncio.timeout(20):
        return await sandbox.wait()


def test_how_it_ended_is_known() -> None:
    async def scene() -> None:
        sandbox = await begun_late()
        assert sandbox.pid == 0
        assert await told(sandbox) == ExitStatus(7, 0)

    asyncio.run(scene())


@pytest.fixture
def somebody() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_whoever_has_its_number_now_is_left_alone(
    somebody: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = Sandbox._accept

    def reused(sandbox: Sandbox, credentials: list[Any]) -> None:
        accept(sandbox, [(somebody.pid, *credentials[0][1:])])

    monkeypatch.setattr(Sandbox, "_accept", reused)

    async def scene() -> None:
        assert await told(await begun_late()) == ExitStatus(7, 0)

    asyncio.run(scene())
    assert somebody.poll() is None
