"""`authority resume`: admit requests again after a halt, with a capability of its own."""

from __future__ import annotations

from collections.abc import Sequence

from authority.cli.common import parser, print_json, state_of
from authority.gate.client import client


def main(arguments: Sequence[str]) -> int:
    made = parser("resume", "Admit requests again after a halt.")
    made.add_argument("--reason", required=True, help="why it is safe to go on; it is recorded")
    options = made.parse_args(arguments)
    found = client(state_of(options), resume=True).call(
        "POST", "/v1/resume", {"reason": options.reason}
    )
    if options.json:
        print_json(found)
    else:
        print(f"resumed: entry {found['seq']}; halted runs stay ended, start new ones")
    return 0
