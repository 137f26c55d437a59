"""`http.request`: one HTTP/1.1 exchange with a judged address, bounded in every direction.

Rules
- httpcore is driven directly, below the client of httpx: the URL was made canonical and judged
  already, so its target is sent byte for byte and parsed by nobody else; and redirects, cookies,
  netrc, proxies from the environment and decoding do not exist at this level. A redirect is an
  answer like any other; the next hop is a request of the run.
- One connection a request, closed after it. A pool would let the rest of one answer be taken for
  the beginning of the next; the price is a handshake each time.
- The run writes end-to-end headers only. Those that frame a message, steer a connection, or ask a
  server to act on another method, path or host than the judged one are refused, in whatever
  spelling a gateway may fold them (`Content_Length`). Names are tokens, values printable ASCII.
- Methods are upper-case tokens, as they were judged; CONNECT and TRACE do not exist. GET and HEAD
  carry no body: they pass for reads wherever they are judged.
- `Accept-Encoding: identity` is always sent, and a body is given as it came, never decoded.
- Bounds: response head 32 KiB and 128 lines, body `max_bytes`, conversation what was reserved,
  time `timeout_us` in all. Beyond one of them the connection is closed and the call fails.
- A failure's sentence is ours: no text of the peer or of a library goes into it.

Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpcore

from authority.effects.base import Call, EffectFailed, EffectRefused, Performed
from authority.effects.company_proxy import goes_through, open_tunnel, proxy_addresses
from authority.effects.http_dial import Dialler, Meter, Resolver, TooMuch, judged_addresses, resolve
from authority.effects.http_secrets import Injection, injections, known_secrets
from authority.effects.secret_forms import redact
from authority.kernel.addresses import host_text
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.requests import MAX_BODY
from authority.kernel.resources import Resource, judge_address

MAX_REQUEST_HEADERS = 64
MAX_REQUEST_HEAD = 16 * 1024
MAX_RESPONSE_HEADERS = 128

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
_STEERING = frozenset(
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
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpEffect:
    """Performs `http.request`.

    `secrets` maps a credential's name to its value; `timeout_us` bounds a whole exchange, DNS and
    handshake included, `connect_us` each dial. `resolver` and `tls` stand in for the system's.
    """

    def __init__(
        self,
        *,
        secrets: Mapping[str, str],
        timeout_us: int = 60_000_000,
        connect_us: int = 10_000_000,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._secrets = secrets
        self._timeout_us = timeout_us
        self._connect_us = connect_us
        self._resolver = resolver
        self._tls = tls or system_tls()

    async def perform(self, call: Call) -> Performed:
        """Perform an admitted `http.request`. Raises `EffectFailed` or `EffectRefused`."""
        put_in = injections(call.policy, call.resource, self._secrets)
        request = _request(call, put_in)
        meter = Meter(call.reserved.get("network_bytes", 0))
        sentence = ""
        try:
            async with asyncio.timeout(self._timeout_us / 1e6):
                dialler = await self._dialler(call, meter, put_in)
                return await self._exchange(call, request, dialler, meter, put_in)
        except TimeoutError:
            sentence = f"The exchange took longer than {self._timeout_us // 1_000_000} s."
        except TooMuch:
            sentence = (
                "The server sent more than was reserved for this call."
                if meter.head_done or meter.limit <= meter.total
                else "The server's headers have no end."
            )
        except (_Unacceptable, EffectFailed) as error:
            sentence = error.sentence
        except httpcore.LocalProtocolError:
            raise EffectRefused(Code.SCHEMA_INVALID, "The request is not valid HTTP.") from None
        except httpcore.RemoteProtocolError:
            sentence = (
                "The server broke off its answer or framed it wrongly."
                if meter.head_done
                else "The server did not answer with HTTP/1.1."
            )
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            sentence = _why_not_connected(error)
        except (httpcore.NetworkError, httpcore.TimeoutException):
            sentence = "The connection broke."
        except (OSError, UnicodeError):
            sentence = "The host's name could not be resolved."
        raise EffectFailed(sentence, spent=_spent(meter), facts=_facts(meter, put_in)) from None

    async def _dialler(self, call: Call, meter: Meter, put_in: tuple[Injection, ...]) -> Dialler:
        """The way to the server: its judged addresses, or the company's proxy."""
        policy, resource = call.policy, call.resource
        if not goes_through(policy, resource):
            addresses = await judged_addresses(self._resolver, policy, resource)
            _check_transport(resource, addresses, put_in)
            return Dialler(addresses, resource.port, meter, self._connect_us)
        addresses, port = await proxy_addresses(policy, resource, self._resolver)
        _check_transport(resource, ["unknown"], put_in)
        meter.proxy = policy.network.proxy

        async def opening(
            write: Callable[[bytes], Awaitable[None]], read: Callable[[int], Awaitable[bytes]]
        ) -> None:
            await open_tunnel(resource, write, read)

        return Dialler(addresses, resource.port, meter, self._connect_us, via=port, opening=opening)

    async def _exchange(
        self,
        call: Call,
        request: httpcore.Request,
        dialler: Dialler,
        meter: Meter,
        put_in: tuple[Injection, ...],
    ) -> Performed:
        connection = httpcore.AsyncHTTPConnection(
            origin=request.url.origin,
            ssl_context=self._tls,
            http1=True,
            http2=False,
            retries=0,
            network_backend=dialler,
        )
        try:
            response = await connection.handle_async_request(request)
            meter.head_done = True
            _check_head(response, call, secret=bool(put_in))
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > call.arguments.max_bytes:
                    raise _Unacceptable("The answer is longer than max_bytes.")
        finally:
            await connection.aclose()
        return self._answer(call, response, bytes(body), meter, put_in)

    def _answer(
        self,
        call: Call,
        response: httpcore.Response,
        raw: bytes,
        meter: Meter,
        put_in: tuple[Injection, ...],
    ) -> Performed:
        known = known_secrets(call.policy, self._secrets)
        body, places = redact(raw, known)
        headers = []
        for raw_name, raw_value in response.headers:
            name, in_name = redact(raw_name, known)
            value, in_value = redact(raw_value, known)
            places += in_name + in_value
            if not (put_in and raw_name.lower() in (b"set-cookie", b"set-cookie2")):
                headers.append([name.decode("latin-1"), value.decode("latin-1")])
        facts = _facts(meter, put_in) | {
            "status": response.status,
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if places:
            facts["redacted"] = places
        answer = {
            "status": response.status,
            "headers": headers,
            "body": body,
            "url": call.resource.text,
        }
        return Performed(answer, spent=_spent(meter), facts=facts)


class _Unacceptable(Exception):
    """An answer that goes beyond a bound; `sentence` is ours."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


def system_tls(extra_pem: bytes = b"") -> ssl.SSLContext:
    """TLS towards the outside: the system's certificates and more."""
    # Not create_default_context: that one writes session keys where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if extra_pem:
        context.load_verify_locations(cadata=extra_pem.decode("ascii"))
    return context


def _request(call: Call, put_in: tuple[Injection, ...]) -> httpcore.Request:
    """The request as it goes out. Raises `EffectRefused` for what the run may not write."""
    arguments, resource = call.arguments, call.resource
    method, body = arguments.method, arguments.body
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
    url = httpcore.URL(
        scheme=resource.scheme.encode("ascii"),
        host=resource.host.encode("ascii"),
        port=resource.port,
        target=target.encode("ascii"),
    )
    return httpcore.Request(
        method.encode("ascii"),
        url,
        headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in headers],
        content=body,
    )


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
        if folded in _FRAMING or folded in _STEERING or folded.startswith("proxy-"):
            raise _invalid(f"The header {name} is not the run's to write.")
        if folded not in removed:
            kept.append((name, value))
    return kept


