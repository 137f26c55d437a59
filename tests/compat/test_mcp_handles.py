"""Handles and MCP servers: what a server is given unread, what it answers, and whose word counts."""

from __future__ import annotations

import contextlib
import threading

import pytest

from authority.agent import Denied, Handle
from gate.lab import OPEN, SECONDS, Lab, code_of, wait_for

from .mcp_lab import POLICY, approve, prepare, server

RESULT = "/structuredContent/result"
TRUSTS_NOTHING = POLICY.replace('trusted = ["user", "fs:./**"]', 'trusted = ["user"]').replace(
    'content = ["a", "b", "port", "path"]\n', ""
)


def described(rules: str) -> str:
    """The policy with one more table, for the tool `add`."""
    return TRUSTS_NOTHING.replace("[budgets]", f"[mcp.files.tools.add]\n{rules}\n[budgets]", 1)


@pytest.fixture
def files(lab: Lab) -> Lab:
    prepare(lab)
    with lab.attached(TRUSTS_NOTHING) as run:
        code_of(lambda: run.gate().tool("files/add", {"a": 1, "b": 2}))
    approve(lab)
    return lab


def test_a_servers_answer_is_passed_on_unread(files: Lab) -> None:
    with files.attached(described('content = ["a", "b"]\neffect = "read"')) as run:
        gate = run.gate()
        three = gate.tool("files/add", {"a": 1, "b": 2}, handle=True)
        four = gate.tool("files/add", {"a": three[RESULT], "b": 1})
        assert isinstance(four, Handle)
        filled = files.log(kind="admit", run=run.run)[-1]["filled"]["text"]
        assert filled == '{"arguments":{"a":3,"b":1}}'
        # The server's own run has seen it.
        (start,) = files.log(kind="run.start", parent=run.run)
        seen = [e.get("sources") for e in files.log(kind="chunk", run=start["run"])]
        assert ["mcp:files"] in seen
        assert gate.reveal(four[RESULT]) == 4


def test_what_nobody_described_is_control(files: Lab) -> None:
    with files.attached(TRUSTS_NOTHING) as run:
        gate = run.gate()
        three = gate.tool("files/add", {"a": 1, "b": 2}, handle=True)
        assert code_of(lambda: gate.tool("files/add", {"a": three[RESULT], "b": 1})) == "E_TAINT"
        assert code_of(lambda: gate.tool("files/add", {"a": 1, "b": 1})) == ""
        assert code_of(lambda: gate.tool("files/add", {"a": 1, "b": 1})) == "E_TAINT"


def test_a_field_and_a_name_are_the_servers_by_the_policys_word(files: Lab) -> None:
    with files.attached(described(f'fields = {{ "{RESULT}" = "trusted" }}')) as run:
        gate = run.gate()
        three = gate.tool("files/add", {"a": 1, "b": 2}, handle=True)
        assert code_of(lambda: gate.tool("files/add", {"a": three[RESULT], "b": 1})) == ""
        assert (
            code_of(lambda: gate.tool("files/add", {"a": three["/content"], "b": 1})) == "E_TAINT"
        )
    rules = f'issues = {{ "{RESULT}" = {{ to = ["tool:files.add b"], type = "int" }} }}'
    with files.attached(described(rules)) as run:
        gate = run.gate()
        three = gate.tool("files/add", {"a": 1, "b": 2}, handle=True)
        assert code_of(lambda: gate.tool("files/add", {"a": 1, "b": three[RESULT]})) == ""
        assert code_of(lambda: gate.tool("files/add", {"a": three[RESULT], "b": 1})) == "E_TAINT"


def test_a_rule_about_an_argument_is_asked_of_what_is_behind_a_handle(files: Lab) -> None:
    rules = 'content = ["a", "b"]\neffect = "read"\narguments = { a = { min = 0, max = 5 }, b = 1 }'
    with files.attached(described(rules)) as run:
        gate = run.gate()
        two = gate.tool("files/add", {"a": 1, "b": 1}, handle=True)
        for _ in range(4):
            two = gate.tool("files/add", {"a": two[RESULT], "b": 1})
            assert isinstance(two, Handle)
        last = gate.tool("files/add", {"a": two[RESULT], "b": 1})  # 6 + 1: refused, and not told
        assert isinstance(last, Handle)
        assert [e["code"] for e in files.denials(run=run.run, hidden=True)] == ["E_POLICY_DENY"]
        assert code_of(lambda: gate.tool("files/add", {"a": 6, "b": 1})) == "E_POLICY_DENY"


def test_what_a_server_says_of_itself_counts_for_nothing(lab: Lab) -> None:
    prepare(lab)
    text = OPEN + server("s", "servers/scripted.py", 'approve = "changes"\nallow = ["t"]').replace(
        'scripted.py"', 'scripted.py", "lies"'
    )
    with lab.attached(text) as run:
        gate = run.gate()
        liar = gate.tool("s/t", {"a": 1}, handle=True)
        assert code_of(lambda: gate.tool("s/t", {"a": liar["/content/0/text"]})) == "E_TAINT"
        assert lab.log(kind="outcome", run=run.run)[-1]["sources"] == ["mcp:s"]


def test_control_of_one_tool_beats_content_of_its_server(files: Lab) -> None:
    text = TRUSTS_NOTHING.replace('allow = ["add"', 'content = ["a", "b"]\nallow = ["add"')
    described = text.replace("[budgets]", '[mcp.files.tools.add]\ncontrol = ["a"]\n[budgets]', 1)
    with files.attached(described) as run:
        gate = run.gate()
        three = gate.tool("files/add", {"a": 1, "b": 2}, handle=True)
        assert code_of(lambda: gate.tool("files/add", {"a": three[RESULT], "b": 1})) == "E_TAINT"
        assert code_of(lambda: gate.tool("files/add", {"a": 1, "b": three[RESULT]})) == ""


def test_who_waited_for_a_person_is_looked_up_anew(files: Lab) -> None:
    """What a server offers is a fact that a call needs: also one that waited meanwhile."""
    policy = described('content = ["a", "b"]\neffect = "read"')
    policy += '\n[approvals]\nrequire = ["tool:files.add"]\n'
    with files.attached(policy) as run:
        gate = run.gate()
        answers: list[object] = []

        def ask(b: object) -> None:
            with contextlib.suppress(Denied):
                answers.append(gate.tool("files/add", {"a": 1, "b": b}, wait=True))

        def waits() -> list[dict[str, object]]:
            listed = files.admin("GET", "/v1/approvals")["approvals"]
            return [
                each for each in listed if each["run"] == run.run and each["answer"] == "waiting"
            ]

        for number in (2, 3):
            waiting = threading.Thread(target=ask, args=(number,), daemon=True)
            waiting.start()
            found = wait_for(waits)
            files.admin("POST", f"/v1/approvals/{found[0]['id']}", {"granted": number == 2})
            waiting.join(SECONDS)
            if number == 2:
                structured = answers[0]
                assert isinstance(structured, dict)
                assert structured["structuredContent"] == {"result": 3}
        assert len(answers) == 1  # the control: a no is a no
