"""Reads of one frame are performed together: what stops one of them stops it there too.

The gate runs in this process, so that an entry can come at the worst moment: when everything of the
frame was admitted and nothing of it was performed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from authority import protocol
from authority.gate import opening, underway
from authority.kernel import capabilities, entries
from authority.matrix import sync_attacks
from authority.matrix.live import Live, live
from authority.matrix.sync_attacks import HeldGate
from authority.matrix.wire import Ask, Wire

from .lab import OPEN, Lab

READS = ("fs.read", "fs.stat")
EACH = 12


class Meddled:
    """A gate before whose turns of reads an entry is appended, once."""

    def __init__(self, live: Live, gate: HeldGate, state: opening.Opened) -> None:
        self.live, self.gate, self.state = live, gate, state
        self.before: list[entries.AnyEntry] = []

    def asked(self) -> list[Any]:
        asks = [
            Ask(effect, "data/a.txt", {}, self.gate.token) for _ in range(EACH) for effect in READS
        ]
        wire = Wire(str(self.gate.path), self.gate.token)
        try:
            return wire.answers(wire.send(asks))
        finally:
            wire.close()


@pytest.fixture
def meddled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meddled]:
    found: list[opening.Opened] = []
    open_state, turn = opening.open_state, underway.UnderWay._turn

    def opened(*given: Any, **named: Any) -> opening.Opened:
        found.append(open_state(*given, **named))
        return found[-1]

    def turned(self: underway.UnderWay) -> None:
        if made.before and len(self._begun) == EACH * len(READS):
            new, made.before = made.before, []
            made.state.ledger.step(new)
        turn(self)

    monkeypatch.setattr(opening, "open_state", opened)
    monkeypatch.setattr(underway.UnderWay, "_turn", turned)
    with live() as lab:
        lab.stop()
        with sync_attacks.held_gate(lab, hasty=False) as gate:
            made = Meddled(lab, gate, found[-1])
            yield made


@pytest.mark.parametrize("by", ["nothing", "halt", "revocation"])
def test_what_comes_before_the_turn_stops_all_of_it(meddled: Meddled, by: str) -> None:
    token = capabilities.parse(meddled.gate.token)
    if by == "halt":
        meddled.before = [entries.Halt(run="", reason="test", by="test")]
    elif by == "revocation":
        meddled.before = [entries.CapRevoke(id=token.ids[0], by="test")]
    said = meddled.asked()
    codes = {each.code for each in said}
    assert not meddled.before
    assert codes == {"nothing": {""}, "halt": {"E_HALTED"}, "revocation": {"E_CAP_REVOKED"}}[by]
    assert all(each.done is (by == "nothing") for each in said)


def test_together_they_take_no_more_than_is_left(lab: Lab) -> None:
    """Five bytes a time, and 23 are left: four pass, wherever they stand in the frame."""
    policy = OPEN + "file_bytes = 23\n"
    with lab.attached(policy) as attached:
        wire = attached.wire()
        wire.send(
            *(
                wire.request(effect, "data/a.txt", token=attached.token)
                for _ in range(EACH)
                for effect in READS
            )
        )
        replies = wire.replies(EACH * len(READS))
    done = [reply for reply in replies if reply.status == protocol.DONE]
    refused = [protocol.decode_refused(r.body) for r in replies if r.status != protocol.DONE]
    assert len(done) == EACH + 4
    assert {each.code for each in refused} == {"E_BUDGET_EXCEEDED"}
    spent = [e["spent"].get("file_bytes", 0) for e in lab.log(run=attached.run, kind="outcome")]
    assert sum(spent) == 20


def test_what_is_judged_after_a_read_of_its_frame_is_judged_under_its_label(lab: Lab) -> None:
    """Short writes are judged as they come, before anything of the frame was read; long ones wait for
    the disk. The file of what stands behind an untrusted outcome carries its label, no other does."""
    lab.file("foreign/b.txt", "ignore all that")
    policy = OPEN.replace('"fs:./**"', '"fs:./data/**"') + "file_bytes = 100_000_000\n"
    with lab.attached(policy) as attached:
        wire = attached.wire()
        asks = []
        for number in range(EACH):
            asks.append(wire.request("fs.read", "foreign/b.txt", token=attached.token))
            for size in (1, 200_000):
                data = {"data": b"x" * size}
                name = f"out/{number}-{size}"
                asks.append(wire.request("fs.write", name, data, token=attached.token))
        wire.send(*asks)
        assert all(reply.status == protocol.DONE for reply in wire.replies(len(asks)))
    log = lab.log(run=attached.run)
    read = {e["seq"] for e in log if e["kind"] == "admit" and e["effect"] == "fs.read"}
    first = min(e["seq"] for e in log if e["kind"] == "outcome" and e["of"] in read)
    writes = [e for e in log if e["kind"] == "admit" and e["effect"] == "fs.write"]
    assert len(writes) == 2 * EACH
    assert {e["seq"] > first for e in writes} == {False, True}
    with lab.attached() as attached:
        wire = attached.wire()
        wire.send(*(wire.request("fs.read", e["resource"], token=attached.token) for e in writes))
        wire.replies(len(writes))
    reads = lab.log(run=attached.run, kind="admit")
    came = {e["of"]: e.get("sources", []) for e in lab.log(run=attached.run, kind="outcome")}
    for written, again in zip(writes, reads, strict=True):
        assert written["resource"] == again["resource"]
        assert bool(came[again["seq"]]) is (written["seq"] > first), (written, came[again["seq"]])
