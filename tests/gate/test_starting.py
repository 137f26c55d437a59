"""A caller that reads no policy: the gate says what the policy names, and is sent that alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from authority.cli import incident
from authority.gate import policyfile, starting
from authority.gate.client import GateError

from .lab import CLI, Lab

PARENT = 'version = 1\n[process]\npass_env = ["NAMED"]\nexec = ["true"]\n'
CHILD = 'version = 1\nextends = ["parent.toml"]\n'
HEAVY = {"msgspec", "asyncio", "dataclasses", "inspect", "typing", "subprocess", "cryptography"}


def wanted(lab: Lab, body: dict[str, Any]) -> dict[str, list[str]]:
    """What the gate asks for; nothing when it started the run."""
    with pytest.raises(GateError) as refused:
        lab.admin("POST", "/v1/attach", body)
    found: dict[str, list[str]] = refused.value.answer["wanted"]
    return found


def test_the_gate_asks_for_files_then_for_variables(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMED", "one")
    monkeypatch.setenv("OTHER", "two")
    parent = lab.file("parent.toml", PARENT)
    body = starting.begin(lab.file("child.toml", CHILD), ["true"], str(lab.work))
    assert "NAMED" not in body["environment"]
    before = len(lab.log(kind="control"))
    first = wanted(lab, body)
    assert first == {"sources": [str(parent)]}
    starting.supply(body, first)
    second = wanted(lab, body)
    assert second == {"environment": ["NAMED"]}
    starting.supply(body, second)
    assert body["environment"]["NAMED"] == "one"
    assert "OTHER" not in body["environment"]
    assert len(lab.log(kind="control")) == before, "asking is no call that changes something"
    whole = policyfile.start_request(lab.work / "child.toml", ["true"], str(lab.work))
    assert {**body, "looked_for": None} == {**whole, "looked_for": None}


def test_nothing_is_supplied_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMED", "one")
    body = starting.begin(lab.file("alone.toml", PARENT), ["true"], str(lab.work))
    starting.supply(body, {"environment": ["NAMED"]})
    with pytest.raises(starting.PolicyFileError, match="asked for twice"):
        starting.supply(body, {"environment": ["NAMED"]})
    with pytest.raises(starting.PolicyFileError, match="asked for twice"):
        starting.supply(body, {"sources": [body["policy_path"]]})


def test_a_parent_that_changes_after_it_was_sent_does_not_matter(lab: Lab) -> None:
    parent = lab.file("parent.toml", 'version = 1\n[process]\nexec = ["true"]\n')
    body = starting.begin(lab.file("child.toml", CHILD), ["true"], str(lab.work))
    starting.supply(body, wanted(lab, body))
    sent = policyfile.read(lab.work / "child.toml").policy
    parent.write_text('version = 1\n[process]\nexec = ["false"]\n', "utf-8")
    found = policyfile.read_sent(body["policy_sources"], body["policy_path"]).policy
    assert found.digest == sent.digest != policyfile.read(lab.work / "child.toml").policy.digest


def test_a_patch_that_a_person_means_is_the_text_that_is_sent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are read once: a change in between can't be accepted under the digest of another."""
    read, text_of = [], starting.text_of
    monkeypatch.setattr(starting, "text_of", lambda path: [read.append(path), text_of(path)][1])
    files = [lab.file("parent.toml", PARENT), lab.file("child.toml", CHILD)]
    body = incident.policy_body(files[1])
    assert sorted(read) == sorted(map(str, files))
    sent = policyfile.read_sent(body["policy_sources"], body["policy_path"]).policy
    assert body["accept"] == sent.digest


@pytest.mark.parametrize("names", ["NAMED", [1], None, {"NAMED": 1}])
def test_a_list_of_names_is_a_list_of_names(lab: Lab, names: Any) -> None:
    body = starting.begin(lab.file("alone.toml", PARENT), ["true"], str(lab.work))
    with pytest.raises(GateError, match="looked_for lists names"):
        lab.admin("POST", "/v1/attach", {**body, "looked_for": names})


def test_the_command_passes_what_the_policy_names(lab: Lab, tmp_path: Path) -> None:
    lab.file("parent.toml", PARENT)
    program = (
        "import os, json; print(json.dumps([os.environ.get('NAMED'), os.environ.get('OTHER')]))"
    )
    command = [sys.executable, "-m", "authority.cli.main", "run", "--quiet"]
    command += ["--state", str(lab.directory.root), "--policy", str(lab.file("child.toml", CHILD))]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", program],
        cwd=lab.work,
        env={"PATH": "/usr/bin:/bin", "NAMED": "one", "OTHER": "two"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["one", None]


def test_the_command_loads_nothing_that_only_the_gate_needs() -> None:
    """Each of these would cost a start more than all that the command does itself."""
    code = "import sys, authority.cli.run, authority.cli.closing; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "authority.cli.run" in loaded
    assert not HEAVY & loaded
    assert not {name for name in loaded if name.startswith("authority.kernel.policy")}


def test_callers_who_start_a_gate_at_the_same_moment_get_one(own: Lab) -> None:
    for _ in range(3):
        before = len(own.log(kind="gate.start"))
        command = [str(CLI), "approvals", "--json", "--state", str(own.directory.root)]
        callers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        said = [caller.communicate(timeout=60) for caller in callers]
        assert [caller.returncode for caller in callers] == [0] * 4, said
        assert len(own.log(kind="gate.start")) == before + 1
        own.stop()
