"""Descriptions for tools that a run called and nobody described, from the names in the log.

Rules
- Only tools that the run's policy defines, and of which it says neither control nor content nor effect.
- A proposal is made of names alone (`kernel.tool_words`), and whatever it does not know is control: a
  person who knows the tool's documentation reads it before it is used. It is never written to a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from authority.audit import query
from authority.audit.lineage import body_of
from authority.audit.store import ContentStore
from authority.cli.why_labels import section
from authority.gate.statedir import StateDir
from authority.kernel import resources, tool_words
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy, from_canonical
from authority.kernel.policy_explain import toml_text
from authority.kernel.resources import ResourceError

SHOWN = 5


def proposed(directory: StateDir, run: str) -> list[dict[str, Any]]:
    """A description for each tool that the run called and nobody described."""
    sealed = directory.keys / "sealed"
    store = ContentStore(directory.store, keys=sealed if sealed.is_dir() else None)
    policy: Policy | None = None
    called: dict[str, tuple[list[str], list[int]]] = {}
    for entry in query.read(directory.log):
        if entry.get("run") != run:
            continue
        if entry["kind"] == "run.start":
            policy = from_canonical(store.get(entry["policy"]))
        elif entry["kind"] in {"admit", "denied"} and entry.get("effect") == "tool.call":
            names, entries = called.setdefault(entry["resource"], ([], []))
            entries.append(entry["seq"])
            names += [name for name in _names(store, entry) if name not in names]
    found = []
    for text, (names, entries) in called.items():
        if policy is not None and _undescribed(policy, text):
            found.append(_proposal(text.removeprefix("tool:"), names, entries))
    return found


def _names(store: ContentStore, entry: dict[str, Any]) -> list[str]:
    """The names of a call's arguments; none where they are not kept."""
    data = body_of(store, entry.get("arguments"))
    try:
        tree = msgspec.json.decode(data) if data else None
    except msgspec.DecodeError:
        return []
    inner = tree.get("arguments") if isinstance(tree, dict) else None
    return list(inner) if isinstance(inner, dict) else []


def _undescribed(policy: Policy, text: str) -> bool:
    try:
        rules = policy.tool_rules(resources.parse_text(text))
    except ResourceError:
        return False
    return rules is not None and not tool_words.described(rules)


def _proposal(tool: str, names: Sequence[str], entries: Sequence[int]) -> dict[str, Any]:
    rules = tool_words.proposal(tool, names)
    lines = [f"[{section(tool)}]"]
    why = "its name says that it looks; write if calling it changes anything"
    if rules.effect == "write":
        why = "read if calling it changes nothing, and nobody else hears of it"
    lines.append(f'effect = "{rules.effect}"   # {why}')
    if rules.control:
        lines.append(
            f"control = {_list(rules.control)}   # who, what, how much: never untrusted words"
        )
    if rules.content:
        lines.append(f"content = {_list(rules.content)}   # only carried: anybody's words")
    return {
        "tool": tool,
        "entries": list(entries),
        "control": list(rules.control),
        "content": list(rules.content or ()),
        "effect": rules.effect,
        "toml": "\n".join(lines) + "\n",
    }


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(toml_text(name) for name in names) + "]"


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """For people, below the additions: TOML, each with why."""
    out: list[str] = []
    for each in found:
        numbers = ", ".join(str(number) for number in each["entries"][:SHOWN])
        more = f" and {len(each['entries']) - SHOWN} more" if len(each["entries"]) > SHOWN else ""
        word = "entry" if len(each["entries"]) == 1 else "entries"
        tool = printable(each["tool"], 200)
        out += ["", f"# {tool} was called ({word} {numbers}{more}), and nobody described it;"]
        out.append("# a proposal from names alone: read the tool's documentation, then correct it")
        out += [printable(line, 2000) for line in each["toml"].rstrip("\n").split("\n")]
    return out
