"""`authority approvals`: what waits for a person, and the person's answer.

Rules
- A request that waits is approved once, for exactly these arguments: they are shown as they would be
  sent, each with its label and with where its untrusted words came from. Raw bytes, which are sent as
  base64, are shown as the text that they are, too. `show` shows all of it, the resource and every
  source included; a list cuts what is long, and says so.
- What a request does not hold (what is written to a file once it is open, what a file holds that is
  moved) was not seen by anybody, and the screen says so (`UNSEEN`).
- The definition of an MCP server's tool that waits is approved until it changes; what is shown of it is
  the whole text, or what changed in it, with everything invisible or foreign as an escape.
- A request is named by the number of the entry that asked for it, or by its id. Both name exactly one
  request, and an id exactly one text, so nothing else is approved by accident. There is no way to
  approve whatever waits.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from authority.audit import query
from authority.audit.lineage import Step
from authority.cli.common import parser, print_json, state_of, table
from authority.cli.lineage import lineage, shown_value, tree
from authority.cli.why import given, sent_with
from authority.errors import AuthorityError
from authority.gate.client import Client, client
from authority.gate.statedir import StateDir
from authority.kernel.canonical import printable

_REQUESTS = ("entry", "run", "what", "answer")
LISTED = 2000
"""Characters of a request's arguments in a list."""
EVERY = 0.5
"""Seconds between two looks."""
RAW = frozenset({("fs.write", "data"), ("fs.append", "data"), ("http.request", "body")}) | {
    ("msg.send", "data")
}
"""Arguments that are raw bytes, in base64 where a request is written down."""
UNSEEN = {
    "fs.modify": "what is written to it while it is open",
    "fs.attributes": "the value of an extended attribute",
    "fs.rename": "what it holds when it is moved",
    "fs.link": "what it holds, now and later",
    "agent.spawn": "what the files of the program hold when it starts",
    "net.connect": "what is said in the tunnel (after a yes nothing may be sent)",
}
"""What a request does, and does not say."""


def main(arguments: Sequence[str]) -> int:
    made = parser("approvals", "List, show, approve or deny what waits for a person.")
    choices = ("list", "show", "approve", "deny")
    made.add_argument(
        "what", nargs="?", choices=choices, default="list", metavar="|".join(choices),
        help="what waits (the default); each in full; let it pass, once; refuse it",
    )  # fmt: skip
    made.add_argument("id", nargs="*", default=[], help="entry numbers or ids, as the list shows")
    made.add_argument("--wait", action="store_true", help="first wait until something waits")
    made.add_argument("--watch", action="store_true", help="show what comes, until interrupted")
    options = made.parse_args(arguments)
    if options.watch and (options.json or options.what in ("approve", "deny")):
        made.error("--watch shows what comes: for a person, with list or show")
    directory = state_of(options)
    gate = client(directory)
    if options.what in ("list", "show"):
        return _look(options, directory, gate)
    if not options.id:
        made.error(f"name what to {options.what}, by its entry or its id")
    granted = options.what == "approve"
    answers = []
    for key in _ids(gate, options.id):
        path = f"/v1/approvals/{quote(os.fsencode(key), safe='')}"
        answers.append(gate.call("POST", path, {"granted": granted}))
        if not options.json:
            print(f"{key}: {_said(key, granted=granted)} (entry {answers[-1]['seq']})")
    if options.json:
        print_json(answers[0] if len(answers) == 1 else {"answers": answers})
    return 0


def _ids(gate: Client, named: Sequence[str]) -> list[str]:
    """The ids that numbers and ids stand for. Raises `AuthorityError`, before anything is answered."""
    if not any(text.isdecimal() for text in named):
        return list(named)
    found = gate.call("GET", "/v1/approvals")
    waiting = [*(a for a in found["approvals"] if a["answer"] == "waiting"), *found["definitions"]]
    ids: list[str] = []
    for text in named:
        known = [each["id"] for each in waiting if str(each["asked"]) == text]
        if text.isdecimal() and len(known) != 1:
            what = "several definitions: name one by its id" if known else "nothing that waits"
            raise AuthorityError(
                f"entry {text} stands for {what}", "'authority approvals' lists what does"
            )
        ids += known if text.isdecimal() else [text]
    return ids


