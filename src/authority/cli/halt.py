"""`authority halt`: stop every run at once, or one, and revoke its capabilities."""

from __future__ import annotations

from collections.abc import Sequence

from authority.cli.common import parser, print_json, state_of
from authority.gate.client import client


def main(arguments: Sequence[str]) -> int:
    made = parser("halt", "Stop every run at once and revoke all their capabilities.")
    made.add_argument("run", nargs="?", default="", help="one run and its children, not all")
    made.add_argument("--reason", default="", help="why; it is recorded")
    options = made.parse_args(arguments)
    body = {"run": options.run, "reason": options.reason}
    found = client(state_of(options)).call("POST", "/v1/halt", body)
    if options.json:
        print_json(found)
        return 0
    print(f"halted {options.run or 'everything'}: entry {found['seq']}")
    for run in found["in_doubt"]:
        print(f"  run {run} could not be stopped in time: what it did is in doubt")
    if not options.run:
        print("  nothing is admitted until 'authority resume --reason ...'")
    return 0
