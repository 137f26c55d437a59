"""The channel's bytes: frames cut anywhere, messages of every wrong form, arguments respelled."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority import protocol, tokens
from authority.kernel import capabilities
from authority.kernel.codes import Code
from authority.protocol import FrameDecoder, ProtocolError, checked_arguments, encode_frame

pack = msgspec.msgpack.encode
NONE = msgspec.Raw(b"\x80")


def request(n: int = 1, **change: Any) -> protocol.Request:
    fields = {
        "effect": "fs.read",
        "resource": "a.txt",
        "arguments": NONE,
        "capability": None,
        "flags": 0,
    }
    return protocol.Request(n, **(fields | change))


# Frames


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=60)), max_size=8),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_come_out_whole_however_they_were_cut(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode_frame(*frame) for frame in frames)
    decoder, out, at, turn = FrameDecoder(), [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        out += list(decoder.feed(data[at : at + step]))
        at, turn = at + step, turn + 1
    assert out == frames
    assert decoder.pending == 0
    decoder.end()


def test_a_frame_as_large_as_allowed_and_one_byte_larger() -> None:
    decoder = FrameDecoder(1000)
    assert list(decoder.feed(encode_frame(1, b"x" * 996))) == [(1, b"x" * 996)]
    with pytest.raises(ProtocolError) as caught:
        list(decoder.feed(struct.pack(">I", 1001)))
    assert caught.value.code == "E_FRAME_TOO_LARGE"
    with pytest.raises(ProtocolError):
        encode_frame(1, b"x" * protocol.MAX_FRAME)


def test_a_huge_length_is_refused_before_anything_is_kept() -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError):
        list(decoder.feed(b"\xff\xff\xff\xff" + b"x" * 100))
    for _ in range(1000):
        with pytest.raises(ProtocolError):
            decoder.feed(b"x" * 100_000).__next__()
    assert decoder.pending < 200


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_frame_without_payload_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(FrameDecoder().feed(struct.pack(">I", length) + b"\0" * length))
    assert caught.value.code == "E_SCHEMA_INVALID"
    with pytest.raises(ProtocolError):
        encode_frame(1, b"")


def test_what_stood_before_the_bad_frame_is_given_out_and_nothing_after() -> None:
    good = encode_frame(1, b"good")
    decoder = FrameDecoder()
    frames = decoder.feed(good + struct.pack(">I", 0) + good)
    assert next(frames) == (1, b"good")
    with pytest.raises(ProtocolError):
        next(frames)
    with pytest.raises(ProtocolError):
        list(decoder.feed(good))


def test_the_end_inside_a_frame_is_an_error_at_every_byte() -> None:
    data = encode_frame(1, b"payload")
    for n in range(1, len(data)):
        decoder = FrameDecoder()
        assert list(decoder.feed(data[:n])) == []
        with pytest.raises(ProtocolError):
            decoder.end()


# Messages


def test_messages_come_back_as_they_were() -> None:
    hello = protocol.decode_client_message(protocol.encode_hello("test", b"token"))
    assert isinstance(hello, protocol.Hello)
    assert (hello.version, hello.options.client) == ("authority/1", "test")
    assert hello.options.capability == b"token"
    sent = [request(1), request(7, resource=b"\xff", arguments=protocol.encode_arguments({"a": 1}))]
    got = protocol.decode_client_message(protocol.encode_requests(sent))
    assert isinstance(got, list)
    assert [(r.n, r.resource, bytes(r.arguments)) for r in got] == [
        (1, "a.txt", b"\x80"),
        (7, b"\xff", b"\x81\xa1a\x01"),
    ]
    welcome = protocol.decode_server_message(protocol.encode_welcome("run-1", "/w", 16))
    assert isinstance(welcome, protocol.Welcome)
    assert welcome.options.frame == protocol.MAX_FRAME
    replies = [
        protocol.Reply(1, protocol.DONE, 5, bytes(32), {"data": b"x", "f": 1.5}),
        protocol.Reply(2, protocol.REFUSED, None, b"", ["E_HALTED", "halt", "No.", 3, None]),
    ]
    back = protocol.decode_server_message(protocol.encode_replies(replies))
    assert back == replies
    assert protocol.decode_refused(back[1].body).number == 3
    fatal = protocol.decode_server_message(protocol.encode_fatal("E_INTERNAL", "No."))
    assert fatal == protocol.Fatal("E_INTERNAL", "No.")


R = [1, "fs.read", "a", {}, None, 0]
BAD_CLIENT: dict[str, bytes] = {
    "empty": b"",
    "nil": b"\xc0",
    "map": b"\x80",
    "text": b"\xa1x",
    "no such type": pack([7, []]),
    "type as text": pack(["1", [R]]),
    "type as float": pack([1.0, [R]]),
    "server's message": pack([2, "E", "x"]),
    "no requests": pack([1, []]),
    "too many requests": pack([1, [R] * 1025]),
    "requests as a map": pack([1, {"a": R}]),
    "more elements": pack([1, [R], 1]),
    "cut": pack([1, [R]])[:-1],
    "followed": pack([1, [R]]) + b"\xc0",
    "request too short": pack([1, [R[:5]]]),
    "request too long": pack([1, [[*R, 1]]]),
    "request as a map": pack([1, [{"n": 1}]]),
    "number 0": pack([1, [[0, *R[1:]]]]),
    "number negative": pack([1, [[-1, *R[1:]]]]),
    "number 2**53": pack([1, [[2**53, *R[1:]]]]),
    "number as float": pack([1, [[1.0, *R[1:]]]]),
    "number as text": pack([1, [["1", *R[1:]]]]),
    "effect as bytes": pack([1, [[1, b"fs.read", *R[2:]]]]),
    "effect empty": pack([1, [[1, "", *R[2:]]]]),
    "effect long": pack([1, [[1, "e" * 65, *R[2:]]]]),
    "resource long": pack([1, [[1, "e", "r" * 8193, {}, None, 0]]]),
    "resource nil": pack([1, [[1, "e", None, {}, None, 0]]]),
    "capability as text": pack([1, [[1, "e", "r", {}, "token", 0]]]),
    "capability long": pack([1, [[1, "e", "r", {}, bytes(8193), 0]]]),
    "flags nil": pack([1, [[1, "e", "r", {}, None, None]]]),
    "flags negative": pack([1, [[1, "e", "r", {}, None, -1]]]),
    "not UTF-8": b"\x92\x01\x91\x96\x01\xa1\xff\xa1r\x80\xc0\x00",
    "extension for n": b"\x92\x01\x91\x96\xd4\x05\x01\xa1e\xa1r\x80\xc0\x00",
    "never used tag": b"\x92\x01\x91\x96\x01\xa1e\xa1r\xc1\xc0\x00",
    "deep arguments": b"\x92\x01\x91\x96\x01\xa1e\xa1r" + b"\x91" * 200_000,
    "announces 2**32 requests": b"\x92\x01\xdd\xff\xff\xff\xff" + b"\x96" * 50,
    "hello of another version": pack([0, "authority/2", {"client": "x"}]),
    "hello without client": pack([0, "authority/1", {}]),
    "hello with more": pack([0, "authority/1", {"client": "x", "root": True}]),
    "hello with an escape": pack([0, "authority/1", {"client": "x", "\x1b[31m\u202e": 1}]),
    "hello, key twice": b"\x93\x00\xabauthority/1\x82\xa6client\xa1x\xa6client\xa1y",
    "hello, long client": pack([0, "authority/1", {"client": "x" * 129}]),
    "hello, capability as text": pack([0, "authority/1", {"client": "x", "capability": "t"}]),
    "hello, deep": b"\x93\x00\xabauthority/1" + b"\x91" * 100_000,
}


@pytest.mark.parametrize("payload", BAD_CLIENT.values(), ids=BAD_CLIENT.keys())
def test_client_messages_of_another_form(payload: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.decode_client_message(payload)
    assert caught.value.code == "E_SCHEMA_INVALID"
    assert caught.value.sentence.isascii()
    assert caught.value.sentence.isprintable()


def test_controls_for_the_messages_above() -> None:
    assert len(protocol.decode_client_message(pack([1, [R] * 1024]))) == 1024  # type: ignore[arg-type]
    for good in (
        [2**53 - 1, *R[1:]],
        [1, "e" * 64, "r" * 8192, {"x": [1.5]}, bytes(8192), 255],
    ):
        assert protocol.decode_client_message(pack([1, [good]]))
    assert protocol.decode_client_message(pack([0, "authority/1", {"client": "x" * 128}]))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x92\x01", b"\x92\x01\x91\x96", b"\x93\0"]))
def test_no_bytes_raise_anything_but_protocol_error(data: bytes, start: bytes) -> None:
    codes = set()
    for read in (protocol.decode_client_message, protocol.decode_server_message):
        try:
            read(start + data)
        except ProtocolError as error:
            codes.add(error.code)
    assert codes <= set(Code)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        pack([0, {"run": "r"}]),
        pack([0, {"run": "r", "frame": 0, "cwd": "/", "pipeline": 1}]),
        pack([1, [[1, 2, 3, b"", None]]]),
        pack([1, [[1, 0, -1, b"", None]]]),
        pack([1, [[1, 0, 3, bytes(33), None]]]),
        pack([3]),
        b"\x92\x01\x91\x95\x01\x00\x03\xc4\x00\xd4\x05\x00",
    ],
)
def test_server_messages_of_another_form(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_server_message(payload)


def test_replies_are_split_until_they_fit() -> None:
    replies = [protocol.Reply(n, 0, n, bytes(32), b"x" * 300) for n in range(1, 40)]
    frames = protocol.reply_frames(3, replies, 1000)
    decoder, seen = FrameDecoder(1000), []
    for stream, payload in decoder.feed(b"".join(frames)):
        assert stream == 3
        message = protocol.decode_server_message(payload)
        assert isinstance(message, list)
        seen += message
    assert seen == replies
    assert len(protocol.reply_frames(3, replies)) == 1
    with pytest.raises(ProtocolError) as caught:
        protocol.reply_frames(3, [protocol.Reply(1, 0, 1, b"", b"x" * 2000)], 1000)
    assert caught.value.code == "E_FRAME_TOO_LARGE"


# Arguments


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": None, "b": True, "c": False, "d": "\u00e4", "e": b"\xff\x00", "": 0},
        {"nested": {"a": {"a": [[], {}, [{"a": 1}]]}}},
        {str(i): i for i in range(70_000 // 4)},
        {"list": list(range(300)), "text": "x" * 70_000, "bytes": bytes(70_000)},
        *({"n": n} for e in (5, 7, 8, 15, 16, 31, 32, 52) for n in (2**e - 1, 2**e, -(2**e))),
        {"n": 2**53 - 1, "m": -(2**53) + 1},
    ],
)
def test_arguments_as_an_encoder_writes_them_pass(value: dict[str, Any]) -> None:
    raw = protocol.encode_arguments(value)
    assert checked_arguments(raw) == bytes(raw)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20)
    ),
    max_leaves=10,
)


@settings(max_examples=80)
@given(st.dictionaries(st.text(max_size=8), json_values, max_size=6), st.data())
def test_whatever_json_holds_passes_and_what_is_changed_has_one_reading(
    value: dict[str, Any], data: st.DataObject
) -> None:
    raw = pack(value)
    assert checked_arguments(raw, floats=True) == raw
    changed = bytearray(raw)
    changed[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        kept = checked_arguments(bytes(changed), floats=True)
    except ProtocolError:
        return
    assert pack(msgspec.msgpack.decode(kept)) == kept


F64 = b"\xcb" + struct.pack(">d", 1.5)
BAD_ARGUMENTS: dict[str, bytes] = {
    "empty": b"",
    "nil": b"\xc0",
    "list": b"\x90",
    "bytes": b"\xc4\x00",
    "key twice": b"\x82\xa1a\x01\xa1a\x02",
    "key twice below": b"\x81\xa1x\x82\xa1a\x01\xa1a\x02",
    "key twice in a list": b"\x81\xa1x\x91\x82\xa1a\x01\xa1a\x01",
    "key as integer": b"\x81\x01\x01",
    "key as bytes": b"\x81\xc4\x01a\x01",
    "key as nil": b"\x81\xc0\x01",
    "key as list": b"\x81\x91\x01\x01",
    "key as map": b"\x81\x80\x01",
    "float": b"\x81\xa1a" + F64,
    "float32": b"\x81\xa1a\xca\x3f\xc0\x00\x00",
    "ext 1": b"\x81\xa1a\xd4\x05\x00",
    "ext 16": b"\x81\xa1a\xd8\x05" + bytes(16),
    "ext 8": b"\x81\xa1a\xc7\x01\x05\x00",
    "timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x01",
    "never used tag": b"\x81\xa1a\xc1",
    "not UTF-8": b"\x81\xa1a\xa1\xff",
    "surrogate": b"\x81\xa1a\xa3\xed\xa0\x80",
    "key not UTF-8": b"\x81\xa1\xff\x01",
    "overlong": b"\x81\xa1a\xa2\xc0\xaf",
    "long map": b"\xde\x00\x01\xa1a\x01",
    "longer map": b"\xdf\x00\x00\x00\x01\xa1a\x01",
    "long list": b"\x81\xa1a\xdc\x00\x01\x01",
    "long text": b"\x81\xa1a\xd9\x01a",
    "long key": b"\x81\xd9\x01a\x01",
    "long bytes": b"\x81\xa1a\xc5\x00\x01a",
    "longer bytes": b"\x81\xa1a\xc6\x00\x00\x00\x01a",
    "long 1": b"\x81\xa1a\xcc\x01",
    "long 255": b"\x81\xa1a\xcd\x00\xff",
    "long 65535": b"\x81\xa1a\xce\x00\x00\xff\xff",
    "long 2**32-1": b"\x81\xa1a\xcf\x00\x00\x00\x00\xff\xff\xff\xff",
    "signed 1": b"\x81\xa1a\xd0\x01",
    "signed -1": b"\x81\xa1a\xd0\xff",
    "signed -32": b"\x81\xa1a\xd0\xe0",
    "signed -128": b"\x81\xa1a\xd1\xff\x80",
    "2**53": b"\x81\xa1a\xcf\x00\x20" + bytes(6),
    "-2**53": b"\x81\xa1a\xd3\xff\xe0" + bytes(6),
    "2**64-1": b"\x81\xa1a\xcf" + b"\xff" * 8,
    "followed": b"\x80\x80",
    "cut map": b"\x81",
    "cut value": b"\x81\xa1a",
    "cut text": b"\x81\xa1a\xa5abc",
    "cut length": b"\x81\xa1a\xda\x00",
    "cut integer": b"\x81\xa1a\xcd\x01",
    "cut float": b"\x81\xa1a\xcb\x00",
    "announces much": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "deep": b"\x81\xa1a" * 33 + b"\x01",
    "very deep": b"\x81\xa1a" + b"\x91" * 500_000,
    "many": pack({"a": [0] * protocol.MAX_ITEMS}),
}


@pytest.mark.parametrize("raw", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_arguments_that_break_a_rule(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        checked_arguments(raw)
    assert caught.value.code == "E_SCHEMA_INVALID"


def test_controls_for_the_arguments_above() -> None:
    for good in (
        b"\x82\xa1a\x01\xa1b\x02",
        b"\x82\xa1a\x81\xa1a\x01\xa1b\x81\xa1a\x01",
        b"\x81\xa1a\xd0\xdf",
        b"\x81\xa1a\xe0",
        b"\x81\xa1a\xcc\x80",
        b"\x81\xa1a" * 31 + b"\x80",
        pack({"a": [0] * (protocol.MAX_ITEMS - 3)}),
    ):
        assert checked_arguments(good) == good


def test_floats_are_for_tools_and_finite() -> None:
    raw = b"\x81\xa1a" + F64
    assert checked_arguments(raw, floats=True) == raw
    for number in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ProtocolError, match="finite"):
            checked_arguments(b"\x81\xa1a\xcb" + struct.pack(">d", number), floats=True)
    with pytest.raises(ProtocolError):
        checked_arguments(b"\x81\xa1a\xca\x3f\xc0\x00\x00", floats=True)


@pytest.mark.parametrize("value", [{"a": object()}, {"a": 2**70}, {"a": "\udc80"}])
def test_what_can_not_be_encoded(value: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        protocol.encode_arguments(value)


# Stream 0

CONTROLS = [
    (protocol.Open(7), b"\x01\0\0\0\x07"),
    (protocol.Close(2**32 - 1), b"\x02\xff\xff\xff\xff"),
    (protocol.Output(2, b"text"), b"\x03\x02text"),
    (protocol.Exit(-1, 9), b"\x04\xff\xff\xff\xff\0\0\0\x09"),
    (protocol.Input(b"in"), b"\x05in"),
    (protocol.InputEof(), b"\x06"),
    (protocol.Started(), b"\x07"),
    (protocol.InputAck(5), b"\x08\0\0\0\x05"),
    (protocol.OutputAck(5), b"\x09\0\0\0\x05"),
    (protocol.Trouble("no"), b"\x0ano"),
    (protocol.Configure(b"order"), b"\x10order"),
    (protocol.Guest(1, "why"), b"\x11\x01why"),
]


@pytest.mark.parametrize(("control", "payload"), CONTROLS, ids=lambda v: type(v).__name__)
def test_control_messages(control: protocol.Control, payload: bytes) -> None:
    assert protocol.encode_control(control) == payload
    assert protocol.decode_control(payload) == control


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00",
        b"\x0b",
        b"\xff",
        b"\x01\0\0\0",
        b"\x01\0\0\0\0\0",
        b"\x02",
        b"\x03",
        b"\x03\x00x",
        b"\x03\x03x",
        b"\x04\0\0\0\0",
        b"\x06x",
        b"\x07x",
        b"\x08\0",
        b"\x09\0",
        b"\x0a" + b"x" * 4097,
        b"\x11",
        b"\x11\x03",
        b"\x11\x01" + b"x" * 4097,
    ],
)
def test_control_messages_of_another_form(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_control(payload)


def test_every_code_is_one_of_the_kernels() -> None:
    assert {protocol.TOO_LARGE, protocol.INVALID} <= {str(code) for code in Code}
    assert protocol.MAX_INT == tokens.MAX_INT


# The vectors of docs/protocol.md


def vectors(root: Path) -> dict[str, Any]:
    text = (root / "docs" / "protocol.md").read_text("utf-8")
    (block,) = re.findall(r"```json vectors\n(.*?)```", text, re.DOTALL)
    found: dict[str, Any] = json.loads(block)
    return found


def test_token_vectors(root: Path) -> None:
    document = vectors(root)
    key = capabilities.MacKey(document["key"]["kid"], bytes.fromhex(document["key"]["secret"]))
    for vector in document["tokens"]:
        raw = bytes.fromhex(vector["bytes"])
        first, *more = [tokens.restriction_from_plain(r) for r in vector["restrictions"]]
        made = capabilities.mint(key, id=vector["ids"][0], run=vector["run"], restriction=first)
        for restriction in more:
            made = capabilities.attenuate(made, restriction)
        token = capabilities.parse(raw)
        assert made == raw
        assert list(token.ids) == vector["ids"]
        assert tokens.to_text(raw) == vector["text"]
        assert capabilities.verify(token, key)
    assert len(document["tokens"]) >= 3


def test_refused_token_vectors(root: Path) -> None:
    document = vectors(root)
    key = capabilities.MacKey(document["key"]["kid"], bytes.fromhex(document["key"]["secret"]))
    for vector in document["refused_tokens"]:
        raw = bytes.fromhex(vector["bytes"])
        if vector["why"] == "MAC":
            assert not capabilities.verify(capabilities.parse(raw), key)
        else:
            with pytest.raises(capabilities.TokenError):
                capabilities.parse(raw)


def test_frame_vectors(root: Path) -> None:
    for vector in vectors(root)["frames"]:
        raw = bytes.fromhex(vector["bytes"])
        ((stream, payload),) = FrameDecoder().feed(raw)
        assert (stream, encode_frame(stream, payload)) == (vector["stream"], raw)
        if stream == 0:
            assert protocol.encode_control(protocol.decode_control(payload)) == payload
        elif vector["from"] == "client":
            assert protocol.decode_client_message(payload)
            assert msgspec.json.encode(msgspec.msgpack.decode(payload)) == msgspec.json.encode(
                vector["message"]
            )
        else:
            assert protocol.decode_server_message(payload)


def test_argument_vectors(root: Path) -> None:
    document = vectors(root)
    for text in document["arguments"]:
        assert checked_arguments(bytes.fromhex(text), floats=True).hex() == text
    for vector in document["refused_arguments"]:
        with pytest.raises(ProtocolError):
            checked_arguments(bytes.fromhex(vector["bytes"]), floats=True)