def _look(options: argparse.Namespace, directory: StateDir, gate: Client) -> int:
    found = _asked(directory, gate)
    while options.wait and not (_waiting(found) or found["definitions"]):
        time.sleep(EVERY)
        found = _asked(directory, gate)
    if options.id:
        found = _only(found, options.id)
    if options.json:
        for each in found["approvals"]:
            del each["tree"]
        print_json(found)
        return 0
    _show(found, listed=options.what == "list", whole=bool(options.id))
    told = {each["id"] for each in (*found["approvals"], *found["definitions"])}
    while options.watch:
        sys.stdout.flush()
        time.sleep(EVERY)
        found = _asked(directory, gate)
        new = {
            kind: [each for each in found[kind] if each["id"] not in told]
            for kind in ("approvals", "definitions")
        }
        told |= {each["id"] for each in (*new["approvals"], *new["definitions"])}
        if new["approvals"] or new["definitions"]:
            _show(new, listed=False)
    return 0


def _asked(directory: StateDir, gate: Client) -> dict[str, Any]:
    """What the gate says that waits, with what its entries say of it."""
    found: dict[str, Any] = gate.call("GET", "/v1/approvals")
    found["approvals"] = [
        {**each, **_told(directory, each["asked"])} for each in found["approvals"]
    ]
    return found


def _waiting(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in found["approvals"] if each["answer"] == "waiting"]


def _only(found: dict[str, Any], named: Sequence[str]) -> dict[str, Any]:
    """What was named by entry or id. Raises `AuthorityError` for what is not there."""
    out: dict[str, Any] = {"approvals": [], "definitions": []}
    for text in named:
        known = False
        for kind in out:
            those = [each for each in found[kind] if text in (each["id"], str(each["asked"]))]
            out[kind] += those
            known = known or bool(those)
        if not known:
            raise AuthorityError(
                f"{printable(text, 80)} does not wait", "'authority approvals' lists what does"
            )
    return out


def _told(directory: StateDir, seq: int) -> dict[str, Any]:
    """The exact arguments that wait, their labels, and where their untrusted words came from."""
    entry, _ = query.find(directory.log, seq)
    body = entry.get("filled") or entry.get("arguments") or {}
    steps = lineage(directory, seq)
    sent = sent_with(directory, entry)
    arguments = given(directory, entry)
    return {
        "reason": entry["reason"],
        "target": entry.get("target", ""),
        "arguments": sent.decode("utf-8", "surrogateescape") if sent else "",
        "digest": body.get("digest", ""),
        "labels": _labels(directory, entry, arguments, steps),
        "lineage": [msgspec.to_builtins(step) for step in steps],
        "tree": tree(steps, arguments),
    }


def _labels(
    directory: StateDir, entry: dict[str, Any], arguments: Any, steps: Iterable[Step]
) -> list[dict[str, Any]]:
    """Each argument, its value and the sources that shaped it."""
    whole: dict[str, set[str]] = {}
    for part in entry.get("parts", ()):
        born, _ = query.find(directory.log, part["born"])
        whole.setdefault(part["argument"], set()).update(born.get("sources", ()))
    own = {step.source for step in steps if step.depth == 0 and not step.handle}
    inner = entry["effect"] in {"tool.call", "mcp.prompt"} and isinstance(arguments, dict)
    values = arguments.get("arguments", {}) if inner else arguments
    return [
        {"argument": name, "value": value, "sources": sorted(own | whole.get(name, set()))}
        for name, value in (values.items() if isinstance(values, dict) else ())
    ]


def _said(key: str, *, granted: bool) -> str:
    if not granted:
        return "denied"
    if key.startswith("mcp."):
        return "approved, until the definition changes"
    return "approved, for one use of exactly these arguments"


