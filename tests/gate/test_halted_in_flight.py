"""Between an intent and its act: what was halted by the time the disk has the intent is not done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from authority.gate import opening
from authority.kernel import entries
from authority.matrix import sync_attacks
from authority.matrix.live import live
from authority.matrix.wire import Ask, Wire


@pytest.mark.parametrize("halted", [False, True])
def test_a_halt_while_the_intent_is_on_its_way(
    halted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[opening.Opened] = []
    real = opening.open_state

    def open_state(*given: Any, **named: Any) -> opening.Opened:
        found.append(real(*given, **named))
        return found[-1]

    monkeypatch.setattr(opening, "open_state", open_state)
    with live() as made:
        made.stop()
        target: Path = made.workspace / "out" / "held"
        with sync_attacks.held_gate(made, hasty=False) as gate:
            wire = Wire(str(gate.path), gate.token)
            try:
                gate.layer.hold()
                numbers = wire.send([Ask("fs.write", "out/held", {"data": b"x"}, gate.token)])
                assert gate.layer.waiting.wait(60)
                if halted:
                    halt = entries.Halt(reason="test", by="test")
                    assert gate._loop is not None
                    gate._loop.call_soon_threadsafe(found[-1].ledger.step, [halt])
                gate.layer.release()
                (said,) = wire.answers(numbers)
            finally:
                gate.layer.release()
                wire.close()
        assert target.exists() is not halted
        assert (said.code == "E_HALTED") is halted, said
        (outcome,) = [e for e in made.entries() if e["kind"] == "outcome"]
        assert outcome["status"] == ("aborted" if halted else "done")
        assert ("spent" in outcome) is not halted  # what was not done gives back what was reserved
