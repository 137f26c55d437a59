"""Statements: each form proved and disproved, with a witness that the policy really allows."""

from __future__ import annotations

import pytest

from authority.kernel.policy import Policy, Source, load
from authority.kernel.resources import parse_text
from authority.proof import automata, statements
from authority.proof.automata import Undecided
from authority.proof.claims import prover_for, refute
from authority.proof.dead import dead_rules
from authority.proof.prover import Prover, Witness
from authority.proof.statements import StatementError

BASE = "/b"
POLICY = """
[filesystem]
read = ["./docs/**", "./*.md", "./docs/a.txt"]
write = ["./out/**"]
deny = ["**/.env", "./nowhere/**"]
[network]
http = ["GET,POST https://api.example/**?*", "https://*.internal/x/*", "PUT https://up.example/a%2Fb"]
allow = ["git.example:22"]
deny = ["*.internal", "https://api.example/admin/**"]
[tools.pay]
command = ["pay"]
[tools.look]
command = ["look"]
content = ["q"]
[labels]
secrets = { payroll = ["fs:./docs/pay/**"] }
release = { payroll = ["https://api.example/hr/**?*", "output"] }
[approvals]
require = ["tool:pay", "POST https://api.example/pay/**"]
[budgets]
tool_calls = 5
"""


def policy(text: str = POLICY) -> Policy:
    def read_parent(_base: str, name: str) -> Source:
        raise AssertionError(name)

    text = "version = 1\n" + text
    return load(text, format="toml", base=BASE, name="p.toml", read_parent=read_parent)


def ask(text: str, made: Policy | None = None) -> Witness | None:
    made = made or policy()
    statement = statements.parse(text, base=BASE)
    found = refute(made, statement, prover_for(made, statements=(statement,)))
    if found is not None and found.effect:
        assert made.judge(found.effect, parse_text(found.resource), found.verb).allowed
    return found


@pytest.mark.parametrize(
    "text",
    [
        "never 'http.request' to 'https://*.internal/**'",
        "never 'http.*' to '*.internal'",
        "never 'fs.*' to '**/.env'",
        "never 'fs.write' to './docs/**'",
        "never 'http.request' to 'https://api.example/admin/**'",
        "never 'http.request' to 'DELETE https://api.example/**'",
        "never 'http.request' to 'http://api.example/**'",
        "never 'net.connect' to 'git.example:23'",
        "never 'tool.call' to 'rm'",
        "never a secret of 'payroll' to any 'tool.call'",
        "never a secret of 'payroll' to any 'http.*' to 'up.example'",
        "never a secret of 'payroll' to any 'fs.*'",
        "never untrusted data to any 'tool.call' to 'pay'",
        "never untrusted data to any 'http.request' to 'POST https://api.example/**'",
        "every 'pay' needs an approval",
        'every "tool.call" to "tool:p*" needs an approval',
        "every 'POST https://api.example/pay/**' needs an approval",
        "every 'http.request' to 'POST https://api.example/pay/x' needs an approval",
        "at most 5 tool_calls",
        "at most 50 denials",
    ],
)
def test_a_true_statement_is_proved(text: str) -> None:
    assert ask(text) is None


