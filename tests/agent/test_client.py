"""The agent's side against a real socket: calls, refusals, batches, threads, and every way to fail."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authority import protocol, tokens
from authority.agent import (
    BadReply,
    BadRequest,
    Denied,
    Gate,
    GateError,
    GateGone,
    Message,
    NoChannel,
    connect,
)
from authority.kernel import capabilities
from authority.kernel.capabilities import MacKey, Restriction, TokenError

KEY = MacKey("k", bytes(32))
TOKEN = capabilities.mint(
    KEY, id="ab" * 16, run="run-1", restriction=Restriction(resources=("fs:/work/**",))
)


class Files:
    """Answers fs.* from a dictionary, the way the real effects do."""

    def __init__(self) -> None:
        self.files: dict[Any, bytes] = {}
        self.largest = 8 * 1024 * 1024

    def __call__(self, request: protocol.Request) -> Any:
        a = msgspec.msgpack.decode(bytes(request.arguments))
        name, files = request.resource, self.files
        match request.effect:
            case "fs.read":
                data, offset = files[name], a.get("offset", 0)
                length = self.largest if a.get("length") is None else a["length"]
                part = data[offset : offset + min(length, self.largest)]
                end = offset + len(part)
                return {"data": part, "size": len(data), "eof": end >= len(data)}
            case "fs.write":
                files[name] = a["data"]
                return {"size": len(a["data"])}
            case "fs.append":
                files[name] = files.get(name, b"") + a["data"]
                return {"size": len(files[name])}
            case "fs.list":
                return [{"name": str(n), "type": "file", "size": len(d)} for n, d in files.items()]
            case "fs.stat":
                return {"type": "file", "size": len(files[name]), "mtime": 1, "mode": 0o600}
            case "fs.rename":
                files[a["to"]] = files.pop(name)
                return {}
            case "fs.delete":
                del files[name]
                return {}
            case _:
                return {}


def test_files(fake_gate: Any) -> None:
    fake_gate.answer = store = Files()
    with connect() as gate:
        assert (gate.run, gate.cwd) == ("run-1", "/work")
        assert gate.write("a.txt", "gr\u00fc\u00dfe") == 7
        assert gate.append("a.txt", b"!") == 8
        assert gate.read_text("a.txt") == "gr\u00fc\u00dfe!"
        assert gate.read("a.txt", 2, 3) == "gr\u00fc\u00dfe!".encode()[2:5]
        assert gate.read("a.txt", length=0) == b""
        assert gate.stat("a.txt")["size"] == 8
        gate.rename("a.txt", "b.txt")
        assert [e["name"] for e in gate.list()] == ["b.txt"]
        gate.mkdir("d", parents=True)
        gate.delete("b.txt")
        assert store.files == {}
    effects = [r.effect for r in fake_gate.requests]
    assert effects == [
        *("fs.write", "fs.append", "fs.read", "fs.read", "fs.stat", "fs.rename", "fs.list"),
        *("fs.mkdir", "fs.delete"),
    ]


def test_large_files_are_read_in_several_requests(fake_gate: Any) -> None:
    fake_gate.answer = store = Files()
    store.largest = 1000
    store.files["big"] = os.urandom(3_500)
    store.files["empty"] = b""
    with connect() as gate:
        assert gate.read("big") == store.files["big"]
        assert gate.read("big", 100, 2_000) == store.files["big"][100:2_100]
        assert gate.read("big", 3_000, 9_000) == store.files["big"][3_000:]
        assert gate.read("empty") == b""


def test_names_that_are_not_utf8(fake_gate: Any) -> None:
    fake_gate.answer = store = Files()
    store.files[b"\xff.txt"] = b"x"
    with connect() as gate:
        assert gate.read(b"\xff.txt") == b"x"
        assert gate.read(os.fsdecode(b"\xff.txt")) == b"x"
        with pytest.raises(BadRequest):
            gate.read("\ud800")


def test_http_tools_runs_and_messages(
    fake_gate: Any, decoded: Callable[[protocol.Request], Any]
) -> None:
    def answer(request: protocol.Request) -> Any:
        match request.effect:
            case "http.request":
                return {
                    "status": 200,
                    "headers": [["Content-Type", "application/json; charset=latin-1"]],
                    "body": b'{"a": "\xe4"}'.replace(b"\xe4", b"x"),
                    "url": request.resource,
                }
            case "tool.call":
                return {"result": decoded(request)["arguments"]}
            case "agent.spawn":
                return {"run": "run-2"}
            case "agent.wait":
                return {"ended": True, "code": 3}
            case "msg.receive":
                late = decoded(request)["timeout_ms"]
                return {"from": "run-2", "data": b"hi"} if late else {}
        return {}

    fake_gate.answer = answer
    with connect() as gate:
        response = gate.http("POST", "https://x.example/", headers={"A": "b"}, body="hello")
        assert (response.status, response.json()) == (200, {"a": "x"})
        assert response.header("CONTENT-TYPE").startswith("application/json")
        assert response.text == '{"a": "x"}'
        assert gate.tool("sum", {"x": 1.5}) == {"x": 1.5}
        assert gate.spawn("helper", ["--x"], {"requests": 5}, {"methods": ["fs.*"]}) == "run-2"
        assert gate.wait("run-2", 100) == {"ended": True, "code": 3}
        gate.send("run-2", "hello")
        assert gate.receive() is None
        assert gate.receive(timeout_ms=5) == Message("run-2", b"hi")
    sent = {r.effect: (r.resource, decoded(r)) for r in fake_gate.requests}
    assert sent["http.request"][1] == {
        "method": "POST",
        "headers": [["A", "b"]],
        "body": b"hello",
        "max_bytes": 1024 * 1024,
    }
    assert sent["agent.spawn"] == (
        "agent:helper",
        {
            "arguments": ["--x"],
            "budgets": {"requests": 5},
            "restriction": {"methods": ["fs.*"]},
        },
    )
    assert sent["msg.send"] == ("run:run-2", {"data": b"hello"})
    assert sent["msg.receive"][0] == "run:run-1"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text/plain; charset=latin-1", "\u00e4"),
        ("text/plain; charset=no-such", "\ufffd"),
        ("text/plain", "\ufffd"),
    ],
)
def test_text_of_a_response(fake_gate: Any, kind: str, expected: str) -> None:
    fake_gate.answer = lambda r: {
        "status": 200,
        "headers": [["content-type", kind]],
        "body": b"\xe4",
        "url": "u",
    }
    with connect() as gate:
        assert gate.http("GET", "https://x.example/").text == expected


def test_a_refusal_says_everything(fake_gate: Any, refuse: Any) -> None:
    fake_gate.answer = lambda r: (
        refuse("E_POLICY_DENY", "policy", "The policy does not allow this.", "filesystem.read")
        if r.resource == "secret"
        else {"data": b"", "size": 0, "eof": True}
    )
    with connect() as gate:
        gate.read("open")
        assert gate.last_receipt == (101, (101).to_bytes(32, "big").hex())
        with pytest.raises(Denied) as caught:
            gate.read("secret")
        denied = caught.value
        assert (denied.code, denied.layer, denied.seq, denied.number) == (
            "E_POLICY_DENY",
            "policy",
            102,
            1,
        )
        assert denied.rule == "filesystem.read"
        assert denied.receipt == gate.last_receipt
        assert "entry 102" in str(denied)
        assert "The policy does not allow this." in str(denied)
        gate.read("open")


def test_capabilities_go_with_the_request(fake_gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHORITY_CAPABILITY", tokens.to_text(TOKEN))
    other = capabilities.mint(KEY, id="cd" * 16, run="run-1", restriction=Restriction())
    with connect() as gate:
        gate.call("fs.stat", "a")
        gate.call("fs.stat", "a", capability=other)
        gate.call("fs.stat", "a", capability=tokens.to_text(other))
        with pytest.raises(TokenError):
            gate.call("fs.stat", "a", capability="auth1_%%")
    assert [r.capability for r in fake_gate.requests] == [TOKEN, other, other]
    assert fake_gate.hellos[0].options.capability is None


def test_without_a_capability_none_is_sent(fake_gate: Any) -> None:
    with connect() as gate:
        gate.call("fs.stat", "a")
        with pytest.raises(BadRequest):
            gate.attenuate(count=1)
    assert fake_gate.requests[0].capability is None


def test_attenuation_needs_no_gate_and_verifies(fake_gate: Any) -> None:
    with connect(capability=TOKEN) as gate:
        text = gate.attenuate(methods=["fs.read"], count=2)
        again = gate.attenuate(methods=["fs.read"], count=2)
        below = gate.attenuate(text, resources=["fs:/work/a/**"])
        for bad in ({"resources": ["work/**"]}, {"methods": ["*"]}, {"anything": 1}):
            with pytest.raises(TokenError):
                gate.attenuate(**bad)
        assert fake_gate.requests == []
        gate.call("fs.stat", "a", capability=text)
    token, deeper = (capabilities.parse(tokens.from_text(t)) for t in (text, below))
    assert capabilities.verify(token, KEY)
    assert capabilities.verify(deeper, KEY)
    assert (token.restrictions[1].methods, token.restrictions[1].count) == (("fs.read",), 2)
    assert deeper.ids[:2] == token.ids
    assert capabilities.parse(tokens.from_text(again)).id != token.id
    assert fake_gate.requests[0].capability == tokens.from_text(text)


def test_attached_clients_say_which_run(fake_gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(fake_gate.path, TOKEN, attach=True):
        assert fake_gate.hellos[0].options.capability == TOKEN
    monkeypatch.delenv("AUTHORITY_CAPABILITY", raising=False)
    with pytest.raises(NoChannel):
        connect(fake_gate.path, attach=True)


def test_handles_are_asked_for_with_the_flag(fake_gate: Any, refuse: Any) -> None:
    fake_gate.answer = lambda r: (
        refuse("E_SCHEMA_INVALID", "schema", "No handles.") if r.flags else {}
    )
    with connect() as gate:
        gate.call("fs.stat", "a")
        with pytest.raises(Denied, match="No handles"):
            gate.call("fs.stat", "a", handle=True)
    assert [r.flags for r in fake_gate.requests] == [0, protocol.FLAG_HANDLE]


# Batches


def test_a_batch_leaves_in_one_frame(fake_gate: Any, refuse: Any) -> None:
    fake_gate.reverse = True
    fake_gate.answer = lambda r: (
        refuse("E_POLICY_DENY", "policy", "No.") if r.resource == "3" else {"of": r.resource}
    )
    with connect() as gate:
        with gate.batch() as batch:
            answers = [batch.call("fs.stat", str(i)) for i in range(10)]
            assert not answers[0].sent
            with pytest.raises(BadRequest):
                answers[0].result()
        assert [len(b) for b in fake_gate.batches] == [10]
        for i, answer in enumerate(answers):
            if i == 3:
                with pytest.raises(Denied):
                    answer.result()
            else:
                assert answer.result() == {"of": str(i)}
            assert answer.receipt is not None
            assert answer.receipt.seq == 101 + i
        with pytest.raises(BadRequest):
            batch.call("fs.stat", "late")


def test_a_batch_keeps_to_the_pipeline_and_the_frame(fake_gate: Any) -> None:
    fake_gate.pipeline, fake_gate.frame = 7, 4096
    fake_gate.answer = lambda r: {"of": r.resource}
    with connect() as gate:
        with gate.batch() as batch:
            answers = [batch.call("fs.write", str(i), {"data": bytes(900)}) for i in range(40)]
        assert [a.result()["of"] for a in answers] == [str(i) for i in range(40)]
        with pytest.raises(BadRequest, match="larger than a frame"):
            gate.write("x", bytes(5000))
        assert gate.call("fs.stat", "after") == {"of": "after"}
    assert fake_gate.most_open <= 7
    assert len(fake_gate.batches) > 10


def test_a_batch_that_raises_sends_nothing(fake_gate: Any) -> None:
    with connect() as gate:
        with contextlib.suppress(ZeroDivisionError), gate.batch() as batch:
            answer = batch.call("fs.delete", "a")
            _ = 1 / 0
        assert not answer.sent
        gate.call("fs.stat", "b")
    assert [r.effect for r in fake_gate.requests] == ["fs.stat"]


# Threads and full buffers


def test_threads_share_one_connection(fake_gate: Any) -> None:
    fake_gate.pipeline = 4
    fake_gate.answer = lambda r: {"of": r.resource}
    wrong: list[Any] = []
    with connect() as gate:

        def work(name: int) -> None:
            for i in range(60):
                found = gate.call("fs.stat", f"{name}.{i}")
                if found != {"of": f"{name}.{i}"}:
                    wrong.append((name, i, found))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert wrong == []
    assert len(fake_gate.requests) == 480


def test_two_full_buffers_do_not_wait_for_each_other(fake_gate: Any) -> None:
    """The gate writes large answers and reads nothing meanwhile, as does a client that only sends."""
    fake_gate.answer = lambda r: bytes(300_000)
    done = threading.Event()
    with connect() as gate:

        def work() -> None:
            with gate.batch() as batch:
                for _ in range(60):
                    batch.call("fs.write", "x", {"data": bytes(300_000)})
            done.set()

        fake_gate.frame = protocol.MAX_FRAME
        threading.Thread(target=work, daemon=True).start()
        assert done.wait(20)


def test_the_end_of_the_gate_wakes_every_thread(fake_gate: Any) -> None:
    connected = threading.Event()
    release = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(protocol.encode_frame(1, protocol.encode_welcome("r", "/", 64)))
        connected.set()
        release.wait(60)

    fake_gate.script = script
    errors: list[BaseException] = []
    gate = connect()

    def work() -> None:
        try:
            gate.call("fs.stat", "a")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert connected.wait(60)
    time.sleep(0.05)
    release.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [type(e) for e in errors] == [GateGone] * 4
    with pytest.raises(GateGone):
        gate.call("fs.stat", "again")
    gate.close()


def test_closing_wakes_a_thread_that_waits(fake_gate: Any) -> None:
    asked = threading.Event()
    hold = threading.Event()

    def answer(_request: protocol.Request) -> Any:
        asked.set()
        hold.wait(60)
        return {}

    fake_gate.answer = answer
    gate = connect()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            gate.call("fs.stat", "a")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert asked.wait(60)
    gate.close()
    thread.join(60)
    hold.set()
    assert [type(e) for e in errors] == [GateGone]
    gate.close()


# Every way to fail


def test_no_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTHORITY_CHANNEL", raising=False)
    with pytest.raises(NoChannel, match="AUTHORITY_CHANNEL is not set"):
        connect()
    with pytest.raises(NoChannel, match="no gate answers"):
        connect(str(tmp_path / "nothing"))
    with pytest.raises(NoChannel, match="no gate answers"):
        connect("x" * 300)
    with pytest.raises(NoChannel):
        connect("a\0b")


def greeted(then: bytes) -> Callable[[socket.socket], None]:
    """A gate that says welcome, takes one request and answers with these bytes."""

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(protocol.encode_frame(1, protocol.encode_welcome("r", "/", 64)))
        connection.recv(65536)
        connection.sendall(then)
        connection.recv(65536)

    return script


def framed(payload: bytes, stream: int = 1) -> bytes:
    return protocol.encode_frame(stream, payload)


REPLY = protocol.encode_replies([protocol.Reply(1, 0, 1, bytes(32), {})])
BAD_REPLIES = {
    "no MessagePack": framed(b"\xc1"),
    "another type": framed(msgspec.msgpack.encode([9, 1])),
    "answer to nothing": framed(protocol.encode_replies([protocol.Reply(77, 0, 1, bytes(32), {})])),
    "two answers to one": framed(REPLY) + framed(REPLY),
    "another stream": framed(REPLY, 2),
    "a second welcome": framed(protocol.encode_welcome("r", "/", 1)),
    "a huge frame": b"\xff\xff\xff\xff",
    "an empty frame": bytes(4),
    "refusal of another form": framed(
        protocol.encode_replies([protocol.Reply(1, 1, 1, b"", ["E"])])
    ),
    "extension type": framed(b"\x92\x01\x91\x95\x01\x00\x03\xc4\x00\xd4\x05\x00"),
}


@pytest.mark.parametrize("then", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_gate_that_can_not_be_understood(fake_gate: Any, then: bytes) -> None:
    fake_gate.script = greeted(then)
    with connect() as gate:
        with contextlib.suppress(GateError):
            gate.call("fs.stat", "a")
        with pytest.raises(GateError):
            gate.call("fs.stat", "a")


def test_control_for_the_bad_replies(fake_gate: Any) -> None:
    fake_gate.script = greeted(framed(REPLY))
    with connect() as gate:
        assert gate.call("fs.stat", "a") == {}


@pytest.mark.parametrize("cut", range(len(framed(REPLY))))
def test_the_end_inside_an_answer(fake_gate: Any, cut: int) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(framed(protocol.encode_welcome("r", "/", 64)))
        connection.recv(65536)
        connection.sendall(framed(REPLY)[:cut])

    fake_gate.script = script
    with connect() as gate, pytest.raises(GateGone):
        gate.call("fs.stat", "a")


def test_a_fatal_message_is_told(fake_gate: Any) -> None:
    fatal = protocol.encode_fatal("E_SCHEMA_INVALID", "The message can't be read.\x1b[31m")
    fake_gate.script = greeted(framed(fatal))
    with connect() as gate, pytest.raises(GateGone, match="E_SCHEMA_INVALID") as caught:
        gate.call("fs.stat", "a")
    assert "\x1b" not in str(caught.value)
    assert "message can't be read" in str(caught.value)


def test_calls_after_the_gate_has_gone_say_why(fake_gate: Any) -> None:
    """Sending fails then; what the gate said before it closed is still read."""
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(framed(protocol.encode_welcome("r", "/", 64)))
        connection.sendall(framed(protocol.encode_fatal("E_HALTED", "The run is halted.")))
        connection.close()
        closed.set()

    fake_gate.script = script
    with connect() as gate:
        assert closed.wait(60)
        for _ in range(2):
            with pytest.raises(GateGone, match="E_HALTED: The run is halted"):
                gate.call("fs.write", "a", {"data": bytes(1_000_000)})


def test_a_gate_that_hangs_up_on_hello(fake_gate: Any) -> None:
    fake_gate.script = lambda connection: None
    with pytest.raises(GateGone):
        connect()


@pytest.mark.parametrize("value", [None, 5, "text", [], {"size": "big"}, {"data": "text"}])
def test_values_of_another_form_are_bad_replies(fake_gate: Any, value: Any) -> None:
    fake_gate.answer = lambda r: value
    with connect() as gate:
        with pytest.raises(BadReply):
            gate.read("a")
        with pytest.raises(BadReply):
            gate.write("a", b"")
        with pytest.raises(BadReply):
            gate.http("GET", "https://x.example/")


@pytest.mark.parametrize(
    "call",
    [
        lambda g: g.call("", "a"),
        lambda g: g.call("e" * 65, "a"),
        lambda g: g.call("fs.read", "r" * 8193),
        lambda g: g.call("fs.read", "a", {"x": object()}),
        lambda g: g.call("fs.read", "a", {"x": 2**80}),
        lambda g: g.call("fs.read", "a", {"x": "\udc80"}),
    ],
)
def test_calls_that_can_not_be_sent_leave_the_channel_whole(
    fake_gate: Any, call: Callable[[Gate], Any]
) -> None:
    with connect() as gate:
        with pytest.raises(BadRequest):
            call(gate)
        assert gate.call("fs.stat", "a") == {}
    assert len(fake_gate.requests) == 1


def test_a_forked_child_has_to_connect_anew(fake_gate: Any) -> None:
    """Run in a process of its own, because this one has threads."""
    program = (
        "import os, sys, json\n"
        "from authority.agent import connect, GateError\n"
        "gate = connect(); gate.call('fs.stat', 'a')\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    try: gate.call('fs.stat', 'b'); said = 'sent'\n"
        "    except GateError as error: said = error.message\n"
        "    with connect() as mine: mine.call('fs.stat', 'c')\n"
        "    os.write(w, said.encode()); os._exit(0)\n"
        "os.wait(); gate.call('fs.stat', 'd')\n"
        "print(json.dumps(os.read(r, 999).decode()))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "forked" in json.loads(out.stdout)
    assert sorted(str(r.resource) for r in fake_gate.requests) == ["a", "c", "d"]


def test_the_agents_side_loads_nothing_else_of_ours() -> None:
    program = "import sys, authority.agent; print(*sorted(m for m in sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout.split()
    ours = {m.split(".")[1] for m in out if m.startswith("authority.")}
    assert ours == {"agent", "errors", "protocol"}
    assert not {"asyncio", "hashlib", "ssl", "json", "httpx", "cryptography"} & set(out)


@pytest.mark.parametrize("rule", [None, "rule 3"])
def test_a_refusal_goes_from_one_process_to_another(rule: str | None) -> None:
    """A pool of workers hands on what was raised in one by pickling it."""
    denied = Denied("E_TAINT", "labels", None, 4, "No.", rule)
    again = pickle.loads(pickle.dumps(denied))
    assert type(again) is Denied
    assert vars(again) == vars(denied)
    assert str(again) == str(denied)
