"""The schema of a policy: from plain values to normalised ones, or a `PolicyError` that helps.

Pure. Rules
- `version = 1` is required. Every key must be known here, and types are exact (`policy_checkers`). The
  sections of tools, labels, MCP servers and models have schemas of their own, beside this one.
- What comes out holds only what was given, in plain values (texts, integers, lists, tables), with
  quantities in their units (`policy_values`). It is what the digest covers.
- Patterns are read later, when they are put into an index (`policy_rules`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from authority.kernel import policy_checkers as kit
from authority.kernel import policy_labels, policy_mcp, policy_schema_models
from authority.kernel import policy_values as values
from authority.kernel.addresses import ResourceError, host_text, shown, split_host_port
from authority.kernel.budgets import DIMENSIONS
from authority.kernel.policy_checkers import Checker, Context, Path
from authority.kernel.resources import NAME

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
_FRAMING: Final = frozenset(
    [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
        "proxy-authorization",
        "proxy-connection",
    ]
)


def normalise(context: Context, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The whole policy, checked. Raises `PolicyError`."""
    if raw.get("version") != 1 or type(raw.get("version")) is not int:
        raise context.error(("version",), "must be 1", "begin the policy with version = 1")
    extending = "extends" in raw
    doc: dict[str, Any] = kit.table(context, (), raw, _TOP)
    for name, tool in doc.get("tools", {}).items():
        kit.need(context, ("tools", name), tool, () if extending else ("command",))
    for name, agent in doc.get("agents", {}).items():
        kit.need(context, ("agents", name), agent, () if extending else ("command",))
    for name, credential in doc.get("credentials", {}).items():
        path = ("credentials", name)
        kit.need(context, path, credential, () if extending else ("from_env", "hosts"))
        if credential.get("from_env") in doc.get("process", {}).get("pass_env", ()):
            raise context.error(
                (*path, "from_env"),
                "is passed into the run by process.pass_env, which shows the secret to the agent",
                "take it out of pass_env",
            )
    for name in doc.get("tools", {}):
        if name.partition(".")[0] in doc.get("mcp", {}):
            raise context.error(
                ("tools", name), "is the name of a tool of an MCP server", "rename one of them"
            )
    known = _secrets(doc)
    for name in doc.get("labels", {}).get("release", {}):
        if name not in known and not extending:
            raise context.error(
                ("labels", "release", name),
                "releases a secret that neither labels.secrets nor a tool's secret names",
                f"for one that comes from elsewhere write secrets = {{ {name} = [] }}",
            )
    return doc


def _secrets(doc: Mapping[str, Any]) -> set[str]:
    """The secrets that a document names: of files, and of what tools answer."""
    tools = [
        *doc.get("tools", {}).values(),
        *(tool for one in doc.get("mcp", {}).values() for tool in one.get("tools", {}).values()),
    ]
    return {
        *doc.get("labels", {}).get("secrets", {}),
        *(s for t in tools for s in t.get("secret", ())),
    }


def _version(_context: Context, _path: Path, _value: Any) -> int:
    return 1


def _extends(context: Context, path: Path, value: Any) -> list[str]:
    found = (
        [kit.text(context, path, value)]
        if isinstance(value, str)
        else kit.texts(context, path, value)
    )
    if not found or len(found) > 8:
        raise context.error(path, "names 1 to 8 policies", 'write extends = "../base.toml"')
    return found


def _exec(context: Context, path: Path, value: Any) -> list[str]:
    found = kit.texts(context, path, value)
    for index, item in enumerate(found):
        segments = item.split("/")
        absolute = item.startswith("/") and not {"", ".", ".."} & set(segments[1:])
        if any(char in item for char in "*?[]{}") or not (absolute or len(segments) == 1):
            raise context.error(
                (*path, index),
                f"{shown(item)!r} is neither the name of a program nor an absolute path",
                "write git or /usr/bin/git, without wildcards",
                item,
            )
        if item in (".", ".."):
            raise context.error((*path, index), "is not the name of a program")
    return found


