"""Crashes: of the gate, of the agent, of the disk, of what is stored. Nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from authority import protocol
from authority.agent import Denied
from authority.agent.errors import GateError as AgentError
from authority.agent.errors import Receipt
from authority.audit.verification import verify

from .lab import OPEN, GateError, Lab, code_of, is_gate, lab_at, new_root, wait_for

CYCLES = 3


def processes_with(marker: str) -> list[int]:
    """Living processes with this text among their arguments."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if marker.encode() in (path / "cmdline").read_bytes() and (
                int(path.name) != os.getpid()
                and (path / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            ):
                found.append(int(path.name))
    return found


def test_kill_9_of_the_gate_at_work(own: Lab) -> None:
    receipts: list[Receipt] = []
    for cycle in range(CYCLES):
        marker = f"marker-{os.getpid()}-{cycle}"
        with own.attached() as run:
            stop = threading.Event()

            def work(run=run, stop=stop) -> None:  # type: ignore[no-untyped-def]
                gate = run.gate()
                with contextlib.suppress(AgentError, OSError):
                    while not stop.is_set():
                        with contextlib.suppress(Denied):
                            gate.append("out/work", b"x")
                            receipts.append(gate.last_receipt)
                            gate.write("forbidden", b"x")
                        receipts.append(gate.last_receipt)

            threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            contained = own.start(
                f"import time, sys\nprint('up', flush=True)\nmark = {marker!r}\ntime.sleep(60)"
            ).said("up")
            assert processes_with(marker)
            enough = 11 * (cycle + 1)
            wait_for(lambda enough=enough: len(receipts) >= enough)
            time.sleep(0.03 * cycle)
            own.kill()
            stop.set()
            for thread in threads:
                thread.join(60)
            wait_for(lambda marker=marker: not processes_with(marker))
            assert not [e for e in contained.events if e["event"] == "end"]
        own.admin("GET", "/v1/status")  # a new gate opens what the old one left
        entries = {e["seq"]: e["hash"] for e in own.log()}
        lost = [r for r in receipts if entries.get(r.seq) != r.hash]
        assert lost == []
    assert len(receipts) > 50
    assert verify(own.directory.log).ok
    assert own.cli("audit", "verify").returncode == 0
    # Every run ended with its gate; what was in flight is spent, so the state is empty and usable.
    assert own.admin("GET", "/v1/status")["runs"] == []
    assert own.run("print('on')").out == "on\n"


def test_what_is_in_doubt_is_spent(own: Lab) -> None:
    (own.directory.root / "gate.json").write_text('{"budgets": {"tool_calls": 1}}')
    own.file("slow.py", "import time\ntime.sleep(60)\n")
    policy = OPEN + '[tools.slow]\ncommand = ["python3", "slow.py"]\n'
    with own.attached(policy) as run:
        wire = run.wire()
        wire.send(wire.request("tool.call", "tool:slow", {"arguments": {}}, token=run.token))
        wait_for(lambda: own.log(run=run.run, kind="admit"))
        own.kill()
    with own.attached(policy) as run:
        assert code_of(lambda: run.gate().tool("slow", {})) == "E_BUDGET_EXCEEDED"


