"""Attacks: what a person does not see of a request is approved with it."""

from __future__ import annotations

import pytest

from .lab import Lab, code_of
from .test_attack_approvals import ASKED, POLICY, TOOL, words

LONG = {
    "spaces": "Hollow Lane Nursery" + " " * 3000 + "account of eve",
    "what is long when it is escaped": "Hollow Lane Nursery" + "\u2003" * 300 + "account of eve",
    "a screenful": "Hollow Lane Nursery" + "\n" * 300 + "account of eve",
    "a sealed one": "Hollow Lane Nursery" + " " * 3000 + "account of eve",
    "columns": 'Hollow Lane Nursery"  nobody but the program' + " " * 80 + "account of eve",
}


@pytest.mark.parametrize("how", LONG)
@pytest.mark.parametrize("held", [False, True], ids=["said", "held"])
def test_all_of_what_waits_is_on_the_screen(lab: Lab, how: str, held: bool) -> None:
    lab.file("tool.py", TOOL)
    with lab.attached(POLICY) as run:
        gate = run.gate()
        tail = words(gate)
        if not held:
            gate.tool("web", {"q": "x"})
        pay = {"to": LONG[how], "amount": tail if held else 1}
        assert code_of(lambda: gate.tool("pay", pay)) == ASKED
        number = lab.denials(run=run.run)[-1]["seq"]
        shown = lab.cli("approvals", "show", str(number)).stdout
        listed = lab.cli("approvals", "list").stdout
        assert "account of eve" in shown
        assert all(" " <= char <= "~" or char == "\n" for char in shown)
        for screen in (shown, listed):
            said = screen.split(f"entry {number}:")[1]
            assert "account of eve" in said or "more characters" in said
            (to,) = [line for line in said.split("\n") if line.startswith("  to  ")]
            assert "account of eve" in to or "characters)" in to
            assert to.endswith("nobody but the program") == held
