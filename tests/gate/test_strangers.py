"""Who shows the gate no valid capability can't fill its log, and none of it goes unsaid."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

import pytest

from authority import protocol
from authority.gate import opening, strangers
from authority.gate.client import GateError

from .lab import Lab, Wire

MANY = 60
NO_MESSAGE, NO_CAPABILITY = "E_SCHEMA_INVALID", "E_CAP_INVALID"


def sent_away(wire: Wire, payload: bytes) -> str:
    """The code that it is told; by then the refusal is in the log or counted."""
    wire.payload(payload)
    last = wire.message()
    wire.close()
    assert isinstance(last, protocol.Fatal)
    return last.code


def test_of_many_strangers_the_first_have_an_entry_and_the_others_are_counted(own: Lab) -> None:
    answers: list[GateError] = []
    with own.attached() as run:
        for _ in range(MANY):
            assert sent_away(run.wire(hello=False), b"\xc1") == NO_MESSAGE
            forged = protocol.encode_hello("test", bytes([*run.token[:-1], run.token[-1] ^ 1]))
            assert sent_away(run.wire(hello=False), forged) == NO_CAPABILITY
            with pytest.raises(GateError, match="E_CAP_MISSING") as refused:
                own.with_bearer("", "GET", "/v1/status")
            answers.append(refused.value)
        for _ in range(MANY):
            assert sent_away(run.wire(), b"\xc1") == NO_MESSAGE
        assert run.gate().read("data/a.txt") == b"hello"
        assert own.admin("GET", "/v1/incidents")["incidents"] == []
        known = run.run
    own.stop()
    alone = Counter(e["code"] for e in own.denials() if not e.get("run"))
    counted: Counter[str] = Counter()
    for noted in own.log(kind="incident", what="strangers", noted=True):
        for number, code in re.findall(r"(\d+) (E_\w+)", noted["detail"]):
            counted[code] += int(number)
    assert alone + counted == {NO_MESSAGE: MANY, NO_CAPABILITY: MANY, "E_CAP_MISSING": MANY}
    assert strangers.EACH <= alone["E_CAP_MISSING"] < MANY
    assert [e["seq"] for e in own.denials(code="E_CAP_MISSING")] == [
        no.answer["seq"] for no in answers if "seq" in no.answer
    ]
    assert strangers.EACH <= alone[NO_MESSAGE] + alone[NO_CAPABILITY] < 2 * MANY
    assert len(own.denials(run=known)) == MANY, "the control: who is known has an entry each"


def test_a_windows_end_says_what_was_counted_and_the_next_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "SECONDS", 0)
    opened = opening.open_state(opening.initialise(tmp_path / "state")[0])

    async def window(made: strangers.Strangers, many: int) -> tuple[int, int]:
        """How many have an entry alone, and how many entries its end makes."""
        before = opened.ledger.state.seq
        alone = sum(made.alone("E_SCHEMA_INVALID") for _ in range(many))
        assert opened.ledger.state.seq == before
        await asyncio.sleep(0.01)  # its end was due before
        return alone, opened.ledger.state.seq - before

    async def windows() -> list[tuple[int, int]]:
        made = strangers.Strangers(opened.ledger, "here")
        few = strangers.EACH
        return [await window(made, many) for many in (few + 5, few, 0, few + 1)]

    few = strangers.EACH
    try:
        assert asyncio.run(windows()) == [(few, 1), (few, 0), (0, 0), (few, 1)]
    finally:
        opened.checkpointer.close()
        opened.ledger.log.close()
