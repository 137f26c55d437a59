"""Every TOML example of the policy reference loads, and what the text says of it holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from authority.gate.policyfile import shipped_prices
from authority.kernel.policy import Policy, Source, check_warnings, from_canonical, load
from authority.kernel.policy_schema import _TOP
from authority.kernel.policy_sections import DEFAULT_BUDGETS, Limits
from authority.kernel.policy_tree import SHIPPED_PRICES
from authority.kernel.resources import parse

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text("utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
BASE = "/home/u/project"


def make(text: str) -> Policy:
    def parent(base: str, name: str) -> Source:
        if name == SHIPPED_PRICES:
            return shipped_prices()
        found = [block for block in BLOCKS if block.startswith(f"# {name}")]
        return Source(found[0], "toml", base, name)

    return load(text, format="toml", base=BASE, name="doc.toml", read_parent=parent)


def ask(policy: Policy, effect: str, raw: str, verb: str = "") -> bool:
    return policy.judge(effect, parse(effect, raw, cwd=BASE), verb).allowed


def test_there_are_examples() -> None:
    assert len(BLOCKS) == TEXT.count("```toml") >= 7


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_each_example_loads(text: str) -> None:
    policy = make(text)
    assert from_canonical(policy.canonical).digest == policy.digest
    assert not [line for line in check_warnings(policy) if "no effect" in line]


def test_every_key_is_documented() -> None:
    for key in _TOP:
        assert re.search(rf"(?:\[|`|^){key}\b", TEXT, re.MULTILINE), key


def test_the_defaults_are_documented() -> None:
    assert Limits() == Limits(memory=10**9, processes=64, cpus=1000, tmp=64 * 10**6, log=2 * 10**9)
    assert "1 GB, 64 MB, 64 processes, 1 processor and 2 GB of log" in TEXT
    assert DEFAULT_BUDGETS == {
        "denials": 50,
        "runs": 16,
        "output_bytes": 64 * 10**6,
        "stored_bytes": 256 * 10**6,
        "wall_time": 3600 * 10**6,
    }


def test_the_first_example_does_what_it_says() -> None:
    policy = make(BLOCKS[0])
    assert ask(policy, "fs.read", "docs/a")
    assert ask(policy, "fs.read", "README.md")
    assert not ask(policy, "fs.read", "docs/.env")
    assert not ask(policy, "fs.read", "out/a")
    assert ask(policy, "http.request", "https://api.github.com/repos/x?page=2", "GET")
    assert not ask(policy, "http.request", "https://api.github.com/repos/x", "POST")


def test_the_extending_example_tightens() -> None:
    policy = make(BLOCKS[-1])
    assert ask(policy, "fs.read", "anything")
    assert not ask(policy, "fs.read", "key.pem")
    assert ask(policy, "fs.write", "out/a")
    assert not ask(policy, "fs.write", "a")
    assert policy.budgets["wall_time"] == 600_000_000
