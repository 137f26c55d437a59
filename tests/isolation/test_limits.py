"""Limits bite, with a control group and without one, and what is given back afterwards."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from authority.isolation import (
    IsolationRefused,
    Sandbox,
    SandboxSpec,
    cgroups,
    plan,
    probe,
    processes,
    start,
)

from .trunk import running

_PR_SET_CHILD_SUBREAPER = 36
EAT = "import sys\nkeep=[]\nfor _ in range(60): keep.append(bytearray(4<<20))\nprint('ate', len(keep))"
FORK = (
    "import os, time\n"
    "made = 0\n"
    "for _ in range(60):\n"
    "    try:\n"
    "        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
    "        made += 1\n"
    "    except OSError: break\n"
    "print('forked', made, flush=True)\n"
    "os.kill(1, 0); os._exit(0)\n"
)


def test_memory(caller: Any) -> None:
    within, beyond = caller.sandboxes(
        {"argv": [caller.python, "-I", "-c", EAT], "memory": 400 << 20},
        {"argv": [caller.python, "-I", "-c", EAT], "memory": 100 << 20},
    )
    assert within["out"] == "ate 60\n", within
    assert "ate" not in beyond["out"]
    assert beyond["killed"] or beyond["signal"] == 9 or "MemoryError" in beyond["err"], beyond


def test_processes(caller: Any) -> None:
    within, beyond = caller.sandboxes(
        {"argv": [caller.python, "-I", "-c", FORK], "processes": 80},
        {"argv": [caller.python, "-I", "-c", FORK], "processes": 10},
    )
    assert within["out"] == "forked 60\n", within
    assert beyond["out"] == "forked 9\n", beyond


def test_the_size_of_tmp(caller: Any) -> None:
    answer = caller.script(
        "import errno\n"
        "def fill(path):\n"
        "    n = 0\n"
        "    try:\n"
        "        while n < 64:\n"
        "            for k in range(8): open(f'{path}/f{n}', 'ab').write(bytes(1 << 17))\n"
        "            n += 1\n"
        "    except OSError as e: return errno.errorcode[e.errno]\n"
        "print(fill('/tmp'), fill('/home/agent'), fill('/dev/shm'))",
        tmp_bytes=8 << 20,
    )
    assert answer["out"].split() == ["ENOSPC"] * 3, answer


def test_what_bounds_it_is_said(caller: Any) -> None:
    answer = caller.script("", memory=100 << 20, processes=10, millicpus=500)
    limits, absent = answer["protection"]["limits"], answer["protection"]["not_in_force"]
    grouped = [limits[f"{name}_by"].startswith("control group") for name in ("memory", "processes")]
    if all(grouped):
        assert not any("control group" in text for text in absent)
    else:
        assert "a control group for memory" in absent
        assert "watcher" in limits["memory_by"]


def without_groups() -> Any:
    return dataclasses.replace(probe(), cgroup=cgroups.NONE)


async def ended(prepared: Any) -> tuple[str, Any]:
    read, write = os.pipe()
    sandbox = await start(prepared, stdout=write)
    os.close(write)
    status = await sandbox.wait()
    with os.fdopen(read) as file:
        return file.read(), status


def test_without_a_group_the_watcher_kills() -> None:
    """Many small processes, each below the limit of one: only the sum is too much."""
    source = (
        "import os, time\n"
        "for _ in range(6):\n"
        "    if os.fork() == 0:\n"
        "        keep = bytearray(os.urandom(40 << 20)); time.sleep(100)\n"
        "time.sleep(100)\n"
    )

    async def scene(limit: int, wait: float) -> Any:
        spec = SandboxSpec((sys.executable, "-I", "-c", source), "/", memory=limit, channel=False)
        sandbox = await start(plan(spec, without_groups()))
        try:
            async with asyncio.timeout(wait):
                return await sandbox.wait()
        except TimeoutError:
            sandbox.kill()
            return await sandbox.wait()

    status = asyncio.run(scene(150 << 20, 60))
    assert "more memory" in status.reason
    assert "more memory" not in asyncio.run(scene(2 << 30, 1.0)).reason


def test_without_a_group_processes_are_limited_by_the_runs_user() -> None:
    spec = SandboxSpec((sys.executable, "-I", "-c", FORK), "/", processes=10, channel=False)
    out, _ = asyncio.run(ended(plan(spec, without_groups())))
    assert out == "forked 9\n"


COUNT = (
    "import time\nwhile True:\n"
    "    open('/dev/shm/n','a').write('.'); print('.', end='', flush=True); time.sleep(0.002)"
)


@pytest.mark.parametrize("grouped", [True, False], ids=["group", "signals"])
def test_a_frozen_run_stands_still_and_can_be_killed(grouped: bool) -> None:
    async def scene() -> None:
        host = probe() if grouped else without_groups()
        spec = SandboxSpec((sys.executable, "-I", "-c", COUNT), "/", channel=False)
        read, write = os.pipe()
        os.set_blocking(read, False)
        sandbox = await start(plan(spec, host), stdout=write)
        os.close(write)

        async def printed(seconds: float) -> int:
            await asyncio.sleep(seconds)
            try:
                return len(os.read(read, 1 << 16))
            except BlockingIOError:
                return 0

        async def prints() -> None:
            async with asyncio.timeout(60):
                while not await printed(0.01):
                    pass

        await prints()
        assert await sandbox.freeze()
        await printed(0.0)
        assert await printed(0.2) == 0
        sandbox.kill()
        async with asyncio.timeout(20):
            status = await sandbox.wait()
        assert status.killed
        os.close(read)

    asyncio.run(scene())


def test_a_start_that_is_given_up_leaves_no_process() -> None:
    """Whatever the moment, even while bubblewrap's child waits for its parent: then it has no program
    yet, and nothing that would end it. Orphans come to this process, so they are seen."""
    adopt, before = ctypes.CDLL(None).prctl, set(processes.tree(os.getpid()))

    async def scene() -> int:
        given_up = 0
        for n in range(60):
            spec = SandboxSpec((sys.executable, "-I", "-c", ""), "/", channel=False)
            starting = asyncio.ensure_future(start(plan(spec, probe())))
            await asyncio.sleep(n / 10_000)
            starting.cancel()
            try:
                await (await starting).wait()
            except asyncio.CancelledError:
                given_up += 1
        return given_up

    adopt(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        assert asyncio.run(scene()) > 10
        left = set(processes.tree(os.getpid())) - before
        deadline = time.monotonic() + 10
        while living := [p for p in left if processes.status(p).get("State", "Z")[0] not in "ZX"]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert living == []
    finally:
        adopt(_PR_SET_CHILD_SUBREAPER, 0)


def own_groups() -> list[str]:
    return [
        str(path)
        for _, base in probe().cgroup.folders
        for path in Path(base).glob(f"authority-{os.getpid()}-*")
    ]


def test_groups_are_removed() -> None:
    async def scene() -> None:
        async with running("import time; time.sleep(60)") as (sandbox, _):
            if probe().cgroup.version:
                assert len(own_groups()) >= 2
            sandbox.kill()
            await sandbox.wait()
        for _ in range(3000):
            if not own_groups():
                break
            await asyncio.sleep(0.02)
        assert own_groups() == []

    asyncio.run(scene())


def test_groups_of_the_dead_are_swept_and_of_the_living_not(tmp_path: Path) -> None:
    for name in ("authority-4194399-1", f"authority-{os.getpid()}-9", "somebody-else"):
        (tmp_path / name).mkdir()
    support = cgroups.Support(1, (("memory", str(tmp_path)),))
    assert cgroups.sweep(support) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        f"authority-{os.getpid()}-9",
        "somebody-else",
    }


def test_a_group_that_can_not_be_made_refuses_the_start(tmp_path: Path) -> None:
    support = cgroups.Support(1, (("memory", str(tmp_path / "nowhere")),))
    host = dataclasses.replace(probe(), cgroup=support)
    spec = SandboxSpec((sys.executable, "-c", ""), "/", memory=100 << 20, channel=False)
    with pytest.raises(IsolationRefused, match="control group"):
        asyncio.run(ended(plan(spec, host)))


def test_version_2_is_found_where_controllers_are_switched_on(tmp_path: Path) -> None:
    inner = tmp_path / "user.slice" / "session"
    inner.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "user.slice", inner):
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.subtree_control").write_text("")
    assert cgroups._version_2(str(tmp_path), "/user.slice/session").version == 0
    (tmp_path / "user.slice" / "cgroup.subtree_control").write_text("cpu memory pids\n")
    found = cgroups._version_2(str(tmp_path), "/user.slice/session")
    assert found.version == 2
    assert dict(found.folders) == dict.fromkeys(
        ("memory", "pids", "cpu"), str(tmp_path / "user.slice")
    )


def test_descriptors_are_given_back() -> None:
    async def scene() -> None:
        spec = SandboxSpec((sys.executable, "-I", "-S", "-c", ""), "/", channel=False)
        prepared = plan(spec, probe())
        counts = []
        for _ in range(5):
            sandbox: Sandbox = await start(prepared)
            await sandbox.wait()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1] == counts[-1]

    asyncio.run(scene())
