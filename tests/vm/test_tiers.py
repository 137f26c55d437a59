"""What a run can do and what it is refused, the same in name spaces and in a machine.

Each test is one start that asks for several things, because a start of an emulated machine is slow.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from authority.gate.client import GateError
from gate.lab import OPEN, wait_for

from .conftest import House

ACTS = """
import os, sys
from authority.agent import Denied, connect
gate = connect()
print("read", gate.read_text("data/a.txt"))
try:
    gate.read_text("/etc/hostname")
except Denied as denied:
    print("client", denied.code)
print("mounted", open("data/a.txt").read())
open("out/made", "w").write("by the run")
try:
    open("data/no", "w")
except OSError as error:
    print("mount", error.errno)
print("input", sys.stdin.read())
print("to errors", file=sys.stderr)
print("interfaces", [line.split(":")[0].strip() for line in open("/proc/net/dev")][2:])
print("ids", os.getuid(), os.getgid(), os.getgroups())
print("cap", {line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")})
sys.exit(7)
"""


def test_requests_files_input_output_and_the_exit_code(house: House) -> None:
    ran = house.start(ACTS).started()
    house.lab.input(ran, b"typed", eof=True)
    ran.end()
    said = dict(line.split(" ", 1) for line in ran.out.splitlines())
    assert said["read"] == "hello"
    assert said["mounted"] == "hello"
    assert said["client"] == "E_POLICY_DENY"
    assert said["mount"] == "13"
    assert said["input"] == "typed"
    assert said["interfaces"] == "['lo']"
    assert said["ids"] == "1000 1000 []"
    assert said["cap"] == "{'0000000000000000'}"
    assert ran.err == "to errors\n"
    assert (ran.summary["code"], ran.summary["reason"]) == (7, "exited")
    assert (house.lab.work / "out" / "made").read_text() == "by the run"
    denied = house.lab.denials(run=ran.run)
    assert {(d["effect"], d["code"]) for d in denied} >= {("fs.read", "E_POLICY_DENY")}
    (first,) = house.lab.log(kind="run.start", run=ran.run)
    assert first["protection"]["isolation"] == house.tier
    assert first["protection"]["seccomp"].startswith("allow list")


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"answer to {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


FETCH = """
import os, urllib.error, urllib.request
os.environ["NO_PROXY"] = os.environ["no_proxy"] = ""
handler = urllib.request.ProxyHandler({"http": os.environ["HTTP_PROXY"]})
opener = urllib.request.build_opener(handler)
for path in ("ok/page", "other"):
    try:
        print(opener.open("http://127.0.0.1:%d/" + path, timeout=60).read().decode())
    except urllib.error.HTTPError as error:
        print("refused", error.code)
"""


def test_a_proxied_request(house: House, port: int) -> None:
    policy = OPEN.replace('"fs:./**"]', f'"fs:./**", "http://127.0.0.1:{port}/**?*"]') + (
        f'[network]\nhttp = ["GET http://127.0.0.1:{port}/ok/**?*"]\n'
        f'private = ["127.0.0.1:{port}"]\n'
    )
    ran = house.run(FETCH % port, policy)
    assert ran.out.splitlines() == ["answer to /ok/page", "refused 403"], ran.err
    assert house.lab.denials(run=ran.run)


def test_a_signal_ends_the_program(house: House) -> None:
    ran = house.run("import os; os.kill(os.getpid(), 9)")
    assert ran.summary["code"] == 137


def test_a_terminal(house: House) -> None:
    program = (
        "import os, sys; print(os.isatty(0), os.get_terminal_size().columns, flush=True);"
        "print('heard', input())"
    )
    ran = house.start(program, terminal={"rows": 12, "columns": 34}).started()
    ran.said("True 34")
    house.lab.input(ran, b"words\r")
    ran.end()
    assert "heard words" in ran.out
    assert ran.summary["code"] == 0


def test_wall_time_ends_a_run_that_hangs(house: House) -> None:
    policy = OPEN.replace("[budgets]", '[budgets]\nwall_time = "2s"')  # from when it began
    ran = house.run("while True: pass", policy)
    assert ran.summary["reason"] == "wall_time"
    assert house.lab.log(kind="run.end", run=ran.run)[0]["reason"] == "wall_time"


def test_a_run_that_is_stopped_leaves_nothing(house: House) -> None:
    ran = house.start("print('up', flush=True); import time; time.sleep(600)").started()
    ran.said("up")
    house.lab.admin("POST", f"/v1/runs/{ran.run}/stop", {})
    ran.end()
    assert ran.summary["reason"] == "stopped"
    wait_for(lambda: not any(r["run"] == ran.run for r in running(house)))


def running(house: House) -> list[dict[str, object]]:
    try:
        return list(house.lab.admin("GET", "/v1/runs")["runs"])
    except GateError:
        return []
