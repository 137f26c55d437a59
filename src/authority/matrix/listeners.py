"""What an attack would reach on the host: listeners that count who came, and a server of HTTP.

They listen for as long as a test runs, on loopback and on the host's own address, answer nothing, and
close what connects.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROBE = ("192.0.2.1", 9)
"""An address of documentation (RFC 5737): to connect a datagram socket sends nothing."""

NAMED, ABSTRACT = "authority-listener.sock", "@authority-matrix-"


class Listeners:
    """Sockets by name. `counts` says how many came to each, `addresses` where they are."""

    def __init__(self, folder: Path, word: str) -> None:
        self.counts: Counter[str] = Counter()
        self.addresses: dict[str, tuple[str, int, bool, str]] = {}
        self.unix: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._open: list[socket.socket] = []
        self._add("host loopback TCP", "127.0.0.1", "STREAM")
        self._add("host loopback UDP", "127.0.0.1", "DGRAM")
        with contextlib.suppress(OSError):  # a host without IPv6
            self._add("host loopback TCP 6", "::1", "STREAM")
        own = own_address()
        if own:
            self._add("host address TCP", own, "STREAM")
        self._add_unix(str(folder / NAMED))
        self._add_unix(f"{ABSTRACT}{word}")
        self._ends, self._end = os.pipe()
        self._selector.register(self._ends, selectors.EVENT_READ, "")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _add(self, name: str, host: str, kind: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(family, getattr(socket, f"SOCK_{kind}"))
        self._open.append(made)
        made.bind((host, 0))
        self.addresses[name] = (host, made.getsockname()[1], family == socket.AF_INET6, kind)
        self._listen(made, name)

    def _add_unix(self, path: str) -> None:
        made = socket.socket(socket.AF_UNIX)
        self._open.append(made)
        made.bind("\0" + path[1:] if path.startswith("@") else path)
        if not path.startswith("@"):
            Path(path).chmod(0o777)
        self.unix.append(path)
        self._listen(made, f"unix {path}")

    def _listen(self, made: socket.socket, name: str) -> None:
        made.setblocking(False)
        if made.type == socket.SOCK_STREAM:
            made.listen(64)
        self._selector.register(made, selectors.EVENT_READ, name)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if not key.data:
                    return
                made = key.fileobj
                assert isinstance(made, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    if made.type == socket.SOCK_DGRAM:
                        made.recv(4096)
                    else:
                        made.accept()[0].close()
                    self.counts[key.data] += 1

    def close(self) -> None:
        os.write(self._end, b"x")
        self._thread.join()
        self._selector.close()
        for made in self._open:
            made.close()
        os.close(self._ends)
        os.close(self._end)


def own_address() -> str:
    """An address of this host that is not loopback, or nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(PROBE)
        except OSError:
            return ""
        address: str = s.getsockname()[0]
    return "" if address.startswith("127.") else address


def host_sockets() -> list[str]:
    """The named and abstract unix sockets that the host has now.

    Not the listeners of another matrix at work: it counts who comes.
    """
    found: set[str] = set()
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        for line in f:
            name = line.rstrip("\n").split(" ", 7)[-1].split(None, 1)
            path = name[-1] if name else ""
            if path[:1] in {"/", "@"} and not path.endswith(NAMED) and ABSTRACT not in path:
                found.add(path)
    return sorted(found)


@contextmanager
def listening(folder: Path, word: str) -> Iterator[Listeners]:
    """Listeners while the block runs. See `Listeners`."""
    made = Listeners(folder, word)
    try:
        yield made
    finally:
        made.close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, HttpServer)
        server.asked.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")

    do_POST = do_HEAD = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


class HttpServer(ThreadingHTTPServer):
    """A server on loopback that writes down what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@contextmanager
def http_server() -> Iterator[HttpServer]:
    """The server, in a thread of its own."""
    server = HttpServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
