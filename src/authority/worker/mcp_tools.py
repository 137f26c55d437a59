"""What a server says its tools are: the text that a person approves, and what a client is shown.

Rules
- Only name, title, description and the two schemas are taken. Annotations, icons, `_meta` and what
  else a server says about itself decide nothing and are not passed on.
- The definition is JSON with sorted members, one a line, in printable ASCII: everything invisible or
  foreign is an escape, so what is approved is what is read. Its SHA-256 names it.
- A tool is left out, with the reason, whose name is not plain or looks like another's, that is too
  large, or whose schemas can't be applied. Of two that look alike neither is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from authority.worker.mcp_schema import Checker, SchemaRefused

MAX_TOOLS: Final = 256
MAX_DEFINITION: Final = 64 * 1024
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_LOOKS: Final = str.maketrans({"0": "o", "1": "l", "i": "l", "-": "_", ".": "_", "5": "s"})
_TAKEN: Final = ("name", "title", "description", "inputSchema", "outputSchema")


@dataclass(frozen=True)
class Definition:
    """One tool as its server describes it."""

    name: str
    text: str
    shown: dict[str, Any]
    arguments: Checker
    result: Checker | None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.text.encode("ascii")).hexdigest()


@dataclass
class Listing:
    """The tools of one server, and what was left out of them and why."""

    tools: dict[str, Definition] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def listing(tools: Sequence[dict[str, Any]]) -> Listing:
    """The definitions of what a server listed."""
    found = Listing()
    if len(tools) > MAX_TOOLS:
        found.left_out.append(("", f"{len(tools) - MAX_TOOLS} tools beyond {MAX_TOOLS}"))
        tools = tools[:MAX_TOOLS]
    looks = Counter(_skeleton(tool.get("name")) for tool in tools)
    for tool in tools:
        name = tool.get("name")
        if not isinstance(name, str) or not NAME.match(name):
            found.left_out.append((str(name)[:128], "its name is not plain"))
        elif looks[_skeleton(name)] > 1:
            found.left_out.append((name, "another of its tools has this name, or looks like it"))
        else:
            try:
                found.tools[name] = definition(tool)
            except SchemaRefused as error:
                found.left_out.append((name, f"its schema can't be applied: {error}"))
    return found


def definition(tool: dict[str, Any]) -> Definition:
    """One tool's. Raises `SchemaRefused`."""
    shown = {key: tool[key] for key in _TAKEN if tool.get(key) is not None}
    text = json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    text = text.replace("\x7f", "\\u007f")
    if len(text) > MAX_DEFINITION:
        raise SchemaRefused(f"the definition is larger than {MAX_DEFINITION} bytes")
    output = shown.get("outputSchema")
    return Definition(
        name=shown["name"],
        text=text,
        shown=shown,
        arguments=Checker(shown.get("inputSchema")),
        result=None if output is None else Checker(output),
    )


def _skeleton(name: object) -> str:
    return re.sub(r"_+", "_", str(name).lower().translate(_LOOKS))
