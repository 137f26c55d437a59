"""`tools.toml` as a policy of the gate.

Rules
- One section a tool, and nothing but what the declaration says: no argument's value, no task.
- A tool that reads is a request about the owner's own data, which tells nobody anything: what it is
  asked may be shaped by anything. A tool that writes takes untrusted words as its content alone.
- A person may approve what untrusted words would steer, for every tool that writes.
- The controls: `allow_all` trusts whatever a tool says and knows no secret, so nothing has a label;
  `deny_all` declares no tool.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.agentdojo.room import SOCKET, WORLD

FILE = Path(__file__).parent / "tools.toml"
"""The declarations that are used: ours, or what somebody brought (`brought`)."""
MODEL = "reader"
"""The quarantined model of a world is `reader-WORLD`."""


def digest() -> str:
    """SHA-256 of the declarations."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


def _all() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text("utf-8"))


def declarations(suite: str) -> dict[str, dict[str, Any]]:
    """What is declared of each tool of a suite."""
    found: dict[str, dict[str, Any]] = _all()[suite]
    return found


def _writes(one: dict[str, Any]) -> bool:
    return bool(one.get("effect", "write") == "write")


def acts(suite: str) -> frozenset[str]:
    """The tools that change something or tell somebody something."""
    return frozenset(name for name, one in declarations(suite).items() if _writes(one))


def control(suite: str, tool: str) -> tuple[str, ...]:
    """A tool's control arguments."""
    return tuple(declarations(suite)[tool].get("control", ()))


def content(suite: str, tool: str) -> tuple[str, ...]:
    """The arguments of a tool that carry words."""
    return tuple(declarations(suite)[tool].get("content", ()))


def trusted(suite: str, tool: str) -> bool:
    """Whether a tool's answers are."""
    return declarations(suite)[tool].get("reads") == "trusted"


def policy(suite: str, world: str, socket: str, model: str, kind: str = "labels") -> str:
    """The policy (TOML text) of a run in one world. `model`: where its quarantined model answers."""
    lines = ["version = 1", "[budgets]", "denials = 100_000", 'wall_time = "10m"']
    if kind == "deny_all":
        return "\n".join(lines) + "\n"
    tools = declarations(suite)
    loose = kind == "allow_all"
    acting = [name for name, one in tools.items() if _writes(one)]
    lines += ["[labels]", 'trusted = ["user"]', "compute = true"]
    if not loose:
        lines.append(f"approve = {json.dumps([f'tool:{name}' for name in acting])}")
        lines += _choices(tools)
    lines += ["[models]", f'allow = ["{MODEL}-{world}"]']
    lines += ["[models.upstream.reader]", f"url = {json.dumps(model)}", 'api = "openai"']
    for name, one in tools.items():
        lines += [
            f"[tools.{name}]",
            f"command = {json.dumps(['agentdojo', name])}",
            f"env = {{ {SOCKET} = {json.dumps(socket)}, {WORLD} = {json.dumps(world)} }}",
            *_labels(tools, name, one, loose=loose),
        ]
    return "\n".join(lines) + "\n"


def _labels(
    tools: dict[str, dict[str, Any]], name: str, one: dict[str, Any], *, loose: bool
) -> list[str]:
    words, steers = one.get("content", []), one.get("control", [])
    lines = []
    if _writes(one):
        lines += ['effect = "write"', f"control = {json.dumps(steers)}"]
        lines.append(f"content = {json.dumps(words)}")
    else:
        lines += ['effect = "read"', f"content = {json.dumps([*words, *steers])}"]
    if loose or one.get("reads") == "trusted":
        lines.append('reads = "trusted"')
    for key in ("secret", "receives"):
        if key in one and not loose:
            lines.append(f"{key} = {json.dumps(one[key])}")
    if fields := one.get("fields"):
        table = ", ".join(f'{json.dumps(pointer)} = "trusted"' for pointer in fields)
        lines.append(f"fields = {{ {table} }}")
    if "shape" in one:
        lines.append(f"shape = {json.dumps(one['shape'])}")
    issued = []
    for pointer, kind in one.get("issues", {}).items():
        uses = [
            f"tool:{other} {argument}"
            for other, its in tools.items()
            for argument, named in its.get("ids", {}).items()
            if named == kind
        ]
        issued.append(f'{json.dumps(pointer)} = {{ to = {json.dumps(uses)}, type = "id" }}')
    if issued:
        lines.append(f"issues = {{ {', '.join(issued)} }}")
    return lines


def _choices(tools: dict[str, dict[str, Any]]) -> list[str]:
    sources = [f"tool:{n}" for n, one in tools.items() if one.get("reads") != "trusted"]
    uses = [
        f"tool:{name} {argument}"
        for name, one in tools.items()
        if _writes(one)
        for argument in one.get("control", ())
    ]
    if not _all().get("choice_bits") or not sources or not uses:
        return []
    return [
        "[labels.endorse.choices]",
        f"from = {json.dumps(sources)}",
        'type = "enum"',
        f"to = {json.dumps(uses)}",
        f"bits = {_all()['choice_bits']}",
    ]
