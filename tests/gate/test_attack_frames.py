"""Attacks with bytes: what is no frame, no message or no request, and clients that misbehave.

Beside each refusal stands its control, and in each case the gate serves the others on.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authority import protocol

from .lab import Attached, Lab, Wire, wait_for


@pytest.fixture(scope="module")
def bystander(lab: Lab) -> Iterator[Attached]:
    """Another run, which must be served throughout."""
    with lab.attached() as found:
        yield found


@pytest.fixture
def run(lab: Lab, bystander: Attached) -> Iterator[Attached]:
    with lab.attached() as found:
        yield found
        with lab.attached() as fresh:
            assert fresh.gate().read("data/a.txt") == b"hello"
    assert bystander.gate().read("data/a.txt") == b"hello"


def denied(lab: Lab, code: str, layer: str, since: int) -> dict[str, Any]:
    """The newest denial of this kind behind entry `since`."""
    return wait_for(
        lambda: [e for e in lab.denials(code=code, layer=layer) if e["seq"] > since], 5
    )[-1]


def head(lab: Lab) -> int:
    return int(lab.log()[-1]["seq"])


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_control_a_well_formed_request_is_served(run: Attached) -> None:
    wire = run.wire()
    code, value = wire.ask("fs.read", "data/a.txt", token=run.token)
    assert (code, value["data"]) == ("", b"hello")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack(">II", 0xFFFFFFFF, 1), "E_FRAME_TOO_LARGE"),
        (struct.pack(">II", protocol.MAX_FRAME + 1, 1) + b"x", "E_FRAME_TOO_LARGE"),
        (struct.pack(">I", 0), "E_SCHEMA_INVALID"),
        (struct.pack(">II", 4, 1), "E_SCHEMA_INVALID"),
    ],
    ids=["4 GiB", "one byte too long", "empty", "no payload"],
)
@pytest.mark.parametrize("greeted", [True, False])
def test_a_bad_frame_ends_its_channel_and_is_an_entry(
    lab: Lab, run: Attached, data: bytes, code: str, greeted: bool
) -> None:
    since = head(lab)
    wire = run.wire(hello=greeted)
    wire.raw(data)
    last = wire.message()
    assert isinstance(last, protocol.Fatal)
    assert last.code == code
    assert wire.message() is None
    entry = denied(lab, code, "frame", since)
    assert entry.get("run", "") == (run.run if greeted else "")


def test_a_frame_of_just_the_largest_size_is_read(run: Attached) -> None:
    """The limit's own control: as large as may be is a message, if a wrong one."""
    wire = run.wire()
    wire.payload(b"\xc1" * (protocol.MAX_FRAME - 4))
    last = wire.message()
    assert isinstance(last, protocol.Fatal)
    assert last.code == "E_SCHEMA_INVALID"


def test_a_frame_that_is_cut_off_admits_nothing(lab: Lab, run: Attached) -> None:
    since = head(lab)
    wire = run.wire()
    frame = protocol.encode_frame(
        1,
        protocol.encode_requests([wire.request("fs.read", "data/a.txt", token=run.token)]),
    )
    wire.raw(frame[:-1])
    wire.close()
    time.sleep(0.1)
    assert not [e for e in lab.log(kind="admit", run=run.run) if e["seq"] > since]
    whole = run.wire()
    whole.raw(frame)
    assert whole.replies(1)[0].status == protocol.DONE


def test_a_slow_sender_is_served_and_stops_nobody(run: Attached, bystander: Attached) -> None:
    wire, other = run.wire(), bystander.gate()
    frame = protocol.encode_frame(
        1,
        protocol.encode_requests([wire.request("fs.read", "data/a.txt", token=run.token)]),
    )
    for at in range(0, len(frame), 16):
        wire.raw(frame[at : at + 16])
        assert other.read("data/a.txt") == b"hello"
    assert wire.replies(1)[0].status == protocol.DONE


GOOD = {"client": "test"}
MESSAGES = {
    "garbage": b"\xc1\xc1\xc1",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "an unknown kind": pack([7, "authority/1", {}]),
    "a map": pack({"a": 1}),
    "no requests": pack([1, []]),
    "too many requests": b"\x92\x01\xdd\x00\x00\x04\x01",
    "announced but not there": b"\x92\x01\xdd\xff\xff\xff\xff",
    "deep nesting": b"\x92\x01" + b"\x91" * 100_000,
    "an extension type": b"\x92\x01\x91" + pack(msgspec.msgpack.Ext(5, b"xx")),
    "a second hello": protocol.encode_hello("again"),
    "a request of another length": pack([1, [[1, "fs.read", "a"]]]),
    "a number below one": pack([1, [[0, "fs.read", "a", {}, None, 0]]]),
    "a number above 2**53": pack([1, [[2**60, "fs.read", "a", {}, None, 0]]]),
    "a number that is text": pack([1, [["1", "fs.read", "a", {}, None, 0]]]),
    "a resource that is a list": pack([1, [[1, "fs.read", ["a"], {}, None, 0]]]),
    "a resource that is too long": pack([1, [[1, "fs.read", "a" * 9000, {}, None, 0]]]),
    "a capability that is text": pack([1, [[1, "fs.read", "a", {}, "auth1_", 0]]]),
    "flags below zero": pack([1, [[1, "fs.read", "a", {}, None, -1]]]),
    "an effect of no letters": pack([1, [[1, "", "a", {}, None, 0]]]),
    "the gate's own message": protocol.encode_fatal("E_HALTED", "no"),
    "bytes behind": pack([1, [[1, "fs.read", "a", {}, None, 0]]]) + b"\x00",
}


