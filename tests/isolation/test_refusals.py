"""What is missing refuses the start, with a reason; nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from authority.isolation import Host, IsolationRefused, SandboxSpec, plan, probe, sandbox, start
from authority.isolation.leftovers import remove_leftovers
from authority.isolation.probe import explain, fuse_problem, trusted_program, try_namespaces
from authority.isolation.processes import tree

SPEC = SandboxSpec((sys.executable, "-I", "-S", "-c", "print('ran')"), "/", channel=False)


def with_host(**changes: Any) -> Host:
    return dataclasses.replace(probe(), **changes)


def output(prepared: Any) -> bytes:
    async def scene() -> bytes:
        read, write = os.pipe()
        try:
            one = await start(prepared, stdout=write)
        finally:
            os.close(write)
        await one.wait()
        with os.fdopen(read, "rb") as file:
            return file.read()

    return asyncio.run(scene())


def test_the_control_starts() -> None:
    assert output(plan(SPEC, probe())) == b"ran\n"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bwrap": "", "bwrap_problem": "bubblewrap (bwrap) is not installed"}, "not installed"),
        ({"landlock_abi": 0}, "Landlock"),
        ({"landlock_abi": 1}, "ABI 1"),
        ({"seccomp": False}, "seccomp"),
        ({"architecture": "riscv64"}, "riscv64"),
        ({"uid": 0, "sys_admin": False}, "CAP_SYS_ADMIN"),
        (
            {
                "uid": 1000,
                "user_namespaces": False,
                "namespace_obstacles": (("user.max_user_namespaces is 0", "sysctl"),),
            },
            "max_user_namespaces",
        ),
    ],
)
def test_a_machine_that_lacks_a_part(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(IsolationRefused, match=reason) as caught:
        plan(SPEC, with_host(**changes))
    assert caught.value.fix


@pytest.mark.parametrize("abi", [0, 1])
def test_landlock_can_be_masked_but_not_below_what_is_required(abi: int) -> None:
    with pytest.raises(IsolationRefused):
        plan(SPEC, probe(), landlock_abi=abi)
    assert plan(SPEC, probe(), landlock_abi=99).protection["landlock"]["abi"] <= 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"argv": ()}, "no program"),
        ({"argv": ("no-such-program",)}, "not found"),
        ({"argv": ("/etc/passwd",)}, "no program"),
        ({"cwd": "relative"}, "absolute"),
        ({"cwd": "/tmp/../etc"}, "absolute"),
        ({"cwd": "/no/such/folder"}, "not there"),
        ({"memory": 1000}, "too small"),
        ({"tmp_bytes": 0}, "too small"),
        ({"processes": -1}, "negative"),
        ({"env": {"A": "b\0c"}}, "NUL"),
        ({"env": {"A=B": "c"}}, "bad name"),
        ({"read_only": ("/",)}, "too wide"),
        ({"read_only": ("/etc",)}, "too wide"),
        ({"read_only": ("/no/such",)}, "no file"),
        ({"exec_allowed": ("no-such-program",)}, "not found"),
        ({"forbidden": (os.path.realpath(sys.prefix),)}, "no run may reach"),
        ({"forbidden": (os.path.join(os.path.realpath(sys.prefix), "lib"),)}, "no run may reach"),
    ],
)
def test_a_request_that_makes_no_sense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(IsolationRefused, match=reason):
        plan(dataclasses.replace(SPEC, **changes), probe())


def test_a_program_that_can_not_be_executed_is_told(tmp_path: Path) -> None:
    """It begins like a program for this machine, and is none: execve itself says no."""
    broken = tmp_path / "broken"
    whole = Path(os.path.realpath(sys.executable)).read_bytes()
    broken.write_bytes(whole[:16] + b"\x09\x00" + whole[18:])
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(IsolationRefused, match="could not be started"):
        output(plan(dataclasses.replace(SPEC, argv=(str(broken),)), probe()))


def test_a_bubblewrap_that_fails_is_explained(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    prepared = plan(dataclasses.replace(SPEC, read_only=(str(gone),)), probe())
    gone.rmdir()
    with pytest.raises(IsolationRefused, match="Can't find source path"):
        output(prepared)


def test_nothing_is_left_of_a_failed_start(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    prepared = plan(dataclasses.replace(SPEC, read_only=(str(gone),)), probe())
    gone.rmdir()
    before = len(os.listdir("/proc/self/fd"))
    others = set(tree(os.getpid()))  # gates that tests before this one started are children too
    for _ in range(3):
        with pytest.raises(IsolationRefused):
            asyncio.run(_start(prepared))
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the launcher's code, made once
    assert set(tree(os.getpid())) <= others
    deadline = time.monotonic() + 5
    while not remove_leftovers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [
        path
        for _, base in probe().cgroup.folders
        for path in Path(base).glob(f"authority-{os.getpid()}-*")
    ]


async def _start(prepared: Any) -> None:
    await start(prepared)


def test_another_thread_may_not_start_a_run() -> None:
    """The run would be killed when that thread ends."""
    found: list[BaseException] = []

    def attempt() -> None:
        try:
            asyncio.run(_start(plan(SPEC, probe())))
        except IsolationRefused as error:
            found.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert "main thread" in str(found[0])


def test_plan_and_start_must_agree_about_the_channel() -> None:
    gate, run = socket.socketpair()

    async def scene() -> None:
        with pytest.raises(IsolationRefused, match="disagree"):
            await start(plan(SPEC, probe()), run)
        assert run.fileno() == -1, "taken over and closed"
        with pytest.raises(IsolationRefused, match="disagree"):
            await start(plan(dataclasses.replace(SPEC, channel=True), probe()))

    asyncio.run(scene())
    gate.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts runs under other ids")
@pytest.mark.parametrize(
    ("ids", "reason"),
    [((0, 0), "would stay root"), ((1_999_999_999,) * 2, "host user 1999999999 instead of")],
)
def test_a_run_under_another_id_than_planned_is_refused(
    monkeypatch: pytest.MonkeyPatch, ids: tuple[int, int], reason: str
) -> None:
    """Root is noticed by the launcher; any other id by the gate, which believes the kernel's word
    about the sender, not the launcher's."""
    prepared = plan(SPEC, probe())
    configuration = {**prepared.configuration, "user_namespace": False}
    real = sandbox.marshal.dumps
    monkeypatch.setattr(
        sandbox.marshal,
        "dumps",
        lambda value: real(
            {**value, "host_ids": ids, "owners": []} if type(value) is dict else value
        ),
    )
    with pytest.raises(IsolationRefused, match=reason):
        output(dataclasses.replace(prepared, configuration=configuration))


