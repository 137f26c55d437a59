"""The hypervisor in its jail, stopped, continued, killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from authority import protocol
from authority.audit.verification import verify
from authority.isolation import probe, processes
from authority.matrix.seen import find
from authority.vm import Images, hardware
from gate.lab import OPEN, wait_for

from .conftest import House
from .guest import booted, order


def test_the_hypervisor_holds_nothing(built: Images) -> None:
    async def act() -> None:
        machine, ours = await booted(built)
        try:
            status = processes.status(machine.pid)
            assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == "0" * 16 or (
                os.geteuid() != 0 and status["CapEff"] == status["CapPrm"] == "0" * 16
            )
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
            assert processes.user_ids([machine.pid]) == {machine.uid}
            assert machine.uid == os.geteuid() if os.geteuid() else machine.uid >= 1_900_000_000
            if not os.geteuid():
                assert status["Groups"] == ""
            for space in ("net", "mnt", "pid", "ipc", "uts"):
                assert os.readlink(f"/proc/{machine.pid}/ns/{space}") != os.readlink(
                    f"/proc/self/ns/{space}"
                )
            assert set(os.listdir(f"/proc/{machine.pid}/root")) <= {
                *("usr", "lib", "lib64", "lib32", "dev", "proc"),
            }
            assert set(os.listdir(f"/proc/{machine.pid}/root/usr/bin")) <= {
                "qemu-system-x86_64", "setpriv",
            }  # fmt: skip
            names = {
                os.readlink(f"/proc/{machine.pid}/fd/{fd}")
                for fd in os.listdir(f"/proc/{machine.pid}/fd")
            }
            files = {name for name in names if name.startswith("/") and "/dev/" not in name}
            assert {name for name in files if not name.startswith("/memfd:")} == set()
            assert processes.resident_bytes([machine.pid]) > 0
            limits = Path(f"/proc/{machine.pid}/limits").read_text().splitlines()
            (data,) = [line.split()[3:5] for line in limits if line.startswith("Max data size")]
            wanted = (machine.host_plan.hardware.memory_mib << 20) + hardware.DATA_BYTES
            assert [int(value) for value in data] == [wanted, wanted]
        finally:
            machine.kill()
            status_ = await machine.wait()
            ours.close()
        assert status_.killed
        assert not os.path.exists(f"/proc/{machine.pid}")

    asyncio.run(act())


def test_a_frozen_machine_stands_still_and_goes_on(built: Images) -> None:
    program = "import time\nfor n in range(10000): tell({'n': n}); time.sleep(0.05)"

    async def act() -> None:
        machine, ours = await booted(built)
        loop = asyncio.get_running_loop()
        decoder = protocol.FrameDecoder()

        async def heard(seconds: float) -> list[int]:
            found: list[int] = []
            try:
                async with asyncio.timeout(seconds):
                    while True:
                        data = await loop.sock_recv(ours, 65536)
                        for _, payload in decoder.feed(data):
                            message = protocol.decode_control(payload)
                            if isinstance(message, protocol.Output):
                                found.append(json.loads(message.data)["n"])
                                if seconds > 10:
                                    return found
            except TimeoutError:
                return found

        try:
            await loop.sock_sendall(
                ours, protocol.encode_frame(0, protocol.encode_control(order(program)))
            )
            assert await heard(150)
            assert await machine.freeze()
            await heard(0.5)  # what was on its way
            assert await heard(1.0) == []
            await machine.control.ask("cont")
            assert await heard(60)
        finally:
            machine.kill()
            await machine.wait()
            ours.close()

    asyncio.run(act())


def held(gate: int) -> list[int]:
    """How much a gate has of its machines, in itself and in the kernel."""
    fds = []
    for fd in os.listdir(f"/proc/{gate}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            fds.append(os.readlink(f"/proc/{gate}/fd/{fd}"))
    groups = [
        str(path)
        for _, base in probe().cgroup.folders
        for path in Path(base).glob(f"authority-{gate}-*")
    ]
    kinds = ("memfd:authority-image", "memfd:authority-d", "pidfd", "socket:", "pipe:")
    counts = [sum(kind in name for name in fds) for kind in kinds]
    return [*counts, len(processes.tree(gate)), len(groups)]


def states(machines: House) -> set[str]:
    """The saved states that runs of this gate were continued from: it holds each, memory and state."""
    entries = machines.lab.log(kind="run.start")
    return {entry["protection"]["machine"]["saved_state"] for entry in entries}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=str)
def test_a_hypervisor_that_dies_or_stands_ends_its_run_alone(machines: House, number: int) -> None:
    """The entry says how, the neighbour goes on, and nothing is left of it."""
    program = "print('up', flush=True); import time; time.sleep(600)"
    machines.run("pass")  # what is made once for all is there
    gate = machines.lab.pid()
    before, known = held(gate), states(machines)
    beside = machines.start(program).started()
    beside.said("up")
    (other,) = find("qemu-system-x86", gate)
    # Who dies needs no wall time, and a slow start would use it up.
    timed = OPEN.replace("[budgets]", '[budgets]\nwall_time = "10s"')
    ran = machines.start(program, timed if number == signal.SIGSTOP else OPEN).started()
    ran.said("up")
    (hypervisor,) = {p.pid for p in find("qemu-system-x86", gate)} - {other.pid}
    os.kill(hypervisor, number)
    ran.end()
    (entry,) = machines.lab.log(kind="run.end", run=ran.run)
    if number == signal.SIGSTOP:
        assert (ran.summary["code"], entry["reason"]) == (137, "wall_time")
    else:
        assert (ran.summary["code"], entry["reason"]) == (137, "killed")
        assert entry["detail"] == "it ended without telling the program's end"
    assert [p.pid for p in find("qemu-system-x86", gate)] == [other.pid]
    machines.lab.admin("POST", f"/v1/runs/{beside.run}/stop", {})
    beside.end()
    assert beside.summary["reason"] == "stopped"
    # Whoever clears the folder of images meanwhile has the next run make a state anew.
    before[0] += 2 * len(states(machines) - known)
    wait_for(lambda: all(now <= was for now, was in zip(held(gate), before, strict=True)))
    assert verify(machines.lab.directory.log).ok


def test_a_halt_ends_a_machine(machines: House) -> None:
    ran = machines.start("print('up', flush=True); import time; time.sleep(600)", OPEN).started()
    ran.said("up")
    machines.lab.admin("POST", "/v1/halt", {"reason": "test"})
    ran.end()
    assert ran.summary["reason"] == "halted"
    assert not find("qemu-system-x86", machines.lab.pid())
    machines.lab.resume()


def test_what_a_machine_can_not_have_is_refused(machines: House) -> None:
    bound = OPEN.replace("[filesystem]", '[filesystem]\nfiles = "bind"')
    ran = machines.start("pass", bound)
    wait_for(lambda: ran.error or ran.events)
    assert "no shared folder" in str(ran.error or ran.events[0])
    assert not find("qemu-system-x86", machines.lab.pid())


def test_a_killed_gate_takes_its_machines_with_it(machines: House) -> None:
    ran = machines.start("print('up', flush=True); import time; time.sleep(600)", OPEN).started()
    ran.said("up")
    (hypervisor,) = find("qemu-system-x86", machines.lab.pid())
    machines.lab.kill()
    wait_for(lambda: processes.status(hypervisor.pid).get("State", "Z")[:1] == "Z")
    assert machines.run("print('again')", OPEN).out == "again\n"
