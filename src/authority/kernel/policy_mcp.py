"""`[mcp.NAME]` of a policy: read, checked, and made narrower by the policies of a chain.

Pure. Rules
- Server names hold no dot (it ends them in `tool:SERVER.TOOL`) and no `__` (it ends them in the names
  that clients see), and no two of them look alike.
- A table for one tool allows nothing by itself: a pattern of `allow` has to cover the tool, and a
  table that none covers is an error, because its writer believes otherwise.
- An argument's rule is a pattern, a list of what is allowed, or a table (`match`, `one_of`, `min`,
  `max`, `any`, `each`, `optional`). What it means stands in `mcp_arguments`.
- Extending and spawning add views (`mcp_rules`); what starts a server is the base's alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from authority.kernel import policy_checkers as kit
from authority.kernel import tool_rules
from authority.kernel.addresses import shown
from authority.kernel.mcp_arguments import ArgumentRule, check
from authority.kernel.mcp_rules import McpServer, McpTool, McpView, covering, skeleton
from authority.kernel.pattern_match import PatternError
from authority.kernel.policy_checkers import Checker, Context, Path
from authority.kernel.policy_labels import TOOL_KEYS, check_tool
from authority.kernel.resources import MCP_SERVER

_TOOL: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_ARGUMENT: Final = re.compile(r"[A-Za-z0-9_$.-]{1,128}\Z")
_PATTERN: Final = re.compile(r"[A-Za-z0-9._*-]{1,128}\Z")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
_DURATION: Final = kit.duration


def servers(context: Context, path: Path, value: Any) -> dict[str, Any]:
    """The checker of the section. Raises `PolicyError`."""
    out: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, item in kit.named(context, path, value).items():
        here = (*path, name)
        if not MCP_SERVER.match(name):
            raise context.error(here, "is not a server's name", "no dot and no __, 32 characters")
        other = seen.setdefault(skeleton(name), name)
        if other != name:
            raise context.error(here, f"looks like the server {shown(other)}", "rename one of them")
        server = kit.table(context, here, item, _SERVER)
        for tool in server.get("tools", {}):
            if not covering(server.get("allow", ()), tool) and "allow" in server:
                raise context.error(
                    (*here, "tools", tool), "is a tool that no pattern of allow covers", "add it"
                )
        out[name] = server
    return out


def _patterns(context: Context, path: Path, value: Any) -> list[str]:
    found: list[str] = kit.texts(context, path, value)
    for index, item in enumerate(found):
        if not _PATTERN.match(item) or "**" in item:
            raise context.error(
                (*path, index), f"{shown(item)!r} is no name of a tool", "letters, digits, . _ - *"
            )
    return found


def _uris(context: Context, path: Path, value: Any) -> list[str]:
    found: list[str] = kit.texts(context, path, value)
    for index, item in enumerate(found):
        if item in ("*", "**") or "***" in item or item.count("*") > 16:
            raise context.error(
                (*path, index), f"{shown(item)!r} is too broad", 'write "file:///docs/**"'
            )
    return found


def _tools(context: Context, path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise context.error(path, "must be a table of tools")
    for name in value:
        if not _TOOL.match(name):
            raise context.error((*path, name), "is not a tool's name", "letters, digits, . _ -")
    out = {name: kit.table(context, (*path, name), item, _ONE) for name, item in value.items()}
    for name, one in out.items():
        check_tool(context, (*path, name), one)
    return out


def _arguments(context: Context, path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise context.error(path, "must be a table of arguments")
    for name in value:
        if not _ARGUMENT.match(name):
            raise context.error((*path, name), "is not an argument's name")
    return {name: _argument(context, (*path, name), item) for name, item in value.items()}


def _argument(context: Context, path: Path, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"match": value}
    elif isinstance(value, list):
        value = {"one_of": value}
    elif isinstance(value, bool | int):
        value = {"one_of": [value]}
    rule: dict[str, Any] = kit.table(context, path, value, _RULE)
    kinds: list[str] = [k for k in ("match", "one_of", "any") if k in rule]
    kinds += ["min"] if "min" in rule or "max" in rule else []
    if len(kinds) != 1 or rule.get("any") is False:
        raise context.error(
            path, "wants one of match, one_of, min and max, or any = true", 'write "./docs/**"'
        )
    return rule


def _choices(context: Context, path: Path, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value or len(value) > 1000:
        raise context.error(path, "must be a list of texts, whole numbers or true and false")
    for index, item in enumerate(value):
        invisible = isinstance(item, str) and not item.isprintable()
        if not isinstance(item, str | bool | int) or invisible:
            raise context.error((*path, index), "must be text, a whole number, true or false")
    return value


def _match(context: Context, path: Path, value: Any) -> str:
    text: str = kit.text(context, path, value)
    try:
        check(text, context.source.base if context.source.base.startswith("/") else "/")
    except PatternError as error:
        raise context.error(path, error.message, error.hint, text) from None
    return text


def _whole(context: Context, path: Path, value: Any) -> int:
    if type(value) is not int or not -(2**53) < value < 2**53:
        raise context.error(path, "must be a whole number")
    return value


def _flag(context: Context, path: Path, value: Any) -> bool:
    if not isinstance(value, bool):
        raise context.error(path, "must be true or false")
    return value


def _pin(context: Context, path: Path, value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise context.error(
            path, "must be a digest of 64 hex digits", "'authority approvals' shows it"
        )
    return value


_RULE: Final[dict[str, Checker]] = {
    "match": _match,
    "one_of": _choices,
    "min": _whole,
    "max": _whole,
    "any": _flag,
    "each": _flag,
    "optional": _flag,
}
_ONE: Final[dict[str, Checker]] = {"arguments": _arguments, "pin": _pin, **TOOL_KEYS}
_SERVER: Final[dict[str, Checker]] = {
    "command": kit.command,
    "policy": kit.text,
    "timeout": _DURATION,
    "reads": kit.one_of("trusted", "untrusted"),
    "approve": kit.one_of("all", "changes"),
    "pass_env": kit.env_names,
    "env": kit.env,
    "allow": _patterns,
    "deny": _patterns,
    "resources": _uris,
    "prompts": _patterns,
    "content": kit.arguments,
    "tools": _tools,
}


def made(one: Mapping[str, Any], base: str) -> McpServer:
    """A server of a policy that stands alone."""
    return McpServer(
        command=tuple(one.get("command", ())),
        base=base,
        policy=one.get("policy", ""),
        timeout=one.get("timeout", 30_000_000),
        reads=one.get("reads", "untrusted"),
        approve=one.get("approve", "all"),
        pass_env=tuple(one.get("pass_env", ())),
        env=MappingProxyType(dict(one.get("env", {}))),
        views=(_view(one, base),),
    )


def tighter(one: Mapping[str, Any], parent: McpServer, base: str) -> McpServer | None:
    """A server as an extending policy narrows it; None when it would start something else."""
    if one.get("command", list(parent.command)) != list(parent.command):
        return None
    if one.get("policy", parent.policy) != parent.policy or "env" in one:
        return None
    if any(name not in parent.pass_env for name in one.get("pass_env", ())):
        return None
    view = _view(one, base)
    left_out = {"allow", "resources", "prompts", "content"} - set(one)
    base_view = parent.views[0]  # what is left out is the base's opinion
    view = msgspec.structs.replace(view, **{name: getattr(base_view, name) for name in left_out})
    inherited = {name: getattr(parent, name) for name in ("timeout", "reads", "approve")}
    child = msgspec.structs.replace(made({**inherited, **one}, base), views=(view,))
    return less(parent, child)


def less(parent: McpServer, child: McpServer) -> McpServer:
    """What both allow, started as the parent says."""
    trusted = parent.reads == child.reads == "trusted"
    return McpServer(
        command=parent.command,
        base=parent.base,
        policy=parent.policy,
        timeout=min(parent.timeout, child.timeout),
        reads="trusted" if trusted else "untrusted",
        approve="changes" if parent.approve == child.approve == "changes" else "all",
        pass_env=parent.pass_env,
        env=parent.env,
        views=(*child.views, *(view for view in parent.views if view not in child.views)),
    )


def same(parent: McpServer, child: McpServer) -> bool:
    """Whether both files mean the same server."""
    return (parent.command, parent.base, parent.policy, parent.env) == (
        child.command,
        child.base,
        child.policy,
        child.env,
    )


def _view(one: Mapping[str, Any], base: str) -> McpView:
    return McpView(
        base=base,
        allow=tuple(one.get("allow", ())),
        deny=tuple(one.get("deny", ())),
        resources=tuple(one.get("resources", ())),
        prompts=tuple(one.get("prompts", ())),
        content=tuple(one["content"]) if "content" in one else None,
        tools=MappingProxyType({name: _tool(each) for name, each in one.get("tools", {}).items()}),
    )


def _tool(one: Mapping[str, Any]) -> McpTool:
    rules = one.get("arguments")
    return McpTool(
        arguments=None
        if rules is None
        else MappingProxyType({name: _rule(each) for name, each in rules.items()}),
        rules=tool_rules.made(one),
        pin=one.get("pin", ""),
    )


def _rule(one: Mapping[str, Any]) -> ArgumentRule:
    return ArgumentRule(
        match=one.get("match"),
        one_of=tuple(one["one_of"]) if "one_of" in one else None,
        least=one.get("min"),
        most=one.get("max"),
        any=one.get("any", False),
        optional=one.get("optional", False),
        each=one.get("each", False),
    )
