"""`authority attach`: a run for a program that somebody else starts; it ends when this command does.

The gate can't contain such a program. The log says so, and so does this command.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from authority.cli.run import Follower, add_options, request
from authority.cli.usage import Parser
from authority.gate import statedir


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority attach", description="Let a program that is started elsewhere use the gate."
    )
    add_options(made)
    options = made.parse_args(arguments)
    body = request(options, [])
    directory = statedir.open_existing((options.state or statedir.default_root()).absolute())
    follower = _Attached(directory, quiet=False, as_json=options.json)
    follower.channel = str(directory.attach_socket)
    return follower.follow("/v1/attach", body, accept=options.accept_policy)


class _Attached(Follower):
    channel = ""

    def on_started(self, event: dict[str, Any]) -> None:
        """Say how to connect; standard input is not the program's."""
        print(f"export AUTHORITY_CHANNEL={shlex.quote(self.channel)}")
        print(f"export AUTHORITY_CAPABILITY={event['capability']}", flush=True)
        print(
            f"authority: run {event['run']} is open for an attached program; it is NOT contained. "
            "End it with Ctrl-C.",
            file=sys.stderr,
        )
