"""Attacks: what a person does not see of a request is approved with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .lab import GateError, Lab, code_of
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


FILES = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
files = "requests"
[network]
http = ["POST http://127.0.0.1:9/**"]
private = ["127.0.0.1:9"]
[tools.pay]
command = ["python3", "tool.py"]
control = ["to"]
[approvals]
require = ["fs:./final/**", "http://127.0.0.1:9/**", "tool:pay"]
[budgets]
stored_bytes = 4096
"""


def test_what_would_be_done_is_read_and_not_decoded_in_the_head(lab: Lab) -> None:
    """Bytes as text, a resource to its end, where a file would go, and what nobody can see."""
    lab.file("note", "x")
    with lab.attached(FILES) as run:
        gate = run.gate()

        def shown(ask: Callable[[], object], how: str = "show") -> str:
            assert code_of(ask) == ASKED
            number = lab.denials(run=run.run)[-1]["seq"]
            return lab.cli("approvals", how, str(number)).stdout

        path = "http://127.0.0.1:9/" + "x" * 600 + "/eve"
        said = shown(lambda: gate.http("POST", path, body=b'{"pay": "eve\x1b[2J"}'))
        assert f"{path}, by run {run.run} (waiting)" in said
        assert '  body       "{\\"pay\\": \\"eve\\u001b[2J\\"}"' in said
        listed = lab.cli("approvals", "list").stdout
        assert path not in listed
        assert "more characters: authority approvals show" in listed
        assert '  data         "pay eve"' in shown(lambda: gate.write("final/a", b"pay eve"))
        assert "3 bytes that are no text" in shown(lambda: gate.write("final/a", b"\xff\0\1"))
        said = shown(lambda: gate.call("fs.rename", "note", {"to": "./final/b"}))
        assert f"fs.rename fs:{lab.work}/note to fs:{lab.work}/final/b, by run" in said
        assert "unseen   what it holds when it is moved" in said


def test_what_was_not_kept_is_not_approved(lab: Lab) -> None:
    """A run uses up the room for what a person is shown, and then asks."""
    lab.file("tool.py", TOOL)
    with lab.attached(FILES) as run:
        gate = run.gate()
        for size, kept in ((2000, True), (5000, False)):  # the first is the control
            pay = {"to": "x" * size}
            assert code_of(lambda pay=pay: gate.tool("pay", pay)) == ASKED
            number = str(lab.denials(run=run.run)[-1]["seq"])
            said = lab.cli("approvals", "show", number).stdout
            assert ("yes, once" in said) == kept
            assert ("nor approved" in said) != kept
            assert lab.cli("approvals", "approve", number).returncode == (0 if kept else 125)
            assert code_of(lambda pay=pay: gate.tool("pay", pay)) == ("" if kept else ASKED)
        (waits,) = lab.admin("GET", "/v1/approvals")["approvals"]
        with pytest.raises(GateError):
            lab.admin("POST", f"/v1/approvals/{waits['id']}", {"granted": True})
        assert lab.cli("approvals", "deny", number).returncode == 0
