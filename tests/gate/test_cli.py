"""The command line: exit codes, errors in two lines, JSON shapes, and advice that works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .lab import OPEN, Lab

COMMON = ("run", "audit", "token", "gate")
PASS = ["--", sys.executable, "-c", "pass"]


def refused(done: subprocess.CompletedProcess[str], code: int = 125) -> str:
    """That it refused as it should; what it said."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr + done.stdout
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2, done.stderr
    return done.stderr


def agent(*calls: str) -> str:
    """A program that makes these calls and prints what came of each."""
    lines = ["from authority.agent import connect, Denied", "g = connect()"]
    for call in calls:
        lines += ["try:", f"    print('ok', {call}, flush=True)",
                  "except Denied as d: print(d.code, flush=True)"]  # fmt: skip
    return "\n".join(lines)


def run(lab: Lab, policy: Path | str, program: str, *options: str) -> Any:
    done = lab.cli("run", "--json", *options, "--policy", str(policy),
                   "--", sys.executable, "-c", program)  # fmt: skip
    assert done.returncode == 0, done
    return json.loads(done.stdout), done.stderr


def test_wrong_usage_is_2(lab: Lab) -> None:
    assert "did you mean" in refused(lab.cli("haltt"), 2)
    assert lab.cli("run", "--nonsense", "--", "true").returncode == 2
    assert lab.cli("run", "--policy", "x.toml").returncode == 2
    assert lab.cli("audit").returncode == 2
    assert lab.cli("why", "seventeen").returncode == 2
    assert lab.cli().returncode == 2
    assert lab.cli("--help").returncode == lab.cli("--version").returncode == 0
    for command in COMMON:
        assert lab.cli(command, "--help").returncode == 0, command


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.toml", None, "can't be read"),
        ("bad.toml", "version = 1\n[filesytem]\n", "filesytem"),
        ("broken.toml", "version = ", ""),
        ("float.toml", "version = 1\n[budgets]\ncost_usd = 2.5\n", "cost_usd"),
        ("star.toml", "version = 1\n[filesystem]\nread = ['**']\n", "read"),
        ("twice.toml", "version = 1\nversion = 1\n", ""),
        ("bad.json", '{"version": 1, "version": 1}', ""),
        ("extends.toml", "version = 1\nextends = 'nowhere.toml'\n", "nowhere.toml"),
    ],
)
def test_a_policy_that_is_not_one(lab: Lab, name: str, text: str | None, says: str) -> None:
    if text is not None:
        lab.file(name, text)
    assert says in refused(lab.cli("run", "--policy", name, *PASS))
    error = json.loads(lab.cli("run", "--json", "--policy", name, *PASS).stdout)
    assert set(error) == {"error", "hint"}


def test_a_policy_that_is_none_at_all(lab: Lab) -> None:
    assert "--policy" in refused(lab.cli("run", *PASS), 2)
    policy = lab.policy(OPEN)
    assert "no-such" in refused(lab.cli("run", "--policy", str(policy), "--", "no-such-program"))
    assert lab.cli("run", "--quiet", "--policy", str(policy), *PASS).returncode == 0


def test_a_state_directory_that_is_none(lab: Lab, tmp_path: Path) -> None:
    policy = str(lab.policy(OPEN))
    nowhere = tmp_path / "nowhere"
    said = refused(lab.cli("run", "--policy", policy, *PASS, state=nowhere))
    assert "authority init" in said
    open_one = tmp_path / "open"
    assert lab.cli("init", "--no-policy", state=open_one).returncode == 0
    open_one.chmod(0o755)
    assert "chmod 700" in refused(lab.cli("run", "--policy", policy, *PASS, state=open_one))
    for command in (["audit", "verify"], ["gate"], ["approvals"], ["halt"]):
        refused(lab.cli(*command, state=open_one))
    (tmp_path / "file").write_text("x")
    refused(lab.cli("audit", "verify", state=tmp_path / "file"))
    refused(lab.cli("init", state=tmp_path / "file"))


