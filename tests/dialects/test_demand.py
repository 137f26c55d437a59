"""The bound of a request, strict JSON, streams of events, and usage: properties and their edges."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.dialects import anthropic, json_text, openai, refusal, routes
from authority.dialects.demand import (
    CHAT,
    COUNT,
    LONG_LIMIT,
    MAX_LIMIT,
    MESSAGES,
    RESPONSES,
    SHORT_LIMIT,
    Demand,
    DemandError,
    Prepared,
)
from authority.dialects.events import MAX_EVENT, EventTooLong, Splitter, data_of
from authority.dialects.usage import Meter, Usage
from authority.kernel import models

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
parts = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant"]),
            "content": texts | st.lists(parts, max_size=4),
        }
    ),
    max_size=6,
)
tools = st.lists(
    st.fixed_dictionaries({"name": texts, "description": texts, "parameters": plain}), max_size=3
)
limits = st.integers(1, MAX_LIMIT)
asked = st.none() | limits


def chat(content: Any, offered: Any, most: int | None, stream: bool) -> Prepared:
    tree = {
        "model": "m",
        "messages": content,
        "tools": [{"type": "function", "function": one} for one in offered],
        "stream": stream,
    }
    return openai.chat(tree | ({} if most is None else {"max_tokens": most}))


def claude(content: Any, offered: Any, most: int | None, stream: bool) -> Prepared:
    tree = {"model": "m", "messages": content, "stream": stream}
    tree["tools"] = [{"name": o["name"], "input_schema": o["parameters"]} for o in offered]
    return anthropic.messages(tree | ({} if most is None else {"max_tokens": most}))


def responses(content: Any, offered: Any, most: int | None, stream: bool) -> Prepared:
    items = [
        {"role": one["role"], "content": [{"type": "input_text", "text": str(one["content"])}]}
        for one in content
    ]
    tree = {"model": "m", "input": items, "stream": stream}
    tree["tools"] = [{"type": "function", **one} for one in offered]
    return openai.responses(tree | ({} if most is None else {"max_output_tokens": most}))


def text_bytes(value: Any) -> int:
    """All text in a value: what a tokenizer that begins with bytes could ever see."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(text_bytes(key) + text_bytes(item) for key, item in value.items())
    return sum(map(text_bytes, value)) if isinstance(value, list) else 0


@pytest.mark.parametrize("make", [chat, claude, responses])
@given(content=messages, offered=tools, most=asked, stream=st.booleans(), limit=limits)
def test_the_size_bounds_every_token_of_text(
    make: Any, content: Any, offered: Any, most: int | None, stream: bool, limit: int
) -> None:
    """A token of a byte-level vocabulary is at least one byte; a vendor adds a few a message."""
    prepared = make(content, offered, most, stream)
    size = prepared.demand.size
    for field in (SHORT_LIMIT, LONG_LIMIT):
        assert len(prepared.body(limit, field)) <= size
    assert text_bytes(prepared.tree) + 4 * len(content) + 8 * len(offered) <= size
    assert prepared.demand.extras == ()
    assert prepared.demand.media == 0


@pytest.mark.parametrize("make", [chat, claude, responses])
@given(most=asked, limit=limits, stream=st.booleans())
def test_what_is_forwarded_never_asks_for_more_than_was_granted(
    make: Any, most: int | None, limit: int, stream: bool
) -> None:
    prepared = make([], [], most, stream)
    for field in (SHORT_LIMIT, LONG_LIMIT):
        body = json.loads(prepared.body(limit, field))
        given_limits = [v for k, v in body.items() if k.startswith("max_")]
        assert given_limits == [min(limit, most or limit)]
        if make is chat and stream:
            assert body["stream_options"] == {"include_usage": True}


