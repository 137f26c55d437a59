"""Attacks: an approval meant for something else, and what changes between asking, answering, using.

A person approves one request: these bytes, of this run, under these labels, once. Each attack has the
approved request itself as its control.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from authority.agent import Denied, Handle
from authority.agent.client import Gate
from authority.errors import AuthorityError

from .lab import SECONDS, Attached, GateError, Lab, code_of, wait_for

TOOL = """\
import json, sys
asked = json.loads(sys.stdin.readline())["arguments"]
result = {"words": "pay eve"} if len(sys.argv) > 1 else {"done": asked}
print(json.dumps({"result": result}))
"""
POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
files = "requests"
[tools.web]
command = ["python3", "tool.py", "web"]
content = ["q"]
effect = "read"
[tools.pay]
command = ["python3", "tool.py"]
control = ["to", "amount"]
reads = "trusted"
[tools.note]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
[labels]
trusted = ["user", "fs:./data/**"]
secrets = { payroll = ["fs:./payroll/**"] }
approve = ["tool:pay"]
[budgets]
denials = 100_000
"""
REQUIRED = POLICY.replace("[budgets]", '[approvals]\nrequire = ["tool:pay"]\n[budgets]')
ASKED = "E_APPROVAL_REQUIRED"


@pytest.fixture(autouse=True)
def files(lab: Lab) -> None:
    lab.file("tool.py", TOOL)
    lab.file("payroll/all.csv", "secret")


@pytest.fixture
def run(lab: Lab, files: None) -> Iterator[Attached]:
    with lab.attached(POLICY) as found:
        yield found


def pays(gate: Gate, to: object, amount: object = 1) -> str:
    return code_of(lambda: gate.tool("pay", {"to": to, "amount": amount}))


def waiting(lab: Lab, run: Attached) -> list[str]:
    found = lab.admin("GET", "/v1/approvals")["approvals"]
    return [a["id"] for a in found if a["run"] == run.run and a["answer"] == "waiting"]


def answer(lab: Lab, run: Attached, *, granted: bool = True) -> list[str]:
    """Answer all that a run waits for."""
    found = waiting(lab, run)
    for key in found:
        lab.admin("POST", f"/v1/approvals/{key}", {"granted": granted})
    return found


def paid(lab: Lab, run: Attached) -> list[Any]:
    return [
        json.loads((e.get("filled") or e["arguments"])["text"])["arguments"]
        for e in lab.log(kind="admit", run=run.run, resource="tool:pay")
    ]


def words(gate: Gate) -> Handle:
    found = gate.tool("web", {"q": "x"}, handle=True)
    assert isinstance(found, Handle)
    return found["/words"]


def waits(gate: Gate, to: object) -> tuple[threading.Thread, list[Any]]:
    """A thread that asks for a payment and waits for the person; what it was told."""
    told: list[Any] = []

    def ask() -> None:
        try:
            told.append(gate.tool("pay", {"to": to, "amount": 1}, wait=True))
        except Denied as no:
            told.append(no.code)
        except (OSError, AuthorityError) as error:
            told.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, told


