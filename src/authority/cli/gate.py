"""`authority gate`: the gate process of a state directory: status, start, stop, confirm its clock."""

from __future__ import annotations

import time
from collections.abc import Sequence

from authority.audit.files import is_locked
from authority.audit.reading import LOCK
from authority.cli.common import parser, print_json, state_of, table
from authority.gate.client import alive, client, ensure
from authority.gate.statedir import StateDir

STOP_SECONDS = 20.0


def _gone(directory: StateDir) -> bool:
    """Wait until it has let go of the log, for a while: its folder may be moved or removed then."""
    lock = str(directory.log / LOCK)
    deadline = time.monotonic() + STOP_SECONDS
    while alive(directory) or is_locked(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def main(arguments: Sequence[str]) -> int:
    made = parser("gate", "The gate process of a state directory.")
    made.add_argument("what", nargs="?", choices=("status", "start", "stop", "clock"),
                      default="status", metavar="status|start|stop|clock",
                      help="what runs (the default); start it; stop it; confirm its clock")  # fmt: skip
    made.add_argument("--force", action="store_true", help="stop: end running runs too")
    options = made.parse_args(arguments)
    directory = state_of(options)
    if options.what in {"status", "stop"} and not alive(directory):
        print_json({"running": False}) if options.json else print("no gate is running")
        return 0
    if options.what == "start":
        ensure(directory)
        print_json({"running": True}) if options.json else print("the gate is running")
        return 0
    if options.what == "stop":
        found = client(directory).call("POST", "/v1/stop", {"force": options.force})
        found["stopped"] = _gone(directory)
        said = "the gate has stopped" if found["stopped"] else "the gate is still stopping"
        print_json(found) if options.json else print(said)
        return 0
    if options.what == "clock":
        found = client(directory).call("POST", "/v1/clock", {})
        print_json(found) if options.json else print(f"confirmed: entry {found['seq']}")
        return 0
    found = client(directory).call("GET", "/v1/status")
    if options.json:
        print_json({"running": True, **found})
        return 0
    print(f"gate of log {found['log']}: head entry {found['head']['seq']}")
    if found["halted"] is not None:
        print(f"  HALTED in entry {found['halted']}")
    for key in ("checkpoint_error", "log_trouble"):
        if found[key]:
            print(f"  TROUBLE {found[key]}")
    if found["clock_suspect"]:
        print("  the clock jumped ahead: 'authority gate clock' confirms that it is right")
    if not found["runs"]:
        print("  no run goes on")
        return 0
    table(
        "",
        ("run", "program", "requests", "denials"),
        [
            (r["run"], " ".join(r["program"]) or "(attached)", r["requests"], r["denials"])
            for r in found["runs"]
        ],
        right=("requests", "denials"),
    )
    return 0