@given(data=st.binary(max_size=300))
def test_media_never_counts_for_more_than_it_has_in_the_body(data: bytes) -> None:
    text = data.decode("latin-1")
    image = {"type": "image", "source": {"type": "base64", "data": text}}
    prepared = anthropic.messages(
        {"model": "m", "messages": [{"role": "user", "content": [image]}]}
    )
    assert prepared.demand.media <= prepared.demand.size
    assert prepared.demand.images == 1


def test_the_kernel_reads_the_same_demand() -> None:
    names = Demand.__struct_fields__
    assert names == models.Ask.__struct_fields__
    assert Usage.__struct_fields__ == models.Usage.__struct_fields__
    assert MAX_LIMIT == models.MAX_LIMIT
    assert set(routes.EFFECTS.values()) == models.EFFECTS


def test_features_are_named_by_the_header_alone() -> None:
    tree = {"model": "m", "messages": []}
    known = anthropic.messages(tree, ["prompt-caching-2024-07-31"])
    assert known.demand.extras == ()
    other = anthropic.messages(tree, ["faster-2030-01-01"])
    assert other.demand.extras == ("beta:faster-2030-01-01",)
    for value in ("a b", "x" * 65, ",".join("abcdefghijklmnopqrstu")):
        with pytest.raises(DemandError):
            routes.betas({"anthropic-beta": value})


def test_a_name_of_an_extra_is_printable() -> None:
    prepared = openai.chat({"model": "m", "messages": [], "\x1b[31m\u202e": 1})
    assert prepared.demand.extras == ("key:?[31m?",)


# --- JSON ---


@given(value=plain)
def test_what_is_written_is_what_was_read(value: Any) -> None:
    assert json_text.decode(json_text.encode(value)) == value
    assert json_text.decode(json.dumps(value).encode()) == value


@given(value=plain)
def test_an_escaped_text_is_never_shorter_than_the_text(value: Any) -> None:
    assert len(json.dumps(value).encode()) >= text_bytes(value)


@pytest.mark.parametrize(
    "text",
    [
        *('{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', '{"a":1,"\\u0061":2}', "NaN", "-Infinity"),
        *("1e999", '"\\ud800"', '{"\\udc00":1}', "", "{", "[1,]", '{"a":1}x', "9" * 65, "'a'"),
        *("[" * 97 + "]" * 97, '"\x01"', "\ufeff{}"),
    ],
)
def test_what_is_not_one_value_is_refused(text: str) -> None:
    with pytest.raises(json_text.JsonError):
        json_text.decode(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "text", ['{"a":1,"b":1}', "9" * 64, "[" * 96 + "]" * 96, '"[[[[\\"[["', '"\\ud83d\\ude00"']
)
def test_the_neighbours_pass(text: str) -> None:
    assert json_text.decode(text.encode()) == json.loads(text)


def test_what_would_fill_the_memory_is_refused() -> None:
    for text in ("[" + "[]," * 500_000 + "[]]", "[" + "1," * 2_000_001 + "1]"):
        with pytest.raises(json_text.JsonError, match="too many parts"):
            json_text.decode(text.encode())
    assert len(json_text.decode(b"[" + b"[]," * 1000 + b"[]]")) == 1001


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(json_text.JsonError):
        json_text.decode(b'"\xff"')
    assert json_text.decode('"ÿ"'.encode()) == "ÿ"


# --- events ---

lines = st.binary(max_size=20).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))


@given(
    events=st.lists(st.lists(lines.filter(bool), min_size=1, max_size=3), max_size=5),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=st.lists(st.integers(0, 200)),
)
def test_events_do_not_depend_on_how_bytes_arrive(
    events: list[list[bytes]], end: bytes, cuts: list[int]
) -> None:
    data = b"".join(end.join(event) + end + end for event in events)
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    splitter = Splitter()
    found = [e for a, b in itertools.pairwise(edges) for e in splitter.feed(data[a:b])]
    assert b"".join(found) + splitter.rest() == data
    if end != b"\r":
        assert [event.strip(b"\r\n") for event in found] == [end.join(e) for e in events]


