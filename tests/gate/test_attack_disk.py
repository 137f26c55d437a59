"""Attacks on the disk that holds the log and the content store, and on the gate's memory.

The disk is a small one in a mount namespace of its own, so what fills it harms nobody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from authority.audit.store import ContentStore
from authority.rejudge.log import rejudge
from authority.rejudge.sources import Sources

from .lab import OPEN, Attached, Lab

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
ON_A_SMALL_DISK = """
import json, os, subprocess, sys
from contextlib import suppress
from pathlib import Path
from tests.gate.lab import is_gate, lab_at, new_root

root = new_root()
disk = root / "disk"
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "disk", disk], check=True)
said = {}
with lab_at(root, disk / "state") as lab, lab.attached() as run, lab.attached() as other:
    quiet = other.gate()
    quiet.append("out/f", b"x")
    wire, many = run.wire(), 0
    with suppress(AssertionError, OSError):  # it is sent away
        while many < 60_000:
            wire.send(*[wire.request("fs.read", "data/a.txt", token=run.token) for _ in range(64)])
            many += len(wire.replies(64))
    said["halted"] = [e["detail"] for e in lab.log(kind="incident", run=run.run)]
    said["many"] = many
    said["others"] = quiet.read("data/a.txt").decode()
    with open(disk / "ballast", "wb", 0) as ballast:  # somebody else; checkpoints have room yet
        while os.statvfs(disk).f_bavail > 32:
            ballast.write(bytes(4096))
    quiet.append("out/f", os.urandom(3000))
    appended = [e["arguments"] for e in lab.log(kind="admit", effect="fs.append")]
    said["kept"] = [body.get("kept", "digest") for body in appended]
    lab.admin("POST", "/v1/halt", {"reason": "the disk is full"})
    said["all"] = len([e for e in lab.log(kind="halt") if not e.get("run")])
    said["alive"] = is_gate(lab.pid())
print(json.dumps(said))
"""


def on_a_small_disk() -> dict[str, Any]:
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", ON_A_SMALL_DISK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a disk of its own, which root can make")
def test_who_fills_the_log_is_halted_and_others_and_the_halt_go_on() -> None:
    said = on_a_small_disk()
    assert said["halted"] == ["it asked on without room in the log"]
    assert 1000 < said["many"] < 60_000
    assert said["others"] == "hello"
    assert said["kept"] == ["inline", "digest"], "no body takes the rest"
    assert (said["all"] >= 1, said["alive"]) == (True, True)


def stored(lab: Lab) -> int:
    return sum(p.stat().st_size for p in lab.directory.store.rglob("*") if p.is_file())


def writes(run: Attached, path: str, times: int) -> set[str]:
    wire = run.wire()
    return {
        wire.ask("fs.write", path, {"data": os.urandom(MIB)}, token=run.token)[0]
        for _ in range(times)
    }


def test_what_is_refused_or_given_up_is_not_stored_for_nothing(lab: Lab) -> None:
    link = lab.work / "out" / "link"
    link.symlink_to("/etc/hostname")
    few = OPEN.replace("denials", 'stored_bytes = "3MB"\nDIMENSION\ndenials')
    with lab.attached(few.replace("DIMENSION", 'file_bytes = "1KB"')) as run:
        before = stored(lab)
        assert writes(run, "out/f", 5) == {"E_BUDGET_EXCEEDED"}
        assert stored(lab) - before < 2 * MIB, "as much as is kept unpaid"
    with lab.attached(few.replace("DIMENSION", "")) as run:
        before = stored(lab)
        assert writes(run, "out/link", 6) == {"E_POLICY_DENY"}
        assert MIB < stored(lab) - before < 3 * MIB, "as its budget of stored bytes lets be kept"
        assert writes(run, "out/f", 1) == {""}, "the control: beyond it the digest alone is kept"


def test_what_a_secret_run_says_is_sealed_within_its_budget(lab: Lab) -> None:
    lab.file("secret/s", b"s")
    policy = OPEN.replace("denials", 'stored_bytes = "3MB"\ndenials').replace(
        "[budgets]",
        'secrets = { s = ["fs:./secret/**"] }\nrelease = { s = ["fs:./out/**"] }\n[budgets]',
    )
    with lab.attached(policy) as run:
        run.gate().read("secret/s")
        before = stored(lab)
        writes(run, "out/f", 6)
        kept = [e["arguments"] for e in lab.log(kind="admit", run=run.run, effect="fs.write")]
        assert MIB < stored(lab) - before < 3 * MIB
        assert [body.get("kept") for body in kept[:2]] == ["sealed", "sealed"]
        assert {body.get("digest", "") for body in kept[2:]} == {""}, (
            "a digest could be guessed from"
        )


def memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_what_fails_at_the_last_moment_leaves_nothing_in_memory(lab: Lab) -> None:
    with lab.attached(OPEN.replace("denials", "stored_bytes = 1\ndenials")) as run:
        writes(run, "out/control", 3)
        before = memory(lab.pid())
        assert writes(run, "out/no/such/f", 16) == {"E_EFFECT_FAILED"}
        assert memory(lab.pid()) - before < 20 * MIB


FLOODS = """
from authority.agent import connect
gate = connect()
for _ in range(200):
    gate.read("data/a.txt")