def test_init_writes_a_policy_that_runs(lab: Lab, tmp_path: Path) -> None:
    folder = lab.root / "fresh"
    folder.mkdir()
    folder.chmod(0o755)
    state = tmp_path / "state"
    first = json.loads(lab.cli("init", "--json", cwd=folder, state=state).stdout)
    assert first["created"] is True
    again = json.loads(lab.cli("init", "--json", cwd=folder, state=state).stdout)
    assert (again["created"], again["policy"]) == (False, "")
    assert again["fingerprint"] == first["fingerprint"]
    assert oct(state.stat().st_mode & 0o777) == "0o700"
    keys = [p for p in (state / "keys").rglob("*") if p.is_file()]
    assert {p.stat().st_mode & 0o777 for p in keys} == {0o600}
    done = lab.cli("run", "--quiet", "--policy", "authority.toml", "--", sys.executable, "-c",
                   "print('up')", cwd=folder, state=state)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "up\n")
    lab.cli("gate", "stop", "--force", state=state)


def test_the_summary_of_a_run(lab: Lab) -> None:
    program = agent("g.read('data/a.txt')", "g.write('no', b'')")
    summary, errors = run(lab, lab.policy(OPEN), program)
    assert {"run", "code", "reason", "requests", "denials", "done", "denied", "failed",
            "first_denials", "budgets", "label", "protection",
            "acts_later", "head"} <= set(summary)  # fmt: skip
    assert summary["done"]["fs.read"] == 1
    assert summary["denied"] == {"fs.write": 1}
    assert "E_POLICY_DENY" in errors  # with --json the program's output goes there
    table = lab.cli("run", "--policy", str(lab.policy(OPEN)), "--", sys.executable, "-c", program)
    assert "E_POLICY_DENY" in table.stdout
    assert "fs.write" in table.stderr
    assert "protection:" in table.stderr


def test_the_advice_of_why_makes_the_request_pass(lab: Lab) -> None:
    text = "version = 1\n[budgets]\ndenials = 1000\n"
    program = agent("g.read('data/a.txt')", "g.write('out/z', b'1')", "g.list('data')",
                    "g.http('GET', 'https://api.example.invalid/v1/x?q=1').status")  # fmt: skip
    policy = lab.file("advice.toml", text)
    summary, _ = run(lab, policy, program)
    assert len(summary["first_denials"]) == 4
    snippets: dict[str, dict[str, list[str]]] = {}
    import tomllib

    for denial in summary["first_denials"]:
        found = json.loads(lab.cli("why", "--json", str(denial["seq"])).stdout)
        assert found["code"] == "E_POLICY_DENY"
        assert found["missing"]
        for section, rules in tomllib.loads(found["snippet"]).items():
            for key, values in rules.items():
                snippets.setdefault(section, {}).setdefault(key, []).extend(values)
        assert found["snippet"].splitlines()[0] in lab.cli("why", str(denial["seq"])).stdout
    policy.write_text(text + "".join(
        f"[{s}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in rules.items())
        for s, rules in snippets.items()))  # fmt: skip
    again, errors = run(lab, policy, program, "--accept-policy")
    assert again["denied"] == {}
    assert errors.count("ok") == 3
    assert "E_EFFECT_FAILED" in errors  # allowed now; the host does not exist


