"""`authority approvals`: what waits for a person, and the person's answer.

Rules
- A request that waits is approved once, for exactly these arguments: they are shown as they would be
  sent, with where each untrusted part came from. The definition of an MCP server's
  tool that waits is approved until it changes; what is shown of it is the whole text, or what changed
  in it, with everything invisible or foreign as an escape.
- An id names exactly one text, so a definition that changed meanwhile is not approved by accident.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from authority.audit import query
from authority.cli.common import parser, print_json, state_of, table
from authority.cli.why import lineage, show_lineage
from authority.gate.client import client
from authority.gate.statedir import StateDir
from authority.kernel.canonical import printable

_REQUESTS = ("id", "run", "effect", "resource", "entry", "answer")


def main(arguments: Sequence[str]) -> int:
    made = parser("approvals", "List, approve or deny what waits for a person.")
    made.add_argument("what", nargs="?", choices=("list", "approve", "deny"), default="list")
    made.add_argument("id", nargs="*", default=[], help="ids as the list shows them")
    options = made.parse_args(arguments)
    directory = state_of(options)
    gate = client(directory)
    if options.what == "list":
        found = gate.call("GET", "/v1/approvals")
        found["approvals"] = [
            {**each, **_asked(directory, each["asked"])} for each in found["approvals"]
        ]
        if options.json:
            print_json(found)
        else:
            _show(found)
        return 0
    if not options.id:
        made.error(f"name the approval to {options.what}")
    granted = options.what == "approve"
    answers = []
    for key in options.id:
        path = f"/v1/approvals/{quote(key, safe='')}"
        answers.append(gate.call("POST", path, {"granted": granted}))
        if not options.json:
            print(f"{key}: {_said(key, granted=granted)} (entry {answers[-1]['seq']})")
    if options.json:
        print_json(answers[0] if len(answers) == 1 else {"answers": answers})
    return 0


def _asked(directory: StateDir, seq: int) -> dict[str, Any]:
    """The exact arguments that wait, and where their untrusted words came from."""
    entry, _ = query.find(directory.log, seq)
    body = entry.get("filled") or entry.get("arguments") or {}
    return {
        "reason": entry["reason"],
        "arguments": body.get("text", ""),
        "digest": body.get("digest", ""),
        "lineage": [msgspec.to_builtins(step) for step in lineage(directory, seq)],
    }


def _said(key: str, *, granted: bool) -> str:
    if not granted:
        return "denied"
    if key.startswith("mcp."):
        return "approved, until the definition changes"
    return "approved, for one use of exactly these arguments"


def _show(found: dict[str, Any]) -> None:
    rows = [
        (a["id"], a["run"], a["effect"], a["resource"], a["asked"], a["answer"])
        for a in found["approvals"]
    ]
    definitions = found["definitions"]
    if rows or not definitions:
        table("", _REQUESTS, rows)
    for each in found["approvals"]:
        if each["answer"] == "waiting":
            print(f"\n{each['id']}: {printable(each['reason'], 200)}")
            print(f"  with {printable(each['arguments'] or each['digest'], 2000)}")
            show_lineage(each["lineage"])
    for each in definitions:
        print(_heading(each))
        for line in changes(each["approved_text"], each["text"]):
            print(f"  {line}")
        print(f"  authority approvals approve {each['id']}\n")


def _heading(each: dict[str, Any]) -> str:
    what = "changed its definition" if each["before"] else "was seen for the first time"
    where = f"the tool {each['tool']} of the MCP server {each['server']}"
    return f"{where} {what} (entry {each['asked']}):"


def changes(before: str, after: str) -> list[str]:
    """The text, or when there was one before, the lines that differ with three around them."""
    if not before:
        return after.split("\n")
    lines = difflib.unified_diff(
        before.split("\n"), after.split("\n"), "approved", "now", lineterm=""
    )
    return list(lines)
