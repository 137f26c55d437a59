"""URLs: one canonical form, which is also what is sent.

Pure. After RFC 3986, stricter where servers differ. Rules
- `http` or `https`, `//`, a host (see `addresses`), a port or none, a path, a query or none. The
  canonical text always shows the port and a path.
- Control characters, blanks, backslashes and userinfo are refused anywhere. A fragment never goes
  onto the wire: it is removed.
- Percent escapes are decoded once if they stand for an unreserved character, all others stay, in
  upper case; characters that a URL may not hold are escaped as UTF-8. So `%2F` stays `%2F`, is
  forwarded as it came and never matches `/`, and `%252E` stays `%252E`.
- `.` and `..` are refused in the path however they are spelled: escaped, escaped twice, between
  encoded slashes or backslashes, or before a `;`, because some server decodes once more than we do.
- Empty segments (`//`) are refused but at the end: some servers merge them and some do not.
- Escaped control characters are refused in the path; in a query only the escaped NUL is.
"""

from __future__ import annotations

import re

from authority.kernel.addresses import ResourceError, host_text, shown, split_host_port
from authority.kernel.resource_files import decode_name, percent_decode

MAX_URL = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?\Z", re.DOTALL
)
_FORBIDDEN = re.compile(
    r"[\x00-\x20\x7f-\xa0\\\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD_PATH = re.compile(r"[^A-Za-z0-9._~/!$&'()*+,;=:@-]")
_ODD_QUERY = re.compile(r"[^A-Za-z0-9._~/!$&'()*+,;=:@?-]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TOKEN = re.compile(r"%[0-9A-Fa-f]{2}|.", re.DOTALL)
_CONTROL_ESCAPE = re.compile(r"%(?:[01][0-9A-F]|7F)")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_SAFE = _UNRESERVED | frozenset("!$&'()*+,;=:@/")
_QUERY_SAFE = _PATH_SAFE | frozenset("?")
_SPLIT = re.compile(r"[/\\]")


def parse_url(raw: str) -> tuple[str, str, int, str, str | None]:
    """Scheme, host, port, path and query, all canonical. Raises `ResourceError`."""
    if len(raw) > MAX_URL:
        raise ResourceError(f"the URL is longer than {MAX_URL} characters")
    check_characters(raw)
    found = _URL.match(raw)
    if found is None:
        raise ResourceError(
            f"{shown(raw)!r} is not an absolute URL", "write https://host/path or http://host/path"
        )
    scheme = found[1].lower()
    if scheme not in DEFAULT_PORTS:
        raise ResourceError(f"the scheme of {shown(raw)!r} is not http or https")
    if "@" in found[2]:
        raise ResourceError(
            f"the URL {shown(raw)!r} holds user information",
            "put secrets into [credentials] of the policy",
        )
    host, port = split_host_port(found[2])
    path = canonical_path(found[3] or "/")
    query = None if found[4] is None else canonical_query(found[4])
    return scheme, host, port or DEFAULT_PORTS[scheme], path, query


def check_characters(raw: str) -> None:
    """Refuse what no URL may hold anywhere."""
    if _FORBIDDEN.search(raw):
        raise ResourceError(
            f"the URL {shown(raw)!r} holds a blank, a backslash or a control character",
            "write %20 for a blank",
        )
    if _SURROGATE.search(raw):
        raise ResourceError("the URL holds a lone surrogate, which is no character")


def url_text(scheme: str, host: str, port: int, path: str, query: str | None) -> str:
    """The canonical text of a URL from its canonical parts."""
    tail = "" if query is None else "?" + query
    return f"{scheme}://{host_text(host)}:{port}{path}{tail}"


def canonical_path(raw: str) -> str:
    """A path that begins with `/`, normalised and without dot or empty segments."""
    path = normalise(raw, _PATH_SAFE) if _ODD_PATH.search(raw) else raw
    if "//" in path:
        raise ResourceError(
            f"the path {shown(raw)!r} holds an empty segment", "write single slashes"
        )
    if _CONTROL_ESCAPE.search(path):
        raise ResourceError(f"the path {shown(raw)!r} holds an escaped control character")
    if "." in path or "%" in path:
        _check_dots(path, raw)
    return path


def canonical_query(raw: str) -> str:
    """A query, normalised."""
    query = normalise(raw, _QUERY_SAFE) if _ODD_QUERY.search(raw) else raw
    if "%00" in query:
        raise ResourceError("the query holds an escaped NUL")
    return query


def normalise(raw: str, safe: frozenset[str] = _PATH_SAFE) -> str:
    """Escapes of unreserved characters decoded, all others upper case, the rest escaped."""
    if _BAD_PERCENT.search(raw):
        raise ResourceError(
            f"{shown(raw)!r} has a percent sign that begins no escape", "write %25 for it"
        )
    parts = []
    for token in _TOKEN.findall(raw):
        if len(token) == 3:
            char = chr(int(token[1:], 16))
            parts.append(char if char in _UNRESERVED else token.upper())
        elif token in safe:
            parts.append(token)
        else:
            parts.append("".join(f"%{byte:02X}" for byte in token.encode()))
    return "".join(parts)


def decoded_segments(segments: tuple[str, ...]) -> tuple[str, ...]:
    """What a server sees that decodes everything, encoded slashes included.

    For rules that forbid: a denial must not depend on how much the server decodes.
    """
    joined = "/".join(segments)
    if "%" not in joined:
        return segments
    parts = _SPLIT.split(decode_name(percent_decode(joined.encode("utf-8", "surrogateescape"))))
    return (*(part for part in parts[:-1] if part), parts[-1])


def _check_dots(path: str, raw: str) -> None:
    view = path
    for _ in range(8):
        for segment in _SPLIT.split(view):
            if segment.partition(";")[0] in (".", ".."):
                raise ResourceError(
                    f"the path {shown(raw)!r} holds . or ..", "write the path without them"
                )
        if "%" not in view:
            return
        try:
            following = decode_name(percent_decode(view.encode("utf-8", "surrogateescape")))
        except ResourceError:
            return  # nothing decodes this view any further
        if following == view:
            return
        view = following
    raise ResourceError(f"the path {shown(raw)!r} is escaped too many times over")