def test_why_of_the_other_layers(lab: Lab) -> None:
    policy = lab.policy(
        "version = 1\n[filesystem]\nread = ['./**']\nwrite = ['./out/**']\n"
        "[tools.t]\ncommand = ['python3', 't.py']\n"
        "[budgets]\nfile_bytes = 20\n[approvals]\nrequire = ['fs:./out/final/**']\n"
    )
    program = agent("g.write('out/final/a', b'')", "g.write('out/b', b'x' * 21)",
                    "g.read('data/a.txt')", "g.tool('t', {})",
                    "g.call('fs.read', 'data/a.txt', capability=b'x')",
                    "g.read('data/../x')")  # fmt: skip
    summary, _ = run(lab, policy, program)
    codes = {}
    for denial in summary["first_denials"]:
        found = json.loads(lab.cli("why", "--json", str(denial["seq"])).stdout)
        codes[found["code"]] = found
        assert found["missing"], found
        assert lab.cli("why", str(denial["seq"])).returncode == 0
    assert set(codes) == {"E_APPROVAL_REQUIRED", "E_BUDGET_EXCEEDED", "E_TAINT", "E_CAP_INVALID",
                          "E_SCHEMA_INVALID"}  # fmt: skip
    assert "approvals approve" in codes["E_APPROVAL_REQUIRED"]["snippet"]
    assert "file_bytes" in codes["E_BUDGET_EXCEEDED"]["snippet"]
    assert "[tools.t]" in codes["E_TAINT"]["snippet"]
    refused(lab.cli("why", "0"))
    refused(lab.cli("why", "99999999"))


def test_an_approval_counts_once_and_for_these_arguments(lab: Lab) -> None:
    policy = OPEN + "[approvals]\nrequire = ['fs:./out/final/**']\n"
    with lab.attached(policy) as attached:
        gate = attached.gate()

        def write(data: bytes) -> str:
            from .lab import code_of

            return code_of(lambda: gate.write("out/final", data))

        assert write(b"one") == "E_APPROVAL_REQUIRED"
        waiting = json.loads(lab.cli("approvals", "--json").stdout)["approvals"]
        (mine,) = [a for a in waiting if a["run"] == attached.run]
        assert (mine["effect"], mine["answer"]) == ("fs.write", "waiting")
        assert lab.cli("approvals", "approve", mine["id"]).returncode == 0
        assert write(b"two") == "E_APPROVAL_REQUIRED"  # other arguments
        assert write(b"one") == ""
        assert write(b"one") == "E_APPROVAL_REQUIRED"  # used up
        waiting = json.loads(lab.cli("approvals", "list", "--json").stdout)["approvals"]
        for each in waiting:
            if each["run"] == attached.run:
                assert lab.cli("approvals", "deny", each["id"]).returncode == 0
        assert write(b"one") == write(b"two") == "E_APPROVAL_REQUIRED"
        refused(lab.cli("approvals", "approve", mine["id"]))
        refused(lab.cli("approvals", "approve", "nothing"))
    assert lab.cli("approvals", "approve").returncode == 2


def test_a_wider_policy_waits_for_the_persons_word(lab: Lab) -> None:
    policy = lab.file(
        "grows.toml", "version = 1\n[filesystem]\nread = ['./data/**', './policy-1.toml']\n"
    )
    start = ["run", "--quiet", "--policy", str(policy)]
    assert lab.cli(*start, *PASS).returncode == 0
    policy.write_text("version = 1\n[filesystem]\nread = ['./data/**']\n")
    assert lab.cli(*start, *PASS).returncode == 0  # narrower: no question
    policy.write_text("version = 1\n[filesystem]\nread = ['./**']\n")
    no = lab.cli(*start, *PASS)
    assert no.returncode == 125
    assert "wider" in no.stderr
    assert "./**" in no.stderr or "/work/**" in no.stderr  # the difference is shown
    assert "Traceback" not in no.stderr
    assert lab.cli(*start, "--accept-policy", *PASS).returncode == 0
    assert lab.cli(*start, *PASS).returncode == 0


def test_a_policy_in_json(lab: Lab) -> None:
    policy = lab.file("p.json", '{"version": 1, "filesystem": {"read": ["./data/**"]}}')
    _, errors = run(lab, policy, agent("g.read('data/a.txt')", "g.read('p.json')"))
    assert errors.splitlines() == ["ok b'hello'", "E_POLICY_DENY"]