def test_kill_9_of_the_agent(lab: Lab) -> None:
    ran = lab.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (ran.summary["code"], ran.summary["reason"]) == (137, "killed")
    with lab.attached() as run:  # an attached one: its connection breaks in the middle of a frame
        wire = run.wire()
        wire.raw(protocol.encode_frame(1, b"\x92")[:6])
        wire.close()
        assert run.gate().read("data/a.txt") == b"hello"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_the_gate_and_loses_nothing() -> None:
    root = new_root()
    state = root / "small"
    state.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(state)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        shutil.rmtree(root, ignore_errors=True)
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        with lab_at(root, state) as lab:
            fill_up(lab, state)
    finally:
        subprocess.run(["umount", "-l", str(state)], check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


def fill_up(lab: Lab, state: Path) -> None:
    receipts = []
    with lab.attached() as run:
        gate = run.gate()
        gate.append("out/f", b"x")
        receipts.append(gate.last_receipt)
        pid = lab.pid()
        free = os.statvfs(state)
        with contextlib.suppress(OSError), open(state / "ballast", "wb", 0) as ballast:
            for _ in range(free.f_bavail + 16):
                ballast.write(bytes(free.f_frsize))
        ended = False
        data = os.urandom(3000)  # kept in the store: it needs room
        try:
            for _ in range(3000):
                with contextlib.suppress(Denied):
                    gate.append("out/f", data)
                receipts.append(gate.last_receipt)
        except (AgentError, OSError):
            ended = True
    # Denials and work either go on within the reserve or the gate has gone, not half of it.
    if ended:
        wait_for(lambda: not is_gate(pid))
    with contextlib.suppress(FileNotFoundError):
        (state / "ballast").unlink()
    assert lab.run("print('on')").out == "on\n"
    entries = {e["seq"]: e["hash"] for e in lab.log()}
    assert [r for r in receipts if entries.get(r.seq) != r.hash] == []
    assert verify(lab.directory.log).ok


def serve(lab: Lab) -> subprocess.CompletedProcess[str]:
    """The gate's process by hand, for its exit code."""
    readable, writable = os.pipe()
    try:
        return subprocess.run(
            [sys.executable, "-I", "-m", "authority.gate", str(lab.directory.root),
             "--ready", str(writable)],
            pass_fds=(writable,), capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    finally:
        os.close(readable)
        os.close(writable)


def test_a_log_that_is_cut_below_its_checkpoint(own: Lab) -> None:
    own.run("print('x')")
    own.stop()
    assert own.cli("audit", "verify").returncode == 0
    segment = sorted(own.directory.log.glob("*.jsonl"))[0]
    lines = segment.read_bytes().rstrip(b"\0").split(b"\n")[:-1]
    segment.write_bytes(b"\n".join(lines[:-3]) + b"\n")
    done = serve(own)
    assert done.returncode == 125
    assert "Traceback" not in done.stderr
    assert (
        "tampered" in (own.directory.root / "incidents.txt").read_text()
        or (own.directory.root / "incidents.txt").read_text().strip()
    )
    with pytest.raises(GateError, match="does not start"):
        own.start("pass")
    refused = own.cli("run", "--policy", str(own.policy(OPEN)), "--", "true")
    assert refused.returncode == 125
    assert len(refused.stderr.strip().splitlines()) <= 2
    assert own.cli("audit", "verify").returncode == 1


def test_a_damaged_entry(own: Lab) -> None:
    own.run("print('x')")
    own.stop()
    segment = sorted(own.directory.log.glob("*.jsonl"))[0]
    raw = bytearray(segment.read_bytes())
    raw[raw.index(b'"kind":"run.start"') + 12] ^= 1
    segment.write_bytes(raw)
    done = serve(own)
    assert done.returncode == 125
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["signing.key", "mac", "gate.json", "admin.token"])
def test_damaged_keys_and_settings(own: Lab, what: str) -> None:
    own.admin("GET", "/v1/status")
    own.stop()
    keys = own.directory.keys
    if what == "signing.key":
        own.directory.signing_key.write_bytes(b"nonsense")
    elif what == "mac":
        next(p for p in (keys / "mac").iterdir()).write_bytes(b"short")
    elif what == "gate.json":
        (own.directory.root / "gate.json").write_text('{"budgets": {"file_bytes": -1}}')
    else:
        own.directory.admin_token.write_text("auth1_nonsense")
        refused = own.cli("gate", "status")
        assert refused.returncode in {0, 125}
        with pytest.raises(GateError, match="E_CAP"):
            own.admin("GET", "/v1/status")
        return
    done = serve(own)
    assert done.returncode == 125, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe"])
def test_a_damaged_policy_store(own: Lab, damage: bytes) -> None:
    """What was used last can't be read: that is no reason to take a wider one unseen."""
    policy = own.file("p.toml", "version = 1\n[filesystem]\nread = ['./data/**']\n")
    ran = own.run("pass", policy)
    digest = own.log(run=ran.run, kind="run.start")[0]["policy"]
    own.run("pass", policy)
    (stored,) = [
        p for p in own.directory.store.rglob("*") if digest[2:] in p.name or p.name == digest
    ]
    stored.chmod(0o600)
    stored.write_bytes(damage)
    own.file("p.toml", "version = 1\n[filesystem]\nread = ['./**']\n")
    refused = own.cli("run", "--policy", "p.toml", "--", sys.executable, "-c", "pass")
    assert refused.returncode == 125
    assert "Traceback" not in refused.stderr
    accepted = own.cli(
        "run", "--policy", "p.toml", "--accept-policy", "--", sys.executable, "-c", "pass"
    )
    assert accepted.returncode == 0, accepted.stderr


def test_sigterm_ends_in_order(own: Lab) -> None:
    ran = own.start("import time\nprint('up', flush=True)\ntime.sleep(60)").said("up")
    pid = own.pid()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not is_gate(pid))
    assert own.log(run=ran.run, kind="run.end")
    assert own.log()[-1]["kind"] == "gate.stop"
    assert own.cli("audit", "verify").returncode == 0
