"""Labels at the gate, the coarse rule: what was read shapes what may be done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .lab import Attached, Lab, Ran, code_of

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
files = "requests"
[network]
http = ["GET,POST http://127.0.0.1:9/**"]
private = ["127.0.0.1:9"]
[tools.plain]
command = ["python3", "tool.py"]
[tools.described]
command = ["python3", "tool.py"]
content = ["text"]
[agents.child]
command = ["python3", "child.py"]
[labels]
trusted = ["user", "fs:./prompts/**"]
secrets = { payroll = ["fs:./payroll/**"] }
[budgets]
denials = 10_000
runs = 100
"""
RELEASE = POLICY.replace(
    "[budgets]",
    'release = { payroll = ["output", "fs:./out/**", "tool:described", "run"] }\n[budgets]',
)


@pytest.fixture(autouse=True)
def files(lab: Lab) -> None:
    lab.file("prompts/task.txt", "do this")
    lab.file("payroll/all.csv", "secret")
    lab.file("out/foreign.txt", "not the run's")
    lab.file("tool.py", "import json, sys\nprint(json.dumps({'result': 1}))\n")
    lab.file("child.py",
             "from authority.agent import connect, Denied\n"
             "g = connect()\nprint('child up', flush=True)\n"
             "m = g.receive(15000)\n"
             "if m and m.data == b'read': g.read('data/a.txt'); g.send(m.sender, b'shaped')\n"
             "elif m and m.data == b'try':\n"
             "    try: g.tool('plain', {'a': 1}); g.send(m.sender, b'allowed')\n"
             "    except Denied as d: g.send(m.sender, d.code.encode())\n")  # fmt: skip


@pytest.fixture
def run(lab: Lab, files: None) -> Iterator[Attached]:
    with lab.attached(POLICY) as found:
        yield found


def wants_trust(run: Attached) -> dict[str, str]:
    gate = run.gate()
    return {
        "POST": code_of(lambda: gate.http("POST", "http://127.0.0.1:9/x", body=b"x")),
        "spawn": code_of(lambda: gate.spawn("child")),
        "tool": code_of(lambda: gate.tool("plain", {"a": 1})),
        "control argument": code_of(lambda: gate.tool("described", {"text": "x", "to": "y"})),
        "delete": code_of(lambda: gate.delete("out/foreign.txt")),
    }


def takes_anything(run: Attached) -> dict[str, str]:
    gate = run.gate()
    gate.write("out/own.txt", b"mine")
    return {
        "GET": code_of(lambda: gate.http("GET", "http://127.0.0.1:9/x")),
        "content argument": code_of(lambda: gate.tool("described", {"text": "x"})),
        "write": code_of(lambda: gate.write("out/w.txt", b"x")),
        "own delete": code_of(lambda: gate.delete("out/own.txt")),
        "read": code_of(lambda: gate.read("data/a.txt")),
    }


def test_control_a_trusted_run_may(lab: Lab, run: Attached) -> None:
    run.gate().read("prompts/task.txt")
    found = wants_trust(run)
    # Nobody listens there: the effect was tried, and that is an answer of the network.
    assert found == {"POST": "E_EFFECT_FAILED", "spawn": "E_TAINT", "tool": "E_TAINT",
                     "control argument": "E_TAINT", "delete": "E_TAINT"}  # fmt: skip
    with lab.attached(POLICY) as fresh:
        gate = fresh.gate()
        gate.read("prompts/task.txt")
        assert code_of(lambda: gate.spawn("child")) == ""
        assert code_of(lambda: gate.delete("out/foreign.txt")) == ""
        assert code_of(lambda: gate.tool("plain", {"a": 1})) == ""


def test_a_run_that_read_something_untrusted_may_not(lab: Lab, run: Attached) -> None:
    run.gate().read("data/a.txt")
    assert set(wants_trust(run).values()) == {"E_TAINT"}
    assert takes_anything(run) == {"GET": "E_EFFECT_FAILED", "content argument": "", "write": "",
                                   "own delete": "", "read": ""}  # fmt: skip
    entries = lab.denials(run=run.run, code="E_TAINT")
    assert {e["layer"] for e in entries} == {"labels"}
    assert all("data/a.txt" in e["reason"] for e in entries)


