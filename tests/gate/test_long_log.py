"""A gate on a log too long to be read before it serves: it is read then, and halted if not whole."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from authority.audit.opening import everything
from authority.gate import opening, snapshots, statedir
from authority.gate.opening import Opened
from authority.gate.statedir import StateDir
from authority.kernel import entries
from authority.kernel.state import digest

from .lab import Lab

MANY = 6000
HALTED = "halted early"
DEADLINE = 60.0


def _close(opened: Opened, *, snapshot: bool) -> None:
    """As a gate that leaves in order."""
    if snapshot:
        opened.ledger.log.flush()
        snapshots.take(opened.ledger, opened.store)
    opened.ledger.step([entries.GateStop(reason="left")])
    opened.ledger.log.flush()
    opened.checkpointer.force_now()
    opened.checkpointer.close()
    opened.ledger.log.close()


def _open(directory: StateDir) -> Opened:
    return opening.open_state(statedir.open_existing(directory.root))


@pytest.fixture
def long(own: Lab) -> Lab:
    """A state directory whose log fills several segments, and that was opened once since."""
    opened = _open(own.directory)
    opened.ledger.step([entries.Halt(run="", reason=HALTED, by="uid 0")])
    opened.ledger.step([entries.Resume(reason=HALTED, by="uid 0")])
    for number in range(MANY):
        note = entries.Control(
            action="status", by="uid 0", caps=[], detail=f"{number} " + "x" * 400
        )
        opened.ledger.step([note])
        if number % 500 == 0:
            opened.ledger.log.flush()
    _close(opened, snapshot=True)
    _close(_open(own.directory), snapshot=False)
    assert (own.directory.log / "anchor").exists()
    return own


def _damage(lab: Lab) -> None:
    segment = lab.directory.log / "00000001.jsonl"
    data = segment.read_bytes()
    assert data.count(b'"detail":"7 x') == 1
    segment.write_bytes(data.replace(b'"detail":"7 x', b'"detail":"8 x'))


def test_it_is_opened_from_its_anchor_and_comes_to_the_same_state(long: Lab) -> None:
    opened = _open(long.directory)
    assert opened.ledger.log.recovery.unread > 1000
    assert opened.unconfirmed is not None
    last, expected = opened.unconfirmed
    pieces = everything(long.directory.log, opened.signing.public, opened.witnesses, last)
    assert snapshots.whole_digest(pieces) == expected
    _close(opened, snapshot=False)


def test_a_gate_serves_and_goes_on_with_it(long: Lab) -> None:
    assert "1" in str(long.run("print(1)").events)
    done = long.cli("audit", "verify")
    assert done.returncode == 0, done.stderr + done.stdout
    assert long.admin("GET", "/v1/status")["halted"] is None


def test_a_byte_that_was_changed_before_it_halts_everything(long: Lab) -> None:
    _damage(long)
    deadline = time.monotonic() + DEADLINE
    while long.admin("GET", "/v1/status")["halted"] is None:
        assert time.monotonic() < deadline, "nobody noticed"
        time.sleep(0.2)
    (incident,) = [i for i in long.log(kind="incident") if i["what"] == "snapshot"]
    assert incident["wide"]
    assert "LogCorrupt" in incident["detail"]
    assert long.cli("audit", "verify").returncode == 1


def test_without_the_anchor_the_same_byte_refuses_the_opening(long: Lab) -> None:
    _damage(long)
    Path(long.directory.log / "anchor").unlink()
    with pytest.raises(opening.LogError):
        _open(long.directory)


def _lose_the_snapshot(lab: Lab) -> None:
    """Whoever can write the state directory removes the body that the signed entry names."""
    snapshot = lab.log(kind="snapshot")[-1]
    (body,) = lab.directory.store.rglob(snapshot["digest"])
    body.unlink()


def _forge(lab: Lab) -> None:
    """The entry that ended a halt becomes one that says nothing: the gate was halted ever since."""
    segment = lab.directory.log / "00000001.jsonl"
    lines = segment.read_bytes().split(b"\n")
    (at,) = (i for i, line in enumerate(lines) if b'"kind":"resume"' in line)
    entry = json.loads(lines[at])
    note = entries.Control(action="status", by="uid 0")
    note.seq, note.batch, note.time = entry["seq"], entry["batch"], entry["time"]
    body = entries.encode(note)[:-1]
    lines[at] = body + b',"hash":"' + entry["hash"].encode() + b'"}'
    segment.write_bytes(b"\n".join(lines))


def test_without_its_snapshot_it_comes_to_the_same_state(long: Lab) -> None:
    _lose_the_snapshot(long)
    opened = _open(long.directory)
    assert opened.ledger.log.recovery.unread > 1000
    assert opened.unconfirmed is None
    assert opened.ledger.state.halted < 0
    pieces = everything(
        long.directory.log, opened.signing.public, opened.witnesses, opened.ledger.state.seq
    )
    assert snapshots.whole_digest(pieces) == digest(opened.ledger.state)
    _close(opened, snapshot=False)


def test_no_state_is_made_of_what_nobody_has_checked_yet(long: Lab) -> None:
    _lose_the_snapshot(long)
    _forge(long)
    with pytest.raises(opening.LogError, match="hash"):
        _open(long.directory)


def test_an_anchor_that_cannot_be_kept_keeps_no_gate_from_opening(long: Lab) -> None:
    anchor = long.directory.log / "anchor"
    anchor.unlink()
    (anchor / "full").mkdir(parents=True)
    opened = _open(long.directory)
    assert opened.ledger.log.recovery.unread == 0
    _close(opened, snapshot=False)


def test_it_is_read_while_the_gate_goes_on_writing_and_begins_new_segments(long: Lab) -> None:
    opened = _open(long.directory)
    assert opened.unconfirmed is not None
    last, expected = opened.unconfirmed
    segments = set(long.directory.log.glob("*.jsonl"))
    found: list[str] = []

    def read() -> None:
        for _ in range(3):
            pieces = everything(long.directory.log, opened.signing.public, opened.witnesses, last)
            found.append(snapshots.whole_digest(pieces))

    reader = threading.Thread(target=read)
    reader.start()
    written = 0
    while reader.is_alive() or written < MANY:
        note = entries.Control(action="status", by="uid 0", detail="y" * 3000)
        opened.ledger.step([note])
        written += 1
        if written % 500 == 0:
            opened.ledger.log.flush()
            opened.checkpointer.force_now()
    reader.join(DEADLINE)
    assert found == [expected] * 3
    assert set(long.directory.log.glob("*.jsonl")) > segments
    _close(opened, snapshot=False)
