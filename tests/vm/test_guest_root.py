"""Root in the guest has no way out but the channel: the matrix's own rows, and that they can fail."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from authority.matrix import guest_attacks, overcome
from authority.matrix.beside import Hypervisors
from authority.matrix.live import House, Live, Ran, live
from authority.matrix.runner import GUEST_GROUPS, Step, one
from authority.vm import Images

EMULATED = House("vm", emulate=True)
ROWS = [(guest, step) for guest, steps in GUEST_GROUPS for step in steps]


@pytest.fixture(scope="module")
def gate(request: pytest.FixtureRequest, built: Images) -> Iterator[Live]:
    """One gate for all rows of a guest: its images are built and its machines boot once."""
    with live(dataclasses.replace(EMULATED, guest=request.param)) as made:
        yield made


@pytest.mark.parametrize(
    ("gate", "step"), ROWS, ids=[step[0].name for _, step in ROWS], indirect=["gate"]
)
def test_root_in_the_guest_gets_nowhere(gate: Live, step: Step) -> None:
    result = one(gate, *step)
    assert result.ok, f"{result.observed}\n{result.evidence}"
    assert "control:" in result.evidence
    assert result.observed.startswith("0 of ")


@pytest.mark.parametrize("gate", [overcome.UNLOCKED], indirect=True)
def test_without_the_kernels_guards_the_row_fails(gate: Live) -> None:
    result = guest_attacks.kernel(gate)
    assert not result.ok
    assert "WORKED: /dev/mem" in result.observed


def test_without_root_the_row_fails() -> None:
    """A program that is confined like every other is no attacker, and the controls say so."""
    with live() as gate:
        result = guest_attacks.devices(gate)
    assert not result.ok
    assert "control FAILED: be root" in result.observed


# --- what the host looks at ---


def a_log(*entries: dict[str, Any]) -> Any:
    return SimpleNamespace(entries=lambda _run: list(entries))


@pytest.mark.parametrize(
    ("entries", "code", "held"),
    [
        ([{"kind": "denied", "code": "E_SCHEMA_INVALID"}, {"kind": "run.end"}], 137, True),
        ([{"kind": "run.end"}], 137, False),
        ([{"kind": "denied", "code": "E_SCHEMA_INVALID"}], 137, False),
        ([{"kind": "denied", "code": "E_POLICY_DENY"}, {"kind": "run.end"}], 137, False),
        ([{"kind": "denied", "code": "E_SCHEMA_INVALID"}, {"kind": "run.end"}], 0, False),
    ],
    ids=["held", "no denial", "no end", "another denial", "it ended by itself"],
)
def test_a_malformed_frame_must_leave_its_denial_and_the_end(
    entries: list[dict[str, Any]], code: int, held: bool
) -> None:
    found = guest_attacks._recorded(a_log(*entries), "garbage", Ran(end={"code": code}))
    assert found.worked is not held


def test_a_machine_that_goes_on_is_noticed() -> None:
    assert guest_attacks._ended_by_host("halt", Ran(), {"wall_time"}).worked
    assert guest_attacks._ended_by_host("halt", Ran(end={"reason": "exited"}), {"wall_time"}).worked
    assert not guest_attacks._ended_by_host(
        "halt", Ran(end={"reason": "wall_time"}), {"wall_time"}
    ).worked


def test_a_hypervisor_that_starts_or_opens_something_is_noticed() -> None:
    found = Hypervisors(SimpleNamespace(pid=lambda: 1))  # type: ignore[arg-type]
    assert not any(attempt.worked for attempt in found.judged("net:[1]"))
    found.children.add(7)
    found.files.add("/etc/shadow")
    worked = {attempt.name for attempt in found.judged("net:[1]") if attempt.worked}
    assert worked == {"start a process", "hold a file open"}


def test_a_file_counts_when_it_is_still_open_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Hypervisors(SimpleNamespace(pid=os.getpid))  # type: ignore[arg-type]
    monkeypatch.setattr(found.seen, "look", lambda: None)
    monkeypatch.setattr(found.seen, "processes", {os.getpid(): None})
    brief, kept = tmp_path / "brief", tmp_path / "kept"
    with kept.open("w"):
        with brief.open("w"):
            found.look()
        assert found.files == set()
        found.look()
    assert str(kept) in found.files
    assert str(brief) not in found.files


def test_a_change_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "become_sandbox" in overcome.source(overcome.ROOT)
    assert "modules_disabled" in overcome.source(overcome.ROOT)
    assert "modules_disabled" not in overcome.source(overcome.UNLOCKED)
    monkeypatch.setattr(overcome, "_STARTS", "this does not stand there")
    with pytest.raises(overcome.NotOvercome):
        overcome.source(overcome.ROOT)
