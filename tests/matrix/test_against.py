"""The comparison with other sandboxes: the control gets in everywhere, Authority nowhere."""

from __future__ import annotations

import pytest

from authority.cli.matrix import main
from authority.matrix import against, peers
from authority.matrix.against import ATTACKS, GOT_IN, NEIGHBOURS, STOPPED, Comparison, Outcome
from authority.matrix.verdict import Attempt


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return against.compare(["bubblewrap"])


def outcome(comparison: Comparison, name: str) -> Outcome:
    return next(p for p in comparison.peers if p.name == name)


def test_the_same_attacks_get_in_without_and_not_with_authority(comparison: Comparison) -> None:
    assert comparison.failures() == []
    assert len(comparison.meaningful()) >= 15
    ours = outcome(comparison, peers.AUTHORITY)
    for row in comparison.meaningful():
        assert ours.attack(ATTACKS[row]) == STOPPED, ours.evidence(ATTACKS[row])


def test_another_sandbox_is_attacked_for_real(comparison: Comparison) -> None:
    """The usual recipe of bubblewrap shows the host's files: that must be seen, and that it works."""
    other = outcome(comparison, "bubblewrap")
    assert other.version[0].isdigit()
    assert other.attack(ATTACKS["read a secret file"]) == GOT_IN
    assert other.attack(ATTACKS["reach the host by TCP or UDP"]) == STOPPED
    assert [other.neighbour(n) for n in NEIGHBOURS] == ["works"] * 3 + ["-"]  # no word for a host


def test_the_ways_out_of_an_ordinary_program_are_shown_by_the_control(
    comparison: Comparison,
) -> None:
    """They are taken for real, so each of them gets in where nothing stops it."""
    wanted = {
        "plant a git hook below its folder",
        "let git start a program",
        "get out by a link that it planted",
        "plain HTTP to an unlisted host",
        "another name to an allowed host",
        "use the person's agent, docker or bus",
        "use an inherited socket",
        "start a program by the loader",
    }
    assert wanted <= set(comparison.meaningful())
    other = outcome(comparison, "bubblewrap")
    assert other.attack(ATTACKS["plant a git hook below its folder"]) == GOT_IN
    assert other.attack(ATTACKS["plain HTTP to an unlisted host"]) == STOPPED


def test_each_row_has_a_cell_for_each_sandbox(comparison: Comparison) -> None:
    rows = comparison.rows()
    assert len(rows) == len(NEIGHBOURS) + len(ATTACKS)
    assert {len(row) for row in rows} == {len(comparison.peers) + 1}
    document = comparison.to_json()
    assert [p["name"] for p in document["sandboxes"]] == ["none", "bubblewrap", "authority"]
    assert document["ok"] is True


def made(name: str, **worked: bool) -> Outcome:
    attempts = {f"allowed: {n}": Attempt(n, True) for n in NEIGHBOURS}
    for names in ATTACKS.values():
        attempts[names[0]] = Attempt(names[0], worked["attacks"])
    return Outcome(name, "1", "", attempts, ended=True)


def test_our_own_failure_is_said() -> None:
    control, ours = made(peers.NONE, attacks=True), made(peers.AUTHORITY, attacks=False)
    assert Comparison([control, ours]).as_expected()
    ours.attempts["read a secret file"] = Attempt("read a secret file", True)
    broken = Comparison([control, ours])
    assert broken.failures() == ["read a secret file"]
    assert not broken.as_expected()
    ours = made(peers.AUTHORITY, attacks=False)
    ours.ended = False
    assert not Comparison([control, ours]).as_expected()
    ours = made(peers.AUTHORITY, attacks=False)
    del ours.attempts["allowed: read its file"]
    assert Comparison([control, ours]).failures() == ["read its file"]
    weak = made(peers.NONE, attacks=False)
    assert not Comparison([weak, made(peers.AUTHORITY, attacks=False)]).as_expected()


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.shutil, "which", lambda _name: None)
    missing = next(p for p in peers.PEERS if p.name == "sandbox-runtime")
    with against._place() as place, pytest.raises(peers.NotHere, match="node is not installed"):
        missing.prepare(place)
    with against._place() as place:
        row = against._attack(missing, place)
    assert row.version == "not available"
    assert row.attack(ATTACKS["read a secret file"]) == "-"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(against.UnknownPeer, match="no sandbox"):
        main(["--against", "docker"])
