"""Unmodified programs in real runs: curl and Python against servers of this machine, log included."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from effects.test_http import Authorities
from gate.lab import OPEN, Lab, wait_for

from .proxy_lab import pem, server_tls

CURL = "/usr/bin/curl"
SECRET = "s3cret-29f1c7-live"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Upgrade") == "websocket":
            self.websocket()
            return
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        if self.path == "/ok/large":
            self.send_response(200)
            self.send_header("Content-Length", str(10**9))
            self.end_headers()
            try:
                for _ in range(10**9 // 65536):
                    self.wfile.write(b"x" * 65536)
            except OSError:
                self.close_connection = True
            return
        answer = f"{self.command} {self.path} ".encode() + body
        if self.path.startswith("/ok/echo"):
            answer = (self.headers.get("Authorization") or "none").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = do

    def websocket(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"),
                            ("Sec-WebSocket-Accept", accept)):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        while data := self.connection.recv(100):
            self.connection.sendall(data[::-1])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Web(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.shutdown()
    made.server_close()


def rules(port: int, *, host: str = "localhost", more: str = "", budgets: str = "") -> str:
    text = OPEN.replace("[budgets]", f"[budgets]\n{budgets}")
    text = text.replace('"fs:./**"]', f'"fs:./**", "http://{host}:{port}/**?*"]')
    return text + (
        f'[network]\nhttp = ["GET,POST http://127.0.0.1:{port}/ok/**?*"]\n'
        f'private = ["127.0.0.1:{port}"]\n{more}'
    )


def by_address(web: Web, **more: str) -> str:
    return rules(web.port, host="127.0.0.1", **more)


def curl(lab: Lab, policy: str, *arguments: str) -> Any:
    return lab.run([CURL, "-sS", "--noproxy", "", "--max-time", "15", *arguments], policy)


def test_curl_is_judged_by_method_and_url(lab: Lab, web: Web) -> None:
    policy = by_address(web)
    url = f"http://127.0.0.1:{web.port}"
    done = curl(lab, policy, f"{url}/ok/a?b=c", "-d", "x=y", f"{url}/ok/b")
    assert done.out == "POST /ok/a?b=c x=yPOST /ok/b x=y", done.err
    denied = curl(lab, policy, "-X", "DELETE", "-w", " %{http_code}", f"{url}/ok/a")
    told, _, status = denied.out.rpartition(" ")
    assert status == "403"
    assert json.loads(told)["error"]["code"] == "E_POLICY_DENY"
    assert [(e["effect"], e["verb"], e["resource"]) for e in lab.denials(run=denied.run)] == [
        ("http.request", "DELETE", f"{url}/ok/a")
    ]
    (first, second) = lab.log(kind="admit", run=done.run, effect="http.request")
    assert first["resource"] == f"{url}/ok/a?b=c"
    pieces = [e for e in lab.log(kind="chunk", run=done.run) if e["of"] == first["seq"]]
    assert [e["way"] for e in pieces[:2]] == ["out", "in"], "the answer may come in several pieces"
    came = "".join(e["body"]["text"] for e in pieces if e["way"] == "in")
    assert "POST /ok/a?b=c x=y" in came
    ended = [e for e in lab.log(kind="outcome", run=done.run) if e["of"] == second["seq"]]
    assert (ended[0]["status"], ended[0]["facts"]["status"]) == ("done", 200)


def test_socks_and_connect(lab: Lab, web: Web) -> None:
    policy = by_address(web)
    url = f"http://127.0.0.1:{web.port}/ok/s"
    for how in (["--socks5-hostname", "127.0.0.1:48101"], ["-p"]):
        done = curl(lab, policy, *how, url)
        assert done.out == "GET /ok/s ", (how, done.err)
    tunnel = OPEN + (
        f'[network]\nallow = ["127.0.0.1:{web.port}"]\nprivate = ["127.0.0.1:{web.port}"]\n'
    )
    done = curl(lab, tunnel, "-p", url)
    assert done.out == "GET /ok/s ", done.err
    (admit,) = lab.log(kind="admit", run=done.run, effect="net.connect")
    assert admit["resource"] == f"tcp://127.0.0.1:{web.port}"
    refused = curl(lab, tunnel, "-p", f"http://127.0.0.1:{web.port + 1}/")
    assert "403" in refused.err
    assert lab.denials(run=refused.run)[0]["resource"] == f"tcp://127.0.0.1:{web.port + 1}"


def test_https_ends_at_the_run_and_begins_again(lab: Lab, tmp_path: Path) -> None:
    authorities = Authorities()
    made = Web(server_tls(authorities, tmp_path, "localhost"))
    lab.file("corp.pem", pem(authorities))
    try:
        policy = OPEN + (
            f'[network]\nhttp = ["GET https://localhost:{made.port}/ok/**"]\n'
            f'private = ["localhost:{made.port}"]\n'
        )
        url = f"https://localhost:{made.port}"
        done = curl(lab, policy + 'ca = ["./corp.pem"]\n', f"{url}/ok/a")
        assert done.out == "GET /ok/a ", done.err
        denied = curl(lab, policy + 'ca = ["./corp.pem"]\n', "-w", " %{http_code}", f"{url}/no")
        assert denied.out.endswith(" 403"), denied.err
        unknown = curl(lab, policy, "-w", " %{http_code}", f"{url}/ok/a")
        assert unknown.out.endswith(" 502")
        assert "certificate was not accepted" in unknown.out
        assert [path for _, path, *_ in made.seen] == ["/ok/a"]
    finally:
        made.shutdown()
        made.server_close()


SOCKET = """
import base64, os, socket, sys
port = int(sys.argv[1])
sock = socket.create_connection(("127.0.0.1", 48101))
sock.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\\r\\n".encode())
assert b" 200 " in sock.recv(1000)
key = base64.b64encode(os.urandom(16)).decode()
sock.sendall((f"GET {sys.argv[2]} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n"
  "Upgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
  f"Sec-WebSocket-Key: {key}\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n").encode())
