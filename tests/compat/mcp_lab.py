"""What the MCP tests share: a policy with a server, its approval, and clients from the SDK."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gate.lab import OPEN, Lab

SERVER = Path(__file__).with_name("mcp_server.py").read_text("utf-8")
SCRIPTED = Path(__file__).with_name("mcp_scripted.py").read_text("utf-8")


def server(name: str = "files", script: str = "servers/files.py", more: str = "") -> str:
    """A section for one server of the tests."""
    return f"""
[mcp.{name}]
command = ["{sys.executable}", "{script}"]
{more}
"""


POLICY = OPEN + server(
    more="""allow = ["add", "read", "look"]
content = ["a", "b", "port", "path"]
resources = ["memo://today"]
prompts = ["review"]

[mcp.files.tools.read.arguments]
path = "./docs/**"
"""
)


def prepare(lab: Lab) -> None:
    """The servers' files."""
    lab.file("servers/files.py", SERVER)
    lab.file("servers/scripted.py", SCRIPTED)


def waiting(lab: Lab) -> list[dict[str, Any]]:
    """The definitions that wait for a person."""
    found: list[dict[str, Any]] = lab.admin("GET", "/v1/approvals")["definitions"]
    return found


def approve(lab: Lab, granted: bool = True) -> list[str]:
    """Answer all that wait; their tools."""
    found = waiting(lab)
    for each in found:
        lab.admin("POST", f"/v1/approvals/{each['id']}", {"granted": granted})
    return [each["tool"] for each in found]


CLIENT = """
import asyncio, json, logging, os, sys
logging.disable(logging.CRITICAL)
from mcp import Client
async def main():
    async with Client(os.environ["AUTHORITY_MCP_URL"], mode=MODE) as client:
        out = {}
        BODY
        print(json.dumps(out))
asyncio.run(main())
"""


def client(body: str, mode: str = "auto") -> str:
    """A program that uses the SDK's client at the run's endpoint; it prints `out`."""
    lines = body.strip().split("\n")
    return CLIENT.replace("MODE", repr(mode)).replace("BODY", "\n        ".join(lines))
