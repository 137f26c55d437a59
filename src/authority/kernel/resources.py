"""Resources: what a request is about, in one canonical form, made before anything is compared.

Pure. The object that `parse` returns is the one that is judged and the one that is used, so there
is no second reading that could come to another result. Rules of each family stand in
`resource_files`, `resource_urls` and `addresses`; here is which effect takes which.

    fs.*                                  fs:/absolute/path
    http.*                                https://host:443/path?query, http://…
    net.connect                           tcp://host:port
    net.resolve                           dns:host
    tool.*  agent.spawn  model.*          tool:NAME  agent:NAME  model:NAME
    agent.*  msg.*                        run:ID
    mcp.*                                 mcp:SERVER/tools, mcp:SERVER/resources/URI, …
    output                                output:stdout, output:stderr
    sys.*                                 sys:time, sys:random, sys:uuid
    gate.*                                gate:ACTION

`parse` is idempotent: the text of a resource parses to that resource.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from authority.kernel.addresses import (
    ResourceError,
    canonical_host,
    host_text,
    is_address,
    judge_address,
    shown,
    split_host_port,
)
from authority.kernel.resource_files import file_path, file_segments, file_text
from authority.kernel.resource_urls import check_characters, parse_url, url_text

__all__ = [
    "MCP_SERVER",
    "NAME",
    "NAME_SCHEMES",
    "Resource",
    "ResourceError",
    "canonical_host",
    "is_address",
    "judge_address",
    "named",
    "parse",
    "parse_text",
]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
MCP_SERVER: Final = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")
"""The name of an MCP server: no dot, which ends it in `tool:SERVER.NAME`, and no `__`."""
_TOOL: Final = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63}|[A-Za-z0-9][A-Za-z0-9_-]{0,31}\.[A-Za-z0-9_-]"
    r"[A-Za-z0-9._-]{0,127})\Z"
)
"""A process tool's name, or a server's and its tool's."""
_MCP: Final = re.compile(r"([^/]*)/(tools|resources|prompts)(?:/(.+))?\Z")
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!#-;=?-\[\]_a-z~|{}^]*\Z")
_HIDDEN: Final = re.compile(r"%(?:2[ef]|5c|00)", re.IGNORECASE)
MAX_URI: Final = 2048
REMEMBERED: Final = 1024
"""Texts, and judgements of a policy, that are remembered."""
SHORT: Final = 256
"""The longest text of which anything is remembered: a path of a thousand names takes 100 KB."""
_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")
_SYSTEM: Final = frozenset({"sys:time", "sys:random", "sys:uuid"})
_HANDLE: Final = re.compile(r"h[1-9][0-9]{0,8}\Z")
_NAMES: Final = {
    "tool": _TOOL,
    "agent": NAME,
    "gate": NAME,
    "run": _RUN,
    "model": _MODEL,
    "handle": _HANDLE,
    "room": NAME,
}
NAME_SCHEMES: Final = frozenset({*_NAMES, "output", "sys"})
"""Schemes whose resources are a name and nothing more."""


class Resource(msgspec.Struct, frozen=True):
    """A canonical resource.

    `segments` are a path's names (of a URL in their escaped form), or the one name. `host` is empty
    where there is none, IPv6 stands without brackets; `port` is 0 where there is none. `query` is
    None without a `?`.
    """

    scheme: str
    text: str
    segments: tuple[str, ...] = ()
    host: str = ""
    port: int = 0
    query: str | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def path(self) -> bytes:
        """The absolute path of a file for the operating system. Raises `ResourceError`."""
        if self.scheme != "fs":
            raise ResourceError(f"{shown(self.text)} is not a file")
        return file_path(self.segments)

    @property
    def name(self) -> str:
        """The name behind the colon, of schemes that have no more than a name."""
        return self.segments[0] if self.segments else ""


def parse(effect: str, raw: str | bytes, *, cwd: str | bytes | None = None) -> Resource:
    """The resource that an effect names. Raises `ResourceError` for everything doubtful.

    `cwd` is the absolute directory against which relative file paths are read; without it they are
    refused. What was read of late is remembered: the same text is the same resource.
    """
    return _remembered(effect, raw, cwd) if len(raw) <= SHORT else _read(effect, raw, cwd)


def _read(effect: str, raw: str | bytes, cwd: str | bytes | None) -> Resource:
    family, _, action = effect.partition(".")
    if family == "fs":
        return _file(file_segments(raw, cwd))
    text = _text(raw)
    if family == "http":
        return _url(text)
    if effect == "net.resolve":
        return _dns(text)
    if family == "net":
        return _tcp(text)
    if effect == "output":
        return _output(text)
    if family == "sys":
        return _system(text, effect.replace(".", ":"))
    if family in ("tool", "model", "gate"):
        return _named(family, text)
    if family == "value":
        return _named("room" if effect == "value.compute" else "handle", text)
    if family == "mcp":
        return _mcp(text)
    if effect == "agent.spawn":
        return _named("agent", text)
    if (family == "agent" and action) or family == "msg":
        return _named("run", text)
    raise ResourceError(f"no effect is called {shown(effect)!r}")


