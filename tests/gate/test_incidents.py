"""Incidents at a real gate: what opens one, what it stops, what is kept, and who may close it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from authority.agent import Denied
from authority.agent.errors import GateGone
from authority.gate.client import GateError, token_of

from .lab import OPEN, Lab, wait_for

CANARY = "data/keys.txt"
READ = "from authority.agent import connect, Denied\ng = connect()\n"


def cases(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.admin("GET", "/v1/incidents")["incidents"]
    return found


def plant(lab: Lab, what: str, where: str, name: str = "trap") -> dict[str, Any]:
    body = {"action": "plant", "what": what, "where": where, "name": name}
    return lab.admin("POST", "/v1/canaries", body)


def the_case(lab: Lab) -> dict[str, Any]:
    (found,) = cases(lab)
    return found


def step(lab: Lab, case: dict[str, Any], name: str, body: dict[str, Any]) -> dict[str, Any]:
    return lab.admin("POST", f"/v1/incidents/{case['id']}/{name}", body)


# --- what opens one ---


def test_a_canary_file_halts_its_run_and_nobody_else(own: Lab) -> None:
    own.file(CANARY, "secret\n")
    plant(own, "file", str(own.work / CANARY))
    with own.attached() as neighbour:
        ran = own.run(
            READ + f"try: g.read('{CANARY}')\nexcept Denied as d: print(d.code)\n"
            "import time; time.sleep(30)\n"
        )
        assert ran.summary["code"] == 137
        assert ran.summary["reason"] == "canary"
        case = the_case(own)
        assert (case["what"], case["run"], case["wide"]) == ("canary", ran.run, False)
        neighbour.gate().read("data/a.txt")
    (denied,) = own.log(run=ran.run, kind="denied")
    assert denied["rule"] == "canary"


def test_control_what_lies_beside_a_canary_opens_nothing(own: Lab) -> None:
    own.file(CANARY, "secret\n")
    plant(own, "file", str(own.work / CANARY))
    ran = own.run(READ + "g.read('data/a.txt'); print('fine')\n")
    assert ran.out == "fine\n"
    assert cases(own) == []


def test_a_canary_host_and_a_removed_one(own: Lab) -> None:
    plant(own, "host", "trap.example")
    with own.attached() as run:
        gate = run.gate()
        with contextlib.suppress(Denied, GateGone, OSError):
            gate.http("GET", "https://trap.example/x")
    assert the_case(own)["what"] == "canary"
    own.admin("POST", "/v1/canaries", {"action": "remove", "name": "trap"})
    with own.attached() as run, pytest.raises(Denied):
        run.gate().http("GET", "https://trap.example/x")
    assert len(cases(own)) == 1


def test_a_planted_credential_is_found_in_what_is_sent(own: Lab) -> None:
    value = "sk-" + "5" * 40
    plant(own, "credential", value)
    with own.attached() as run, contextlib.suppress(Denied, GateGone, OSError):
        run.gate().write("out/x.txt", f"here it is: {value}".encode())
    assert not (own.work / "out/x.txt").exists()
    assert the_case(own)["what"] == "canary"
    log = b"".join(path.read_bytes() for path in sorted(own.directory.log.glob("*.jsonl")))
    assert b"credential:trap" in log


def test_a_used_up_denial_budget(own: Lab) -> None:
    policy = OPEN.replace("denials = 100_000", "denials = 3")
    ran = own.run(
        READ + "for n in range(9):\n try: g.read(f'/etc/{n}')\n except Denied: pass\n"
        "import time; time.sleep(30)\n",
        policy,
    )
    assert ran.summary["reason"] == "denials"
    assert the_case(own)["what"] == "denials"


def test_a_call_that_kills_is_an_attack(own: Lab) -> None:
    ran = own.run("import os, signal; os.kill(os.getpid(), signal.SIGSYS)")
    case = the_case(own)
    assert (case["what"], case["run"]) == ("seccomp", ran.run)


def test_a_request_after_the_halt_is_seen(own: Lab) -> None:
    own.file(CANARY, "secret\n")
    plant(own, "file", str(own.work / CANARY))
    with own.attached() as run:
        with contextlib.suppress(Denied, GateGone, OSError):
            run.gate().read(CANARY)
        run.ran.end()
        with contextlib.suppress(Exception):
            run.gate().read("data/a.txt")
        assert sorted(c["what"] for c in cases(own)) == ["canary", "late_request"]


def test_the_gates_own_failure_halts_everything_until_it_is_closed(own: Lab) -> None:
    with own.attached() as run:
        own.admin("POST", "/v1/incidents", {"what": "rejudgement", "detail": "entry 7"})
        with pytest.raises((Denied, GateGone, OSError)):
            run.gate().read("data/a.txt")
    case = the_case(own)
    assert case["wide"]
    with pytest.raises(GateError, match="incident"):
        own.resume()
    with pytest.raises(GateError, match="halted"):
        own.start("print(1)").started()


def test_a_failed_sync_is_an_incident_of_the_next_gate(own: Lab) -> None:
    own.admin("GET", "/v1/status")
    own.stop()
    (own.directory.log / "poisoned").write_text('{"error":"fdatasync: injected"}')
    assert [c["what"] for c in cases(own)] == ["sync"]


# --- what is stopped and kept ---


def test_no_request_is_admitted_after_the_halt(own: Lab) -> None:
    own.file(CANARY, "secret\n")
    plant(own, "file", str(own.work / CANARY))
    ran = own.run(
        READ + "import threading\n"
        "import time\n"
        "done = []\n"
        "def busy():\n"
        "  h = connect()\n"
        "  while True:\n"
        "    try: h.read('data/a.txt'); done.append(1)\n"
        "    except Exception: return\n"
        "for _ in range(8): threading.Thread(target=busy, daemon=True).start()\n"
        "while len(done) < 40: time.sleep(0.01)\n"
        f"try: g.read('{CANARY}')\nexcept Exception: pass\n"
        "time.sleep(30)\n"
    )
    log = own.log(run=ran.run)
    halt = next(e["seq"] for e in log if e["kind"] == "halt")
    admitted = [e["seq"] for e in log if e["kind"] == "admit" and not e.get("final")]
    assert len(admitted) > 20, "the control: it was busy"
    assert max(admitted) < halt


def test_the_processes_of_a_halted_run_are_described_before_they_are_killed(own: Lab) -> None:
    own.file(CANARY, "secret\n")
    plant(own, "file", str(own.work / CANARY))
    own.run(READ + f"try: g.read('{CANARY}')\nexcept Denied: pass\nimport time; time.sleep(30)\n")
    wait_for(lambda: the_case(own)["step"] == "investigating")
    (kept,) = own.log(kind="incident.step")
    digest = kept["evidence"]["kept"][0]["processes"]
    found = json.loads((own.directory.store / digest[:2] / digest).read_bytes())
    assert any("time.sleep(30)" in process["cmdline"] for process in found)
    assert all("Seccomp:" in p["status"] for p in found if p["status"])


def test_a_gate_that_dies_in_between_is_taken_on(own: Lab) -> None:
    own.admin("POST", "/v1/incidents", {"what": "report"})
    own.kill()
    case = the_case(own)
    assert case["step"] == "investigating"


# --- who may close it, and with what ---


def test_no_step_without_its_evidence_and_none_skipped(own: Lab) -> None:
    own.admin("POST", "/v1/incidents", {"what": "report"})
    case = the_case(own)
    with pytest.raises(GateError, match="next is"):
        step(own, case, "cause", {"text": "a long enough text", "entries": [1]})
    with pytest.raises(GateError, match="verified"):
        step(own, case, "forensics", {"verified": 0, "report": "x"})
    with pytest.raises(GateError, match="no incident"):
        step(own, {"id": 99999}, "forensics", {"verified": 0, "report": "x"})
    head = own.admin("GET", "/v1/status")["head"]["seq"]
    step(own, case, "forensics", {"verified": head, "report": "x"})
    assert the_case(own)["step"] == "forensics", "the control"


def test_resuming_wants_its_own_capability(own: Lab) -> None:
    own.admin("POST", "/v1/incidents", {"what": "report"})
    case = the_case(own)
    with pytest.raises(GateError, match="E_CAP"):
        step(own, case, "resumed", {"reason": "x"})
    with pytest.raises(GateError, match="next is"):  # the control: with it the machine answers
        own.with_bearer(
            token_of(own.directory.resume_token),
            "POST",
            f"/v1/incidents/{case['id']}/resumed",
            {"reason": "x"},
        )


@pytest.mark.parametrize(
    "body",
    [
        {"what": "not a name!"},
        {"what": "x", "of": "1"},
        {"what": "x", "run": "nobody"},
    ],
)
def test_reports_that_can_not_be_read(own: Lab, body: dict[str, Any]) -> None:
    with pytest.raises(GateError):
        own.admin("POST", "/v1/incidents", body)
    assert cases(own) == []


def test_the_same_thing_twice_is_one_case(own: Lab) -> None:
    first = own.admin("POST", "/v1/incidents", {"what": "report"})
    second = own.admin("POST", "/v1/incidents", {"what": "report"})
    assert first == second
