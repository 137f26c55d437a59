"""The server of the tests: the SDK's own kind, run as a program of its own."""

import os
import socket
import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("files")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def read(path: str) -> str:
    """Say what a file holds."""
    try:
        with open(path) as f:
            return f.read()
    except OSError as error:
        return type(error).__name__


@server.tool()
def look(port: int, path: str) -> dict[str, str]:
    """What the server itself can reach."""

    def tried(call: object) -> str:
        try:
            call()  # type: ignore[operator]
        except OSError as error:
            return type(error).__name__
        return "did"

    return {
        "network": tried(lambda: socket.create_connection(("127.0.0.1", port), 2)),
        "file": tried(lambda: open(path).read()),
        "list": tried(lambda: os.listdir(os.path.dirname(path))),
        "write": tried(lambda: open(path + ".new", "w").write("x")),
        "environment": ",".join(sorted(os.environ)),
    }


@server.tool()
def secret() -> str:
    """Nobody may."""
    return "secret"


@server.resource("memo://today")
def today() -> str:
    """Today's memo."""
    return "buy milk"


@server.resource("memo://private")
def private() -> str:
    """Nobody may."""
    return "private"


@server.prompt()
def review(code: str) -> str:
    """Review code."""
    return f"Review: {code}"


if __name__ == "__main__":
    print("hello from the server", file=sys.stderr)
    server.run("stdio")