_remembered = lru_cache(maxsize=REMEMBERED)(_read)


def parse_text(text: str) -> Resource:
    """The resource of a canonical text, whatever its scheme. Raises `ResourceError`."""
    scheme = text.partition(":")[0]
    if scheme == "fs":
        return _file(file_segments(text, None))
    if scheme in ("http", "https"):
        return _url(text)
    if scheme == "tcp":
        return _tcp(text)
    if scheme == "dns":
        return _dns(text)
    if scheme == "output":
        return _output(text)
    if scheme == "sys" and text in _SYSTEM:
        return _system(text, text)
    if scheme == "mcp":
        return _mcp(text)
    if scheme in _NAMES:
        return _named(scheme, text)
    raise ResourceError(f"{shown(text)!r} is not a resource")


def named(scheme: str, name: str) -> Resource:
    """`scheme:name` for `tool agent run model gate output`. Raises `ResourceError`."""
    return parse_text(f"{scheme}:{name}")


def _text(raw: str | bytes) -> str:
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ResourceError(f"{shown(raw)!r} is not UTF-8") from None


def _file(segments: tuple[str, ...]) -> Resource:
    return Resource("fs", file_text(segments), segments)


def _url(raw: str) -> Resource:
    scheme, host, port, path, query = parse_url(raw)
    text = url_text(scheme, host, port, path, query)
    return Resource(scheme, text, tuple(path[1:].split("/")), host, port, query)


def _tcp(raw: str) -> Resource:
    check_characters(raw)
    scheme, separator, rest = raw.partition("://")
    if not separator:
        scheme, rest = "tcp", raw
    if scheme.lower() != "tcp":
        raise ResourceError(f"{shown(raw)!r} is not tcp://host:port")
    host, port = split_host_port(rest)
    if port is None:
        raise ResourceError(f"{shown(raw)!r} names no port", "write tcp://host:port")
    return Resource("tcp", f"tcp://{host_text(host)}:{port}", (), host, port)


def _dns(raw: str) -> Resource:
    check_characters(raw)
    host = canonical_host(raw.removeprefix("dns:"))
    if is_address(host):
        raise ResourceError(f"{shown(raw)!r} is an address, not a name to be looked up")
    return Resource("dns", f"dns:{host}", (), host)


def _output(raw: str) -> Resource:
    if raw not in ("output:stdout", "output:stderr"):
        raise ResourceError(
            f"{shown(raw)!r} is not an output", "write output:stdout or output:stderr"
        )
    return Resource("output", raw, (raw[7:],))


def _system(raw: str, wanted: str) -> Resource:
    if raw != wanted:
        raise ResourceError(f"{shown(raw)!r} is not {shown(wanted)}", f"write {shown(wanted)}")
    return Resource("sys", raw, (raw[4:],))


def _mcp(raw: str) -> Resource:
    """`mcp:SERVER/KIND` for a list, or with `/` and a prompt's name or a resource's URI behind it.

    A URI is kept as it is, so it may hold nothing that a server would read as something else:
    segments of dots, escaped dots, slashes and NUL, a backslash, blanks, what is not ASCII.
    """
    scheme, _, rest = raw.partition(":")
    found = _MCP.match(rest)
    if scheme != "mcp" or found is None or not MCP_SERVER.match(found[1]):
        raise ResourceError(
            f"{shown(raw)!r} is no MCP resource",
            "write mcp:SERVER/resources/URI or mcp:SERVER/tools",
        )
    server, kind, item = found[1], found[2], found[3]
    if item is None:
        return Resource("mcp", raw, (server, kind))
    if kind == "tools" or (kind == "prompts" and not NAME.match(item)):
        raise ResourceError(f"{shown(raw)!r} names no item", "write mcp:SERVER/prompts/NAME")
    segments = item.split("/")
    if kind == "resources" and (
        len(item) > MAX_URI
        or not _URI.match(item)
        or {".", ".."} & set(segments)
        or _HIDDEN.search(item)
    ):
        raise ResourceError(f"{shown(item)!r} is not a plain URI", "write it without dot segments")
    return Resource("mcp", raw, (server, kind, *segments))


def _named(scheme: str, raw: str) -> Resource:
    found, _, name = raw.partition(":")
    if found != scheme or not _NAMES[scheme].match(name):
        raise ResourceError(
            f"{shown(raw)!r} is not a {scheme} resource", f"write {scheme}: and a plain name"
        )
    return Resource(scheme, raw, (name,))