def _invalid(sentence: str) -> EffectRefused:
    return EffectRefused(Code.SCHEMA_INVALID, sentence)


def _check_transport(
    resource: Resource, addresses: list[str], put_in: tuple[Injection, ...]
) -> None:
    if not put_in or resource.scheme == "https":
        return
    if any(judge_address(address) != "loopback" for address in addresses):
        raise EffectRefused(
            Code.POLICY_DENY, f"The credential {put_in[0].name} is only sent over https."
        )


def _check_head(response: httpcore.Response, call: Call, *, secret: bool) -> None:
    if response.extensions.get("http_version") not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise _Unacceptable("The server did not answer with HTTP/1.1.")
    if response.status == 101:
        raise _Unacceptable("The server wants to change the protocol.")
    if len(response.headers) > MAX_RESPONSE_HEADERS:
        raise _Unacceptable(f"The server sent more than {MAX_RESPONSE_HEADERS} headers.")
    for raw_name, value in response.headers:
        name = raw_name.lower()
        if name == b"content-length" and call.arguments.method != "HEAD":
            # h11 has checked that it is one number.
            if int(value) > call.arguments.max_bytes:
                raise _Unacceptable("The answer is longer than max_bytes.")
        elif secret and name == b"content-encoding" and value.strip().lower() != b"identity":
            raise _Unacceptable("A host that gets a credential may not answer compressed.")
    if secret and response.status == 206:
        raise _Unacceptable("A host that gets a credential may not answer in parts.")


def _why_not_connected(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            why = printable(str(seen.verify_message), 120)
            return f"The server's certificate was not accepted: {why}."
        if isinstance(seen, ssl.SSLError):
            return "The server does not speak TLS as it should."
        seen = seen.__cause__ or seen.__context__
    return "The server could not be reached."


def _spent(meter: Meter) -> dict[str, int]:
    return {"requests": 1, "network_bytes": meter.total}


def _facts(meter: Meter, put_in: tuple[Injection, ...]) -> dict[str, Any]:
    facts: dict[str, Any] = {"bytes_in": meter.bytes_in, "bytes_out": meter.bytes_out}
    if meter.proxy:
        facts |= {"proxy": meter.proxy, "proxy_address": meter.address, "resolved_by": "proxy"}
    elif meter.address:
        facts["address"] = meter.address
    if put_in:
        facts["credentials"] = [one.name for one in put_in]
    return facts
