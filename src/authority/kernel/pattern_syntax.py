"""Reading patterns of any scheme: text to `Pattern`, and the pattern of exactly one resource.

Pure. The rules stand in `patterns`; files and URLs have readers of their own (`pattern_files`,
`pattern_urls`). Every reader raises `PatternError`, with what to write instead.
"""

from __future__ import annotations

import re

from authority.kernel.addresses import host_text, shown
from authority.kernel.pattern_files import escape_file, read_file
from authority.kernel.pattern_match import Part, Pattern, PatternError
from authority.kernel.pattern_parts import below, check_source, double, limited
from authority.kernel.pattern_urls import read_url, split_verbs, tcp_pattern
from authority.kernel.resource_urls import DEFAULT_PORTS
from authority.kernel.resources import NAME_SCHEMES, Resource


def parse_pattern(text: str, *, base: str | None = None, forbids: bool = False) -> Pattern:
    """A pattern of any scheme, as capabilities, labels and approvals hold them.

    `base` is the real path against which `fs:./…` is read; without it such a pattern is refused.
    Raises `PatternError`.
    """
    check_source(text)
    verbs, rest = split_verbs(text)
    scheme, colon, name = rest.partition(":")
    if verbs is not None and scheme not in DEFAULT_PORTS:
        raise PatternError(f"only URLs take verbs: {shown(text)!r}", "leave the verbs out")
    if scheme == "fs" and colon:
        return read_file(text, name, base, forbids, decode=True)
    if scheme in DEFAULT_PORTS and name.startswith("//"):
        return read_url(text, rest, verbs, forbids)
    if scheme == "tcp" and name.startswith("//"):
        return tcp_pattern(text, name[2:], forbids=forbids)
    if scheme in NAME_SCHEMES and colon:
        return _name(text, scheme, name, forbids)
    if scheme == "mcp" and colon:
        return _mcp(text, name, forbids)
    raise PatternError(
        f"{shown(text)!r} is not a pattern",
        "write fs:/path, https://host/path, tcp://host:port, tool:NAME or agent:NAME",
    )


def literal(resource: Resource) -> str:
    """The pattern that covers exactly this resource."""
    if resource.scheme == "fs":
        return "fs:" + escape_file("/" + "/".join(resource.segments), encode=True)
    if resource.scheme in DEFAULT_PORTS:
        path = "/" + "/".join(resource.segments)
        tail = "" if resource.query is None else "?" + resource.query.replace("*", "\\*")
        host = f"{host_text(resource.host)}:{resource.port}"
        return f"{resource.scheme}://{host}{path.replace('*', chr(92) + '*')}{tail}"
    return resource.text


def _name(text: str, scheme: str, name: str, forbids: bool) -> Pattern:
    if not re.fullmatch(r"[A-Za-z0-9._:/@+*-]{1,128}", name) or "**" in name:
        raise PatternError(f"{shown(text)!r} names no {scheme}", f"write {scheme}:NAME")
    pieces = tuple(name.split("*"))
    part: Part = pieces if len(pieces) > 1 else name
    return Pattern(text, frozenset({scheme}), limited((part,), text), forbids=forbids)


def _mcp(text: str, raw: str, forbids: bool) -> Pattern:
    segments = raw.split("/")
    if not raw.isascii() or len(segments) < 2 or "*" in segments[0] or "***" in raw:
        raise PatternError(f"{shown(text)!r} names no server", "write mcp:SERVER/resources/**")
    parts: list[Part] = []
    for segment in segments:
        if "**" in segment and segment != "**":
            raise double(text)
        pieces = tuple(segment.split("*"))
        parts.append(None if segment == "**" else pieces if len(pieces) > 1 else segment)
    done = tuple(parts)
    done = limited(below(done) if forbids else done, text)
    return Pattern(text, frozenset({"mcp"}), done, forbids=forbids)
