"""Attacks: a child that read hostile words tells its parent a number without sending it a word.

The parent never receives, waits or reads what the child wrote. Whatever it was told by what they share
(budgets, counts, a mailbox that stays empty, numbers of entries, what a tool lists) it has read, or it
is told the same in any case. Each has its control: a child that read nothing tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from authority.agent import some
from authority.agent.client import Gate

from .lab import Attached, Lab, code_of, wait_for

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**", "./drafts/**"]
files = "requests"
[tools.web]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
[tools.draft]
command = ["python3", "tool.py"]
content = ["text"]
reads = "trusted"
[tools.drafts]
command = ["python3", "tool.py"]
effect = "read"
content = ["q"]
fields = { "/*/id" = "trusted" }
shape = "trusted"
[tools.pay]
command = ["python3", "tool.py"]
control = ["amount"]
reads = "trusted"
[agents.child]
command = ["python3", "child.py"]
[labels]
trusted = ["user", "fs:./**"]
compute = true
[budgets]
denials = 100_000
runs = 100
file_bytes = "1MB"
output_tokens = 5000
[models]
allow = ["obedient"]
"""
TOOL = "import json\nprint(json.dumps({'result': [{'id': 4}]}))\n"
CHILD = """\
import sys
from authority.agent import connect
gate = connect()
if gate.receive(20_000).data == b"read":
    gate.tool("web", {"q": "x"})
DO
gate.write("out/ready", b"")
gate.receive(20_000)
"""


@pytest.fixture(autouse=True)
def files(lab: Lab) -> None:
    lab.file("tool.py", TOOL)


@pytest.fixture
def run(lab: Lab) -> Iterator[Attached]:
    with lab.attached(POLICY) as found:
        yield found


def child(lab: Lab, gate: Gate, does: str, *, reads: bool) -> None:
    """Start one, and wait (outside) until it did what it was told."""
    lab.file("child.py", CHILD.replace("DO", does))
    (lab.work / "out/ready").unlink(missing_ok=True)
    name = gate.spawn("child")
    gate.send(name, b"read" if reads else b"do not")
    wait_for((lab.work / "out/ready").exists)


def pays(gate: Gate, amount: int = 1) -> str:
    return code_of(lambda: gate.tool("pay", {"amount": amount}))


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_what_is_left_of_a_budget_is_no_number(lab: Lab, run: Attached, reads: bool) -> None:
    gate = run.gate()
    child(lab, gate, "gate.write('out/much', b'x' * 400_000)", reads=reads)
    assert pays(gate) == ""
    assert code_of(lambda: gate.write("out/mine", b"x" * 700_000)) == "E_BUDGET_EXCEEDED"
    assert pays(gate, 400_000) == ("E_TAINT" if reads else "")


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_what_is_left_for_all_runs_is_no_number(own: Lab, reads: bool) -> None:
    """Of a run that is over, too."""
    own.file("tool.py", TOOL)
    (own.directory.root / "gate.json").write_text('{"budgets": {"file_bytes": 1000}}')
    with own.attached(POLICY) as before:
        if reads:
            before.gate().tool("web", {"q": "x"})
        before.gate().write("out/much", b"x" * 400)
    wait_for(lambda: own.log(run=before.run, kind="run.end"))
    with own.attached(POLICY) as run:
        gate = run.gate()
        assert pays(gate) == ""
        assert code_of(lambda: gate.write("out/mine", b"x" * 700)) == "E_BUDGET_EXCEEDED"
        assert pays(gate, 400) == ("E_TAINT" if reads else "")


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_what_is_left_of_a_count_is_no_number(lab: Lab, run: Attached, reads: bool) -> None:
    gate = run.gate()
    narrow = gate.attenuate(count=20)
    lab.file("child.py", CHILD.replace("DO", "[gate.stat('data/a.txt') for _ in range(9)]"))
    (lab.work / "out/ready").unlink(missing_ok=True)
    name = gate.spawn("child", capability=narrow)
    gate.send(name, b"read" if reads else b"do not")
    wait_for((lab.work / "out/ready").exists)
    assert pays(gate) == ""
    codes = [
        code_of(lambda: gate.call("fs.stat", "data/a.txt", capability=narrow)) for _ in range(20)
    ]
    assert codes[0] == ""
    assert codes[-1] == "E_CAP_RATE"
    assert pays(gate, codes.count("")) == ("E_TAINT" if reads else "")


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_how_much_a_model_may_say_is_no_number(lab: Lab, run: Attached, reads: bool) -> None:
    gate = run.gate()
    child(lab, gate, "gate.model('obedient', [{'role': 'user', 'content': 'SAY x'}])", reads=reads)
    assert pays(gate) == ""
    asked = [{"role": "user", "content": "SAY x"}]
    gate.model("obedient", asked, max_tokens=10)  # there is more left than that, whatever was used
    assert pays(gate) == ""
    gate.model("obedient", asked)  # and this is granted what is left
    assert pays(gate) == ("E_TAINT" if reads else "")


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_a_mailbox_that_stays_empty_is_the_childs_word(
    lab: Lab, run: Attached, reads: bool
) -> None:
    gate = run.gate()
    child(lab, gate, "", reads=reads)
    assert gate.receive(0) is None
    assert pays(gate) == ("E_TAINT" if reads else "")


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_numbers_of_entries_do_not_count_what_it_did(lab: Lab, run: Attached, reads: bool) -> None:
    gate = run.gate()
    child(lab, gate, "[gate.stat('data/a.txt') for _ in range(9)]", reads=reads)
    later = run.gate()
    later.stat("data/a.txt")
    assert (later.last_receipt is None) is reads


@pytest.mark.parametrize("reads", [True, False], ids=["hostile", "control"])
def test_what_a_tool_lists_is_also_what_a_child_made(lab: Lab, run: Attached, reads: bool) -> None:
    gate = run.gate()
    child(lab, gate, "gate.tool('draft', {'text': 'x'})", reads=reads)
    held = gate.tool("drafts", {"q": "all"}, handle=True)
    total = gate.compute("answer(sum(values[0]))", some([held[f"/{n}/id"] for n in range(4)]))
    assert gate.reveal(total) == 4
    assert pays(gate, 4) == ("E_TAINT" if reads else "")
