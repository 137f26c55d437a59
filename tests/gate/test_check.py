"""`authority check`: every effect has an answer, with or without its name."""

from __future__ import annotations

import json

import pytest

from authority.kernel.requests import EFFECTS

from .lab import Lab

POLICY = """\
version = 1
[filesystem]
read = ["./docs/**"]
write = ["./out/**"]
[network]
allow = ["db.example:5432"]
http = ["GET,POST https://api.example/v1/**"]
deny = ["*.internal"]
[models]
allow = ["claude-*"]
[tools.search]
command = ["python3", "search.py"]
[agents.child]
command = ["python3", "child.py"]
[mcp.files]
command = ["server"]
allow = ["read_*"]
[approvals]
require = ["POST https://api.example/**"]
"""
NAMED = {
    "fs": ("docs/a", "secret/a"),
    "http.request": ("https://api.example/v1/x", "https://other.example/"),
    "net.connect": ("tcp://db.example:5432", "tcp://db.example:22"),
    "net.resolve": ("dns:api.example", "dns:other.example"),
    "tool.call": ("tool:search", "tool:other"),
    "agent.spawn": ("agent:child", "agent:other"),
    "model": ("model:claude-x", "model:other"),
    "mcp.list": ("mcp:files/tools", "mcp:other/tools"),
    "mcp": ("", "mcp:other/prompts/x"),
    "agent": ("run:x", ""),
    "msg": ("run:x", ""),
    "output": ("output:stdout", ""),
    "sys.time": ("sys:time", ""),
    "sys.random": ("sys:random", ""),
    "sys.uuid": ("sys:uuid", ""),
    "value.reveal": ("handle:h1", ""),
    "value.compute": ("", "room:python"),
}


@pytest.fixture(scope="module")
def path(lab: Lab) -> str:
    return str(lab.policy(POLICY))


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_has_an_answer(lab: Lab, path: str, effect: str) -> None:
    good, bad = NAMED.get(effect) or NAMED[effect.split(".", maxsplit=1)[0]]
    if effect.startswith("fs.") and not effect.startswith(("fs.read", "fs.stat", "fs.list")):
        good = {"fs.open": "docs/a", "fs.look": "docs/a"}.get(effect, "out/a")
    for resource, allowed in ((good, True), (bad, False)):
        if not resource:
            continue
        done = lab.cli("check", "--policy", path, effect, resource, "--json")
        found = json.loads(done.stdout)
        assert "error" not in found, found
        assert (found["allowed"], done.returncode) == (allowed, 0 if allowed else 1), found
        assert found["rule"] or found["reason"]


@pytest.mark.parametrize(
    ("named", "effects", "code"),
    [
        ("docs/a", ["fs.read", "fs.write"], 1),
        ("https://api.example/v1/x", ["http.request"], 0),
        ("db.example:5432", ["net.connect"], 0),
        ("tcp://db.example:22", ["net.connect"], 1),
        ("tool:search", ["tool.call"], 0),
        ("model:claude-x", ["model.chat"], 0),
    ],
)
def test_what_is_named_says_what_is_meant(
    lab: Lab, path: str, named: str, effects: list[str], code: int
) -> None:
    done = lab.cli("check", "--policy", path, named, "--json")
    found = json.loads(done.stdout)
    answers = found.get("requests", [found])
    assert [each["effect"] for each in answers] == effects
    assert done.returncode == code


def test_for_people(lab: Lab, path: str) -> None:
    denied = lab.cli("check", "--policy", path, "http.request", "https://x.internal/")
    assert (denied.returncode, denied.stdout.splitlines()[0]) == (
        1, "denied: http.request GET https://x.internal:443/",
    )  # fmt: skip
    waits = lab.cli("check", "--policy", path, "https://api.example/v1/x", "--verb", "POST")
    assert waits.stdout.startswith("allowed when a person approves: http.request POST")
    missing = lab.cli("check", "--policy", path, "fs.write", "new.txt")
    assert '    write = ["./new.txt"]' in missing.stdout
    nonsense = lab.cli("check", "--policy", path, "fs.read")
    assert nonsense.returncode == 2