def test_audit_commands(lab: Lab) -> None:
    summary, _ = run(lab, lab.policy(OPEN), agent("g.read('data/a.txt')", "g.write('no', b'')"))
    lines = lab.cli("audit", "query", "--json", "--run", summary["run"]).stdout.splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds[0] == "run.start"
    assert kinds[-1] == "run.end"
    denied = lab.cli("audit", "query", "--json", "--run", summary["run"], "--kind", "denied")
    (entry,) = [json.loads(line) for line in denied.stdout.splitlines()]
    assert entry["code"] == "E_POLICY_DENY"
    assert len(lab.cli("audit", "tail", "-n", "3", "--json").stdout.splitlines()) == 3
    assert "denied" in lab.cli("audit", "query", "--since", "10m").stdout
    refused(lab.cli("audit", "query", "--since", "yesterday"), 2)
    report = json.loads(lab.cli("audit", "verify", "--json").stdout)
    assert report["ok"] is True
    assert json.loads(lab.cli("audit", "show", "--json", str(entry["seq"])).stdout) == entry
    refused(lab.cli("audit", "show", "99999999"))
    lab.cli("gate", "stop", "--force")  # a checkpoint over all of it
    proof = lab.cli("audit", "prove", str(entry["seq"]))
    assert proof.returncode == 0, proof.stderr
    assert json.loads(proof.stdout)
    refused(lab.cli("audit", "prove", "99999999"))
    out = lab.root / "export.jsonl"
    assert lab.cli("audit", "export", "0", "3", "--output", str(out)).returncode == 0
    assert len(out.read_text().splitlines()) >= 4
    refused(lab.cli("audit", "export", "0", "3", "--output", str(out)))  # never over a file


def test_tokens_from_the_command_line(lab: Lab) -> None:
    with lab.attached() as attached:
        made = lab.cli(
            "token", "mint", attached.run, "--method", "fs.*", "--count", "2"
        ).stdout.strip()
        less = lab.cli("token", "attenuate", made, "--method", "fs.stat").stdout.strip()
        seen = json.loads(lab.cli("token", "inspect", "--json", less).stdout)
        assert [link["restriction"].get("methods") for link in seen["links"]] == [
            ["fs.*"], ["fs.stat"]]  # fmt: skip
        gate = attached.gate(made)
        assert gate.read("data/a.txt") == b"hello"
        assert lab.cli("token", "revoke", made, "--reason", "done").returncode == 0
        from .lab import code_of

        assert code_of(lambda: gate.read("data/a.txt")) == "E_CAP_REVOKED"
        for bad in (["inspect", "auth1_x"], ["attenuate", "nonsense", "--count", "1"],
                    ["mint", "nobody"], ["revoke", "nothing"],
                    ["mint", attached.run, "--rate", "often"]):  # fmt: skip
            refused(lab.cli("token", *bad))
    assert lab.cli("key", "rotate").returncode == 0
    assert lab.cli("run", "--quiet", "--policy", str(lab.policy(OPEN)), *PASS).returncode == 0


def test_halt_and_resume_from_the_command_line(lab: Lab) -> None:
    assert lab.cli("halt", "--reason", "test").returncode == 0
    said = refused(lab.cli("run", "--policy", str(lab.policy(OPEN)), *PASS))
    assert "resume" in said
    assert "HALTED" in lab.cli("gate", "status").stdout
    assert lab.cli("resume").returncode == 2
    assert lab.cli("resume", "--reason", "looked").returncode == 0
    refused(lab.cli("resume", "--reason", "again"))
    assert lab.cli("run", "--quiet", "--policy", str(lab.policy(OPEN)), *PASS).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_parsed(lab: Lab, shell: str) -> None:
    script = lab.cli("completion", shell).stdout
    assert "authority" in script
    checker = "bash" if shell == "zsh" else shell
    if shutil.which(checker):
        done = subprocess.run([checker, "-n"], input=script, text=True, check=False,
                              capture_output=True, env={"PATH": os.environ["PATH"]})  # fmt: skip
        assert done.returncode == 0, done.stderr
