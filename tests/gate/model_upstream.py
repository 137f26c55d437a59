"""A server on this machine that speaks both vendors' APIs, well or badly, by the model's name.

up-plain        answers as the obedient model would, with usage
up-high         reports a thousand million tokens        up-low      reports none
up-free         reports a cost of 0                      up-silent   reports no usage
up-cut          breaks off in the middle of a stream     up-slow     sends a word each 50 ms
up-large        sends a body without end                 up-deep     JSON nested 100,000 deep
up-event        one event without end                    up-nojson   text that is no JSON
up-key          answers with the key that it got         up-head     with the key in a header
up-429, up-500  refuses                                  up-away     redirects
up-gzip         says that it is compressed               up-raw      is not HTTP
up-tier         claims that all input was cached
"""

from __future__ import annotations

import datetime
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from authority.dialects import routes
from authority.dialects.demand import CHAT, COUNT, MESSAGES, Prepared
from authority.worker import obedient_wire

HUGE = 1_000_000_000
APIS = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": "openai.responses",
    "/v1/embeddings": "openai.embeddings",
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT,
}


class Upstream(ThreadingHTTPServer):
    """`seen`: (path, headers, body) of each request; `sent`: bytes of the last endless answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.certificate = b""
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.certificate = self_signed(context)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.sent = 0
        self.count = 10

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, *_: object) -> None:
        """A client that goes away is nothing to tell of."""


class Handler(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        tree = json.loads(raw)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.path, headers, tree))
        kind = tree["model"].removeprefix("up-")
        api = APIS[self.path]
        self.key = headers.get("authorization", "") or headers.get("x-api-key", "")
        trick = getattr(self, f"_{kind}".replace("-", "_"), None)
        if api == COUNT:
            self._json({"input_tokens": self.server.count})
        elif trick is not None:
            trick(routes.prepare(api, tree, headers))
        else:
            self._answer(routes.prepare(api, tree, headers), kind)

    # --- honest answers, and lies about usage ---

    def _answer(self, request: Prepared, kind: str) -> None:
        limit = request.demand.max_output or 1000
        if not request.demand.stream:
            self._json(self._lied(obedient_wire.answer(request, limit), kind))
            return
        self._begin("text/event-stream")
        for number, event in enumerate(obedient_wire.events(request, limit)):
            if kind == "cut" and number == 3:
                self.close_connection = True
                self.connection.shutdown(2)
                return
            if kind == "slow":
                time.sleep(0.05)
            data = event.split(b"data: ", 1)[1].strip()
            if data != b"[DONE]":
                head = event.split(b"data: ", 1)[0]
                value = self._lied(json.loads(data), kind)
                if value is not None:
                    self._chunk(head + b"data: " + json.dumps(value).encode() + b"\n\n")
            else:
                self._chunk(event)
        self._chunk(b"")

    def _lied(self, value: Any, kind: str) -> Any:
        found = [value, value.get("message"), value.get("response")]
        for holder in filter(None, found):
            usage = holder.get("usage") if isinstance(holder, dict) else None
            if not usage:
                continue
            if kind == "silent":
                if holder.get("choices") == []:
                    return None
                del holder["usage"]
            elif kind in ("high", "low"):
                for name in [n for n in usage if n.endswith("tokens")]:
                    usage[name] = HUGE if kind == "high" else 0
            elif kind == "free":
                usage["cost"] = 0
                usage["total_cost"] = 0.0
        return value

    # --- bad manners ---

    def _large(self, _request: Prepared) -> None:
        self._begin("application/json")
        self.server.sent = 0
        piece = b'"' + b"x" * 65_534 + b'"'
        for _ in range(16_384):  # a gigabyte
            self._chunk(piece)
            self.server.sent += len(piece)

    def _event(self, _request: Prepared) -> None:
        self._begin("text/event-stream")
        self._chunk(b"data: ")
        self.server.sent = 0
        for _ in range(16_384):
            self._chunk(b"x" * 65_536)
            self.server.sent += 65_536

    def _deep(self, _request: Prepared) -> None:
        self._raw(b"[" * 100_000 + b"]" * 100_000)

    def _nojson(self, request: Prepared) -> None:
        if request.demand.stream:
            self._begin("text/event-stream")
            self._chunk(b"data: not json\n\n")
            self._chunk(b"")
        else:
            self._raw(b"<html>")

    def _key(self, request: Prepared) -> None:
        request.tree["messages"] = [{"role": "user", "content": f"SAY the key is {self.key}"}]
        self._answer(request, "key")

    def _head(self, _request: Prepared) -> None:
        self._raw(b"{}", headers={"x-request-id": self.key, "set-cookie": "a=b", "x-other": "1"})

    def _429(self, _request: Prepared) -> None:
        self._raw(b'{"error":{"message":"slow down"}}', 429, {"retry-after": "0"})

    def _500(self, _request: Prepared) -> None:
        self._raw(b'{"error":{"message":"broken"}}', 500)

    def _away(self, _request: Prepared) -> None:
        self._raw(b"", 307, {"location": f"http://127.0.0.1:{self.server.port}/elsewhere"})

    def _gzip(self, _request: Prepared) -> None:
        self._raw(b"\x1f\x8b", headers={"content-encoding": "gzip"})

    def _tier(self, request: Prepared) -> None:
        value = obedient_wire.answer(request, 100)
        value["usage"]["prompt_tokens_details"] = {"cached_tokens": 2**50}
        self._json(value)

    def _json(self, value: Any) -> None:
        self._raw(json.dumps(value).encode())

    def _raw(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def self_signed(context: ssl.SSLContext) -> bytes:
    """A certificate of its own for `localhost`, loaded into `context`; as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate + secret)
        file.flush()
        context.load_cert_chain(file.name)
    return certificate


@contextmanager
def upstream(*, tls: bool = False) -> Iterator[Upstream]:
    """One that serves until the block ends."""
    made = Upstream(tls=tls)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
