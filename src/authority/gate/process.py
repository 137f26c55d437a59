"""The gate's process: open the state directory, serve in it, and end with what failed.

Rules
- One gate per state directory: the log's lock says so.
- It is started as `python -I -m authority.gate`, in the state directory, with a cleaned
  environment; it says on descriptor `--ready` that it serves, or why it does not.
- A gate that failed ends the process at once. Every run dies with it (parent-death signals, and end of
  file on the channels), so nothing goes on unrecorded.
- It takes as many open files as the system lets it have: every connection, channel and open file of a
  mount is one of its own. Runs have a limit of theirs (`isolation.plan`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
from pathlib import Path

import uvloop

from authority.audit.errors import LogError, LogLocked
from authority.errors import AuthorityError
from authority.gate import statedir
from authority.gate.opening import Opened, open_state
from authority.gate.server import Gate

SWITCH_SECONDS = 0.0005


def _take_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(opened: Opened, ready: int) -> BaseException | None:
    gate = Gate(opened)
    await gate.serve(ready)
    return gate.failure


def main(arguments: list[str] | None = None) -> int:
    """The process. Exit code 0 when it left in order, 125 when it refused or failed."""
    parser = argparse.ArgumentParser(prog="authority.gate")
    parser.add_argument("state", type=Path)
    parser.add_argument("--ready", type=int, required=True)
    options = parser.parse_args(arguments)
    os.umask(0o077)
    _take_descriptors()
    # The log's thread needs the interpreter for a moment after each sync; it must not wait 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        opened = open_state(statedir.open_existing(options.state))
    except (AuthorityError, LogError, OSError, ValueError) as error:
        why = "locked" if isinstance(error, LogLocked) else "refused"
        os.write(options.ready, f"{why} {error}\n".encode())
        print(f"gate: {error}", file=sys.stderr)
        return 125
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        failure = runner.run(_serve(opened, options.ready))
        if failure is not None:  # before the runner would wait for threads that may never end
            print(f"gate: {type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
            os._exit(125)
    return 0
