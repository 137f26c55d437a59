"""What the gate decides about a run and its children, the same in name spaces and in a machine."""

from __future__ import annotations

from compat import mcp_lab
from gate.lab import OPEN, code_of

from .conftest import PYTHON, House

CHILD = """
import os, sys
from authority.agent import Denied, connect
gate = connect()
while (order := gate.receive(30_000)) is None:
    pass
try:
    gate.write("out/child", order.data)
    wrote = "wrote"
except Denied as denied:
    wrote = denied.code
gate.send(order.sender, f"{wrote} {sys.argv[1]} {os.getuid()} {open('data/a.txt').read()}".encode())
sys.exit(5)
"""
PARENT = """
from authority.agent import Denied, connect
gate = connect()
child = gate.spawn("helper", ["word"])
gate.send(child, b"from the parent")
while (answer := gate.receive(30_000)) is None:
    pass
print(answer.data.decode())
while not (ended := gate.wait(child, 20_000))["ended"]:
    pass
print(ended)
try:
    gate.spawn("stranger")
except Denied as denied:
    print(denied.code)
print(child)
"""


def test_a_child_lives_where_its_parent_does(house: House) -> None:
    house.lab.file("child.py", CHILD)
    house.lab.file("less.toml", OPEN.replace('write = ["./out/**"]', "write = []"))
    agents = (
        f'[agents.helper]\ncommand = ["{PYTHON}", "child.py"]\npolicy = "less.toml"\n'
        "[labels]\n"
    )  # fmt: skip
    ran = house.run(PARENT, OPEN.replace("[labels]\n", agents))
    assert ran.summary["code"] == 0, ran.err
    answer, waited, stranger, child = ran.out.splitlines()
    assert answer == "E_POLICY_DENY word 1000 hello"
    assert waited == "{'ended': True, 'code': 5}"
    assert stranger == "E_POLICY_DENY"
    (first,) = house.lab.log(kind="run.start", run=child)
    assert first["parent"] == ran.run
    assert first["protection"]["isolation"] == house.tier
    assert not (house.lab.work / "out" / "child").exists()


ASKS = """
from authority.agent import Denied, connect
gate = connect()
def write(data):
    try:
        gate.write("out/final", data)
        return "done"
    except Denied as denied:
        return denied.code
print(write(b"one"), flush=True)
input()
print(write(b"two"), write(b"one"), write(b"one"))
"""


def test_an_approval_is_for_what_was_asked_and_counts_once(house: House) -> None:
    policy = OPEN + "[approvals]\nrequire = ['fs:./out/final/**']\n"
    ran = house.start(ASKS, policy).started().said("E_APPROVAL_REQUIRED")
    waiting = house.lab.admin("GET", "/v1/approvals")["approvals"]
    (mine,) = [one["id"] for one in waiting if one["run"] == ran.run]
    house.lab.admin("POST", f"/v1/approvals/{mine}", {"granted": True})
    house.lab.input(ran, b"\n", eof=True)
    ran.end()
    assert ran.out.split() == [
        *("E_APPROVAL_REQUIRED", "E_APPROVAL_REQUIRED", "done", "E_APPROVAL_REQUIRED"),
    ], ran.err
    assert (house.lab.work / "out" / "final").read_bytes() == b"one"


LABELLED = """
from authority.agent import Denied, connect
gate = connect()
def write(path):
    try:
        gate.write(path, b"x")
        return "done"
    except Denied as denied:
        return denied.code
print(write("out/plain"), flush=True)
handle = gate.read("data/letter.txt", handle=True)
print(write("out/plain"), flush=True)
print(open("data/payroll.txt").read(), flush=True)
"""


def test_labels_follow_what_was_read(house: House) -> None:
    """A handle reveals nothing; what a mounted file holds does, and a secret is not printed."""
    house.lab.file("data/letter.txt", "from a stranger")
    house.lab.file("data/payroll.txt", "the salaries")
    policy = OPEN.replace(
        "[labels]\n", '[labels]\nsecrets = { payroll = ["fs:./data/payroll.txt"] }\n'
    )
    policy = policy.replace('"fs:./**"]', '"fs:./out/**"]')
    ran = house.run(LABELLED, policy)
    assert ran.out == "done\ndone\n", ran.err
    assert [e["code"] for e in ran.events if e["event"] == "withheld"] == ["E_TAINT"]
    assert ran.summary["label"]["secrets"] == ["payroll"]


ASK = """
import json, os, urllib.error, urllib.request
say = [{"role": "user", "content": "SAY hello there"}]
def post(url, key, **body):
    data = json.dumps({"messages": say, "max_tokens": 99, **body}).encode()
    head = {"content-type": "application/json", key: "x", "anthropic-version": "2023-06-01"}
    try:
        asked = urllib.request.Request(url, data, head)
        return json.load(urllib.request.urlopen(asked, timeout=60))
    except urllib.error.HTTPError as error:
        return error.code
chat = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
messages = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
print(post(chat, "authorization", model="obedient")["choices"][0]["message"]["content"])
print(post(messages, "x-api-key", model="obedient")["content"][0]["text"])
print(post(messages, "x-api-key", model="other"))
"""


def test_both_kinds_of_models_where_the_environment_says(house: House) -> None:
    """What the vendors' SDKs send (`test_demo_in_machines` has one of them, whole)."""
    ran = house.run(ASK, OPEN + '[models]\nallow = ["obedient"]\n')
    assert ran.out.splitlines() == [*["[obedient model] hello there"] * 2, "403"], ran.err
    assert len(house.lab.log(kind="admit", run=ran.run, effect="model.chat")) == 2


MCP = """
import json, os, urllib.request
head = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
session = {}
def post(method, number=None, **params):
    ask = {"jsonrpc": "2.0", "method": method, "params": params}
    data = json.dumps(ask | ({"id": number} if number else {})).encode()
    asked = urllib.request.Request(os.environ["AUTHORITY_MCP_URL"], data, head | session)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        if found := answer.headers.get("mcp-session-id"):
            session["mcp-session-id"] = found
        text = answer.read().decode()
    lines = [line[5:] for line in text.splitlines() if line.startswith("data:")] or [text]
    return next((m for m in map(json.loads, filter(str.strip, lines)) if m.get("id") == number), {})
client = {"name": "test", "version": "1"}
said = post("initialize", 1, protocolVersion="2025-11-25", capabilities={}, clientInfo=client)
session["mcp-protocol-version"] = said["result"]["protocolVersion"]
post("notifications/initialized")
print(sorted(tool["name"] for tool in post("tools/list", 2)["result"]["tools"]))
added = post("tools/call", 3, name="files__add", arguments={"a": 1, "b": 2})
print(added["result"]["structuredContent"])
print(post("tools/call", 4, name="files__secret", arguments={})["result"]["content"][0]["text"])
"""


def test_an_mcp_server_at_its_endpoint(house: House) -> None:
    """What an SDK sends, without one: an emulated machine takes long to load it."""
    mcp_lab.prepare(house.lab)
    policy = house.lab.policy(mcp_lab.POLICY)
    with house.lab.attached(policy) as run:
        code_of(lambda: run.gate().tool("files/add", {"a": 1, "b": 2}))
    mcp_lab.approve(house.lab)
    ran = house.run(MCP, policy)
    tools, added, secret = ran.out.splitlines()
    assert tools == "['files__add', 'files__look', 'files__read']", ran.err
    assert added == "{'result': 3}"
    assert "E_POLICY_DENY" in secret
    assert {e["resource"] for e in house.lab.denials(run=ran.run)} == {"tool:files.secret"}