def _show(found: dict[str, Any], *, listed: bool, whole: bool = False) -> None:
    definitions = found["definitions"]
    if not listed and not found["approvals"] and not definitions:
        print("nothing waits")
    if listed and (found["approvals"] or not definitions):
        rows = [
            (str(a["asked"]), a["run"], _cut(_what(a), a["asked"], whole=False), a["answer"])
            for a in found["approvals"]
        ]
        if rows:
            table("", _REQUESTS, rows, right=("entry",))
        else:
            print("nothing waits")
    for each in found["approvals"]:
        if each["answer"] == "waiting" or not listed:
            _show_request(each, whole=whole)
    for each in definitions:
        print(_heading(each))
        for line in changes(each["approved_text"], each["text"]):
            print(f"  {line}")
        print(f"  authority approvals approve {each['id']}\n")


def _show_request(each: dict[str, Any], *, whole: bool) -> None:
    number = each["asked"]
    what = _cut(_what(each), number, whole=whole)
    print(f"\nentry {number}: {what}, by run {each['run']} ({each['answer']})")
    print(f"  id       {each['id']}")
    print(f"  because  {_cut(each['reason'], number, whole=whole)}")
    print(f"  exactly  {_exactly(each, whole=whole)}")
    if each["effect"] in UNSEEN:
        print(f"  unseen   {UNSEEN[each['effect']]}: a yes is for that, too, whatever it is")
    for line in _aligned(each, whole=whole):
        print(f"  {line}")
    print("  where it came from")
    print("\n".join(f"    {line}" for line in each["tree"]))
    if each["answer"] == "waiting":
        if each["arguments"]:
            print(f"  yes, once: authority approvals approve {number}")
        print(f"  no:        authority approvals deny {number}")


def _what(each: dict[str, Any]) -> str:
    """The call, what it is about, and where it leads."""
    where = f" to {each['target']}" if each["target"] else ""
    return f"{each['effect']} {each['resource']}{where}"


def _cut(text: str, number: int, *, whole: bool, most: int = 400) -> str:
    """A text for the screen. What is cut of it is said."""
    shown = printable(text)
    more = len(shown) - most
    if whole or more <= 0:
        return shown
    return f"{shown[:most]}... ({more} more characters: authority approvals show {number})"


def _exactly(each: dict[str, Any], *, whole: bool) -> str:
    """The bytes that would be sent, or what there is in their place."""
    if not each["arguments"]:
        return f"{each['digest']} (what it is of was not kept, so it can't be shown, nor approved)"
    return _cut(each["arguments"], each["asked"], whole=whole, most=LISTED)


def _aligned(each: dict[str, Any], *, whole: bool) -> list[str]:
    """The arguments under each other; nothing is cut to a terminal's width."""
    rows = [("argument", "value", "shaped by")]
    for label in each["labels"]:
        name = printable(label["argument"], None if whole else 40)
        value = _shown((each["effect"], label["argument"]), label["value"], whole=whole)
        rows.append((name, value, _label(label["sources"], whole=whole)))
    wide = [min(max(len(row[column]) for row in rows), LISTED // 10 + 2) for column in (0, 1)]
    lines = [f"{name:{wide[0]}}  {value:{wide[1]}}  {by}" for name, value, by in rows]
    return lines if each["labels"] else []


def _shown(argument: tuple[str, str], value: Any, *, whole: bool) -> str:
    """The value of an argument: raw bytes as the text that they are, or as what they are."""
    most = sys.maxsize if whole else LISTED // 10
    if argument not in RAW or not isinstance(value, str):
        return shown_value(value, most)
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        return shown_value(value, most)
    try:
        return shown_value(data.decode(), most)
    except UnicodeDecodeError:
        return f"{len(data)} bytes that are no text, in base64 above"


def _label(sources: Sequence[str], *, whole: bool) -> str:
    named = sources if whole else sources[:2]
    more = f" and {len(sources) - len(named)} more" if len(sources) > len(named) else ""
    shown = ", ".join(printable(source, None if whole else 80) for source in named)
    return shown + more if sources else "nobody but the program"


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