@pytest.mark.parametrize(
    ("text", "resource", "verb"),
    [
        ("never 'http.request'", "https://api.example:443/", "GET"),
        ("never 'http.request' to 'https://api.example/adm*/**'", "https://api.example:443/adm", "GET"),
        # A statement is read widely: the encoded slash is a slash for it, and the rule allows it.
        ("never 'http.request' to 'https://up.example/a/b'", "https://up.example:443/a%2Fb", "PUT"),
        ("never 'fs.read' to './docs/b*'", "fs:/b/docs/b", ""),
        ("never 'fs.*' to './*.md'", "fs:/b/.md", ""),
        ("never 'net.connect'", "tcp://git.example:22", ""),
        ("never a secret of 'payroll' to any 'http.*'", "https://api.example:443/hr", "GET"),
        ("never untrusted data to any 'tool.call'", "tool:look", ""),
        ("never untrusted data to any 'http.request'", "https://api.example:443/", "GET"),
        ("every 'tool.call' needs an approval", "tool:look", ""),
        ("every 'POST https://api.example/**' needs an approval", "https://api.example:443/", "POST"),
        ("at most 4 tool_calls", "budgets.tool_calls", ""),
        ("at most 4 requests", "budgets.requests", ""),
    ],
)  # fmt: skip
def test_a_false_statement_has_a_shortest_witness(text: str, resource: str, verb: str) -> None:
    found = ask(text)
    assert found is not None
    assert (found.resource, found.verb) == (resource, verb)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "nothing stands"),
        ("nver 'fs.read'", "'nver' stands"),
        ("never fs.read", "in quotes is missing"),
        ("never 'fs.raed'", "is no effect"),
        ("never 'fs.read' to", "a pattern in quotes"),
        ("never 'fs.read' to './a' and more", "behind the end"),
        ("never 'fs.read' to '~/x'", "begins with ~"),
        ("never 'http.request' to 'https://h/a?q=1'", "one spelling of a query"),
        ("never 'http.request", "is not closed"),
        ("never a secret of payroll to any 'fs.*'", "name of a secret"),
        ("every 'pa:y/' needs an approval", "is no"),
        ("every 'pay' needs approval", "'approval' stands"),
        ("at most ten requests", "is no amount"),
        ("at most 10 reqests", "'reqests' stands"),
        ("never 'fs.read' to '*'", "cover everything"),
        ("never\x1b 'fs.read'", "control"),
    ],
)
def test_what_is_no_statement_is_refused_with_the_place(text: str, part: str) -> None:
    with pytest.raises(StatementError) as refused:
        statements.parse(text, base=BASE)
    assert part in refused.value.message


def test_a_file_of_statements() -> None:
    found = statements.read("# note\n\nnever 'fs.read'  # not even once\n", base=BASE)
    assert [each.kind for each in found] == ["never"]
    with pytest.raises(StatementError, match="line 2"):
        statements.read("never 'fs.read'\nnonsense\n", base=BASE)
    with pytest.raises(StatementError, match="no statement"):
        statements.read("# nothing\n", base=BASE)


def test_unknown_is_not_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that gives up, and a rule whose letters are no text, refuse; the control answers."""
    hard = policy('[filesystem]\nread = ["fs:/a/%C3*"]')
    with pytest.raises(Undecided, match="not UTF-8"):
        ask("never 'fs.read'", hard)
    assert ask("never 'fs.read'", policy('[filesystem]\nread = ["fs:/a/%C3%A9*"]')) is not None
    assert ask("never 'fs.*' to '**/.env'") is None
    monkeypatch.setattr(automata, "LIMIT", 3)
    with pytest.raises(Undecided, match="grew beyond"):
        ask("never 'fs.*' to '**/.env'")


def test_a_request_that_nobody_can_make_is_no_witness() -> None:
    """The only path that the rule covers is longer than a path can be."""
    made = policy(f'[filesystem]\nwrite = ["/{"x" * 300}"]')
    with pytest.raises(Undecided, match="can't be made"):
        ask("never 'fs.write'", made)
    short = policy('[filesystem]\nwrite = ["/x"]')
    assert ask("never 'fs.write'", short) is not None


def test_a_witness_that_the_policy_denies_is_a_defect_and_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Prover.shortest
    monkeypatch.setattr(Policy, "judge", lambda *_: type("No", (), {"allowed": False})())
    with pytest.raises(Undecided, match="disagree"):
        ask("never 'fs.read' to './docs/b*'")
    assert right is Prover.shortest


def test_rules_that_do_nothing() -> None:
    found = {(d.rule.split(" ")[0], d.state) for d in dead_rules(policy())}
    assert found == {
        ("filesystem.read[2]", "shadowed"),
        ("filesystem.deny[1]", "dead"),
        ("network.http[1]", "dead"),
    }
    live = policy('[filesystem]\nread = ["./a", "./a*", "./b/**"]\ndeny = ["./b/c"]')
    assert [(d.rule.split(" ")[0], d.state) for d in dead_rules(live)] == [
        ("filesystem.read[0]", "shadowed")
    ]
