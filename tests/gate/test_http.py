"""HTTP through the gate, against a real server on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography.x509 import IPAddress

from authority.kernel.requests import HTTP_OVERHEAD
from effects.test_http import Authorities

from .lab import OPEN, Denied, GateError, Lab, code_of, wait_for

SECRET = "s3cret-29f1c7"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[tuple[str, str, str | None]]
    holding: list[str]
    over: threading.Event


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path.startswith("/ok/redirect"):
            self.send_response(302)
            self.send_header("Location", "/forbidden")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/ok/hold"):
            self.server.holding.append(self.path)
            self.server.over.wait(60)
        body = b"x" * 200_000 if "large" in self.path else b"answer"
        if "echo" in self.path:
            body = (self.headers.get("Authorization") or "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = do_DELETE = do

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.seen, made.holding, made.over = [], [], threading.Event()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()


def policy(server: Server, budgets: str = "", more: str = "") -> str:
    port = server.server_address[1]
    return OPEN.replace("[budgets]", f"[budgets]\n{budgets}").replace(
        '"fs:./**"]', f'"fs:./**", "http://127.0.0.1:{port}/**?*"]'
    ) + (
        f'[network]\nhttp = ["GET,HEAD http://127.0.0.1:{port}/ok/**", '
        f'"POST http://127.0.0.1:{port}/ok/post"]\nprivate = ["127.0.0.1:{port}"]\n{more}'
    )


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_verb_and_path_are_judged_and_nothing_refused_is_sent(lab: Lab, server: Server) -> None:
    with lab.attached(policy(server)) as run:
        gate = run.gate()
        assert gate.http("GET", url(server, "/ok/a")).body == b"answer"
        assert gate.http("POST", url(server, "/ok/post"), body=b"x").status == 200
        assert gate.http("HEAD", url(server, "/ok/a")).body == b""
        sent = len(server.seen)
        for verb, path in [("POST", "/ok/a"), ("DELETE", "/ok/a"), ("GET", "/ok/post2?x=1"),
                           ("GET", "/forbidden"), ("GET", "/ok%2f../forbidden")]:  # fmt: skip
            code = code_of(lambda v=verb, p=path: gate.http(v, url(server, p)))
            assert code in {"E_POLICY_DENY", "E_SCHEMA_INVALID"}, (verb, path)
        for bad in ("CONNECT", "TRACE", "get", "GET /x"):
            assert code_of(lambda b=bad: gate.http(b, url(server, "/ok/a"))) == "E_SCHEMA_INVALID"
        assert len(server.seen) == sent


def test_a_redirect_is_an_answer(lab: Lab, server: Server) -> None:
    with lab.attached(policy(server)) as run:
        answer = run.gate().http("GET", url(server, "/ok/redirect"))
        assert answer.status == 302
        assert server.seen[-1][1] == "/ok/redirect"
        assert code_of(lambda: run.gate().http("GET", url(server, "/forbidden"))) == "E_POLICY_DENY"


def test_an_address_that_is_not_named_private(lab: Lab, server: Server) -> None:
    text = "\n".join(x for x in policy(server).splitlines() if not x.startswith("private"))
    sent = len(server.seen)
    with lab.attached(text) as run:
        assert code_of(lambda: run.gate().http("GET", url(server, "/ok/a"))) != ""
    assert len(server.seen) == sent


def test_the_budget_of_bytes(lab: Lab, server: Server) -> None:
    with lab.attached(policy(server, "network_bytes = 300_000")) as run:
        gate = run.gate()
        large = url(server, "/ok/large")
        assert code_of(lambda: gate.http("GET", large)) == "E_BUDGET_EXCEEDED"  # 1 MiB reserved
        assert len(gate.http("GET", large, max_bytes=210_000).body) == 200_000
        assert code_of(lambda: gate.http("GET", large, max_bytes=210_000)) == "E_BUDGET_EXCEEDED"
        assert gate.http("GET", url(server, "/ok/a"), max_bytes=1000).status == 200
    with lab.attached(policy(server)) as run:
        gate = run.gate()
        assert code_of(lambda: gate.http("GET", large, max_bytes=1000)) == "E_EFFECT_FAILED"


PROGRAM = """\
import sys
from authority.agent import connect
answer = connect().http("GET", sys.argv[1])
print("answer", answer.status, answer.body.decode(), flush=True)
"""


def test_a_credential_is_put_in_at_the_gate_and_seen_nowhere_else(
    lab: Lab, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.server_address[1]
    text = policy(
        server,
        more=f'[credentials.c]\nfrom_env = "DEMO_TOKEN"\nhosts = ["127.0.0.1:{port}"]\n',
    )
    lab.file("fetch.py", PROGRAM)
    monkeypatch.setenv("DEMO_TOKEN", SECRET)
    fetch = [sys.executable, "fetch.py", url(server, "/ok/echo")]
    ran = lab.run(fetch, text)
    assert server.seen[-1][2] == f"Bearer {SECRET}"
    assert ran.out == "answer 200 Bearer [credential c]\n"  # the server echoes it
    looked = lab.run([sys.executable, "-c", "import os; print(sorted(os.environ.items()))"], text)
    assert "AUTHORITY_CAPABILITY" in looked.out
    assert SECRET not in looked.out + ran.out + ran.err
    for place in lab.directory.root.rglob("*"):
        if place.is_file():
            assert SECRET.encode() not in place.read_bytes(), place
    # The control: without a credential the same request is sent, and nothing put in.
    assert "answer 200" in lab.run(fetch, policy(server)).out
    assert server.seen[-1][2] is None
    monkeypatch.delenv("DEMO_TOKEN")
    with pytest.raises(GateError, match="DEMO_TOKEN"):
        lab.start(fetch, text).started()


# --- who reads what a server says ---


def workers_of(lab: Lab) -> list[int]:
    """The processes of this gate's workers, as the host numbers them."""
    gate = lab.pid()
    above: dict[int, int] = {}
    workers: list[int] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            above[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"authority.worker" in words and not words[0].endswith(b"bwrap"):
            workers.append(int(folder.name))

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == gate:
                return True
            pid = above.get(pid, 0)
        return False

    return [pid for pid in workers if ours(pid)]


def test_each_run_has_a_worker_of_its_own_and_it_ends_with_the_run(
    lab: Lab, server: Server
) -> None:
    shared = lab.policy(policy(server))
    with lab.attached(shared) as one, lab.attached(shared) as other:
        assert workers_of(lab) == [], "control: none before it is needed"
        assert one.gate().http("GET", url(server, "/ok/a")).status == 200
        first = set(workers_of(lab))
        assert first
        assert one.gate().http("GET", url(server, "/ok/a")).status == 200
        assert set(workers_of(lab)) == first, "one for all requests of a run"
        assert other.gate().http("GET", url(server, "/ok/a")).status == 200
        assert len(workers_of(lab)) == 2 * len(first), "none is shared"
        for pid in workers_of(lab):
            assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    wait_for(lambda: not workers_of(lab))


def test_a_worker_that_dies_fails_its_request_and_the_next_one_gets_another(
    lab: Lab, server: Server
) -> None:
    with lab.attached(policy(server)) as run:
        assert run.gate().http("GET", url(server, "/ok/a")).status == 200
        before = set(workers_of(lab))
        held = len(server.holding)
        codes: list[str] = []
        asking = threading.Thread(
            target=lambda: codes.append(
                code_of(lambda: run.gate().http("GET", url(server, "/ok/hold"), max_bytes=1000))
            )
        )
        asking.start()
        wait_for(lambda: len(server.holding) > held)
        for pid in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        asking.join(30)
        assert codes == ["E_EFFECT_FAILED"]
        assert run.gate().http("GET", url(server, "/ok/a")).status == 200
        assert not before & set(workers_of(lab))
    (outcome,) = lab.log(kind="outcome", status="failed", run=run.run)
    assert outcome["spent"]["network_bytes"] == 1000 + HTTP_OVERHEAD, "all that was reserved"
    assert [entry["what"] for entry in lab.log(kind="incident", run=run.run)] == ["worker"]


def test_tls_is_verified_by_the_worker_with_what_the_policy_adds(lab: Lab, tmp_path: Path) -> None:
    authorities = Authorities()
    certificate = lab.file("ca.pem", authorities.anchors())
    secure = Server(("127.0.0.1", 0), Handler)
    secure.seen, secure.holding, secure.over = [], [], threading.Event()
    tls = authorities.server(tmp_path, IPAddress(ip_address("127.0.0.1")))
    secure.socket = tls.wrap_socket(secure.socket, server_side=True)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    port = secure.server_address[1]
    rules = OPEN + (
        f'[network]\nhttp = ["https://127.0.0.1:{port}/**"]\nprivate = ["127.0.0.1:{port}"]\n'
    )
    try:
        with lab.attached(rules + f'ca = ["{certificate}"]\n') as run:
            answer = run.gate().http("GET", f"https://127.0.0.1:{port}/ok/a")
            assert (answer.status, answer.body) == (200, b"answer")
        with lab.attached(rules) as run, pytest.raises(Denied) as failed:
            run.gate().http("GET", f"https://127.0.0.1:{port}/ok/a")
        assert failed.value.code == "E_EFFECT_FAILED"
        assert "certificate was not accepted: unable to get local issuer" in str(failed.value)
        assert len(secure.seen) == 1, "nothing is sent to a server that has not shown who it is"
    finally:
        secure.shutdown()
        secure.server_close()
