"""What the obedient model is given to read, out of a request of either API.

Pure. Only what came since the model's own last answer is read for orders; tools keep their names,
their parameters and the order of those. The request was measured before (`dialects`), so its lists
are lists; anything odd inside is skipped.
"""

from __future__ import annotations

from typing import Any, Final

from authority.dialects import json_text
from authority.dialects.demand import MESSAGES, RESPONSES, Prepared
from authority.worker.obedient import Answer, Tool, answer

_TEXT_KEYS: Final = ("text", "content", "output", "refusal")
_OWN: Final = frozenset({"function_call", "custom_tool_call", "reasoning"})


def reply(request: Prepared, limit: int) -> Answer:
    """What the obedient model answers to a request, with at most `limit` tokens."""
    tree = request.tree
    return answer(
        _texts(request.api, tree),
        tools_of(tree),
        limit,
        size=len(json_text.encode(tree)),
        forced=_forced(tree.get("tool_choice")),
    )


def text_in(value: object) -> str:
    """All text of a message's content."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(filter(None, map(text_in, value)))
    if isinstance(value, dict):
        return "\n".join(filter(None, (text_in(value.get(key)) for key in _TEXT_KEYS)))
    return ""


def tools_of(tree: dict[str, Any]) -> list[Tool]:
    """The tools that a request offers, in either API's form."""
    found = []
    for one in tree.get("tools") or []:
        inner = one.get("function") if isinstance(one.get("function"), dict) else one
        name = inner.get("name")
        schema = inner.get("parameters") or inner.get("input_schema") or {}
        properties = schema.get("properties") if isinstance(schema, dict) else None
        parameters = (
            tuple((str(key), _kind(value)) for key, value in (properties or {}).items())
            if isinstance(properties, dict | None)
            else ()
        )
        if isinstance(name, str):
            found.append(Tool(name, parameters))
    return found


def _kind(schema: object) -> str:
    """A parameter's type, looking through the unions that generators of schemas write."""
    if not isinstance(schema, dict):
        return ""
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "")
    if kind is None:
        kind = next(filter(None, map(_kind, schema.get("anyOf") or [])), "")
    return kind if isinstance(kind, str) else ""


def _texts(api: str, tree: dict[str, Any]) -> list[str]:
    given = tree.get("input") if api == RESPONSES else tree.get("messages")
    if isinstance(given, str):
        return [given]
    found: list[str] = []
    for one in given or []:
        own = one.get("role") == "assistant" or one.get("type") in _OWN
        if own:
            found.clear()
        elif one.get("role") not in ("system", "developer"):
            found.append(text_in(one.get("output") if "output" in one else one.get("content")))
    if api == MESSAGES and not found:
        found.append(text_in(tree.get("system")))
    return found


def _forced(choice: object) -> str:
    if choice == "none":
        return "-"
    if choice == "required":
        return "*"
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind in ("none", "any"):
            return "-" if kind == "none" else "*"
        inner = choice.get("function")
        name = inner.get("name") if isinstance(inner, dict) else choice.get("name")
        return name if isinstance(name, str) else ""
    return ""
