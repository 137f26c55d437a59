"""A caller that reads no policy: the gate says what the policy names, and is sent that alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import authority
from authority.cli import incident
from authority.gate import client, policyfile, starting
from authority.gate.client import GateError

from .lab import CLI, Lab

DIGEST = """
import sys
sys.path.insert(0, sys.argv[1])
from authority.gate import build
print(build.digest())
"""

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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\\u0000b", "control"),
        ("a\\u001b[31mb", "control"),
        ("x/" * 3000, "characters"),
        ("named.toml/below", "Not a directory"),
        ("loop.toml", "symbolic link"),
        ("..", "Is a directory"),
        ("/dev/zero", "larger"),
    ],
)
def test_a_name_that_is_no_files_is_told_in_a_sentence(lab: Lab, name: str, said: str) -> None:
    loop = lab.work / "loop.toml"
    loop.unlink(missing_ok=True)
    loop.symlink_to(loop)
    lab.file("named.toml", f'version = 1\nextends = "{name}"\n')
    done = lab.cli("run", "--policy", "named.toml", "--quiet", "--", "true")
    assert done.returncode == 125
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert lab.admin("GET", "/v1/status")["halted"] is None


def test_where_a_link_leads_is_asked_each_time(lab: Lab) -> None:
    """Texts that were read before, in the same order, and a link that leads to the other one by now."""
    lab.file("one.toml", 'version = 1\n[process]\nexec = ["true"]\n')
    lab.file("two.toml", 'version = 1\n[process]\nexec = ["false"]\n')
    link = lab.work / "link.toml"
    child = lab.file("linked.toml", CHILD.replace("parent.toml", "link.toml"))
    link.unlink(missing_ok=True)
    for _ in range(2):
        for name in ("one.toml", "two.toml"):
            (lab.work / "new.toml").symlink_to(name)
            (lab.work / "new.toml").replace(link)
            body = starting.begin(child, ["true"], str(lab.work))
            assert wanted(lab, body) == {"sources": [str(lab.work / name)]}
    both = {
        str(lab.work / name): (lab.work / name).read_text() for name in ("one.toml", "two.toml")
    }
    body["policy_sources"] |= both
    for name, runs in (("two.toml", "false"), ("one.toml", "true")):
        (lab.work / "new.toml").symlink_to(name)
        (lab.work / "new.toml").replace(link)
        found = policyfile.read_sent(body["policy_sources"], body["policy_path"])
        assert found.policy.process.exec == (runs,)


def test_texts_that_are_remembered_are_few_and_not_long() -> None:
    def text(size: int) -> str:
        return "version = 1\n[filesystem]\nread = [\n" + "'./a/**',\n" * (size // 10) + "]\n"

    for number in range(20):
        sources = {"/p.toml": text(1000) + f"# {number}\n"}
        assert policyfile.read_sent(sources, "/p.toml") is policyfile.read_sent(sources, "/p.toml")
    long = [{"/p.toml": text(policyfile._USUAL) + f"# {number}\n"} for number in range(2)]
    first = policyfile.read_sent(long[0], "/p.toml")
    assert policyfile.read_sent(long[0], "/p.toml") is first
    policyfile.read_sent(long[1], "/p.toml")
    assert policyfile.read_sent(long[0], "/p.toml") is not first
    assert policyfile._usual.cache_info().currsize == 16


def test_what_a_gate_says_goes_into_a_file_of_its_own(own: Lab) -> None:
    elsewhere = own.file("elsewhere", "")
    said = own.directory.gate_output
    said.unlink(missing_ok=True)
    said.symlink_to(elsewhere)
    with pytest.raises(GateError) as refused:
        client.ensure(own.directory)
    assert str(said) in refused.value.message
    assert elsewhere.stat().st_mode & 0o777 == 0o644, "nobody's mode is changed through a link"
    said.unlink()
    os.mkfifo(said, 0o644)
    with pytest.raises(GateError):
        client.ensure(own.directory)
    said.unlink()
    client.ensure(own.directory)
    assert client.alive(own.directory)
    assert said.stat().st_mode & 0o777 == 0o600


def test_what_bytecode_lies_beside_the_modules_makes_no_other_build(tmp_path: Path) -> None:
    package = Path(authority.__file__).parent
    copy = tmp_path / "authority"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-B", "-c", DIGEST, str(tmp_path)]

    def digest() -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    before = digest()
    cache = copy / "gate" / "__pycache__"
    cache.mkdir()
    (cache / "stray.py").write_text("")
    assert digest() == before
    (copy / "gate" / "stray.py").write_text("")
    assert digest() != before
