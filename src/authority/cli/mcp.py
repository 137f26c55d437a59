"""`authority mcp`: an entry in an MCP client's configuration, in place of the server's own command.

Rules
- Standard input and output are the client's connection and carry nothing else. The server's standard
  error, and what Authority has to say, go to standard error.
- The client is not contained, and the log says so; the server runs in a sandbox under the policy.
- The command ends when the client closes its end, or the run is stopped.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from collections.abc import Sequence
from typing import Any

from authority.cli.run import Follower, add_options, parsed, request
from authority.cli.usage import Parser
from authority.gate import statedir
from authority.kernel.printing import harmless


def options_of(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options before `--`, and the server's command after it."""
    made = Parser(
        prog="authority mcp",
        usage="authority mcp --policy FILE [options] -- SERVER [argument ...]",
        description="Stand between an MCP client and a server: the server contained, each call judged.",
    )
    add_options(made)
    made.add_argument(
        "--name", default="server", help="the section [mcp.NAME] of the policy (server)"
    )
    return parsed(made, arguments, "server")


def main(arguments: Sequence[str]) -> int:
    options, server = options_of(arguments)
    body = {**request(options, server), "name": options.name}
    directory = statedir.open_existing((options.state or statedir.default_root()).absolute())
    between = _Between(directory, quiet=True, as_json=False)
    return between.follow("/v1/mcp", body, accept=options.accept_policy)


class _Between(Follower):
    def _event(self, event: dict[str, Any]) -> int | None:
        if event["event"] == "mcp":
            data = base64.b64decode(event["data"])
            while data:
                data = data[os.write(1, data) :]
            return None
        return super()._event(event)

    def _say(self, text: str) -> None:
        print(f"authority mcp: {harmless(text)}", file=sys.stderr)
