"""Grants: the person's request, made into a capability before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from .lab import OPEN, Attached, GateError, Lab, Ran, code_of

POLICY = OPEN.replace(
    "[labels]",
    """[tools.one]
command = ["python3", "tool.py"]
reads = "trusted"
[tools.two]
command = ["python3", "tool.py"]
reads = "trusted"
[labels]""",
)


@pytest.fixture(autouse=True)
def tool(lab: Lab) -> None:
    lab.file("tool.py", "import json\nprint(json.dumps({'result': 1}))\n")


def granted(lab: Lab, *grants: str) -> Attached:
    lab.admin("GET", "/v1/status")
    body = lab.body([], POLICY) | ({"grant": list(grants)} if grants else {})
    return Attached(lab, Ran(lab, "/v1/attach", body).started())


def test_a_run_does_what_it_was_granted_and_nothing_else(lab: Lab) -> None:
    run = granted(lab, "tool:one", f"fs:{lab.work}/out/**")
    gate = run.gate()
    assert code_of(lambda: gate.tool("one", {})) == ""
    assert code_of(lambda: gate.write("out/x", b"1")) == ""
    assert code_of(gate.time) == ""
    assert code_of(lambda: gate.reveal(gate.tool("one", {}, handle=True))) == ""
    assert code_of(lambda: gate.tool("two", {})) == "E_CAP_SCOPE"
    assert code_of(lambda: gate.read("data/a.txt")) == "E_CAP_SCOPE"
    assert code_of(lambda: gate.send("nobody", b"x")) == "E_CAP_SCOPE"
    run.close()
    control = granted(lab)
    assert code_of(lambda: control.gate().tool("two", {})) == ""
    control.close()


def test_a_grant_does_not_widen_the_policy(lab: Lab) -> None:
    run = granted(lab, "tool:none", "fs:/**")
    assert code_of(lambda: run.gate().tool("none", {})) == "E_POLICY_DENY"
    assert code_of(lambda: run.gate().write("data/a.txt", b"x")) == "E_POLICY_DENY"
    run.close()


@pytest.mark.parametrize("grant", ["", "*", "nothing", "fs:relative", "tool:a b"])
def test_what_is_no_grant_starts_nothing(lab: Lab, grant: str) -> None:
    with pytest.raises(GateError):
        granted(lab, grant)


def test_the_command_reads_paths_from_where_it_stands(lab: Lab, tmp_path: Path) -> None:
    policy = lab.policy(POLICY)
    program = "from authority.agent import connect, Denied\ng = connect()\ng.write('out/y', b'1')\n"
    program += "try: g.read('data/a.txt')\nexcept Denied as d: print(d.code)\n"
    asked = ["--policy", str(policy), "--grant", "./out/**", "--quiet", "--", "python3", "-c"]
    found = lab.cli("run", *asked, program)
    assert found.stdout == "E_CAP_SCOPE\n", found.stderr
