"""The schema of a policy: from plain values to normalised ones, or a `PolicyError` that helps.

Pure. Rules
- `version = 1` is required. Every key must be known here; an unknown one names its nearest
  neighbour. Types are exact: `true` is no number, a float is nothing.
- What comes out holds only what was given, in plain values (texts, integers, lists, tables), with
  quantities in their units (`policy_values`). It is what the digest covers.
- Patterns are read later, when they are put into an index (`policy_rules`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from authority.kernel import policy_values as values
from authority.kernel.addresses import ResourceError, host_text, shown, split_host_port
from authority.kernel.budgets import DIMENSIONS
from authority.kernel.policy_sections import PolicyError, Source
from authority.kernel.policy_text import Float, locate
from authority.kernel.resources import NAME

Path: TypeAlias = tuple[str | int, ...]
MAX_LIST: Final = 100_000
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
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


class Context:
    """Where an error is: it finds the line."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def error(self, path: Path, message: str, hint: str = "", needle: str = "") -> PolicyError:
        """The error for a key, ready to be raised."""
        return PolicyError(
            self.source.name, show(path), locate(self.source, path, needle), message, hint
        )


Checker: TypeAlias = Callable[[Context, Path, Any], Any]


def show(path: Path) -> str:
    """A key as people write it: `filesystem.read[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text


def normalise(context: Context, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The whole policy, checked. Raises `PolicyError`."""
    if raw.get("version") != 1 or type(raw.get("version")) is not int:
        raise context.error(("version",), "must be 1", "begin the policy with version = 1")
    extending = "extends" in raw
    doc: dict[str, Any] = _table(context, (), raw, _TOP)
    for name, tool in doc.get("tools", {}).items():
        _need(context, ("tools", name), tool, () if extending else ("command",))
    for name, agent in doc.get("agents", {}).items():
        _need(context, ("agents", name), agent, () if extending else ("command",))
    for name, credential in doc.get("credentials", {}).items():
        path = ("credentials", name)
        _need(context, path, credential, () if extending else ("from_env", "hosts"))
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
    labels = doc.get("labels", {})
    for name in labels.get("release", {}):
        if name not in labels.get("secrets", {}) and not extending:
            raise context.error(
                ("labels", "release", name), "releases a secret that labels.secrets does not name"
            )
    return doc