head = sock.recv(4000)
print(head.split(b"\\r\\n")[0].decode(), flush=True)
if b" 101 " in head:
    sock.sendall(b"hello")
    print(sock.recv(100).decode())
"""


def test_a_websocket(lab: Lab, web: Web) -> None:
    lab.file("ws.py", SOCKET)
    policy = by_address(web)
    allowed = policy.replace("http = [", f'http = ["WEBSOCKET http://127.0.0.1:{web.port}/ok/ws", ')
    done = lab.run([sys.executable, "ws.py", str(web.port), "/ok/ws"], allowed)
    assert done.out == "HTTP/1.1 101 Switching Protocols\nolleh\n", done.err
    denied = lab.run([sys.executable, "ws.py", str(web.port), "/ok/ws"], policy)
    assert denied.out == "HTTP/1.1 403 Forbidden\n"
    assert lab.denials(run=denied.run)[0]["verb"] == "WEBSOCKET"


def test_a_gigabyte_stops_at_the_budget(lab: Lab, web: Web) -> None:
    policy = by_address(web, budgets="network_bytes = 3_000_000")
    done = curl(
        lab, policy, "-o", "/dev/null", "-w", "%{size_download}",
        f"http://127.0.0.1:{web.port}/ok/large",
    )  # fmt: skip
    assert 2_000_000 < int(done.out) <= 3_000_000, done.err
    assert lab.denials(run=done.run)[-1]["code"] == "E_BUDGET_EXCEEDED"
    charged = sum(
        e.get("charge", {}).get("network_bytes", 0) for e in lab.log(kind="chunk", run=done.run)
    )
    assert int(done.out) <= charged <= 3_000_000


ASK = """
import os, sys, urllib.request
token = os.environ.get("LIVE_TOKEN", "none")
proxy = urllib.request.ProxyHandler({"http": "http://127.0.0.1:48101"})
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + token})
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
print(urllib.request.build_opener(proxy).open(asked, timeout=15).read().decode())
print(token, flush=True)
"""


def test_a_credential_is_nowhere_but_at_its_host(
    lab: Lab, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = by_address(
        web,
        more=f'[credentials.c]\nfrom_env = "LIVE_TOKEN"\nhosts = ["127.0.0.1:{web.port}"]\n',
    )
    monkeypatch.setenv("LIVE_TOKEN", SECRET)
    lab.file("ask.py", ASK)
    done = lab.run([sys.executable, "ask.py", f"http://127.0.0.1:{web.port}/ok/echo"], policy)
    echoed, shown = done.out.splitlines()
    assert web.seen[-1][2]["Authorization"] == f"Bearer {SECRET}"
    assert echoed == f"Bearer {shown}"
    assert shown.startswith("authority-placeholder-c-")
    for place in lab.directory.root.rglob("*"):
        if place.is_file():
            assert SECRET.encode() not in place.read_bytes(), place


def test_halt_cuts_a_tunnel(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        tunnel = OPEN + f'[network]\nallow = ["127.0.0.1:{port}"]\nprivate = ["127.0.0.1:{port}"]\n'
        lab.file(
            "hold.py",
            "import socket, sys\n"
            's = socket.create_connection(("127.0.0.1", 48101))\n'
            's.sendall(f"CONNECT 127.0.0.1:{sys.argv[1]} HTTP/1.1\\r\\n\\r\\n".encode())\n'
            'assert b" 200 " in s.recv(1000)\ns.sendall(b"\\0up")\nprint("open", flush=True)\n'
            "s.recv(100)\n",
        )
        ran = lab.start([sys.executable, "hold.py", str(port)], tunnel).started()
        peer, _ = server.accept()
        with peer:
            peer.settimeout(20)
            assert peer.recv(10) == b"\0up"
            ran.said("open")
            lab.admin("POST", "/v1/halt", {"run": ran.run, "reason": "test"})
            with contextlib.suppress(ConnectionError):
                assert peer.recv(10) == b""
        ran.end()


def test_the_worker_holds_nothing(lab: Lab, web: Web) -> None:
    """While a run uses it: no capabilities, no network of its own, no descriptor of a file."""
    lab.file("slow.py", ASK + 'print("ready", flush=True)\nsys.stdin.readline()\n')
    url = f"http://127.0.0.1:{web.port}/ok/a"
    ran = lab.start([sys.executable, "slow.py", url], by_address(web)).started().said("ready")
    gate = lab.pid()

    def workers() -> list[int]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path("/proc", pid, "cmdline").read_bytes()
                parents = ancestors(int(pid))
            except OSError:
                continue
            if b"authority.worker" in line and gate in parents:
                found.append(int(pid))
        return found

    pids = wait_for(workers)
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            assert not target.startswith(str(lab.directory.root)), target
    lab.input(ran, b"x\n", eof=True)
    ran.end()


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        text = Path(f"/proc/{pid}/stat").read_text()
        pid = int(text.rpartition(")")[2].split()[1])
        found.append(pid)
    return found
