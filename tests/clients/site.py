"""The outside world of the client tests: servers with names and certificates of their own, on this
machine alone.

A company's proxy (`network.proxy`) stands for the whole Internet: whatever name it is asked for leads
to the one server here, by port (443 with TLS, 80 without). The server's certificate comes from an
authority that `network.ca` trusts. So real names are asked for, and nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.demo.company import certificates, serve_proxy

NAMES = ("api.test", "files.test", "git.test", "index.test", "registry.test", "other.test")


@dataclass
class Seen:
    """One request as the server saw it."""

    method: str
    host: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self._body()
        host = self.headers.get("Host", "").partition(":")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, host, self.path, headers, body)
        self.server.site.seen.append(seen)
        handler = self.server.site.handlers.get(host)
        status, more, data = handler(seen) if handler else (404, {}, b"nothing here")
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


Answer = tuple[int, dict[str, str], bytes]
BACKEND = Path("/usr/lib/git-core/git-http-backend")


def git_backend(root: Path) -> Callable[[Seen], Answer]:
    """git's own server for the repositories below `root`."""

    def serve(seen: Seen) -> Answer:
        path, _, query = seen.path.partition("?")
        done = subprocess.run(
            [str(BACKEND)],
            input=seen.body,
            env={
                **os.environ,
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": seen.method,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": seen.headers.get("content-type", ""),
                "HTTP_CONTENT_ENCODING": seen.headers.get("content-encoding", ""),
                "GIT_PROTOCOL": seen.headers.get("git-protocol", ""),
                "CONTENT_LENGTH": str(len(seen.body)),
            },
            capture_output=True,
            check=True,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return int(headers.pop("Status", "200").split()[0]), headers, body

    return serve


@dataclass
class Site:
    """`handlers` by host name; `seen` what came; `asked` what the company's proxy was asked for."""

    folder: Path
    handlers: dict[str, Callable[[Seen], Answer]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    proxy_port: int = 0
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Lines of a policy's [network] section that lead here."""
        return f'proxy = "http://127.0.0.1:{self.proxy_port}"\nca = "{self.folder}/authority.pem"\n'

    def lookup(self, target: str) -> tuple[str, int] | None:
        """Where the company's proxy leads for `host:port`."""
        port = self.ports.get(int(target.rpartition(":")[2]))
        return None if port is None else ("127.0.0.1", port)

    def to(self, host: str) -> list[Seen]:
        return [each for each in self.seen if each.host == host]


@contextlib.contextmanager
def site_at(folder: Path) -> Iterator[Site]:
    """Servers and proxy, until the end of the block."""
    site = Site(folder)
    context = certificates(folder, folder / "authority.pem", NAMES)
    servers = []
    for port, tls in ((443, True), (80, False)):
        server = Server(("127.0.0.1", 0), Handler)
        server.site = site
        if tls:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        site.ports[port] = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(None)  # whatever the tests' default is
    site.proxy_port = listener.getsockname()[1]
    threading.Thread(
        target=serve_proxy, args=(listener, site.lookup, site.asked), daemon=True
    ).start()
    try:
        yield site
    finally:
        listener.close()
        for server in servers:
            server.shutdown()
            server.server_close()