def test_only_a_program_of_roots_is_trusted(tmp_path: Path) -> None:
    assert trusted_program(probe().bwrap) == ""
    mine = tmp_path / "bwrap"
    mine.write_bytes(b"#!/bin/sh\n")
    mine.chmod(0o777)
    assert "changed by others" in trusted_program(str(mine))
    mine.chmod(0o644)
    assert "no program" in trusted_program(str(mine))
    assert "can't be looked at" in trusted_program(str(tmp_path / "gone"))


def test_doctor_can_try_and_explain() -> None:
    assert try_namespaces(probe()) == ""
    cause, fix = explain(with_host(namespace_obstacles=(("AppArmor", "profile"),)), "")
    assert (cause, fix) == ("AppArmor", "profile")
    cause, _ = explain(with_host(namespace_obstacles=()), "bwrap: setting up uid map: denied")
    assert "user name space" in cause or "seccomp" in cause


def test_what_stands_in_the_place_of_fuse_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, or another device; the control is the kernel's own, if this machine has it."""
    module = sys.modules["authority.isolation.probe"]
    file = tmp_path / "fuse"
    file.touch(0o666)
    for other in (str(file), "/dev/null"):
        monkeypatch.setattr(module, "FUSE", other)
        cause, fix = fuse_problem()
        assert "another file or device" in cause
        assert "mknod" in fix
    monkeypatch.undo()
    if os.path.exists("/dev/fuse"):
        assert "another file or device" not in fuse_problem()[0]
