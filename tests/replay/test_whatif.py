"""Recorded runs asked of another policy: what changes is named; the recorded one changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.gate.lab import Lab

from authority.audit import query
from authority.audit.store import ContentStore
from authority.cli.main import main
from authority.kernel.policy import Policy, Source, from_canonical, load
from authority.rejudge.sources import Sources
from authority.rejudge.whatif import (
    ALLOWED,
    ASKS,
    ASKS_NOT,
    DENIED,
    WhatIf,
    WhatIfError,
    what_if,
)

from .lively import POLICY

FOLDER = sorted((Path(__file__).parent / "kept").iterdir())[-1]
STARTS = [e for e in query.read(FOLDER / "log") if e["kind"] == "run.start"]
ROOTS = [e["run"] for e in STARTS if not e.get("parent")]


def recorded() -> Policy:
    return from_canonical(ContentStore(FOLDER / "store").get(STARTS[0]["policy"]))


def new(*changes: tuple[str, str]) -> Policy:
    """The recorded policy's text with something else in it."""
    port = next(p for layer in recorded().layers for _, p in layer.private)
    text = POLICY.format(port=port)
    for old, other in changes:
        assert old in text
        text = text.replace(old, other)

    def read_parent(_base: str, name: str) -> Source:
        raise AssertionError(name)

    base, name = STARTS[0]["cwd"], STARTS[0]["policy_path"]
    return load(text, format="toml", base=base, name=name, read_parent=read_parent)


def ask(policy: Policy, *runs: str) -> WhatIf:
    return what_if(FOLDER / "log", policy, runs, Sources(ContentStore(FOLDER / "store")))


def kinds(found: WhatIf) -> set[str]:
    return {each.change for each in found.changed}


@pytest.mark.parametrize("policy", [recorded(), new()], ids=["kept", "text"])
def test_under_the_recorded_policy_nothing_changes(policy: Policy) -> None:
    found = ask(policy)
    assert found.changed == ()
    assert found.budgets == ()
    assert found.asked == found.same > 50


def test_a_narrower_rule_newly_denies_and_names_the_entry() -> None:
    found = ask(new(('"./data/**", ', '"./data/own/**", ')))
    (changed,) = [c for c in found.changed if c.change == DENIED and c.effect == "fs.read"]
    assert changed.resource.endswith("/data/long.txt")
    assert changed.why.startswith("E_POLICY_DENY")
    (entry,) = [e for e in query.read(FOLDER / "log") if e["seq"] == changed.first]
    assert (entry["kind"], entry["resource"]) == ("admit", changed.resource)


def test_what_a_run_had_not_read_then_does_not_mark_it() -> None:
    """Denied the untrusted read, the run stays trusted, and its tool call would have been allowed."""
    found = ask(new(('"./data/**", ', '"./data/own/**", ')))
    assert any(c.change == ALLOWED and c.effect == "tool.call" for c in found.changed)


def test_a_user_who_is_not_trusted_marks_every_run_from_its_start() -> None:
    found = ask(new(('["user", "fs', '["fs')))
    assert [c.why for c in found.changed] == ["E_TAINT labels (agent.spawn)"] * 2


def test_a_wider_rule_newly_allows() -> None:
    found = ask(new(('deny = ["**/.env"]', "deny = []")))
    assert kinds(found) == {ALLOWED}
    assert found.changed[0].resource.endswith("/data/.env")


def test_approvals_that_come_and_go() -> None:
    found = ask(new(('require = ["fs:./out/asked/**"]', 'require = ["fs:./out/x"]')))
    assert {ASKS, ASKS_NOT} <= kinds(found)
    gone = [c for c in found.changed if c.change == ASKS_NOT]
    assert all("/out/asked" in c.resource for c in gone)


def test_a_smaller_budget_is_shown_beside_what_was_spent() -> None:
    found = ask(new(("file_bytes = 60_000", "file_bytes = 30_000")))
    assert {b.run for b in found.budgets} == set(ROOTS)
    assert all((b.before, b.after) == (60_000, 30_000) for b in found.budgets)
    assert max(b.spent for b in found.budgets) > 30_000
    assert any("E_BUDGET_EXCEEDED" in c.why for c in found.changed)


def test_only_the_runs_that_are_named_are_asked() -> None:
    narrower = new(('"./data/**", ', '"./data/own/**", '))
    assert ask(narrower, ROOTS[0]).changed == ()
    assert ask(narrower, ROOTS[1]).changed
    with pytest.raises(WhatIfError, match="no run"):
        ask(narrower, "never")


@pytest.fixture
def lived(own: Lab) -> Lab:
    with own.attached('version = 1\n[filesystem]\nread = ["./data/**"]\n') as run:
        run.gate().read("data/a.txt")
    own.stop()
    return own


def test_the_command(lived: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    def rejudge(text: str) -> tuple[int, Any]:
        state = str(lived.directory.root)
        code = main(["rejudge", "--policy", str(lived.policy(text)), "--state", state, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, found = rejudge('version = 1\n[filesystem]\nread = ["./data/**"]\n')
    assert (code, found["changed"]) == (0, [])
    code, found = rejudge("version = 1\n[budgets]\nrequests = 5\n")
    assert code == 1
    assert [c["change"] for c in found["changed"]] == ["newly denied"]
    assert [b["dimension"] for b in found["budgets"]] == ["requests"]
    policy, state = str(lived.policy("version = 1")), str(lived.directory.root)
    code = main(["rejudge", "--policy", policy, "--state", state])
    assert code == 1
    assert "newly denied" in capsys.readouterr().out