@pytest.mark.parametrize("look", ["stat", "list", "fail"])
def test_looking_counts_as_reading(run: Attached, look: str) -> None:
    gate = run.gate()
    if look == "stat":
        gate.stat("data/a.txt")
    elif look == "list":
        gate.list("data")
    else:
        assert code_of(lambda: gate.read("data/nothing")) == "E_EFFECT_FAILED"
    assert code_of(lambda: gate.tool("plain", {})) == "E_TAINT"


def test_a_secret_goes_nowhere_without_release(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    assert gate.read("payroll/all.csv") == b"secret"
    refused = {
        "file": code_of(lambda: gate.write("out/leak", b"x")),
        "append": code_of(lambda: gate.append("out/leak", b"x")),
        "name": code_of(lambda: gate.mkdir("out/leak-dir")),
        "GET": code_of(lambda: gate.http("GET", "http://127.0.0.1:9/secret")),
        "tool": code_of(lambda: gate.tool("described", {"text": "x"})),
        "spawn": code_of(lambda: gate.spawn("child")),
    }
    assert set(refused.values()) == {"E_TAINT"}
    assert code_of(lambda: gate.read("data/a.txt")) == ""
    assert not (lab.work / "out/leak").exists()


def test_a_released_secret_goes_where_it_may_and_nowhere_else(lab: Lab) -> None:
    with lab.attached(RELEASE) as run:
        gate = run.gate()
        gate.read("payroll/all.csv")
        assert code_of(lambda: gate.write("out/report", b"x")) == ""
        assert code_of(lambda: gate.tool("described", {"text": "x"})) == ""
        assert code_of(lambda: gate.http("GET", "http://127.0.0.1:9/x")) == "E_TAINT"


PRINTS = (
    "from authority.agent import connect\n"
    "g = connect()\nprint('before', flush=True)\ninput()\n"
    "print(g.read('payroll/all.csv').decode(), flush=True)\n"
)


def reads_when_told(lab: Lab, policy: str) -> Ran:
    """What it printed before it read is an entry already: that can not be withheld any more."""
    ran = lab.start(PRINTS, policy).said("before")
    lab.input(ran, b"\n", eof=True)
    return ran.end()


def test_a_secret_is_not_printed_without_release(lab: Lab) -> None:
    ran = reads_when_told(lab, POLICY)
    assert ran.out == "before\n"
    assert [e["code"] for e in ran.events if e["event"] == "withheld"] == ["E_TAINT"]
    assert reads_when_told(lab, RELEASE).out == "before\nsecret\n"


def test_what_may_reveal_a_secret_stands_nowhere_in_the_open(lab: Lab) -> None:
    lab.file("payroll/all.csv", "MARKER-93751")
    ran = reads_when_told(lab, RELEASE)
    assert "MARKER-93751" in ran.out
    state = lab.directory.root
    raw = [p for p in state.rglob("*") if p.is_file() and b"MARKER-93751" in p.read_bytes()]
    assert raw == []


def test_a_label_travels_with_messages_both_ways(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    child = gate.spawn("child")
    gate.send(child, b"read")
    message = gate.receive(15_000)
    assert message is not None
    assert message.data == b"shaped"
    assert code_of(lambda: gate.tool("plain", {})) == "E_TAINT"
    with lab.attached(POLICY) as other:
        gate = other.gate()
        clean, shaped = gate.spawn("child"), gate.spawn("child")
        gate.send(clean, b"try")
        control = gate.receive(15_000)
        assert control is not None
        assert control.data == b"allowed"
        # What came back was shaped by the tool's answer; the other child is told by a shaped run.
        gate.send(shaped, b"try")
        answer = gate.receive(15_000)
        assert answer is not None
        assert answer.data == b"E_TAINT"


def test_a_label_is_given_to_a_child_at_birth(lab: Lab) -> None:
    lab.file("born.py",
             "from authority.agent import connect, Denied\nimport sys\n"
             "try: connect().tool('plain', {})\nexcept Denied as d: sys.exit(3)\n")  # fmt: skip
    policy = POLICY.replace("child.py", "born.py")
    with lab.attached(policy) as run:
        gate = run.gate()
        assert gate.wait(gate.spawn("child"), 15_000)["code"] == 0
    allowed = policy.replace("[labels]", '[labels]\ncontent = ["agent:child"]')
    with lab.attached(allowed) as run:
        gate = run.gate()
        gate.read("data/a.txt")
        assert gate.wait(gate.spawn("child"), 15_000)["code"] == 3
