"""DNS messages: what is a query, what an answer looks like, and that nothing else gets through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.compat import dns

EDNS = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def name(text: str) -> bytes:
    labels = text.split(".") if text else []
    return b"".join(bytes((len(each),)) + each.encode("latin-1") for each in labels) + b"\0"


def query(
    text: str = "api.example",
    kind: int = dns.A,
    *,
    family: int = 1,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    tail: bytes = b"",
    raw: bytes | None = None,
) -> bytes:
    asked = name(text) if raw is None else raw
    return (
        struct.pack(">HHHHHH", 0x1234, flags, *counts)
        + asked
        + struct.pack(">HH", kind, family)
        + tail
    )


def with_edns(**options: object) -> bytes:
    return query(counts=(1, 0, 0, 1), tail=EDNS, **options)  # type: ignore[arg-type]


def refused(message: bytes) -> int:
    """The code that a malformed message is answered with; -1 for silence."""
    with pytest.raises(dns.Malformed) as caught:
        dns.parse(message)
    answer = caught.value.answer
    return answer[3] & 15 if answer else -1


def test_a_question_is_read() -> None:
    found = dns.parse(query("API.Example"))
    assert (found.name, found.type, found.edns) == ("api.example", dns.A, False)
    assert found.question == query("API.Example")[12:], "the case of letters comes back"
    assert dns.parse(with_edns()).edns
    assert dns.parse(query("")).name == ""


def test_an_answer_repeats_the_question_and_holds_the_address() -> None:
    asked = query("API.Example")
    told = dns.answer(dns.parse(asked), [bytes((127, 64, 0, 1))], ttl=5)
    assert told[:2] == asked[:2]
    assert struct.unpack(">H", told[2:4])[0] == 0x8180
    assert struct.unpack(">HHHH", told[4:12]) == (1, 1, 0, 0)
    assert (
        told[12:] == asked[12:] + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + b"\x7f\x40\0\1"
    )


def test_edns_is_answered_with_edns_and_only_then() -> None:
    assert dns.answer(dns.parse(with_edns())).endswith(b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0))
    assert dns.answer(dns.parse(query())) == (
        struct.pack(">HHHHHH", 0x1234, 0x8180, 1, 0, 0, 0) + query()[12:]
    )
    version = query(counts=(1, 0, 0, 1), tail=EDNS[:6] + b"\x01" + EDNS[7:])
    with pytest.raises(dns.Malformed) as caught:
        dns.parse(version)
    assert caught.value.answer[-6:-2] == b"\x01\0\0\0", "BADVERS"


def test_an_address_has_a_name() -> None:
    told = dns.pointer(dns.parse(query("1.0.64.127.in-addr.arpa", dns.PTR)), "api.example", ttl=0)
    assert told.endswith(name("api.example"))


@pytest.mark.parametrize(
    "message",
    [
        query(raw=b"\xc0\x0c"),
        query(raw=b"\x03api\xc0\x0c"),
        query(raw=b"\x03api\xc0\x00"),
        query(raw=b"\x40" + b"a" * 64 + b"\0"),
        query(raw=b"\x81" + b"a" * 64 + b"\0"),
        query(".".join(["a" * 63] * 4)),
        query()[:-1],
        query()[:16],
        query(tail=b"\0"),
        query(counts=(2, 0, 0, 0)),
        query(counts=(2, 0, 0, 0), tail=name("x.example") + b"\0\1\0\1"),
        query(counts=(0, 0, 0, 0)),
        query(counts=(1, 1, 0, 0), tail=b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\2\3\4"),
        query(counts=(1, 0, 1, 0)),
        query(counts=(1, 0, 0, 2), tail=EDNS * 2),
        query(counts=(1, 0, 0, 1), tail=b"\xc0\x0c" + EDNS[1:]),
        query(counts=(1, 0, 0, 1), tail=EDNS + b"\0"),
        query(counts=(1, 0, 0, 1), tail=EDNS[:-1] + b"\x04"),
        query(counts=(1, 0, 0, 1), tail=EDNS[:-1] + b"\x05\0\3\0\2ab"),
        query(counts=(1, 0, 0, 1), tail=b"\0\0\x01" + EDNS[3:]),
        query(flags=0x0300),
        query(flags=0x0500),
        query(flags=0x0180),
        query(flags=0x0140),
        query(tail=b"\0" * 4096),
    ],
)
def test_what_no_query_looks_like_is_a_format_error(message: bytes) -> None:
    assert refused(message) == dns.FORMERR


def test_a_query_beside_them_is_read() -> None:
    assert dns.parse(query(".".join(["a" * 63] * 3 + ["a" * 61]))).name
    option = EDNS[:-1] + b"\x06\0\3\0\2ab"
    assert dns.parse(query(counts=(1, 0, 0, 1), tail=option)).edns


def test_other_messages() -> None:
    assert refused(b"") == -1
    assert refused(query()[:11]) == -1
    assert refused(query(flags=0x8180)) == -1, "two resolvers would answer each other for ever"
    assert refused(query(flags=0x2800)) == dns.NOTIMP
    assert refused(query(family=3)) == dns.REFUSED


@pytest.mark.parametrize("label", ["a.b", "a\0b", "a b", "b\xfccher", "a/b", "*", "a@b", "a\nb"])
def test_bytes_that_no_host_name_has_make_no_name(label: str) -> None:
    raw = bytes((len(label),)) + label.encode("latin-1") + name("example")
    assert dns.parse(query(raw=raw)).name is None
    assert dns.parse(query("a-b_c.example")).name == "a-b_c.example"


@given(st.one_of(st.binary(max_size=600), st.binary(max_size=40).map(lambda tail: query() + tail)))
def test_any_bytes_are_a_query_or_malformed(message: bytes) -> None:
    told = b""
    try:
        told = dns.answer(dns.parse(message), [b"\x7f\x40\0\1"])
    except dns.Malformed as error:
        told = error.answer
    assert len(told) <= 1024


@given(
    st.lists(st.from_regex(r"[a-z0-9_-]{1,40}", fullmatch=True), min_size=1, max_size=6),
    st.integers(0, 65535),
    st.booleans(),
)
def test_a_name_survives(labels: list[str], kind: int, edns: bool) -> None:
    text = ".".join(labels)
    found = dns.parse(with_edns(text=text, kind=kind) if edns else query(text, kind))
    assert (found.name, found.type, found.edns) == (text, kind, edns)


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(0, 255))
def test_a_flipped_byte_never_raises_anything_else(extra: bytes, at: int, value: int) -> None:
    message = bytearray(with_edns() + extra)
    message[at % len(message)] = value
    try:
        dns.parse(bytes(message))
    except dns.Malformed:
        return
