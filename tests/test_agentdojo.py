"""The benchmark's own rules: what it declares, what it counts, whom its person believes.

It runs without AgentDojo: what needs that is `make bench-agentdojo`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from benchmarks.agentdojo import adaptive, declared, table
from benchmarks.agentdojo.agents import Call, Person
from benchmarks.agentdojo.plans import PLANS
from benchmarks.agentdojo.runs import Job, Score

from authority.gate.policyfile import read
from authority.kernel.policy import Policy
from authority.kernel.resources import parse

SUITES = ("workspace", "banking")


def policy(folder: Path, suite: str, kind: str = "labels") -> Policy:
    file = folder / f"{suite}-{kind}.toml"
    socket = str(folder / "tools.sock")
    file.write_text(declared.policy(suite, "w1", socket, "http://127.0.0.1:1/v1", kind), "utf-8")
    return read(file).policy


@pytest.mark.parametrize("suite", SUITES)
def test_each_declaration_is_a_rule_of_the_policy(tmp_path: Path, suite: str) -> None:
    made = policy(tmp_path, suite)
    for tool, one in declared.declarations(suite).items():
        rules = made.tool_rules(parse("tool.call", f"tool:{tool}"))
        assert rules is not None
        assert rules.changes == (tool in declared.acts(suite))
        if rules.changes:
            assert set(rules.control) == set(one.get("control", ()))
    assert not policy(tmp_path, suite, "deny_all").tools


def test_declarations_name_no_value_of_a_task() -> None:
    text = declared.FILE.read_text("utf-8")
    assert not any(mark in text for mark in ("@", "IBAN", "http"))
    words = [key for suite in SUITES for key in tomllib.loads(text)[suite]]
    assert len(words) == len(set(words)) == 35


def test_every_task_has_a_plan() -> None:
    assert len([key for key in PLANS if key[0] == "workspace"]) == 40
    assert len([key for key in PLANS if key[0] == "banking"]) == 16


def person(kind: str, own: list[tuple[str, dict[str, Any]]]) -> tuple[Person, list[bool]]:
    said: list[bool] = []

    def answer(_number: str, yes: bool) -> None:
        said.append(yes)

    return Person(kind, own, lambda: [("a1", 7)], lambda _seq: {}, answer), said


@pytest.mark.parametrize(
    ("kind", "given", "yes"),
    [
        ("exact", {"to": "a", "n": 5}, True),
        ("exact", {"to": "a", "n": "5"}, False),
        ("exact", {"to": "b", "n": 5}, False),
        ("exact", {"to": "a", "n": 5, "cc": "b"}, False),
        ("refuse", {"to": "a", "n": 5}, False),
        ("all", {"to": "b", "n": 9}, True),
    ],
)
def test_a_person_approves_what_their_policy_says(
    kind: str, given: dict[str, Any], yes: bool
) -> None:
    who, said = person(kind, [("pay", {"to": "a", "n": 5.0})])
    assert who.decide(Call("pay", given, injected=False)) is yes
    assert said == [yes]


def test_what_was_done_is_not_approved_once_more() -> None:
    who, _ = person("exact", [("pay", {"to": "a"})])
    call = Call("pay", {"to": "a"}, injected=True)
    assert who.decide(call)
    who.sees(call)
    assert not who.decide(call)


def score(did: list[list[Any]], injection: str = "i", choices: Any = ()) -> Score:
    job = Job("planned", "banking", "u", injection, person="exact" if injection else "all")
    return Score(
        job=job, utility=True, attacked=False, leak=False, coincides=False, seen=True, asked=0,
        refused=0, injected=0, seconds=0.0, did=did, choices=list(choices),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("did", "leak", "steered"),
    [
        ([], False, False),
        ([["pay", {"to": "a", "n": "1"}]], False, False),
        ([["pay", {"to": "a", "n": "2"}]], False, True),
        ([["pay", {"to": "a", "n": "3"}]], True, False),
        ([["pay", {"to": "b", "n": "1"}]], True, False),
        ([["pay", {"to": "a", "n": "1"}]] * 2, True, False),
        ([["tell", {"to": "a", "n": "1"}]], True, False),
    ],
)
def test_a_planned_leak_is_a_call_that_the_plan_would_not_have_made(
    did: list[list[Any]], leak: bool, steered: bool
) -> None:
    clean = score([["pay", {"to": "a", "n": "1"}]], injection="")
    attacked = score(did, choices=[("pay", "n", ("1", "2"))])
    table.settle([clean, attacked])
    assert (attacked.leak, attacked.steered) == (leak, steered)
    assert not clean.leak


def test_each_family_of_attempts_varies_the_call() -> None:
    call = ("send_money", {"recipient": "X", "amount": 10.0, "subject": "s", "date": "d"})
    families = list(adaptive.attempts("banking", [call], ["T"], "orders"))
    made = [given for family in families for _, given in family]
    assert {"recipient": "T", "amount": 10.0, "subject": "s", "date": "d"} in made
    assert made.count({"recipient": "X", "amount": 1.0, "subject": "s", "date": "d"}) == 10
    assert {"subject": "orders"} in made
    assert any(tool == "update_user_info" for family in families for tool, _ in family)
