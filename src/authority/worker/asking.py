"""A program's request, read for judgement: one URL, the fields that go on, how the body is framed.

Pure. Rules
- The target is a path, or an absolute URL of the very host that the connection is for. Of a request to
  the proxy itself it is an absolute http URL. Userinfo, fragments, `*` and other schemes are refused.
- Host stands once and is the host and port of the URL: what TLS, CONNECT, the target and Host say is
  one host, or nothing is sent.
- CONNECT and TRACE do not exist here. GET and HEAD carry no body: they pass for reads.
- A websocket is asked for with `Upgrade: websocket`; every other upgrade is left out, and the
  conversation stays HTTP/1.1. Expect is `100-continue` or nothing.
- Fields that ask a server to act on another method, path or host than the judged one are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from authority.worker import heads
from authority.worker.heads import Bad, Fields, Request
from authority.worker.relay import check_host, names

STEERING = frozenset(
    [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "x-original-uri",
        "x-forwarded-host",
        "x-forwarded-server",
        "x-host",
        "forwarded",
    ]
)
_ABSOLUTE = re.compile(r"(https?)://([^/?#@\\]+)([/?][^#\\]*)?\Z", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\\]+):([1-9][0-9]{0,4})\Z")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a connection is for; None in place of it where each request says so (the proxy)."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """Without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Asking:
    """A request as it is put to the gate. `length`: see `heads.length`."""

    method: str
    url: str
    fields: Fields
    length: int | None
    upgrade: bool
    expects: bool
    keeps: bool
    minor: int


def authority(text: str) -> tuple[str, int]:
    """Host and port of a CONNECT target, lower case. Raises `Bad`."""
    found = _AUTHORITY.match(text)
    if found is None or int(found[2]) > 65535:
        raise Bad("The target of CONNECT is not host:port.")
    return found[1].lower(), int(found[2])


def connect(request: Request) -> tuple[str, int]:
    """Where a CONNECT leads. Raises `Bad`."""
    host, port = authority(request.target)
    if heads.length(request) not in (None, 0):
        raise Bad("CONNECT carries no body.")
    found = heads.values(request.fields, "host")
    if len(found) > 1 or (found and found[0].lower() not in (f"{host}:{port}", host)):
        raise Bad("Host is another host than the one that CONNECT names.")
    return host, port


def origin(request: Request) -> Origin:
    """The origin of a request to the proxy. Raises `Bad`."""
    found = _ABSOLUTE.match(request.target)
    if found is None or found[1].lower() != "http":
        raise Bad("A request to the proxy names an absolute http URL, or it is CONNECT.")
    host, colon, port = found[2].lower().rpartition(":")
    if not colon or port.endswith("]"):
        return Origin("http", found[2].lower(), 80)
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise Bad("The port of the URL is not a port.")
    return Origin("http", host, int(port))


def asking(request: Request, place: Origin) -> Asking:
    """What to put to the gate for a request on a connection for `place`. Raises `Bad`."""
    if request.method in ("CONNECT", "TRACE"):
        raise Bad(f"{request.method} does not exist here.")
    length = heads.length(request)
    if length not in (None, 0) and request.method in ("GET", "HEAD"):
        raise Bad("GET and HEAD carry no body.")
    expect = heads.tokens(request.fields, "expect")
    if expect not in ([], ["100-continue"]):
        raise Bad("Expect is something else than 100-continue.")
    bare = Origin(place.scheme, place.host.strip("[]"), place.port)
    path = _path(request.target, bare)
    check_host(request, bare.scheme, bare.host, bare.port)
    fields = []
    for name, value in heads.end_to_end(request.fields):
        folded = name.lower().replace("_", "-")
        if folded in STEERING:
            raise Bad(f"The header {name} asks for another request than the judged one.")
        if folded != "expect":
            fields.append((name, value))
    connection = heads.tokens(request.fields, "connection")
    upgrade = (
        request.method == "GET"
        and bool(request.minor)
        and "upgrade" in connection
        and heads.tokens(request.fields, "upgrade") == ["websocket"]
    )
    return Asking(
        method=request.method,
        url=bare.url + path,
        fields=fields,
        length=length,
        upgrade=upgrade,
        expects=bool(expect) and bool(request.minor),
        keeps=bool(request.minor) and "close" not in connection,
        minor=request.minor,
    )


def _path(target: str, place: Origin) -> str:
    if "#" in target or "\\" in target:
        raise Bad("The target holds a fragment or a backslash.")
    if target.startswith("/"):
        return target
    found = _ABSOLUTE.match(target)
    if found is None:
        raise Bad("The target is neither a path nor an absolute URL.")
    if found[1].lower() != place.scheme or not names(
        found[2], place.scheme, place.host, place.port
    ):
        raise Bad("The target names another host than the one that the connection is for.")
    rest = found[3] or "/"
    return rest if rest.startswith("/") else "/" + rest