print("whole")
"""


def logged(lab: Lab, run: str) -> list[tuple[int, int]]:
    """Of each entry of a run its number, and the bytes of all of its lines up to there."""
    found: list[tuple[int, int]] = []
    for segment in sorted(lab.directory.log.glob("*.jsonl")):
        for line in segment.read_bytes().rstrip(b"\0").splitlines(keepends=True):
            entry = json.loads(line)
            if entry.get("run") == run:
                found.append((entry["seq"], len(line) + (found[-1][1] if found else 0)))
    return found


def test_who_has_more_in_the_log_than_its_policy_lets_it_is_halted_and_nobody_else(
    lab: Lab,
) -> None:
    with lab.attached() as neighbour:
        quiet = neighbour.gate()
        ran = lab.run(FLOODS, OPEN + '[limits]\nlog = "40KB"\n')
        assert quiet.read("data/a.txt") == b"hello"
        control = lab.run(FLOODS)
    assert (ran.summary["code"], ran.summary["reason"]) == (137, "log")
    assert "40,000 bytes" in ran.summary["detail"]
    assert "'log' in [limits]" in ran.summary["detail"]
    (case,) = lab.log(kind="incident", run=ran.run)
    assert (case["what"], case["detail"]) == ("log", ran.summary["detail"])
    beyond = [seq for seq, size in logged(lab, ran.run) if size > 40_000]
    assert case["of"] == beyond[0], "the first entry that went beyond it"
    replayed = lab.cli("replay", ran.run)
    assert replayed.returncode == 0, "it is played up to where it was halted"
    assert control.out == "whole\n"
    assert logged(lab, control.run)[-1][1] > 2 * logged(lab, ran.run)[-1][1]


def test_a_childs_entries_count_for_its_parent_too(own: Lab) -> None:
    own.file("floods.py", FLOODS)
    own.file("less.toml", OPEN + '[process]\nexec = ["python3"]\n[limits]\nlog = "40KB"\n')
    agent = 'command = ["python3", "floods.py"]\n'
    agents = f'[agents.less]\n{agent}policy = "less.toml"\n[agents.same]\n{agent}'
    with own.attached(OPEN + f'[limits]\nlog = "120KB"\n{agents}') as run:
        gate = run.gate()
        less = gate.spawn("less")
        assert gate.wait(less, 30_000)["code"] == 137
        assert gate.read("data/a.txt") == b"hello", "its own limit stops the child alone"
        same = gate.spawn("same")
        assert run.ran.end().summary["reason"] == "log"
    cases = own.log(kind="incident")
    assert [(c["what"], c["run"]) for c in cases] == [("log", less), ("log", run.run)]
    (beyond,) = [e for e in own.log() if e["seq"] == cases[1]["of"]]
    assert beyond["run"] == same
    again = rejudge(own.directory.log, Sources(ContentStore(own.directory.store)))
    assert again.ok, again.differences
    assert again.judged > 50, "no verdict rests on the limit"
