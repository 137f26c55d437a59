"""The matrix's attacks on containment, made inside a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from authority.cli import matrix as command
from authority.cli.usage import Usage
from authority.matrix.live import House
from authority.matrix.runner import GROUPS, perform
from authority.vm import Images


def test_the_containment_holds_inside_a_machine(built: Images) -> None:
    results = perform(groups=GROUPS[:1], house=House("vm", emulate=True))
    assert [(r.test, r.ok, r.observed, r.evidence) for r in results if not r.ok] == []
    assert len(results) == 3


@pytest.mark.parametrize(
    "arguments", [["--emulate"], ["--isolation", "vm", "--against", "none"]], ids=" ".join
)
def test_what_makes_no_sense_is_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(Usage):
        command.main(arguments)
