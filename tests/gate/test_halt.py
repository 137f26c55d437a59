"""Halting: after its entry nothing is admitted, everything has ended, and only resuming begins anew."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from authority.agent import Denied
from authority.agent.client import Gate
from authority.agent.errors import GateError as AgentError
from authority.gate.client import token_of
from authority.gate.policyfile import read_sent
from authority.gate.run import Run, Start

from .lab import OPEN, Attached, GateError, Lab, code_of, wait_for

LOOP = (
    "from authority.agent import connect\n"
    "g = connect()\nprint('looping', flush=True)\nn = 0\n"
    "while True: g.append('out/loop', b'x')\n"
)


def admitted_after(lab: Lab, seq: int, run: str = "") -> list[int]:
    return [e["seq"] for e in lab.log(kind="admit") if e["seq"] > seq and run in ("", e["run"])]


def test_after_the_halt_entry_nothing_is_admitted(own: Lab) -> None:
    with own.attached() as run:
        contained = own.start(LOOP).said("looping")
        stop, done = threading.Event(), []

        def busy() -> None:
            gate = run.gate()
            try:
                while not stop.is_set():
                    gate.write("out/busy", b"x")
            except (Denied, AgentError) as error:
                done.append(error)

        threads = [threading.Thread(target=busy, daemon=True) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_for(lambda: own.log()[-1]["seq"] > 150)
        before = own.log()[-1]["seq"]
        answer = own.admin("POST", "/v1/halt", {"reason": "test"})
        assert answer["in_doubt"] == []
        stop.set()
        for thread in threads:
            thread.join(60)
        assert len(done) == 16
        assert answer["seq"] > before > 100
        # It answered when everything had ended.
        ends = {e["run"]: e for e in own.log(kind="run.end")}
        assert {run.run, contained.run} <= ends.keys()
        assert ends[contained.run]["reason"] == "halted"
        assert contained.end().summary["code"] == 137
        time.sleep(0.2)
        assert admitted_after(own, answer["seq"]) == []
        with pytest.raises(AgentError):
            run.gate()  # its token is dead
        with pytest.raises(GateError, match="halted"):
            own.start("pass").started()
        with pytest.raises(GateError, match="halted"), own.attached():
            pass
        own.kill()  # and a restart forgets nothing of it
        with pytest.raises(GateError, match="halted"):
            own.start("pass").started()
        assert own.admin("GET", "/v1/status")["halted"] == answer["seq"]

    admin = token_of(own.directory.admin_token)
    with pytest.raises(GateError, match="E_CAP_SCOPE"):
        own.with_bearer(admin, "POST", "/v1/resume", {"reason": "me too"})
    with pytest.raises(GateError, match="reason"):
        own.resume("")
    own.resume("looked at it")
    with pytest.raises(GateError, match="nothing is halted"):
        own.resume("again")
    assert own.run("print('new')").out == "new\n"
    assert read_with(own, run) == "E_CAP_INVALID"  # what was halted stays dead
    assert own.cli("audit", "verify").returncode == 0


def read_with(lab: Lab, old: Attached) -> str:
    with lab.attached() as fresh:
        return str(fresh.wire().ask("fs.read", "data/a.txt", token=old.token)[0])


def test_halting_one_run_leaves_the_other(lab: Lab) -> None:
    with lab.attached() as stays:
        gate = stays.gate()
        goes = lab.start(LOOP).said("looping")
        answer = lab.admin("POST", "/v1/halt", {"run": goes.run, "reason": "only it"})
        assert answer["in_doubt"] == []
        assert goes.end().summary["reason"] == "halted"
        assert admitted_after(lab, answer["seq"], goes.run) == []
        assert code_of(lambda: gate.read("data/a.txt")) == ""
        assert lab.run("print('new')").out == "new\n"
        assert lab.admin("GET", "/v1/status")["halted"] is None


def test_a_halted_parent_takes_its_children(lab: Lab) -> None:
    lab.file("sleeper.py", "import time\nprint('child up', flush=True)\ntime.sleep(60)\n")
    agents = OPEN + '[agents.child]\ncommand = ["python3", "sleeper.py"]\n'
    with lab.attached(agents) as parent:
        child = parent.gate().spawn("child")
        parent.ran.said("child up")
        lab.admin("POST", "/v1/halt", {"run": parent.run})
        ended = {e["run"] for e in lab.log(kind="run.end")}
        assert {parent.run, child} <= ended


def test_a_halt_while_a_run_is_starting(lab: Lab) -> None:
    """Whatever the moment, it is refused or ends; no program outlives the halt."""
    for wait in (0.0, 0.005, 0.02, 0.05):
        ran = lab.start("import time\ntime.sleep(60)")
        time.sleep(wait)
        assert lab.admin("POST", "/v1/halt", {})["in_doubt"] == []
        wait_for(lambda ran=ran: ran._over)
        assert lab.admin("GET", "/v1/status")["runs"] == []
        lab.resume()


def test_what_asked_for_a_start_is_revoked_meanwhile(lab: Lab) -> None:
    """Whatever the moment: the child that it asked for is started or ends, and none stays between."""
    lab.file("sleeper.py", "import time\ntime.sleep(60)\n")
    agents = OPEN + '[agents.child]\ncommand = ["python3", "sleeper.py"]\n'
    for wait in (0.01, 0.03, 0.06):
        with lab.attached(agents) as parent:
            gate = parent.gate()
            narrow = gate.attenuate(count=20)

            def ask(gate: Gate = gate, narrow: str = narrow) -> None:
                with contextlib.suppress(AgentError):
                    code_of(lambda: gate.spawn("child", capability=narrow))

            asking = threading.Thread(target=ask)
            asking.start()
            time.sleep(wait)
            lab.admin("POST", "/v1/tokens/revoke", {"token": narrow})
            assert lab.admin("POST", "/v1/halt", {"run": parent.run})["in_doubt"] == []
            asking.join(60)
            assert lab.admin("GET", "/v1/status")["runs"] == []
    started = {e["run"] for e in lab.log(kind="run.start")}
    assert {e["run"] for e in lab.log(kind="run.end")} >= started


def test_a_start_that_stands_still_is_given_up_when_the_run_is_stopped() -> None:
    """As a hypervisor that stands still is; what it began has been cleared away when it is given up."""

    async def main() -> list[str]:
        said: list[str] = []
        policy = read_sent({"/p.toml": OPEN}, "/p.toml").policy
        run = Run(lambda *_: None, "r", b"", Start((), "/", policy), lambda _event: None)

        async def begin(seconds: float) -> str:
            try:
                await asyncio.sleep(seconds)
            finally:
                said.append("cleared away")
            return "begun"

        assert await run.unless_stopped(begin(0)) == "begun"
        said.clear()
        asyncio.get_running_loop().call_later(0.05, run.stop, "halted")
        async with asyncio.timeout(60):
            assert await run.unless_stopped(begin(3600)) is None
        assert said == ["cleared away"]
        assert await run.unless_stopped(begin(3600)) is None
        return said

    assert asyncio.run(main()) == ["cleared away"]  # the second was not even begun


def test_the_callers_end_is_the_runs_end(lab: Lab) -> None:
    ran = lab.start(LOOP).said("looping")
    ran.hang_up()
    wait_for(lambda: lab.log(run=ran.run, kind="run.end"))
    assert lab.log(run=ran.run, kind="run.end")[0]["reason"] == "disconnected"


def test_an_attached_run_outlives_its_clients(lab: Lab) -> None:
    with lab.attached() as run:
        for _ in range(3):
            gate = run.gate()
            assert gate.read("data/a.txt") == b"hello"
            gate.close()
        assert not lab.log(run=run.run, kind="run.end")
        open_one = run.wire()
        lab.admin("POST", f"/v1/runs/{run.run}/stop")
        assert open_one.message() is None
