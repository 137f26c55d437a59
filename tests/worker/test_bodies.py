"""Bodies: where they end; and the other two small languages, TLS hellos and SOCKS5."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.worker import bodies, hello, socks
from authority.worker.bodies import Body, Chunked, Counted
from authority.worker.heads import Bad

CHUNKS = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Trailer: z\r\n\r\nNEXT"


def read(body: Body, data: bytes, cuts: list[int]) -> object:
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    content = b""
    try:
        for first, last in pairwise(borders):
            content += body.feed(data[first:last])
    except Bad:
        return "bad"
    return content, body.done, body.rest


def test_chunks() -> None:
    assert read(Chunked(), CHUNKS, []) == (b"abcde", True, b"NEXT")
    assert read(Counted(3), b"abcdef", [1]) == (b"abc", True, b"def")
    assert read(Counted(9), b"abc", []) == (b"abc", False, b"")


@pytest.mark.parametrize(
    "data",
    [
        b"3\nabc\n0\n\n",
        b"3\r\nabcX\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"-3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"\r\nabc",
        b"g\r\n",
        b"1234567890123456\r\n",
        b"3;a\0b\r\nabc\r\n",
        b"3;" + b"x" * 2000,
        b"3\rX",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 5000,
        b"1\r\nx\r\n" * 60_000,
    ],
    ids=lambda data: str(data[:12]),
)
def test_framing_that_is_refused(data: bytes) -> None:
    assert read(Chunked(), data, []) == "bad"
    assert read(Chunked(), data, list(range(0, len(data), 7))) == "bad"


@settings(max_examples=300)
@given(
    data=st.lists(
        st.sampled_from([b"\r\n", b"0", b"3", b"abc", b"a\r\n0123456789", b";x", b"\r", b"\n"])
        | st.binary(max_size=4),
        max_size=12,
    ).map(b"".join),
    cuts=st.lists(st.integers(0, 200), max_size=20),
)
def test_any_split_gives_the_same(data: bytes, cuts: list[int]) -> None:
    whole = read(Chunked(), data, [])
    assert read(Chunked(), data, cuts) == whole
    assert read(Chunked(), data, list(range(len(data)))) == whole


@settings(max_examples=100)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=50), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=20),
)
def test_what_was_framed_is_read(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\nrest"
    assert read(Chunked(), data, cuts) == (b"".join(parts), True, b"rest")


def test_answers_without_a_body() -> None:
    for status, method in ((204, "GET"), (304, "GET"), (200, "HEAD")):
        assert bodies.of_response(99, status, method).done
    assert not bodies.of_response(99, 200, "GET").done
    assert not bodies.of_response(None, 200, "GET").done


# --- TLS hellos ---


def client_hello(name: str | None) -> bytes:
    """A real one, from OpenSSL."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def fed(read_: Callable[[bytes], Any], data: bytes, size: int) -> Any:
    for end in range(size, len(data) + size, size):
        if (found := read_(data[:end])) is not None:
            return found
    return None


def test_the_name_in_a_hello() -> None:
    data = client_hello("API.example.test")
    assert hello.server_name(data) == "api.example.test"
    for size in (1, 5, 100):
        assert fed(hello.server_name, data, size) == "api.example.test"
    assert hello.server_name(data[:-1]) is None
    assert hello.server_name(client_hello(None)) == ""


def rebuilt(data: bytes, size: int) -> bytes:
    """The same handshake message in records of another size."""
    message = data[5:]
    return b"".join(
        b"\x16\x03\x01" + len(message[at : at + size]).to_bytes(2, "big") + message[at : at + size]
        for at in range(0, len(message), size)
    )


def test_a_hello_in_many_records_is_read_as_one() -> None:
    data = client_hello("api.example.test")
    assert hello.server_name(rebuilt(data, 50)) == "api.example.test"


def extended(kind: int, content: bytes, name: str = "a.test") -> bytes:
    """A hello with one more extension at its end."""
    data = client_hello(name)
    extra = kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
    body = bytearray(data[9:])
    at = 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    size = int.from_bytes(body[at : at + 2], "big") + len(extra)
    body[at : at + 2] = size.to_bytes(2, "big")
    body += extra
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def test_hellos_that_are_refused() -> None:
    assert hello.server_name(extended(0x1234, b"x")) == "a.test", "control"
    second = b"\x00\x09\x00\x00\x06b.test"
    good = client_hello("a.test")
    broken = {
        "a second name": extended(0, second),
        "an encrypted hello": extended(0xFE0D, b"\x00" * 20),
        "a length that does not fit": good[:43] + b"\xff" + good[44:],
        "another record": b"\x17" + good[1:],
        "another message": good[:5] + b"\x02" + good[6:],
        "SSL 2": b"\x16\x02" + good[2:],
        "an empty record": b"\x16\x03\x01\x00\x00" + good,
        "a record that is too long": b"\x16\x03\x01\xff\xff" + good[5:],
        "a NUL in the name": good.replace(b"a.test", b"a\0test"),
        "a hello without end": rebuilt(b"\x16\x03\x01\x00\x00\x01\xff\xff\xff" + b"x" * 99, 50),
    }
    for name, data in broken.items():
        with pytest.raises(Bad):
            assert hello.server_name(data) == name, "it was read"


@settings(max_examples=200)
@given(data=st.binary(max_size=200), at=st.integers(0, 600), cut=st.integers(1, 300))
def test_a_hello_never_does_anything_else_than_give_or_refuse(
    data: bytes, at: int, cut: int
) -> None:
    good = client_hello("a.test")
    changed = good[: at % len(good)] + data + good[at % len(good) + len(data) :]
    results = []
    for size in (cut, len(changed)):
        try:
            results.append(fed(hello.server_name, changed, size))
        except Bad:
            results.append("bad")
    assert results[0] == results[1]


# --- SOCKS5 ---


def test_socks() -> None:
    assert fed(socks.greeting, b"\x05\x02\x00\x02", 1) == socks.NO_AUTHENTICATION
    assert socks.greeting(b"\x05\x01\x02") == socks.NO_METHOD
    name = b"\x05\x01\x00\x03\x06a.test\x01\xbb"
    assert fed(socks.request, name, 1) == ("a.test", 443, 0)
    assert socks.request(b"\x05\x01\x00\x01\x7f\0\0\x01\x00\x50") == ("127.0.0.1", 80, 0)
    four = b"\x05\x01\x00\x04" + b"\0" * 15 + b"\x01\x00\x50"
    assert socks.request(four) == ("[::1]", 80, 0)
    for command in (2, 3):
        wanted = socks.request(b"\x05%c\x00\x01\x7f\0\0\x01\x00\x50" % command)
        assert wanted is not None
        assert wanted.problem == socks.NO_COMMAND
    assert socks.reply(2)[:2] == b"\x05\x02"


@pytest.mark.parametrize(
    "data",
    [b"\x04\x01\x00\x50", b"\x05\x01\x01\x01\0\0\0\0\0\0", b"\x05\x01\x00\x03\x01\xff\0\x50"],
)
def test_socks_that_is_refused(data: bytes) -> None:
    with pytest.raises(Bad):
        socks.request(data)
    with pytest.raises(Bad):
        socks.greeting(b"\x05\x01\x00more")
