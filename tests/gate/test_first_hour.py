"""What somebody new runs into: odd streams, odd names, requests written as rules are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from authority.audit.files import is_locked

from .lab import CLI, OPEN, SECONDS, Lab

CALLS = [
    ["--help"],
    ["--version"],
    ["run", "--help"],
    ["doctor", "--json"],
    ["audit", "show", "-n", "500"],
    ["audit", "show", "-n", "500", "--json"],
    ["completion", "bash"],
]


def called(lab: Lab, arguments: list[str], stdout: int | None, closed: bool = False) -> str:
    """What it says on standard error."""
    line = ["/bin/sh", "-c", '"$0" "$@" >&-', str(CLI)] if closed else [str(CLI)]
    done = subprocess.run(
        [*line, *arguments], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(lab.root),
             "AUTHORITY_STATE": str(lab.directory.root)},
        text=True, timeout=SECONDS * 2, check=False, cwd=lab.work,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in (0, 1, 125), done
    return done.stderr


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_nobody_reads_what_is_said(lab: Lab, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert called(lab, arguments, writer) == ""
    finally:
        os.close(writer)
    assert called(lab, arguments, None, closed=True) == ""


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_a_full_disk_is_said_once(lab: Lab, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        said = called(lab, arguments, full.fileno())
    assert said.splitlines() == [
        "authority: No space left on device", "  make room on that disk",
    ]  # fmt: skip


def test_options_before_the_command(lab: Lab) -> None:
    done = lab.cli("--json", "doctor")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "options stand behind the command" in done.stderr


def test_a_request_is_named_as_rules_name_it(lab: Lab) -> None:
    rules = OPEN + '[network]\nhttp = ["POST https://api.example/v1/**"]\n'
    path = str(lab.policy(rules))
    for words in (["http.request"], []):
        good = lab.cli("check", "--policy", path, *words, "POST https://api.example/v1/x")
        assert (good.returncode, good.stdout.splitlines()[0]) == (
            0, "allowed: http.request POST https://api.example:443/v1/x",
        )  # fmt: skip
        bad = lab.cli("check", "--policy", path, *words, "GET https://api.example/v1/x")
        assert bad.returncode == 1
    wrong = lab.cli("check", "--policy", path, "fs.raed", "x")
    assert (wrong.returncode, "did you mean fs.read?" in wrong.stderr) == (2, True)


def test_why_takes_a_path_and_a_url(own: Lab) -> None:
    program = (
        "from authority.agent import connect, Denied\n"
        "g = connect()\n"
        "for call in (lambda: g.read_text('docs/no.md'), lambda: g.http('GET', 'https://x.example/a?b=1')):\n"
        "    try: call()\n"
        "    except Denied as d: print(d.code)\n"
    )
    path = own.policy('version = 1\n[network]\nhttp = ["GET https://y.example/"]\n')
    done = own.cli("run", "--quiet", "--files", "requests", "--policy", str(path), "--",
                   sys.executable, "-c", program)  # fmt: skip
    assert done.stdout.split() == ["E_POLICY_DENY", "E_POLICY_DENY"], done
    for named, resource in (
        ("docs/no.md", f"fs:{own.work}/docs/no.md"),
        ("https://x.example/a?b=1", "https://x.example:443/a?b=1"),
        ("GET https://X.example:443/a?b=1", "https://x.example:443/a?b=1"),
    ):
        found = own.cli("why", named, "--json")
        if (
            ".." in named
        ):  # not a form that the log has: nothing is found, and nothing else is shown
            assert found.returncode == 125
            continue
        assert json.loads(found.stdout)["resource"] == resource, found
    for named in ("docs/other.md", "https://x.example/"):
        assert "was denied yet" in own.cli("why", named).stderr


def test_names_that_are_no_kind_and_no_run(lab: Lab) -> None:
    assert "did you mean run.start?" in lab.cli("audit", "query", "--kind", "run.strat").stderr
    assert lab.cli("audit", "query", "--kind", "gate.start").returncode == 0
    for action in ("show", "apply", "discard"):
        for name in ("../../runs", "no such", "\udcff"):
            said = lab.cli("dry", action, name).stderr
            assert "there is no dry run" in said, said
    assert lab.cli("approvals").stdout == "nothing waits\n"
    assert "none is planted" in lab.cli("canary", "list").stdout
    target = lab.file("kept.jsonl", "mine")
    said = lab.cli("audit", "export", "0", "1", "--output", str(target)).stderr
    assert "is there already" in said
    assert target.read_text() == "mine"


def test_a_policy_with_a_name_that_is_not_utf8(lab: Lab) -> None:
    named = os.fsencode(lab.work) + b"/p\xff.toml"
    Path(os.fsdecode(named)).write_text(OPEN)
    for arguments in (["check"], ["run", "--quiet"]):
        tail = [] if arguments == ["check"] else ["--", sys.executable, "-c", "pass"]
        done = lab.cli(*arguments, "--policy", os.fsdecode(named), *tail)
        assert done.returncode == 125
        assert "is not UTF-8" in done.stderr
        assert len(done.stderr.splitlines()) == 2


def test_what_is_no_program(lab: Lab) -> None:
    path = str(lab.policy(OPEN))
    lab.file("plain.txt", "x")
    (lab.work / "folder").mkdir(exist_ok=True)
    for name, says in (
        ("./folder", "is a folder"),
        ("./plain.txt", "is no program that may be executed"),
        ("./nothing", "there is no program ./nothing\n"),
        ("nosuchprogram", "there is no program nosuchprogram in PATH"),
    ):
        assert says in lab.cli("run", "--policy", path, "--", name).stderr


def test_what_a_bad_end_may_come_from(own: Lab) -> None:
    """A program that may start none, and a control that ends well."""
    path = str(own.policy(OPEN))
    for script, told in (("import os; os.execv('/bin/true', ['true'])", True), ("pass", False)):
        done = own.cli("run", "--suggest", "--policy", path, "--", sys.executable, "-c", script)
        assert ("has to stand in [process] exec" in done.stderr) is told, done.stderr
        assert ("127.0.0.1 is the run's own" in done.stderr) is told
        unsaid = json.loads(own.cli("suggest", "--json").stdout)["unsaid"]
        assert bool(unsaid) is told


def test_a_key_that_is_missing_is_not_passed_over(own: Lab) -> None:
    text = OPEN + '[models]\nallow = ["gpt-4.1*"]\n'
    path = str(own.policy(text))
    ask = (
        "import os, urllib.request as u\n"
        "r = u.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', method='POST',\n"
        "  headers={'content-type': 'application/json'}, data=b'{\"model\":\"gpt-4.1-mini\","
        '"max_tokens":5,"messages":[{"role":"user","content":"x"}]}\')\n'
        "try: u.urlopen(r)\n"
        "except Exception as e: print(e)\n"
    )
    done = own.cli("run", "--suggest", "--policy", path, "--", sys.executable, "-c", ask)
    assert "wants the variable OPENAI_API_KEY" in done.stderr.partition("# not suggested:")[2]


def test_a_start_that_fails_halfway_is_told_and_ends(own: Lab) -> None:
    """Where what a run is given can't be kept."""
    path = str(own.policy(OPEN + '[process]\npass_env = ["LANG"]\n'))
    words = ["run", "--quiet", "--policy", path, "--", sys.executable, "-c", "print('ran')"]

    def run() -> subprocess.CompletedProcess[str]:
        return own.cli(*words, env={"LANG": "C.UTF-8"})

    assert run().stdout == "ran\n"
    assert own.cli("gate", "stop").stdout == "the gate has stopped\n"
    assert not is_locked(str(own.directory.log / "lock"))
    sealed = own.directory.keys / "sealed"
    aside = sealed.rename(sealed.with_name("aside"))
    sealed.write_text("in the way")
    done = run()
    assert (done.returncode, done.stdout) == (125, "")
    assert "what the run is given can't be kept: Not a directory" in done.stderr
    assert json.loads(own.cli("gate", "--json").stdout)["runs"] == []
    sealed.unlink()
    aside.rename(sealed)
    assert run().stdout == "ran\n"
