"""Patterns of URLs and hosts: `[VERB,VERB ]https://host/path`, a host that is forbidden, `host:port`.

Pure. The rules stand in `patterns`. Every reader raises `PatternError`, with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from authority.kernel.addresses import (
    ResourceError,
    canonical_host,
    canonical_port,
    is_address,
    shown,
    split_host_port,
)
from authority.kernel.pattern_match import ANY_QUERY, Part, Pattern, PatternError
from authority.kernel.pattern_parts import below, check_source, double, limited
from authority.kernel.resource_files import decode_name, percent_decode
from authority.kernel.resource_urls import (
    DEFAULT_PORTS,
    canonical_path,
    canonical_query,
    check_characters,
    decoded_segments,
    normalise,
)

_VERBS: Final = re.compile(r"[A-Z][A-Z-]{0,31}(?:,[A-Z][A-Z-]{0,31})*\Z")
_URL_TOKEN: Final = re.compile(r"\\\*|\*|[^*\\]+|\\")


def url_pattern(text: str, *, default_verbs: Iterable[str] = ()) -> Pattern:
    """A permitting URL rule; `default_verbs` hold where it names none."""
    check_source(text)
    verbs, rest = split_verbs(text)
    if rest.partition("://")[0] not in DEFAULT_PORTS:
        raise PatternError(f"{shown(text)!r} is not a URL rule", 'write "GET https://host/path/**"')
    if verbs is None:
        verbs = frozenset(default_verbs) or None
    return read_url(text, rest, verbs, False)


def host_pattern(text: str) -> Pattern:
    """A forbidding rule over hosts: `host`, `*.host`, `host:port`, on every scheme."""
    check_source(text)
    try:
        host, subdomains, port = _host(text)
    except ResourceError as error:
        raise PatternError(error.message, error.hint) from None
    schemes = frozenset({"http", "https", "tcp"})
    return Pattern(text, schemes, (None,), host, subdomains, port or 0, forbids=True)


def tcp_pattern(text: str, rest: str, *, forbids: bool = False) -> Pattern:
    """`host:port`; the port must be written."""
    check_source(text)
    try:
        host, subdomains, port = _host(rest)
    except ResourceError as error:
        raise PatternError(error.message, error.hint) from None
    if not port:
        raise PatternError(f"{shown(text)!r} names no port", "write host:port")
    schemes = frozenset({"tcp"})
    return Pattern(text, schemes, (None,), host, subdomains, port, forbids=forbids)


def split_verbs(text: str) -> tuple[frozenset[str] | None, str]:
    """The verbs that a rule names in front of its URL, None when it names none, and the rest."""
    head, blank, rest = text.partition(" ")
    if not blank or "://" in head or head.startswith("fs:"):
        return None, text
    if "://" not in rest:
        return None, text
    if not _VERBS.match(head):
        raise PatternError(
            f"{shown(head)!r} is not a list of verbs", 'write "GET,POST https://host/path"'
        )
    verbs = frozenset(head.split(","))
    if verbs & {"CONNECT", "TRACE"}:
        raise PatternError("CONNECT and TRACE are never sent", "leave them out")
    return verbs, rest


def read_url(text: str, rest: str, verbs: frozenset[str] | None, forbids: bool) -> Pattern:
    """The pattern of the URL `rest` in the rule `text`; `verbs` None covers every verb."""
    try:
        return _read_url(text, rest, verbs, forbids)
    except ResourceError as error:
        raise PatternError(error.message, error.hint) from None


def _read_url(text: str, rest: str, verbs: frozenset[str] | None, forbids: bool) -> Pattern:
    check_characters(rest.replace("\\*", ""))
    scheme, _, rest = rest.partition("://")
    if "#" in rest:
        raise PatternError(f"the rule {shown(text)!r} holds a fragment", "leave it out")
    location, mark, query_text = rest.partition("?")
    authority, slash, path = location.partition("/")
    host, subdomains, port = _host(authority)
    parts: tuple[Part, ...]
    if forbids:
        if mark and query_text != "*":
            raise PatternError(
                f"the rule {shown(text)!r} forbids one spelling of a query",
                "leave the query out: a rule that forbids covers every query",
            )
        parts = below(_decoded(_url_parts(path, text), text)) if slash else (None,)
        query: str | None = ANY_QUERY
    else:
        parts = _url_parts(path, text)
        query = _query(query_text, text) if mark else None
    return Pattern(
        text,
        frozenset({scheme}),
        limited(parts, text),
        host,
        subdomains,
        port or DEFAULT_PORTS[scheme],
        query,
        verbs,
        forbids,
    )


def _query(raw: str, text: str) -> str:
    if raw == "*":
        return ANY_QUERY
    if "*" in raw.replace("\\*", ""):
        raise PatternError(
            f"the query of {shown(text)!r} holds a wildcard",
            "a query is written out whole, or is ?* for every query",
        )
    return canonical_query(raw.replace("\\*", "*"))


def _host(raw: str) -> tuple[str, bool, int | None]:
    if "@" in raw:
        raise PatternError(f"{shown(raw)!r} holds user information", "use [credentials]")
    subdomains = raw.startswith("*.")
    rest = raw[2:] if subdomains else raw
    if "*" in rest or (subdomains and not rest):
        raise PatternError(
            f"{shown(raw)!r} is not a host", "write a host name, or *. and a name, once in front"
        )
    if rest.startswith("["):
        host, port = split_host_port(rest)
    else:
        name, colon, number = rest.partition(":")
        host, port = canonical_host(name), canonical_port(number) if colon else None
    if subdomains and is_address(host):
        raise PatternError(f"{shown(raw)!r}: addresses have no subdomains", "write the address")
    return host, subdomains, port


def _url_parts(path: str, text: str) -> tuple[Part, ...]:
    segments = path.split("/")
    if any(not segment for segment in segments[:-1]):
        raise PatternError(f"{shown(text)!r} holds an empty segment", "write single slashes")
    parts: list[Part] = []
    for segment in segments:
        if any(char in segment for char in "[]{}"):
            raise PatternError(f"{shown(text)!r} holds a bracket or brace", "use * for what varies")
        part = _url_part(segment, text)
        if isinstance(part, str):
            part = canonical_path("/" + part)[1:]
        elif part is not None:
            part = tuple(normalise(piece) for piece in part)
        parts.append(part)
    return tuple(parts)


def _url_part(segment: str, text: str) -> Part:
    if segment == "**":
        return None
    pieces = [""]
    before = ""
    for piece in _URL_TOKEN.findall(segment):
        if piece != "*":
            pieces[-1] += "*" if piece == "\\*" else piece
        elif before == "*":
            raise double(text)
        else:
            pieces.append("")
        before = piece
    return pieces[0] if len(pieces) == 1 else tuple(pieces)


def _decoded(parts: tuple[Part, ...], text: str) -> tuple[Part, ...]:
    out: list[Part] = []
    for part in parts:
        if part is None:
            out.append(None)
        elif isinstance(part, str):
            out.extend(decoded_segments((part,)))
        else:
            pieces = tuple(decode_name(percent_decode(piece.encode())) for piece in part)
            if any("/" in piece or "\\" in piece for piece in pieces):
                raise PatternError(
                    f"{shown(text)!r} holds a wildcard beside an encoded slash",
                    "write the segments apart",
                )
            out.append(pieces)
    return tuple(out)