def test_an_event_without_end_is_cut() -> None:
    splitter = Splitter()
    splitter.feed(b"x" * MAX_EVENT)
    with pytest.raises(EventTooLong):
        splitter.feed(b"x")


def test_the_data_of_an_event() -> None:
    assert data_of(b"event: a\ndata: {\ndata:1}\n\n") == b"{\n1}"
    assert data_of(b": comment\r\n\r\n") == b""


# --- usage ---


def test_usage_of_whole_answers() -> None:
    meter = Meter(CHAT)
    answer = {
        "choices": [
            {"message": {"content": "héé", "tool_calls": [{"function": {"arguments": "{}"}}]}}
        ]
    }
    meter.whole(answer | {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "cost": 0}})
    assert meter.usage() == Usage(5, 2, 0, 0, 7, True)
    meter = Meter(MESSAGES)
    usage = {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 3}
    meter.whole(
        {
            "content": [{"type": "text", "text": "abc"}],
            "usage": {**usage, "cache_creation_input_tokens": 4},
        }
    )
    assert meter.usage() == Usage(12, 2, 3, 4, 3, True)
    meter = Meter(COUNT)
    meter.whole({"input_tokens": 9})
    assert (meter.usage().input, meter.usage().complete) == (9, True)


@pytest.mark.parametrize("lie", [-1, 1.5, True, "7", None, 2**60, [], {}])
def test_usage_that_is_no_count_is_not_said(lie: Any) -> None:
    meter = Meter(CHAT)
    meter.whole({"choices": [], "usage": {"prompt_tokens": lie, "completion_tokens": lie}})
    assert meter.usage() == Usage()
    meter.whole({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}})
    assert meter.usage() == Usage(7, 0, complete=True)


def test_a_stream_is_complete_at_its_end_only() -> None:
    meter = Meter(MESSAGES)
    meter.event(
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
    )
    meter.event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hello"}})
    assert meter.usage() == Usage(5, 1, text=5)
    meter.event({"type": "message_delta", "usage": {"output_tokens": 9}})
    assert not meter.usage().complete
    meter.event({"type": "message_stop"})
    assert meter.usage() == Usage(5, 9, text=5, complete=True)
    meter = Meter(RESPONSES)
    meter.event({"type": "response.output_text.delta", "delta": "abc"})
    meter.event({"type": "response.output_text.done", "text": "abc"})
    assert meter.usage() == Usage(text=3)
    meter.event(
        {
            "type": "response.completed",
            "response": {"usage": {"input_tokens": 1, "output_tokens": 2}},
        }
    )
    assert meter.usage() == Usage(1, 2, text=3, complete=True)


@given(value=plain)
def test_no_answer_breaks_the_meter(value: Any) -> None:
    for api in routes.EFFECTS:
        meter = Meter(api)
        meter.whole(value)
        meter.event(value)
        found = meter.usage()
        assert found.input >= -1
        assert found.text <= 3 * text_bytes(value)


# --- addresses and refusals ---


def test_addresses() -> None:
    assert routes.split("/v1/messages?beta=true") == "/v1/messages"
    for target in ("/v1/messages?a=b", "/v1/messages?beta=true&a=b", "/v1/messages?beta=true?"):
        assert routes.split(target) == ""
    assert routes.split("/v1/chat/completions") in routes.PATHS


def test_refusals_are_in_the_vendors_form() -> None:
    ours = json.loads(
        refusal.body(False, 403, "No.", code="E_POLICY_DENY", layer="policy", number=3)
    )
    assert ours["error"]["message"] == "No. (E_POLICY_DENY)"
    assert ours["error"]["authority"] == {"code": "E_POLICY_DENY", "layer": "policy", "number": 3}
    theirs = json.loads(refusal.body(True, 403, "No.", code="E_POLICY_DENY"))
    assert (theirs["type"], theirs["error"]["type"]) == ("error", "permission_error")
