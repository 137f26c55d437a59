"""Process tools: confined apart from the run, bounded, and stopped with it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from .lab import OPEN, Attached, Lab, code_of, wait_for

TOOL = """\
import json, os, socket, sys, time
given = json.load(sys.stdin)["arguments"]
what = given["do"]
def tried(call):
    try:
        call()
        return "did"
    except OSError as error:
        return type(error).__name__
if what == "echo": result = given
elif what == "look":
    result = {
        "environment": sorted(os.environ),
        "network": tried(lambda: socket.create_connection(("127.0.0.1", given["port"]), 2)),
        "workspace": tried(lambda: open(given["file"]).read()),
        "state": tried(lambda: os.listdir(given["state"])),
        "own": tried(lambda: open(__file__).read()),
        "sockets": [fd for fd in os.listdir("/proc/self/fd")
                    if "socket" in (os.readlink(f"/proc/self/fd/{fd}")
                                    if os.path.islink(f"/proc/self/fd/{fd}") else "")],
    }
elif what == "sleep": print("x", file=sys.stderr, flush=True); time.sleep(60)
elif what == "crash": os.abort()
elif what == "exit": sys.exit(3)
elif what == "huge":
    while True: sys.stdout.write("x" * 65536)
elif what == "noise": print("this is no JSON"); sys.exit(0)
print(json.dumps({"result": result}))
"""
POLICY = (
    OPEN
    + """
[process]
env = { SHOWN = "to the run" }
[tools.t]
command = ["python3", "tools/t.py"]
timeout = "TIME"
content = ["do", "n", "file", "state", "port"]
env = { MODE = "demo" }
"""
)


@pytest.fixture
def run(lab: Lab) -> Iterator[Attached]:
    lab.file("tools/t.py", TOOL)
    with lab.attached(POLICY.replace("TIME", "20s")) as found:
        yield found


def test_control_arguments_in_result_out(run: Attached) -> None:
    given = {"do": "echo", "n": [1, 2.5, None, {"é": True}]}
    assert run.gate().tool("t", given) == given


def test_it_sees_neither_network_nor_files_nor_capability(lab: Lab, run: Attached) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        seen = run.gate().tool("t", {
            "do": "look", "file": str(lab.work / "data/a.txt"),
            "state": str(lab.directory.root), "port": port,
        })  # fmt: skip
        with socket.create_connection(("127.0.0.1", port), 2):
            pass  # the control: from here it can be reached
    assert seen["own"] == "did"
    assert seen["network"] != "did"
    assert seen["workspace"] != "did"
    assert seen["state"] != "did"
    assert seen["sockets"] == []
    assert "MODE" in seen["environment"]
    assert "SHOWN" not in seen["environment"]
    assert not [name for name in seen["environment"] if name.startswith("AUTHORITY")]


@pytest.mark.parametrize("what", ["crash", "exit", "huge", "noise"])
def test_a_tool_that_fails_is_a_failure_and_no_more(lab: Lab, run: Attached, what: str) -> None:
    gate = run.gate()
    assert code_of(lambda: gate.tool("t", {"do": what})) == "E_EFFECT_FAILED"
    assert gate.tool("t", {"do": "echo"}) == {"do": "echo"}
    (outcome,) = [e for e in lab.log(run=run.run, kind="outcome") if e["status"] == "failed"]
    assert outcome["spent"]["tool_calls"] == 1


def test_a_tool_that_takes_too_long_is_ended(lab: Lab) -> None:
    lab.file("tools/t.py", TOOL)
    with lab.attached(POLICY.replace("TIME", "1s")) as run:
        gate = run.gate()
        began = time.monotonic()
        assert code_of(lambda: gate.tool("t", {"do": "sleep"})) == "E_EFFECT_FAILED"
        assert time.monotonic() - began < 20


def test_calls_at_the_same_time(run: Attached) -> None:
    found: list[object] = []

    def call(n: int) -> None:
        found.append(run.gate().tool("t", {"do": "echo", "n": n})["n"])

    threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(25)
    assert sorted(found, key=str) == list(range(6))


def test_a_halt_ends_a_running_tool(lab: Lab, run: Attached) -> None:
    from .test_crash import processes_with

    marker = str(lab.work / "tools/t.py")
    wire = run.wire()
    wire.send(wire.request("tool.call", "tool:t", {"arguments": {"do": "sleep"}}, token=run.token))
    wait_for(lambda: processes_with(marker))
    answer = lab.admin("POST", "/v1/halt", {"run": run.run})
    assert answer["in_doubt"] == []
    wait_for(lambda: not processes_with(marker))


def test_what_the_policy_does_not_name(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    assert code_of(lambda: gate.tool("other", {})) == "E_POLICY_DENY"
    assert code_of(lambda: gate.write(str(lab.work / "tools/t.py"), b"x")) == "E_POLICY_DENY"
    assert json.dumps(lab.denials(run=run.run)).count("E_POLICY_DENY") == 2
