"""`authority approvals`: what waits for a person, and the person's answer."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from authority.cli.common import parser, print_json, state_of, table
from authority.gate.client import client


def main(arguments: Sequence[str]) -> int:
    made = parser("approvals", "List, approve or deny what waits for a person.")
    made.add_argument("what", nargs="?", choices=("list", "approve", "deny"), default="list")
    made.add_argument("id", nargs="?", default="")
    options = made.parse_args(arguments)
    gate = client(state_of(options))
    if options.what == "list":
        found = gate.call("GET", "/v1/approvals")
        if options.json:
            print_json(found)
        else:
            table(
                "",
                ("id", "run", "effect", "resource", "entry", "answer"),
                [
                    (a["id"], a["run"], a["effect"], a["resource"], a["asked"], a["answer"])
                    for a in found["approvals"]
                ],
            )
        return 0
    if not options.id:
        made.error(f"name the approval to {options.what}")
    granted = options.what == "approve"
    path = f"/v1/approvals/{quote(options.id, safe='')}"
    found = gate.call("POST", path, {"granted": granted})
    if options.json:
        print_json(found)
    else:
        once = "approved, for one use of exactly these arguments" if granted else "denied"
        print(f"{options.id}: {once} (entry {found['seq']})")
    return 0
