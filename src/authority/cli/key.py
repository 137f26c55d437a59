"""`authority key rotate`: a fresh key for capabilities; the old one verifies for a while longer."""

from __future__ import annotations

from collections.abc import Sequence

from authority.cli.common import parser, print_json, state_of
from authority.gate.client import client
from authority.kernel.policy_values import duration


def main(arguments: Sequence[str]) -> int:
    made = parser("key", "Rotate the key that mints capabilities.")
    made.add_argument(
        "what", choices=("rotate",), metavar="rotate", help="make a new key; from now on it mints"
    )
    made.add_argument(
        "--grace",
        default="1h",
        metavar="TIME",
        help="how long the old key still verifies, such as 30m (default: 1h)",
    )
    options = made.parse_args(arguments)
    try:
        grace = duration(options.grace)
    except ValueError as error:
        made.error(f"--grace {error}")
    found = client(state_of(options)).call("POST", "/v1/keys/rotate", {"grace_us": grace})
    if options.json:
        print_json(found)
    else:
        print(f"key {found['kid']} mints now; the one before verifies for {options.grace} more")
    return 0