def _need(context: Context, path: Path, table: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in table:
            raise context.error(path, f"needs {name}", f"add {name} = …")


def _table(
    context: Context, path: Path, value: Any, fields: Mapping[str, Checker]
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise context.error(path, f"must be a table, not {_kind(value)}")
    out = {}
    for key, item in value.items():
        checker = fields.get(key)
        if checker is None:
            near = difflib.get_close_matches(str(key)[:64], fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise context.error((*path, key), "is not a key of a policy", hint)
        out[key] = checker(context, (*path, key), item)
    return out


def _kind(value: Any) -> str:
    return f"a float ({shown(value.text)})" if isinstance(value, Float) else values.kind(value)


def _text(context: Context, path: Path, value: Any) -> str:
    if not isinstance(value, str):
        raise context.error(path, f"must be text, not {_kind(value)}", "put it into quotes")
    if not value or len(value) > 4096:
        raise context.error(path, "must have 1 to 4096 characters")
    if not value.isprintable():
        raise context.error(path, f"holds a control or invisible character: {shown(value)!r}")
    return value


def _texts(context: Context, path: Path, value: Any) -> list[str]:
    if not isinstance(value, list):
        hint = "put it into square brackets" if isinstance(value, str) else ""
        raise context.error(path, f"must be a list of texts, not {_kind(value)}", hint)
    if len(value) > MAX_LIST:
        raise context.error(path, f"holds more than {MAX_LIST} items")
    return [_text(context, (*path, index), item) for index, item in enumerate(value)]


def _command(context: Context, path: Path, value: Any) -> list[str]:
    found = _texts(context, path, value)
    if not found:
        raise context.error(path, "is empty", 'write ["python3", "tool.py"]')
    return found


def _one_of(*choices: str) -> Checker:
    def check(context: Context, path: Path, value: Any) -> str:
        if value not in choices or not isinstance(value, str):
            raise context.error(path, f"must be one of {', '.join(choices)}")
        return value

    return check


def _quantity(reader: Callable[[object], int], *, positive: bool = False) -> Checker:
    def check(context: Context, path: Path, value: Any) -> int:
        try:
            if isinstance(value, Float):
                reader(None)  # says what is wanted
            found = reader(value)
        except ValueError as error:
            hint = "floats are refused: they are not exact" if isinstance(value, Float) else ""
            raise context.error(path, str(error), hint) from None
        if positive and not found:
            raise context.error(path, "must be more than zero")
        return found

    return check


def _mcp(context: Context, path: Path, value: Any) -> dict[str, Any]:
    from authority.kernel.policy_mcp import servers  # it stands on the checkers of this module

    return servers(context, path, value)


def _tools(context: Context, path: Path, value: Any) -> dict[str, Any]:
    from authority.kernel.policy_labels import tools

    return tools(context, path, value)


def _labels(context: Context, path: Path, value: Any) -> dict[str, Any]:
    from authority.kernel.policy_labels import labels

    return labels(context, path, value)


def _models(context: Context, path: Path, value: Any) -> dict[str, Any]:
    from authority.kernel.policy_schema_models import section

    return section(context, path, value)


def _version(_context: Context, _path: Path, _value: Any) -> int:
    return 1


def _extends(context: Context, path: Path, value: Any) -> list[str]:
    found = (
        [_text(context, path, value)] if isinstance(value, str) else _texts(context, path, value)
    )
    if not found or len(found) > 8:
        raise context.error(path, "names 1 to 8 policies", 'write extends = "../base.toml"')
    return found


def _env_name(context: Context, path: Path, value: Any) -> str:
    name = _text(context, path, value)
    if not _ENV.match(name):
        raise context.error(path, f"{shown(name)!r} is not the name of a variable")
    if name.startswith("AUTHORITY_"):
        raise context.error(path, "names that begin with AUTHORITY_ belong to the gate")
    return name


def _env_names(context: Context, path: Path, value: Any) -> list[str]:
    found = _texts(context, path, value)
    return [_env_name(context, (*path, index), item) for index, item in enumerate(found)]


def _env(context: Context, path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise context.error(path, "must be a table of texts", 'write env = { MODE = "demo" }')
    out = {}
    for key, item in value.items():
        _env_name(context, (*path, key), key)
        if not isinstance(item, str) or "\x00" in item or len(item) > 32_768:
            raise context.error((*path, key), "must be text", "put it into quotes")
        out[key] = item
    return out


def _exec(context: Context, path: Path, value: Any) -> list[str]:
    found = _texts(context, path, value)
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
    found = _texts(context, path, value)
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
    text = _text(context, path, value)
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
        [_text(context, path, value)] if isinstance(value, str) else _texts(context, path, value)
    )
    for item in found:
        if any(char in item for char in "*?[]{}") or item.endswith("/") or "://" in item:
            raise context.error(
                path, f"{shown(item)!r} is not the path of a file", 'write "./corp-ca.pem"', item
            )
    return found


def _home(context: Context, path: Path, value: Any) -> str:
    text = _text(context, path, value)
    if not NAME.match(text) or len(text) > 64 or text.startswith("."):
        raise context.error(
            path, f"{shown(text)!r} is not the name of a home", "write a plain name"
        )
    return text


def _arguments(context: Context, path: Path, value: Any) -> list[str]:
    found = _texts(context, path, value)
    if "*" in found:
        raise context.error(path, "a bare * would cover everything", "name the arguments")
    return found


def _format(context: Context, path: Path, value: Any) -> str:
    text = _text(context, path, value)
    if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1 or not text.isascii():
        raise context.error(path, "must hold {} once", 'write "Bearer {}"')
    return text


def _header(context: Context, path: Path, value: Any) -> str:
    text = _text(context, path, value)
    if not _HEADER.match(text) or text.lower() in _FRAMING:
        raise context.error(path, f"{shown(text)!r} is not a header that may hold a credential")
    return text


def _named_tables(fields: Mapping[str, Checker]) -> Checker:
    def check(context: Context, path: Path, value: Any) -> dict[str, Any]:
        return {
            name: _table(context, (*path, name), item, fields)
            for name, item in _named(context, path, value).items()
        }

    return check


def _named(context: Context, path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise context.error(path, f"must be a table of names, not {_kind(value)}")
    for name in value:
        if not NAME.match(name):
            raise context.error((*path, name), "is not a plain name", "use letters, digits, . _ -")
    return value


def _section(fields: Mapping[str, Checker]) -> Checker:
    return lambda context, path, value: _table(context, path, value, fields)


class Checkers:
    """The checkers that other modules make their sections of."""

    text = staticmethod(_text)
    texts = staticmethod(_texts)
    table = staticmethod(_table)
    named = staticmethod(_named)
    command = staticmethod(_command)
    arguments = staticmethod(_arguments)
    env = staticmethod(_env)
    env_name = staticmethod(_env_name)
    env_names = staticmethod(_env_names)
    need = staticmethod(_need)
    quantity = staticmethod(_quantity)
    one_of = staticmethod(_one_of)
    duration = staticmethod(_quantity(values.duration, positive=True))


_BUDGET_READERS: Final[dict[str, Callable[[object], int]]] = {
    "cost_usd": values.dollars,
    "wall_time": values.duration,
    **{name: values.size for name in DIMENSIONS if name.endswith("_bytes")},
}
_BUDGETS: Final = _section(
    {name: _quantity(_BUDGET_READERS.get(name, values.count)) for name in sorted(DIMENSIONS)}
)
_SIZE: Final = _quantity(values.size, positive=True)

_TOP: Final[dict[str, Checker]] = {
    "version": _version,
    "extends": _extends,
    "explain": _one_of("operator", "agent"),
    "filesystem": _section(
        {
            "read": _texts,
            "write": _texts,
            "deny": _texts,
            "files": _one_of("mount", "calls", "requests", "bind"),
        }
    ),
    "network": _section(
        {
            "allow": _texts,
            "http": _texts,
            "deny": _texts,
            "private": _texts,
            "proxy": _proxy,
            "ca": _files,
        }
    ),
    "process": _section(
        {
            "exec": _exec,
            "exec_from": _folders,
            "home": _home,
            "pass_env": _env_names,
            "env": _env,
        }
    ),
    "limits": _section(
        {
            "memory": _SIZE,
            "processes": _quantity(values.count, positive=True),
            "cpus": _quantity(values.processors),
            "tmp": _SIZE,
        }
    ),
    "tools": _tools,
    "mcp": _mcp,
    "agents": _named_tables({"command": _command, "policy": _text, "budgets": _BUDGETS}),
    "credentials": _named_tables(
        {"from_env": _env_name, "hosts": _command, "header": _header, "format": _format}
    ),
    "models": _models,
    "budgets": _BUDGETS,
    "labels": _labels,
    "approvals": _section({"require": _texts}),
}