def _folders(context: Context, path: Path, value: Any) -> list[str]:
    found = kit.texts(context, path, value)
    for index, item in enumerate(found):
        if any(char in item for char in "*?[]{}\\") or {".."} & set(item.split("/")):
            raise context.error(
                (*path, index),
                f"{shown(item)!r} is no plain folder",
                "write ./.venv or /opt/build, without wildcards and without ..",
                item,
            )
    return found


def _proxy(context: Context, path: Path, value: Any) -> str:
    text = kit.text(context, path, value)
    scheme, separator, rest = text.partition("://")
    hint = 'write "http://proxy.example:3128"'
    if scheme.lower() != "http" or not separator:
        raise context.error(path, f"{shown(text)!r} is not an http:// proxy", hint)
    if "@" in rest:
        raise context.error(path, "holds user information, which a policy is no place for", hint)
    try:
        host, port = split_host_port(rest.removesuffix("/"))
    except ResourceError as error:
        raise context.error(path, error.message, error.hint) from None
    if port is None:
        raise context.error(path, "names no port", hint)
    return f"http://{host_text(host)}:{port}"


def _files(context: Context, path: Path, value: Any) -> list[str]:
    """Paths of files without wildcards: one text or a list."""
    found = (
        [kit.text(context, path, value)]
        if isinstance(value, str)
        else kit.texts(context, path, value)
    )
    for item in found:
        if any(char in item for char in "*?[]{}") or item.endswith("/") or "://" in item:
            raise context.error(
                path, f"{shown(item)!r} is not the path of a file", 'write "./corp-ca.pem"', item
            )
    return found


def _home(context: Context, path: Path, value: Any) -> str:
    text = kit.text(context, path, value)
    if not NAME.match(text) or len(text) > 64 or text.startswith("."):
        raise context.error(
            path, f"{shown(text)!r} is not the name of a home", "write a plain name"
        )
    return text


def _format(context: Context, path: Path, value: Any) -> str:
    text = kit.text(context, path, value)
    if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1 or not text.isascii():
        raise context.error(path, "must hold {} once", 'write "Bearer {}"')
    return text


def _header(context: Context, path: Path, value: Any) -> str:
    text = kit.text(context, path, value)
    if not _HEADER.match(text) or text.lower() in _FRAMING:
        raise context.error(path, f"{shown(text)!r} is not a header that may hold a credential")
    return text


_BUDGET_READERS: Final[dict[str, Callable[[object], int]]] = {
    "cost_usd": values.dollars,
    "wall_time": values.duration,
    **{name: values.size for name in DIMENSIONS if name.endswith("_bytes")},
}
_BUDGETS: Final = kit.section(
    {name: kit.quantity(_BUDGET_READERS.get(name, values.count)) for name in sorted(DIMENSIONS)}
)
_SIZE: Final = kit.quantity(values.size, positive=True)

_TOP: Final[dict[str, Checker]] = {
    "version": _version,
    "extends": _extends,
    "explain": kit.one_of("operator", "agent"),
    "filesystem": kit.section(
        {
            "read": kit.texts,
            "write": kit.texts,
            "deny": kit.texts,
            "files": kit.one_of("mount", "calls", "requests", "bind"),
        }
    ),
    "network": kit.section(
        {
            "allow": kit.texts,
            "http": kit.texts,
            "deny": kit.texts,
            "private": kit.texts,
            "proxy": _proxy,
            "ca": _files,
        }
    ),
    "process": kit.section(
        {
            "exec": _exec,
            "exec_from": _folders,
            "home": _home,
            "pass_env": kit.env_names,
            "env": kit.env,
        }
    ),
    "limits": kit.section(
        {
            "memory": _SIZE,
            "processes": kit.quantity(values.count, positive=True),
            "cpus": kit.quantity(values.processors),
            "tmp": _SIZE,
            "log": _SIZE,
        }
    ),
    "tools": policy_labels.tools,
    "mcp": policy_mcp.servers,
    "agents": kit.named_tables({"command": kit.command, "policy": kit.text, "budgets": _BUDGETS}),
    "credentials": kit.named_tables(
        {"from_env": kit.env_name, "hosts": kit.command, "header": _header, "format": _format}
    ),
    "models": policy_schema_models.section,
    "budgets": _BUDGETS,
    "labels": policy_labels.labels,
    "approvals": kit.section({"require": kit.texts}),
}
