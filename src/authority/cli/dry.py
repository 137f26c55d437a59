"""`authority dry`: what a dry run kept, as a diff; applied, or thrown away.

Rules
- The diff goes to standard output, questions to standard error. Nothing is applied unless a person at a
  terminal says yes, or `dry apply` is called.
- Applying is all or nothing as far as the base is concerned: if something changed there meanwhile,
  nothing is done. What a policy refuses ends it, and what was done until then is said.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from authority.cli.common import confirmed, parser, print_json, state_of
from authority.gate.client import client
from authority.gate.statedir import StateDir


def main(arguments: Sequence[str]) -> int:
    made = parser("dry", "Show, apply or discard what a dry run kept.")
    made.add_argument(
        "action",
        choices=("list", "show", "apply", "discard"),
        metavar="list|show|apply|discard",
        help="which runs have something; the changes; make them; throw them away",
    )
    made.add_argument("run", nargs="?", default="", help="the run, as its first line named it")
    options = made.parse_args(arguments)
    if bool(options.run) is (options.action == "list"):
        made.error("name a run" if options.action != "list" else "list takes no run")
    directory = state_of(options)
    if options.action == "list":
        found = client(directory).call("GET", "/v1/dry")
    elif options.action == "show":
        found = show(directory, options.run)
    else:
        found = client(directory).call("POST", f"{_path(options.run)}/{options.action}", {})
    if options.json:
        print_json(found)
    elif options.action == "list":
        print("\n".join(found["runs"]) or "nothing is kept")
    elif options.action == "show":
        print_diff(found)
    elif options.action == "apply":
        print(f"{_applied(found['changes'])} (run {found['run']})")
    else:
        print(f"the changes of {options.run} are gone")
    return 0


def _path(run: str) -> str:
    return f"/v1/dry/{quote(os.fsencode(run), safe='')}"


def show(directory: StateDir, run: str) -> dict[str, Any]:
    """The changes of a dry run. Raises `GateError`."""
    return client(directory).call("GET", _path(run))


def print_diff(found: dict[str, Any]) -> None:
    """The diff of `show`, and what is to be said when there is none or not all of it."""
    sys.stdout.write(found["diff"])
    if found["cut"]:
        print("... the rest is too long to show here")
    if not found["changes"]:
        print("nothing was changed")
    sys.stdout.flush()


def _applied(number: int) -> str:
    return "1 change was applied" if number == 1 else f"{number} changes were applied"


def closing(directory: StateDir, run: str, *, as_json: bool) -> None:
    """After a dry run: the diff, and a question when a person is there to answer it."""
    found = show(directory, run)
    connection = client(directory)
    if not found["changes"]:
        connection.call("POST", f"/v1/dry/{run}/discard", {})
    if as_json:
        return
    print_diff(found)
    if not found["changes"]:
        return
    asked = sys.stdin.isatty() and sys.stderr.isatty()
    if asked:
        number = found["changes"]
        question = "1 change; apply it?" if number == 1 else f"{number} changes; apply them?"
        if confirmed(f"authority: {question}"):
            done = connection.call("POST", f"/v1/dry/{run}/apply", {})
            print(f"authority: {_applied(done['changes'])}", file=sys.stderr)
            return
    print(
        f"authority: nothing was written. 'authority dry apply {run}' applies the changes,"
        f" 'authority dry discard {run}' throws them away",
        file=sys.stderr,
    )
