"""Canonical JSON: one value, one sequence of bytes; refusals stand beside what passes."""

from __future__ import annotations

import contextlib
import enum
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.canonical import (
    MAX_DEPTH,
    MAX_INTEGER,
    CanonicalError,
    decode,
    digest,
    encode,
    printable,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values)
@settings(max_examples=150, deadline=None)
def test_round_trip_is_exact_printable_and_agrees_with_the_standard_library(value: Any) -> None:
    data = encode(value)
    assert decode(data) == value
    assert encode(decode(data)) == data
    assert all(0x20 <= byte <= 0x7E for byte in data)
    assert json.loads(data) == value
    other = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert other.replace("\x7f", "\\u007f").encode() == data


@given(values, st.floats() | st.integers(min_value=MAX_INTEGER + 1), st.data())
@settings(max_examples=80, deadline=None)
def test_one_float_or_large_integer_anywhere_is_refused(
    value: Any, bad: float, data: st.DataObject
) -> None:
    for wrapped in ([value, bad], {"a": value, "b": {"c": [bad]}}, (bad,), bad):
        with pytest.raises(CanonicalError):
            encode(wrapped)


@given(st.binary(max_size=40))
@settings(max_examples=150, deadline=None)
def test_decode_never_fails_in_another_way(data: bytes) -> None:
    with contextlib.suppress(CanonicalError):
        decode(data)


def test_structs_enums_bytes_and_sets_have_one_form() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    class Entry(msgspec.Struct, tag="decision", tag_field="kind", omit_defaults=True):
        seq: int
        colour: Colour = Colour.RED
        sources: frozenset[str] = frozenset()
        run: str = ""

    entry = Entry(1, run="\u00e9", sources=frozenset({"b", "a"}))
    assert encode(entry) == b'{"kind":"decision","run":"\\u00e9","seq":1,"sources":["a","b"]}'
    assert encode([Colour.RED, b"\xff", (1,)]) == b'["red","/w==",[1]]'
    with pytest.raises(CanonicalError):
        encode(Entry(1, run=1.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        1.0,
        MAX_INTEGER + 1,
        -MAX_INTEGER - 1,
        {1: 2},
        {None: 1},
        "\ud800",
        object,
    ],
)
def test_values_without_a_form_are_refused(value: Any) -> None:
    with pytest.raises(CanonicalError):
        encode(value)
    assert encode({"a": MAX_INTEGER, "b": -MAX_INTEGER})


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{ "x": {"b":1, "b":1} }',
        b"1.0",
        b"1e3",
        b"NaN",
        b"9007199254740992",
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"1 2",
        b"",
        b'"\x00"',
        nested(MAX_DEPTH + 1),
        nested(100_000),
    ],
)
def test_decode_refuses(data: bytes) -> None:
    with pytest.raises(CanonicalError):
        decode(data)


def test_decode_accepts_the_neighbours() -> None:
    assert decode(b' { "b" : 1, "a" : [ true ] } ') == {"a": [True], "b": 1}
    assert decode(b"9007199254740991") == MAX_INTEGER
    assert decode(nested(MAX_DEPTH)) is not None
    assert decode(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_printable_is_harmless_and_unambiguous() -> None:
    nasty = "a\\b\x1b[2J\u202e\x9b\x7f\U0001f600\n"
    assert printable(nasty) == r"a\\b\u001b[2J\u202e\u009b\u007f\U0001f600\u000a"
    assert printable(b"ok \xff\n") == r"ok \xff\u000a"
    assert printable("x" * 50, limit=10) == "xxxxxxx..."
    assert printable("\\xff") != printable(b"\xff")


def test_digest_is_sha256() -> None:
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
