"""Reading patterns: text to `Pattern`. The rules stand in `patterns`.

Pure. Every reader raises `PatternError`, with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from authority.kernel.addresses import (
    ResourceError,
    canonical_host,
    canonical_port,
    host_text,
    is_address,
    shown,
    split_host_port,
)
from authority.kernel.pattern_match import ANY_QUERY, Part, Pattern, PatternError
from authority.kernel.resource_files import decode_name, file_segments, percent_decode
from authority.kernel.resource_urls import (
    DEFAULT_PORTS,
    canonical_path,
    canonical_query,
    check_characters,
    decoded_segments,
    normalise,
)
from authority.kernel.resources import NAME_SCHEMES, Resource

MAX_PATTERN: Final = 4096
MAX_PARTS: Final = 256
MAX_STARS: Final = 16
_VERBS: Final = re.compile(r"[A-Z][A-Z-]{0,31}(?:,[A-Z][A-Z-]{0,31})*\Z")
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_URL_TOKEN: Final = re.compile(r"\\\*|\*|[^*\\]+|\\")
_RESERVED: Final = frozenset("?[]{}")
_FIRST: Final = {
    "!": "a rule can't be turned round; put it into deny",
    "~": "a home directory is not looked up; write the path",
    "$": "variables are not looked up; write the path",
}
_STAR: Final = object()


def parse_pattern(text: str, *, base: str | None = None, forbids: bool = False) -> Pattern:
    """A pattern of any scheme, as capabilities, labels and approvals hold them.

    `base` is the real path against which `fs:./…` is read; without it such a pattern is refused.
    Raises `PatternError`.
    """
    check_source(text)
    verbs, rest = _split_verbs(text)
    scheme, colon, name = rest.partition(":")
    if verbs is not None and scheme not in DEFAULT_PORTS:
        raise PatternError(f"only URLs take verbs: {shown(text)!r}", "leave the verbs out")
    if scheme == "fs" and colon:
        return _file(text, name, base, forbids, decode=True)
    if scheme in DEFAULT_PORTS and name.startswith("//"):
        return _url(text, rest, verbs, forbids)
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


def file_pattern(text: str, *, base: str, forbids: bool = False) -> Pattern:
    """A pattern of `[filesystem]`: a path with wildcards, or the `fs:` form."""
    check_source(text)
    if text.startswith("fs:"):
        return _file(text, text[3:], base, forbids, decode=True)
    if "://" in text:
        raise PatternError(f"{shown(text)!r} is a URL, not a file", "move it to [network]")
    return _file(text, text, base, forbids, decode=False)


def url_pattern(text: str, *, default_verbs: Iterable[str] = ()) -> Pattern:
    """A permitting URL rule; `default_verbs` hold where it names none."""
    check_source(text)
    verbs, rest = _split_verbs(text)
    if rest.partition("://")[0] not in DEFAULT_PORTS:
        raise PatternError(f"{shown(text)!r} is not a URL rule", 'write "GET https://host/path/**"')
    if verbs is None:
        verbs = frozenset(default_verbs) or None
    return _url(text, rest, verbs, False)


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


def escape_file(path: str, *, encode: bool = False) -> str:
    """A path as a file pattern that covers only itself; `encode` for the `fs:` form."""
    out = []
    for segment in path.split("/"):
        kept = ""
        for index, char in enumerate(segment):
            if encode and (char == "%" or not char.isprintable() or _UNSAFE.match(char)):
                kept += "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
            elif char in "\\*" or char in _RESERVED or (char in _FIRST and index == 0):
                kept += "\\" + char
            else:
                kept += char
        out.append(kept)
    return "/".join(out)


def check_source(text: str) -> None:
    """Refuse what no pattern may be: too long, invisible characters, a bare wildcard."""
    if not text or len(text) > MAX_PATTERN:
        raise PatternError(f"a pattern has 1 to {MAX_PATTERN} characters")
    if _UNSAFE.search(text):
        raise PatternError(
            f"the pattern {shown(text)!r} holds a control or invisible character",
            "write it in the fs: form with percent escapes if a file is really called so",
        )
    if text in ("*", "**"):
        raise PatternError(f"a bare {text} would cover everything", "say what is meant")


def _split_verbs(text: str) -> tuple[frozenset[str] | None, str]:
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


def _url(text: str, rest: str, verbs: frozenset[str] | None, forbids: bool) -> Pattern:
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
        parts = _below(_decoded(_url_parts(path, text), text)) if slash else (None,)
        query: str | None = ANY_QUERY
    else:
        parts = _url_parts(path, text)
        query = _query(query_text, text) if mark else None
    return Pattern(
        text,
        frozenset({scheme}),
        _limited(parts, text),
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
            raise _double(text)
        else:
            pieces.append("")
        before = piece
    return pieces[0] if len(pieces) == 1 else tuple(pieces)


def _double(text: str) -> PatternError:
    return PatternError(
        f"{shown(text)!r} holds ** beside something else",
        "** stands alone between slashes, as in a/**/b",
    )


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


def _name(text: str, scheme: str, name: str, forbids: bool) -> Pattern:
    if not re.fullmatch(r"[A-Za-z0-9._:/@+*-]{1,128}", name) or "**" in name:
        raise PatternError(f"{shown(text)!r} names no {scheme}", f"write {scheme}:NAME")
    pieces = tuple(name.split("*"))
    part: Part = pieces if len(pieces) > 1 else name
    return Pattern(text, frozenset({scheme}), _limited((part,), text), forbids=forbids)


def _mcp(text: str, raw: str, forbids: bool) -> Pattern:
    segments = raw.split("/")
    if not raw.isascii() or len(segments) < 2 or "*" in segments[0] or "***" in raw:
        raise PatternError(f"{shown(text)!r} names no server", "write mcp:SERVER/resources/**")
    parts: list[Part] = []
    for segment in segments:
        if "**" in segment and segment != "**":
            raise _double(text)
        pieces = tuple(segment.split("*"))
        parts.append(None if segment == "**" else pieces if len(pieces) > 1 else segment)
    done = tuple(parts)
    done = _limited(_below(done) if forbids else done, text)
    return Pattern(text, frozenset({"mcp"}), done, forbids=forbids)


def _file(text: str, raw: str, base: str | None, forbids: bool, *, decode: bool) -> Pattern:
    if raw in ("*", "**"):
        raise PatternError(f"a bare {raw} would cover everything", "say which directory, as ./**")
    prefix: list[Part] = []
    segments = raw.split("/")
    anywhere = forbids and segments[0] == "**"
    if raw.startswith("/"):
        segments = segments[1:]
    elif not anywhere:
        if base is None:
            raise PatternError(f"{shown(text)!r} is relative", "write an absolute path")
        try:
            prefix = list(file_segments(base, None))
        except ResourceError as error:
            raise PatternError(f"the folder of the rule: {error.message}", error.hint) from None
    while segments and segments[0] in (".", ".."):
        if segments.pop(0) == "..":
            if raw.startswith("/") or not prefix:
                raise PatternError(f"{shown(text)!r} leads above the root", "write the path")
            prefix.pop()
    if segments == [""] and raw == "/":
        segments = []
    parts = prefix + [_file_part(segment, text, decode=decode) for segment in segments]
    done = tuple(parts)
    return Pattern(
        text,
        frozenset({"fs"}),
        _limited(_below(done) if forbids else done, text),
        query=ANY_QUERY,
        forbids=forbids,
    )


def _file_part(raw: str, text: str, *, decode: bool) -> Part:
    if raw == "**":
        return None
    if raw in ("", ".", ".."):
        raise PatternError(
            f"{shown(text)!r} holds an empty, . or .. segment",
            "write the path plainly; ../ may stand only in front, and dir/** covers a folder",
        )
    tokens: list[bytes | object] = []
    index = 0
    while index < len(raw):
        char = raw[index]
        if char == "\\":
            index += 1
            if index == len(raw):
                raise PatternError(f"{shown(text)!r} ends in a backslash", "write \\\\ for one")
            tokens.append(raw[index].encode())
        elif char == "*":
            if tokens and tokens[-1] is _STAR:
                raise _double(text)
            tokens.append(_STAR)
        elif char in _RESERVED:
            raise PatternError(
                f"{shown(text)!r} holds {char}, which is no wildcard here",
                f"use *, or \\{char} for the character itself",
            )
        elif char in _FIRST and index == 0:
            raise PatternError(
                f"{shown(text)!r} holds a name that begins with {char}",
                f"{_FIRST[char]}, or \\{char} for the character itself",
            )
        elif char == "%" and decode:
            escape = raw[index : index + 3]
            if not re.fullmatch(r"%[0-9A-Fa-f]{2}", escape):
                raise PatternError(f"{shown(text)!r} holds a bad percent escape", "write %25")
            tokens.append(bytes((int(escape[1:], 16),)))
            index += 2
        else:
            tokens.append(char.encode())
        index += 1
    return _joined(tokens, text)


def _joined(tokens: list[bytes | object], text: str) -> Part:
    pieces = [b""]
    for token in tokens:
        if isinstance(token, bytes):
            pieces[-1] += token
        else:
            pieces.append(b"")
    names = tuple(decode_name(piece) for piece in pieces)
    if any("/" in name or "\x00" in name for name in names) or names in ((".",), ("..",)):
        raise PatternError(
            f"{shown(text)!r} holds an escaped slash, dot or NUL", "write it plainly"
        )
    return names[0] if len(names) == 1 else names


def _below(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    if parts and parts[-1] == "":
        parts = parts[:-1]
    return parts if parts and parts[-1] is None else (*parts, None)


def _limited(parts: tuple[Part, ...], text: str) -> tuple[Part, ...]:
    stars = sum(part is None for part in parts)
    widest = max((len(part) for part in parts if isinstance(part, tuple)), default=0)
    if len(parts) > MAX_PARTS or stars > MAX_STARS or widest > MAX_STARS:
        raise PatternError(
            f"{shown(text)!r} is too complicated",
            f"use at most {MAX_PARTS} segments and {MAX_STARS} wildcards",
        )
    # Two `**` in a row mean what one means.
    return tuple(
        part
        for index, part in enumerate(parts)
        if part is not None or parts[index - 1 : index] != (None,)
    )
