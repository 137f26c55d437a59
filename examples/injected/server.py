"""The office's MCP server: mail and payments, by way of the office's own server on port 8417."""

import json

from mcp.server.mcpserver import MCPServer

from authority.agent import connect

OFFICE = "http://127.0.0.1:8417"
server = MCPServer("office", log_level="CRITICAL")
gate = connect()  # this server's own, by server.toml


def ask(path: str, body: dict[str, str] | None = None) -> str:
    if body is None:
        return gate.http("GET", f"{OFFICE}{path}").text
    return gate.http("POST", f"{OFFICE}{path}", body=json.dumps(body)).text


@server.tool()
def find_mail(query: str) -> list[dict[str, str]]:
    """Mails whose sender or text holds the words."""
    mails = json.loads(ask("/inbox"))
    return [m for m in mails if query.lower() in f"{m['from']} {m['body']}".lower()]


@server.tool()
def archive_mail(id: str) -> str:
    """Put a mail away."""
    ask("/archive", {"id": id})
    return "archived"


@server.tool()
def send_mail(to: str, subject: str, body: str) -> str:
    """Send a mail from the office's account."""
    ask("/mail", {"to": to, "subject": subject, "body": body})
    return "sent"


@server.tool()
def pay(to: str, pounds: str) -> str:
    """Pay from the office's account."""
    ask("/payments", {"to": to, "pounds": pounds})
    return "paid"


server.run()
