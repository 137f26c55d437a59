"""What a run may write into a request of its own, and the bytes that go out for it.

Pure. Rules
- The run writes end-to-end headers only. Those that frame a message, steer a connection, or ask a
  server to act on another method, path or host than the judged one are refused, in whatever
  spelling a gateway may fold them (`Content_Length`). Names are tokens, values printable ASCII.
- Methods are upper-case tokens, as they were judged; CONNECT and TRACE do not exist. GET and HEAD
  carry no body: they pass for reads wherever they are judged.
- The target is that of the judged URL, byte for byte. `Accept-Encoding: identity` is always sent.

Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import re

from authority.effects.base import Call, EffectRefused
from authority.effects.http_secrets import Injection
from authority.kernel.addresses import host_text
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.requests import MAX_BODY

MAX_REQUEST_HEADERS = 64
MAX_REQUEST_HEAD = 16 * 1024

_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}\Z")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")
_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?\Z")
_FRAMING = frozenset(
    [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "expect",
        "te",
        "trailer",
        "http2-settings",
        "alt-used",
    ]
)
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
"""Fields by which a server may take another method or host than the judged one. The worker, whose room
imports nothing of this one, has the same (`worker.asking`); a test holds them together."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def request_bytes(call: Call, put_in: tuple[Injection, ...]) -> bytes:
    """The request as it goes out. Raises `EffectRefused` for what the run may not write."""
    arguments, resource = call.arguments, call.resource
    method: str = arguments.method
    body: bytes = arguments.body
    if not _METHOD.match(method) or method in ("CONNECT", "TRACE"):
        raise _invalid(f"The method {printable(method, 40)} is not one that may be used.")
    if body and method in ("GET", "HEAD"):
        raise _invalid("GET and HEAD carry no body.")
    if len(body) > MAX_BODY or not 0 <= arguments.max_bytes <= MAX_BODY:
        raise _invalid(f"Body and max_bytes lie between 0 and {MAX_BODY} bytes.")
    host = host_text(resource.host)
    if resource.port != _DEFAULT_PORTS[resource.scheme]:
        host += f":{resource.port}"
    headers = [("Host", host), ("Connection", "close"), ("Accept-Encoding", "identity")]
    headers += _own_headers(arguments.headers, put_in)
    headers += [(one.header, one.value) for one in put_in]
    if not any(name.lower() == "user-agent" for name, _ in headers):
        headers.append(("User-Agent", "authority"))
    if body or method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(body))))
    query = "" if resource.query is None else "?" + resource.query
    target = "/" + "/".join(resource.segments) + query
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _own_headers(
    given: list[tuple[str, str]], put_in: tuple[Injection, ...]
) -> list[tuple[str, str]]:
    size = sum(len(name) + len(value) + 4 for name, value in given)
    if len(given) > MAX_REQUEST_HEADERS or size > MAX_REQUEST_HEAD:
        raise _invalid(f"More than {MAX_REQUEST_HEADERS} headers or {MAX_REQUEST_HEAD} bytes.")
    removed = {"accept-encoding"}
    if put_in:
        # `Range` would let a run fetch an echo of the secret in pieces too small to be known.
        removed |= {"authorization", "cookie", "range", "if-range"}
        removed |= {one.header.lower().replace("_", "-") for one in put_in}
    kept = []
    for name, value in given:
        if not _NAME.match(name):
            raise _invalid(f"{printable(name, 60)!r} is not the name of a header.")
        if not _VALUE.match(value):
            raise _invalid(f"The value of {name} is not printable ASCII without outer blanks.")
        folded = name.lower().replace("_", "-")
        if folded in _FRAMING or folded in STEERING or folded.startswith("proxy-"):
            raise _invalid(f"The header {name} is not the run's to write.")
        if folded not in removed:
            kept.append((name, value))
    return kept


def _invalid(sentence: str) -> EffectRefused:
    return EffectRefused(Code.SCHEMA_INVALID, sentence)