@pytest.mark.parametrize("payload", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_bad_message_ends_its_channel_and_is_an_entry(
    lab: Lab, run: Attached, payload: bytes
) -> None:
    since = head(lab)
    wire = run.wire()
    wire.payload(payload)
    last = wire.message()
    assert isinstance(last, protocol.Fatal), last
    assert last.code == "E_SCHEMA_INVALID"
    assert wire.message() is None
    assert denied(lab, "E_SCHEMA_INVALID", "schema", since)["run"] == run.run
    # Its neighbours of the same run go on: what ended is the channel.
    assert run.gate().read("data/a.txt") == b"hello"


HELLOS = {
    "a request before the hello": pack([1, [[1, "fs.read", "a", {}, None, 0]]]),
    "another version": pack([0, "authority/2", GOOD]),
    "an unknown option": pack([0, "authority/1", {**GOOD, "debug": True}]),
    "no client": pack([0, "authority/1", {}]),
    "a key that stands there twice": b"\x93\x00\xabauthority/1\x82\xa6client\xa1a\xa6client\xa1b",
    "an extension": b"\x93\x00\xabauthority/1" + pack(msgspec.msgpack.Ext(1, b"x")),
}


@pytest.mark.parametrize("payload", HELLOS.values(), ids=HELLOS.keys())
def test_a_bad_hello_is_refused(lab: Lab, run: Attached, payload: bytes) -> None:
    since = head(lab)
    wire = run.wire(hello=False)
    wire.payload(payload)
    last = wire.message()
    assert isinstance(last, protocol.Fatal)
    assert last.code == "E_SCHEMA_INVALID"
    assert wire.message() is None
    denied(lab, "E_SCHEMA_INVALID", "schema", since)


def test_an_unknown_stream_and_the_supervisors_are_refused(lab: Lab, run: Attached) -> None:
    for stream in (0, 2, 77, 0xFFFFFFFF):
        since = head(lab)
        wire = run.wire()
        wire.payload(protocol.encode_requests(
            [wire.request("fs.read", "data/a.txt", token=run.token)]), stream=stream)  # fmt: skip
        last = wire.message()
        assert last is None or isinstance(last, protocol.Fatal)
        denied(lab, "E_SCHEMA_INVALID", "frame", since)
        assert not [e for e in lab.log(kind="admit", run=run.run) if e["seq"] > since]


def test_a_number_counts_once_and_only_upwards(lab: Lab, run: Attached) -> None:
    wire = run.wire()

    def ask(n: int) -> str:
        return wire.ask("fs.stat", "data/a.txt", token=run.token, n=n)[0]

    assert [ask(5), ask(5), ask(4), ask(1), ask(6)] == ["", "E_REPLAY", "E_REPLAY", "E_REPLAY", ""]
    again = [wire.request("fs.stat", "data/a.txt", token=run.token, n=n) for n in (7, 7, 9, 8)]
    wire.send(*again)
    states = [(r.n, r.status) for r in wire.replies(4)]
    assert sorted(states) == [(7, 0), (7, 1), (8, 1), (9, 0)]
    assert {e["layer"] for e in lab.denials(run=run.run, code="E_REPLAY")} == {"sequence"}
    assert len(lab.denials(run=run.run, code="E_REPLAY")) == 5


ARGUMENTS = {
    "unknown argument": {"offset": 0, "mode": "r"},
    "another type": {"offset": "0"},
    "below zero": {"offset": -1},
    "a float": {"offset": 1.5},
    "true is no number": {"length": True},
    "not a map": b"\x90",
    "a key twice": b"\x82\xa6offset\x00\xa6offset\x01",
    "a longer form": b"\x81\xa6offset\xcc\x01",
    "an extension": b"\x81\xa6offset" + pack(msgspec.msgpack.Ext(3, b"x")),
    "deep": b"\x81\xa6offset" + b"\x91" * 40 + b"\xc0",
    "a key that is a number": b"\x81\x01\x01",
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_bad_arguments_refuse_their_request_and_no_other(
    lab: Lab, run: Attached, arguments: Any
) -> None:
    wire = run.wire()
    wire.send(
        wire.request("fs.read", "data/a.txt", {"offset": 1}, token=run.token),
        wire.request("fs.read", "data/a.txt", arguments, token=run.token),
        wire.request("fs.read", "data/a.txt", {"offset": 2}, token=run.token),
    )
    replies = {r.n: r for r in wire.replies(3)}
    assert replies[1].body["data"] == b"ello"
    assert replies[3].body["data"] == b"llo"
    refused = protocol.decode_refused(replies[2].body)
    assert (refused.code, refused.layer) == ("E_SCHEMA_INVALID", "schema")
    (entry,) = lab.denials(run=run.run)
    assert entry["seq"] == replies[2].seq


def test_a_missing_argument_an_unknown_effect_and_unknown_flags(lab: Lab, run: Attached) -> None:
    wire, token = run.wire(), run.token
    ask = wire.ask
    assert ask("fs.write", "out/x", {}, token=token)[0] == "E_SCHEMA_INVALID"
    assert ask("fs.write", "out/x", {"data": b"1"}, token=token)[0] == ""
    for effect in ("fs.chmod", "exec", "output", "FS.READ", "fs.read\x00", "gate.halt"):
        assert ask(effect, "data/a.txt", token=token)[0] == "E_SCHEMA_INVALID", effect
    for flags in (4, 128, 255):
        assert ask("fs.stat", "data/a.txt", token=token, flags=flags)[0] == "E_SCHEMA_INVALID"
    assert ask("fs.stat", "data/a.txt", token=token, flags=0)[0] == ""
    assert len(lab.denials(run=run.run)) == 10
    assert not lab.log(run=run.run, kind="admit", effect="output")


@pytest.mark.parametrize(
    ("effect", "resource"),
    [
        ("fs.read", "../state/keys/admin.token"),
        ("fs.read", "data/../../x"),
        ("fs.read", "data/a\x00.txt"),
        ("fs.read", "fs:/a/%2e%2e/b"),
        ("http.request", "http://0x7f.1/"),
        ("http.request", "http://user@host/"),
        ("http.request", "file:///etc/passwd"),
        ("tool.call", "search"),
        ("msg.send", "agent:x"),
    ],
)
def test_a_resource_without_canonical_form_is_refused(
    lab: Lab, run: Attached, effect: str, resource: str
) -> None:
    arguments = {"data": b""} if effect == "msg.send" else {}
    code, refused = run.wire().ask(effect, resource, arguments, token=run.token)
    assert (code, refused.layer) == ("E_SCHEMA_INVALID", "schema")
    assert len(lab.denials(run=run.run)) == 1


def test_ten_thousand_requests_at_once_are_all_answered(lab: Lab, run: Attached) -> None:
    wire = run.wire()
    total, per = 10_000, 1000

    def send() -> None:
        for _ in range(total // per):
            wire.send(*(wire.request("fs.stat", "nowhere", token=None) for _ in range(per)))

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    replies = wire.replies(total)
    sender.join(60)
    assert sorted(r.n for r in replies) == list(range(1, total + 1))
    assert {r.status for r in replies} == {protocol.REFUSED}
    assert len(lab.denials(run=run.run, code="E_CAP_MISSING")) == total


def memory(pid: int) -> int:
    """Resident bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


def test_a_client_that_never_reads_costs_bounded_memory(
    lab: Lab, run: Attached, bystander: Attached
) -> None:
    """Its answers would be 2 GB; the gate stops reading from it, and serves the others."""
    lab.file("data/big.bin", bytes(2 * 1024 * 1024))
    pid, wire = lab.pid(), run.wire()
    before = memory(pid)
    wire.socket.settimeout(0.5)
    other = bystander.gate()
    peak = before
    try:
        for _ in range(100):
            wire.send(
                *(wire.request("fs.read", "data/big.bin", token=run.token) for _ in range(10))
            )
            peak = max(peak, memory(pid))
    except TimeoutError:
        pass  # it is not read from any more
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert other.read("data/a.txt") == b"hello"
        peak = max(peak, memory(pid))
        time.sleep(0.05)
    assert peak - before < 256 * 1024 * 1024
    wire.close()


def test_a_client_that_sends_faster_than_the_disk_costs_bounded_memory(
    lab: Lab, run: Attached
) -> None:
    pid, wire = lab.pid(), run.wire()
    before = peak = memory(pid)
    data = {"data": bytes(8 * 1024 * 1024)}
    sender = threading.Thread(
        target=lambda: [
            wire.send(wire.request("fs.write", f"out/w{i}", data, token=run.token))
            for i in range(30)
        ],
        daemon=True,
    )
    sender.start()
    got = 0
    while got < 30:
        got += len(wire.replies(1))
        peak = max(peak, memory(pid))
    sender.join(60)
    assert peak - before < 256 * 1024 * 1024


def test_large_answers_all_come_in_the_end(lab: Lab, run: Attached) -> None:
    """The control: more than the room holds, to a client that reads."""
    lab.file("data/big.bin", bytes(2 * 1024 * 1024))
    wire = run.wire()
    wire.send(*(wire.request("fs.read", "data/big.bin", token=run.token) for _ in range(60)))
    assert {len(r.body["data"]) for r in wire.replies(60)} == {2 * 1024 * 1024}


def test_many_connections_that_say_nothing_stop_nobody(lab: Lab, run: Attached) -> None:
    silent = [Wire(lab.directory.attach_socket) for _ in range(100)]
    try:
        assert run.gate().read("data/a.txt") == b"hello"
    finally:
        for wire in silent:
            wire.close()
