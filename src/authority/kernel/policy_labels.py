"""The keys of a policy that say what tools carry, and `[labels]`: read and checked.

Pure. Rules
- `[tools.NAME]` and `[mcp.NAME.tools.TOOL]` take the same keys about labels (`TOOL_KEYS`); what they
  mean stands in `tool_rules`.
- `[labels.endorse.NAME]`: words of the sources in `from`, held to the narrow `type`, may be used as
  the control arguments in `to`, up to `bits` bits in a run. A type whose bits are unbounded is none.
- `[labels] approve`: where a person may say yes to what untrusted words would steer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from authority.kernel import pointers, value_types
from authority.kernel import policy_checkers as kit
from authority.kernel.addresses import shown
from authority.kernel.pointers import Malformed
from authority.kernel.policy_checkers import Checker, Context, Path
from authority.kernel.policy_values import count

_TO: Final = re.compile(r"(tool:[A-Za-z0-9][A-Za-z0-9._-]{0,160}) ([A-Za-z0-9_$.-]{1,128})\Z")


def _pointer(context: Context, path: Path, value: Any) -> str:
    text: str = kit.text(context, path, value)
    try:
        pointers.steps(text)
    except Malformed as error:
        raise context.error(path, str(error), 'write "/0/id" or "/*/id"') from None
    return text


def _fields(context: Context, path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise context.error(path, "must be a table of pointers", 'write { "/*/id" = "trusted" }')
    for key, item in value.items():
        _pointer(context, (*path, key), key)
        if item != "trusted":
            raise context.error((*path, key), 'is "trusted", or left out')
    return value


def _uses(context: Context, path: Path, value: Any) -> list[str]:
    found: list[str] = kit.texts(context, path, value)
    for index, item in enumerate(found):
        if not _TO.match(item):
            raise context.error(
                (*path, index),
                f"{shown(item)!r} is not a tool and its argument",
                'write "tool:update id"',
            )
    return found


_ISSUE: Final[dict[str, Checker]] = {"to": _uses, "type": kit.one_of(*value_types.KINDS)}


def _issues(context: Context, path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise context.error(
            path, "must be a table of pointers", 'write { "/*/id" = { to = ["tool:update id"] } }'
        )
    out = {}
    for key, item in value.items():
        here = (*path, key)
        _pointer(context, here, key)
        out[key] = kit.table(
            context, here, {"to": item} if isinstance(item, list) else item, _ISSUE
        )
        kit.need(context, here, out[key], ("to",))
    return out


TOOL_KEYS: Final[dict[str, Checker]] = {
    "control": kit.arguments,
    "content": kit.arguments,
    "reads": kit.one_of("trusted", "untrusted"),
    "effect": kit.one_of("read", "write", "none"),
    "secret": kit.texts,
    "receives": kit.texts,
    "fields": _fields,
    "shape": kit.one_of("trusted", "untrusted"),
    "issues": _issues,
}


def check_tool(context: Context, path: Path, one: Mapping[str, Any]) -> None:
    """What one table says twice. Raises `PolicyError`."""
    both = set(one.get("control", ())) & set(one.get("content", ()))
    if both:
        raise context.error(
            (*path, "content"), f"{shown(sorted(both)[0])} is named as control and as content"
        )


_PROCESS: Final[dict[str, Checker]] = {
    "command": kit.command,
    "timeout": kit.duration,
    "pass_env": kit.env_names,
    "env": kit.env,
    **TOOL_KEYS,
}


def tools(context: Context, path: Path, value: Any) -> dict[str, Any]:
    """`[tools]`."""
    out = {}
    for name, item in kit.named(context, path, value).items():
        out[name] = kit.table(context, (*path, name), item, _PROCESS)
        check_tool(context, (*path, name), out[name])
    return out


_ENDORSE: Final[dict[str, Checker]] = {
    "from": kit.texts,
    "type": kit.one_of("bool", "enum", "int", "date"),
    "to": _uses,
    "bits": kit.quantity(count, positive=True),
}


def _endorse(context: Context, path: Path, value: Any) -> dict[str, Any]:
    out = {}
    for name, item in kit.named(context, path, value).items():
        out[name] = kit.table(context, (*path, name), item, _ENDORSE)
        kit.need(context, (*path, name), out[name], tuple(_ENDORSE))
    return out


def _named_lists(context: Context, path: Path, value: Any) -> dict[str, list[str]]:
    return {
        name: kit.texts(context, (*path, name), item)
        for name, item in kit.named(context, path, value).items()
    }


def _flag(context: Context, path: Path, value: Any) -> bool:
    if not isinstance(value, bool):
        raise context.error(path, "must be true or false")
    return value


_LABELS: Final[dict[str, Checker]] = {
    "trusted": kit.texts,
    "content": kit.texts,
    "secrets": _named_lists,
    "release": _named_lists,
    "approve": kit.texts,
    "endorse": _endorse,
    "compute": _flag,
}


def labels(context: Context, path: Path, value: Any) -> dict[str, Any]:
    """`[labels]`."""
    found: dict[str, Any] = kit.table(context, path, value, _LABELS)
    return found
