"""What the names of a tool and its arguments suggest; and what in its description looks wrong.

Pure. Rules
- A name is a hint for a person, never a decision: nothing is allowed or refused by it.
- An argument whose name says who, where, what or how much (`to`, `recipient`, `amount`, `path`, `url`,
  `id` …) looks like control; one that says text (`body`, `message`, `query` …) looks like content; all
  others are control until somebody says otherwise.
- A tool whose name begins with a word for looking (`get`, `list`, `search` …) looks like a read; all
  others look like they change something. One that is told an address (`url`, `host` …) tells
  whoever keeps that place, so it looks like no read, whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from authority.kernel.tool_rules import ToolRules

if TYPE_CHECKING:
    from authority.kernel.policy import Policy

_CONTROL: Final = frozenset(
    {"to", "cc", "bcc", "recipient", "recipients", "receiver", "address", "email", "emails"}
    | {"participants", "attendees", "user", "users", "account", "iban", "payee", "channel", "who"}
    | {"amount", "sum", "price", "pounds", "euros", "dollars", "count", "limit", "quantity"}
    | {"url", "uri", "host", "domain", "endpoint", "webhook", "path", "file", "filename", "folder"}
    | {"directory", "command", "cmd", "shell", "code", "script", "sql", "id", "ids", "key"}
    | {"permission", "permissions", "role", "password", "token", "date", "method", "target"}
)
_PLACES: Final = frozenset({"url", "urls", "uri", "host", "domain", "endpoint", "webhook", "link"})
_CONTENT: Final = frozenset(
    {"body", "text", "content", "message", "comment", "note", "notes", "description", "query"}
    | {"question", "summary", "html", "markdown", "caption", "data", "document"}
)
_READS: Final = frozenset(
    {"get", "list", "search", "find", "read", "fetch", "show", "look", "lookup", "query", "count"}
    | {"describe", "view", "check", "summarise", "summarize", "translate", "convert", "parse"}
)
_PARTS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def _parts(name: str) -> list[str]:
    return [part.lower() for part in _PARTS.findall(name)]


def looks_like_control(name: str) -> bool:
    """Whether an argument's name says who, where, what or how much."""
    return bool(set(_parts(name)) & _CONTROL)


def looks_like_content(name: str) -> bool:
    """Whether an argument's name says text that is only carried."""
    return bool(set(_parts(name)) & _CONTENT) and not looks_like_control(name)


def looks_like_reading(tool: str) -> bool:
    """Whether a tool's name says that calling it changes nothing."""
    parts = _parts(tool.rpartition(".")[2])
    return bool(parts) and parts[0] in _READS


def described(rules: ToolRules | None) -> bool:
    """Whether somebody said which of a tool's arguments steer."""
    return rules is not None and bool(rules.control or rules.content is not None or rules.effect)


def proposal(tool: str, names: Sequence[str]) -> ToolRules:
    """A description to begin with, from names alone."""
    content = tuple(name for name in names if looks_like_content(name))
    tells = any(set(_parts(name)) & _PLACES for name in names)
    return ToolRules(
        control=tuple(name for name in names if name not in content),
        content=content or None,
        effect="read" if looks_like_reading(tool) and not tells else "write",
    )


def description_warnings(policy: Policy) -> Iterator[str]:
    """Tools that nobody described, and descriptions that look wrong."""
    for name, tool in policy.tools.items():
        yield from _warnings(f"tools.{name}", tool.rules)
    for name, server in policy.mcp.items():
        named = {each for view in server.views for each in (*view.allow, *view.tools)}
        for each in sorted(one for one in named if "*" not in one):
            yield from _warnings(f"mcp.{name}.tools.{each}", server.rules(each))


def _warnings(where: str, rules: ToolRules) -> Iterator[str]:
    if not described(rules):
        yield (
            f"{where}: nobody described its arguments, so all of them steer, and a run that has read "
            "anything untrusted can't call it; say control, content and effect (docs/labels.md)"
        )
    for name in rules.content or ():
        if looks_like_control(name):
            yield (
                f'{where}.content: "{name}" looks like it says who, where or how much; as content, '
                "whoever wrote what the run has read may choose it: is it control?"
            )
    both = sorted(set(rules.control) & set(rules.content or ()))
    if both:
        yield f"{where}: {', '.join(both)} stands in control and in content"
