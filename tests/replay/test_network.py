"""Unmodified programs on the network, played again: judged HTTP, tunnels, models that stream."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.gate.lab import Lab

from authority.kernel import entries

from .test_replay import REQUESTS, log, replayed, script


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers in parts, echoes what it is sent, and counts."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do(self) -> None:
        self.server.seen += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/ok/stream"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(5):
                part = b"part %d;" % n
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            return
        status = 404 if self.path.startswith("/ok/none") else 200
        answer = (
            b"y" * 2_000_000 if self.path == "/ok/large" else b"got " + body + self.path.encode()
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Count", str(self.server.seen))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_HEAD = do

    def log_message(self, *_: object) -> None:
        """Silence."""


class Site:
    """The server, which can be taken away."""

    def __init__(self) -> None:
        self.server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.seen = 0
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def seen(self) -> int:
        found: int = self.server.seen
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def policy(site: Site, more: str = "") -> str:
    here = f"127.0.0.1:{site.port}"
    return (
        REQUESTS.replace(
            "[labels]",
            f"""\
[network]
http = ["GET,POST,HEAD http://{here}/ok/**"]
private = ["{here}"]
[labels]""",
        ).replace('"user", ', f'"user", "http://{here}/**", ')
        + more
    )


FETCHES = """\
import http.client
def ask(path, data=None, method=None):
    link = http.client.HTTPConnection("127.0.0.1", 48101, timeout=60)
    link.request(method or ("POST" if data else "GET"), "http://127.0.0.1:{port}" + path, data)
    answer = link.getresponse()
    print(answer.status, answer.headers.get("X-Count"), answer.read()[:80])
ask("/ok/one")
ask("/ok/two", b"posted " * 20_000)
ask("/ok/stream")
ask("/ok/none")
ask("/ok/head", method="HEAD")
ask("/forbidden")
"""


def test_judged_http_comes_from_the_log(lab: Lab, site: Site) -> None:
    run = script(lab, "fetches.py", FETCHES.format(port=site.port), policy(site))
    assert site.seen == 5
    site.close()
    found = replayed(lab, run)
    assert found["divergence"] is None
    assert found["matched"] == found["requests"] >= 6
    assert site.seen == 5


def test_another_body_is_told_apart(lab: Lab, site: Site) -> None:
    text = FETCHES.format(port=site.port)
    run = script(lab, "fetches.py", text, policy(site))
    lab.file("fetches.py", text.replace('b"posted " * 20_000', 'b"posted " * 19_999 + b"changed"'))
    found = replayed(lab, run, code=1)
    assert found["divergence"]["what"] == "other bytes went out"
    assert site.seen == 5


def test_an_answer_beyond_what_is_kept_is_named(lab: Lab, site: Site) -> None:
    text = FETCHES.format(port=site.port).replace('ask("/ok/one")', 'ask("/ok/large")')
    run = script(lab, "large.py", text, policy(site))
    found = replayed(lab, run, code=1)
    assert found["divergence"]["what"] == "an answer that is not kept"
    assert "digest alone" in found["divergence"]["now"]
    run = script(lab, "large.py", text, policy(site, 'stored_bytes = "300MB"\n'))
    assert replayed(lab, run)["divergence"] is None, "the control: kept, because the policy says so"


TUNNEL = """\
import socket
with socket.create_connection(("127.0.0.1", {proxy})) as link:
    link.sendall(b"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\\r\\n")
    print(link.recv(1000).split()[1])
    for n in range(3):
        link.sendall(b"said %d\\n" % n)
        print(link.recv(1000))
"""


class Echo:
    """A server that is no HTTP: it says each line again, in capitals."""

    def __init__(self) -> None:
        import socket

        self.links = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            self.links += 1
            with link:
                link.settimeout(30)
                while data := link.recv(1000):
                    link.sendall(data.upper())

    def close(self) -> None:
        self._socket.close()


def test_a_tunnel_without_tls_is_played(lab: Lab) -> None:
    echo = Echo()
    here = f"127.0.0.1:{echo.port}"
    text = TUNNEL.format(proxy=48101, port=echo.port)
    made = REQUESTS.replace(
        "[labels]", f'[network]\nallow = ["{here}"]\nprivate = ["{here}"]\n[labels]'
    ).replace('"user", ', f'"user", "tcp://{here}", ')
    run = script(lab, "tunnel.py", text, made)
    assert echo.links == 1
    echo.close()
    found = replayed(lab, run)
    assert found["divergence"] is None
    assert any("tunnels are opaque" in limit for limit in found["limits"])
    assert echo.links == 1
    lab.file("tunnel.py", text.replace("said %d", "sang %d"))
    other = replayed(lab, run, code=1)["divergence"]
    assert other["what"] == "other bytes went out"


SDK = """\
import openai
client = openai.OpenAI()
said = [{"role": "user", "content": "Count to three."}]
stream = client.chat.completions.create(model="obedient", messages=said, stream=True)
print("".join(c.choices[0].delta.content or "" for c in stream if c.choices))
print(client.chat.completions.create(model="obedient", messages=said).choices[0].message.content)
"""


def test_a_models_sdk_streams_the_same_again(lab: Lab) -> None:
    made = REQUESTS.replace("[labels]", '[models]\nallow = ["obedient"]\n[labels]')
    run = script(lab, "sdk.py", SDK, made)
    calls = [e for e in log(lab, run) if isinstance(e, entries.Admit) and e.effect == "model.chat"]
    assert len(calls) == 2
    found = replayed(lab, run)
    assert found["divergence"] is None, json.dumps(found)
    assert found["matched"] == found["requests"] == 2
    lab.file("sdk.py", SDK.replace("three", "four"))
    assert replayed(lab, run, code=1)["divergence"]["what"] == "another request"