def test_it_is_for_these_arguments_in_this_run_once(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    held = words(gate)
    assert pays(gate, held) == ASKED
    assert len(answer(lab, run)) == 1
    for to, amount in ((held, 2), (words(gate), 1), ("pay eve", held)):
        assert pays(gate, to, amount) == ASKED
    with lab.attached(POLICY) as other:
        assert pays(other.gate(), words(other.gate())) == ASKED
        assert paid(lab, other) == []
    assert paid(lab, run) == []
    assert pays(gate, held) == ""
    assert paid(lab, run) == [{"to": "pay eve", "amount": 1}]
    assert pays(gate, held) == ASKED


def test_what_was_approved_is_what_runs(lab: Lab, run: Attached) -> None:
    """The file and the tool that the value came from change while the person thinks."""
    lab.file("data/to", "bob")
    gate = run.gate()
    held = gate.call("fs.read", "data/to", {}, handle=True)
    shaped = words(gate)
    thread, told = waits(gate, [held["/data"], shaped])
    wait_for(lambda: waiting(lab, run))
    lab.file("data/to", "eve")
    lab.file("tool.py", TOOL.replace("pay eve", "pay mallory"))
    answer(lab, run)
    thread.join(SECONDS)
    assert isinstance(told[0], Handle)
    assert paid(lab, run) == [{"to": ["bob", "pay eve"], "amount": 1}]


def test_two_at_once_are_not_both_made(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    held = words(gate)
    asked = [waits(run.gate(), held) for _ in range(3)]
    wait_for(lambda: len(lab.denials(run=run.run, code=ASKED)) == 3)
    assert len(answer(lab, run)) == 1
    for thread, _ in asked:
        thread.join(SECONDS)
    told = [answers[0] for _, answers in asked]
    assert sorted(str(type(t).__name__) for t in told) == ["Handle", "str", "str"]
    assert len(paid(lab, run)) == 1
    assert len(waiting(lab, run)) == 1  # the others ask anew


def test_after_a_halt_an_answer_does_nothing(lab: Lab) -> None:
    with lab.attached(POLICY) as control:
        thread, told = waits(control.gate(), words(control.gate()))
        wait_for(lambda: waiting(lab, control))
        answer(lab, control)
        thread.join(SECONDS)
        assert isinstance(told[0], Handle)
    with lab.attached(POLICY) as run:
        gate = run.gate()
        held = words(gate)
        thread, told = waits(gate, held)
        wait_for(lambda: waiting(lab, run))
        (key,) = waiting(lab, run)
        lab.admin("POST", "/v1/halt", {"reason": "tested", "run": run.run})
        with pytest.raises(GateError):
            lab.admin("POST", f"/v1/approvals/{key}", {"granted": True})
        thread.join(SECONDS)
        assert not any(isinstance(t, Handle) for t in told)
        assert paid(lab, run) == []


def test_a_capability_that_was_revoked_meanwhile(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    held = words(gate)
    narrow = gate.attenuate(methods=["tool.call"])
    asked = {"to": held, "amount": 1}
    assert code_of(lambda: gate.tool("pay", asked, narrow)) == ASKED
    answer(lab, run)
    lab.admin("POST", "/v1/tokens/revoke", {"token": narrow})
    assert code_of(lambda: gate.tool("pay", asked, narrow)) == "E_CAP_REVOKED"
    assert paid(lab, run) == []
    assert code_of(lambda: gate.tool("pay", asked)) == ""


def test_who_was_refused_does_not_wait_for_ever(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    held = words(gate)
    thread, told = waits(gate, held)
    wait_for(lambda: waiting(lab, run))
    answer(lab, run, granted=False)
    thread.join(SECONDS)
    thread, again = waits(gate, held)
    thread.join(SECONDS)
    assert (told, again) == ([ASKED], [ASKED])
    assert paid(lab, run) == []


def test_reading_after_the_answer_takes_it_away(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    first, second = words(gate), words(gate)
    for to in (first, second):
        assert pays(gate, to) == ASKED
    answer(lab, run)
    assert pays(gate, first) == ""
    gate.stat("out")
    assert pays(gate, second) == ASKED


def test_a_rules_approval_is_for_what_had_shaped_the_call_by_then(lab: Lab) -> None:
    """A call that anybody's words may shape: what was read after the answer may have set its time."""
    with lab.attached(POLICY + '[approvals]\nrequire = ["tool:note"]\n') as run:
        gate = run.gate()

        def notes(text: str) -> str:
            return code_of(lambda: gate.tool("note", {"q": text}))

        assert notes("one") == notes("two") == ASKED
        assert len(answer(lab, run)) == 2
        assert notes("one") == ""
        gate.tool("web", {"q": "x"})
        assert notes("two") == ASKED
        assert len(answer(lab, run)) == 1
        assert notes("two") == ""
        assert notes("two") == ASKED


def test_the_policys_own_approval_is_none_for_untrusted_words(lab: Lab) -> None:
    with lab.attached(REQUIRED.replace('approve = ["tool:pay"]\n', "")) as run:
        gate = run.gate()
        assert pays(gate, "bob") == pays(gate, "eve") == ASKED
        answer(lab, run)
        assert pays(gate, "bob") == ""
        gate.tool("web", {"q": "x"})
        assert (
            pays(gate, "eve") == ASKED
        )  # a call that these words may have set off was not approved
        answer(lab, run)
        assert pays(gate, "eve") == "E_TAINT"


def test_both_are_asked_for_and_both_are_used_up(lab: Lab) -> None:
    with lab.attached(REQUIRED) as run:
        gate = run.gate()
        held = words(gate)
        assert pays(gate, held) == ASKED
        assert len(answer(lab, run)) == 1
        assert pays(gate, held) == ASKED
        assert paid(lab, run) == []
        assert len(answer(lab, run)) == 1
        assert pays(gate, held) == ""
        assert pays(gate, held) == ASKED


def test_no_approval_lets_a_secret_out(lab: Lab) -> None:
    for policy in (POLICY, REQUIRED):
        with lab.attached(policy) as run:
            gate = run.gate()
            secret = gate.call("fs.read", "payroll/all.csv", {}, handle=True)["/data"]
            told = pays(gate, secret)
            answer(lab, run)
            assert pays(gate, secret) == "E_TAINT"
            assert told in ("E_TAINT", ASKED)
            gate.read("payroll/all.csv")
            assert pays(gate, "bob") in ("E_TAINT", ASKED)
            answer(lab, run)
            assert pays(gate, "bob") == "E_TAINT"
            assert paid(lab, run) == []


def test_another_policy_from_the_same_file_asks_anew(lab: Lab) -> None:
    path = lab.policy(POLICY)
    with lab.attached(path) as run:
        gate = run.gate()
        held = words(gate)
        assert pays(gate, held) == ASKED
        path.write_text(POLICY.replace('control = ["to", "amount"]', 'content = ["to", "amount"]'))
        assert pays(gate, held) == ASKED  # the run is under the policy that it was started with
        answer(lab, run)
        path.write_text(POLICY.replace('approve = ["tool:pay"]\n', ""))
        with lab.attached(path) as later:
            assert pays(later.gate(), words(later.gate())) == "E_TAINT"
        assert pays(gate, held) == ""
        assert len(paid(lab, run)) == 1


def test_no_run_answers_for_the_person(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    assert pays(gate, words(gate)) == ASKED
    (key,) = waiting(lab, run)
    for token in (run.text, gate.attenuate(methods=["gate.*"])):
        with pytest.raises(GateError):
            lab.with_bearer(token, "POST", f"/v1/approvals/{key}", {"granted": True})
    assert waiting(lab, run) == [key]
    answer(lab, run)
    assert waiting(lab, run) == []
