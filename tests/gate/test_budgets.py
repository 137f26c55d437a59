"""Budgets at the gate: exact, at any concurrency, up the family, and hard where time is concerned."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from .lab import OPEN, Lab, code_of, wait_for


def policy(budgets: str, more: str = "") -> str:
    return OPEN.replace("[budgets]\n", f"[budgets]\n{budgets}\n") + more


def spent(lab: Lab, run: str, dimension: str) -> int:
    """What the log says was used."""
    outcomes = lab.log(run=run, kind="outcome")
    final = [e["reserve"] for e in lab.log(run=run, kind="admit") if e.get("final")]
    return sum(e.get("spent", {}).get(dimension, 0) for e in outcomes) + sum(
        r.get(dimension, 0) for r in final
    )


def test_the_last_one_passes_and_the_next_does_not(lab: Lab) -> None:
    with lab.attached(policy("file_bytes = 10")) as run:
        gate = run.gate()
        assert code_of(lambda: gate.write("out/a", b"12345")) == ""
        assert code_of(lambda: gate.write("out/a", b"123456")) == "E_BUDGET_EXCEEDED"
        assert code_of(lambda: gate.write("out/a", b"12345")) == ""
        assert code_of(lambda: gate.write("out/a", b"1")) == "E_BUDGET_EXCEEDED"
        assert code_of(lambda: gate.write("out/a", b"")) == ""
    assert spent(lab, run.run, "file_bytes") == 10


def test_reading_a_file_that_is_larger_than_what_is_left(lab: Lab) -> None:
    lab.file("data/ten", b"0123456789")
    with lab.attached(policy("file_bytes = 15")) as run:
        gate = run.gate()
        assert gate.read("data/ten") == b"0123456789"
        assert code_of(lambda: gate.read("data/ten")) == "E_BUDGET_EXCEEDED"
        assert gate.read("data/ten", length=5) == b"01234"
        assert code_of(lambda: gate.read("data/ten", length=1)) == "E_BUDGET_EXCEEDED"


@pytest.mark.parametrize("limit", [1, 37])
def test_eight_threads_race_and_exactly_so_many_pass(lab: Lab, limit: int) -> None:
    with lab.attached(policy(f"file_bytes = {limit}")) as run:
        passed: list[str] = []
        barrier = threading.Barrier(8)

        def work() -> None:
            gate = run.gate()
            barrier.wait(60)
            for _ in range(12):
                passed.append(code_of(lambda: gate.append("out/race", b"x")))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(passed) == 96
        assert passed.count("") == limit
        assert set(passed) == {"", "E_BUDGET_EXCEEDED"}
    ended = run.ran.end() if run.ran.error is None else run.ran
    del ended
    assert spent(lab, run.run, "file_bytes") == limit


def test_the_closing_figures_are_the_logs(lab: Lab) -> None:
    ran = lab.run(
        "from authority.agent import connect\n"
        "g = connect()\n"
        "for _ in range(3): g.append('out/f', b'abcd')\n",
        policy("file_bytes = 100"),
    )
    assert ran.summary["code"] == 0, ran.err
    assert ran.summary["budgets"]["spent"]["file_bytes"] == 12
    assert ran.summary["budgets"]["limit"]["file_bytes"] == 100
    assert spent(lab, ran.run, "file_bytes") == 12


CHILD = """
[agents.child]
command = ["python3", "child.py"]
"""


def test_a_childs_use_is_its_parents(lab: Lab) -> None:
    lab.file("child.py",
             "from authority.agent import connect, Denied\nimport sys\ng = connect()\nn = 0\n"
             "try:\n    while n < 20: g.append('out/c', b'x'); n += 1\n"
             "except Denied as d: assert d.code == 'E_BUDGET_EXCEEDED', d\nsys.exit(n)\n")  # fmt: skip
    with lab.attached(policy("file_bytes = 10", CHILD)) as run:
        gate = run.gate()
        gate.append("out/c", b"xxx")
        child = gate.spawn("child")
        assert gate.wait(child, 20_000) == {"ended": True, "code": 7}
        assert code_of(lambda: gate.append("out/c", b"x")) == "E_BUDGET_EXCEEDED"
        other = gate.spawn("child", budgets={"file_bytes": 100})  # more than the parent has left
        assert gate.wait(other, 20_000)["code"] == 0
    with lab.attached(policy("file_bytes = 100", CHILD)) as run:
        gate = run.gate()
        child = gate.spawn("child", budgets={"file_bytes": 4})
        assert gate.wait(child, 20_000)["code"] == 4
        assert code_of(lambda: gate.append("out/c", b"x" * 96)) == ""
        assert code_of(lambda: gate.append("out/c", b"x")) == "E_BUDGET_EXCEEDED"
    with lab.attached(policy("", CHILD)) as run:
        gate = run.gate()
        for bad in ({"file_bytes": -1}, {"nonsense": 1}, {"file_bytes": 2**60}):
            assert code_of(lambda b=bad: gate.spawn("child", budgets=b)) in {
                "E_SCHEMA_INVALID", "E_EFFECT_FAILED"}  # fmt: skip


def test_children_are_counted(lab: Lab) -> None:
    lab.file("child.py", "pass\n")
    with lab.attached(policy("", CHILD).replace("runs = 1000", "runs = 1")) as run:
        gate = run.gate()
        assert code_of(lambda: gate.spawn("child")) == ""
        assert code_of(lambda: gate.spawn("child")) == "E_BUDGET_EXCEEDED"


def test_stored_bytes_bound_what_is_kept(lab: Lab) -> None:
    with lab.attached(policy("stored_bytes = 5000")) as run:
        gate = run.gate()
        assert code_of(lambda: gate.write("out/s", b"x" * 3000)) == ""
        assert code_of(lambda: gate.write("out/s", b"y" * 3000)) == ""
    bodies = [e["arguments"].get("kept", "digest") for e in lab.log(run=run.run, kind="admit")]
    assert bodies == ["store", "digest"]
    with lab.attached(policy("stored_bytes = 10")) as run:
        gate = run.gate()
        assert code_of(lambda: gate.send("nobody", b"x" * 5)) == "E_POLICY_DENY"


def test_output_beyond_its_budget_is_withheld(lab: Lab) -> None:
    program = (
        "import sys\nfor i in range(4): print('x' * 9, flush=True); __import__('time').sleep(.1)"
    )
    ran = lab.run(program, policy("output_bytes = 20"))
    assert ran.out == ("x" * 9 + "\n") * 2
    withheld = [e for e in ran.events if e["event"] == "withheld"]
    assert {e["code"] for e in withheld} == {"E_BUDGET_EXCEEDED"}
    assert spent(lab, ran.run, "output_bytes") == 20
    assert lab.run(program, policy("output_bytes = 40")).out == ("x" * 9 + "\n") * 4


def test_wall_time_ends_the_run(lab: Lab) -> None:
    program = "import time\nprint('up', flush=True)\ntime.sleep(600)"
    for limit in (1, 4, 16):  # where the machine is too busy to have it begin, the next
        ran = lab.run(program, policy(f'wall_time = "{limit}s"'))
        if ran.out:
            break
    assert (ran.summary["reason"], ran.summary["code"]) == ("wall_time", 137)
    assert ran.out == "up\n"
    (end,) = lab.log(run=ran.run, kind="run.end")
    assert end["reason"] == "wall_time"
    control = lab.run("import time\ntime.sleep(0.1)", policy('wall_time = "20s"'))
    assert control.summary["reason"] == "exited"


def test_too_many_denials_halt_the_run(lab: Lab) -> None:
    program = (
        "from authority.agent import connect, Denied\n"
        "g = connect()\n"
        "for i in range(20):\n"
        "    try: g.read(f'/etc/no-{i % KINDS}')\n"
        "    except Denied: pass\n"
        "print('through')\n"
    )
    strict = policy("").replace("denials = 100_000", "denials = 5")
    ran = lab.run(program.replace("KINDS", "20"), strict)
    assert (ran.summary["reason"], ran.out) == ("denials", "")
    assert [e["what"] for e in lab.log(run=ran.run, kind="incident")] == ["denials"]
    # Repeats of one request are one denial.
    assert lab.run(program.replace("KINDS", "4"), strict).out == "through\n"
    assert lab.admin("GET", "/v1/status")["halted"] is None


def test_the_budgets_of_the_whole_directory(own: Lab) -> None:
    (own.directory.root / "gate.json").write_text('{"budgets": {"file_bytes": 6}}')
    with own.attached() as one, own.attached() as two:
        first, second = one.gate(), two.gate()
        assert code_of(lambda: first.write("out/a", b"1234")) == ""
        assert code_of(lambda: second.write("out/b", b"123")) == "E_BUDGET_EXCEEDED"
        assert code_of(lambda: second.write("out/b", b"12")) == ""
    own.kill()
    with own.attached() as three:
        gate: Any = three.gate()
        assert code_of(lambda: gate.write("out/a", b"1")) == "E_BUDGET_EXCEEDED"
    wait_for(lambda: own.log(run=three.run, kind="run.end"))
