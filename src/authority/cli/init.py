"""`authority init`: a state directory with its keys, and a commented starter policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from authority.cli.common import parser, print_json, write_new
from authority.cli.starters import KINDS, starter
from authority.gate import statedir
from authority.kernel.canonical import printable

POLICY_NAME = "authority.toml"
_NEXT = {
    "program": ("run", "python3 my_agent.py"),
    "python": ("run", "python3 my_program.py"),
    "node": ("run", "node my_program.js"),
    "mcp": ("mcp", "my-server"),
    "coding-agent": ("run", "my-agent"),
}


def main(arguments: Sequence[str]) -> int:
    made = parser("init", "Make a state directory with keys, and a starter policy in this folder.")
    made.add_argument(
        "--policy", type=Path, default=Path(POLICY_NAME), metavar="FILE",
        help=f"where the starter is written (default: {POLICY_NAME})",
    )  # fmt: skip
    made.add_argument(
        "--for", dest="kind", choices=[kind for kind in KINDS if kind != "program"],
        default="program", help="what the starter is for",
    )  # fmt: skip
    made.add_argument("--no-policy", action="store_true", help="keys only")
    options = made.parse_args(arguments)
    root = (options.state or statedir.default_root()).absolute()
    existing = statedir.StateDir(root).complete()
    fingerprint = ""
    if existing:
        from authority.audit.checkpoints import load_key

        directory = statedir.open_existing(root)
        fingerprint = load_key(directory.signing_key).public.fingerprint
    else:
        from authority.gate.opening import initialise

        directory, fingerprint = initialise(root)
    wrote = "" if options.no_policy else _starter(options.policy, options.kind)
    found = {
        "state": str(root),
        "created": not existing,
        "fingerprint": fingerprint,
        "policy": wrote,
    }
    if options.json:
        print_json(found)
        return 0
    verb = "uses" if existing else "made"
    print(f"{verb} the state directory {printable(str(root))}")
    print(f"the log's public key has the fingerprint {fingerprint}")
    print("  keep it somewhere else: 'authority audit verify --key' checks the log against it")
    if wrote:
        print(f"wrote the starter policy {printable(wrote)}")
    elif not options.no_policy:
        print(f"left the policy {printable(str(options.policy))} as it is")
    if options.no_policy:
        return 0
    policy = printable(str(options.policy))
    command, program = _NEXT[options.kind]
    print(f"next: authority {command} --policy {policy} -- {program}")
    return 0


def _starter(path: Path, kind: str) -> str:
    """Write the starter unless there is a file. The path written, or ''."""
    return "" if os.path.lexists(path) else write_new(path, starter(kind))
