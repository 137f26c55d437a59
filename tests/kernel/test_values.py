"""References in arguments, fields of values, and types that are narrow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.kernel import pointers, value_types, values
from authority.kernel.pointers import Malformed, Unfit
from authority.kernel.values import Ref

H = {"$handle": "h1"}


def found(tree: Any, effect: str = "tool.call") -> list[tuple[str, bool]]:
    return [(ref.at, ref.whole) for ref in values.refs(effect, tree)]


def test_where_a_reference_may_stand() -> None:
    assert found({"arguments": {"a": H}}) == [("/arguments/a", True)]
    assert found({"arguments": {"a": [H, "x"]}}) == [("/arguments/a/0", True)]
    assert found({"arguments": {"a": {"b": H}}}) == [("/arguments/a/b", False)]
    assert found({"arguments": {"a": {"$join": ["x", H]}}}) == [("/arguments/a/$join/1", False)]
    assert found({"arguments": {"a/b~": H}}) == [("/arguments/a~1b~0", True)]
    assert found({"data": H}, "fs.write") == [("/data", True)]
    messages = {"api": "x", "request": {"messages": [{"role": "user", "content": H}]}}
    assert found(messages, "model.chat") == [("/request/messages/0/content", False)]


@pytest.mark.parametrize(
    ("effect", "tree"),
    [
        ("tool.call", {"arguments": H}),
        ("tool.call", H),
        ("tool.call", {"other": {"a": H}}),
        ("fs.write", {"create_only": H}),
        ("fs.rename", {"to": H}),
        ("http.request", {"method": H}),
        ("http.request", {"headers": [["x", H]]}),
        ("model.chat", {"request": {"model": H}}),
        ("model.chat", {"request": {"max_tokens": H}}),
        ("model.chat", {"request": {"tools": [H]}}),
        ("agent.spawn", {"arguments": [H]}),
        ("value.reveal", {"path": H}),
    ],
)
def test_where_none_may_stand(effect: str, tree: Any) -> None:
    with pytest.raises(Malformed):
        values.refs(effect, tree)


@pytest.mark.parametrize(
    "ref",
    [
        {"$handle": 1},
        {"$handle": "x"},
        {"$handle": "h0"},
        {"$handle": "h1", "more": 1},
        {"$handle": "h1", "path": "a"},
        {"$handle": "h1", "path": "/~2"},
        {"$handle": "h1", "within": "/a"},
        {"$handle": "h1", "schema": {"type": "any"}},
        {"$handle": "h1", "schema": {"type": "string", "pattern": ".*"}},
        {"$handle": "h1", "schema": {"type": "object", "additionalProperties": True}},
        {"$handle": "h1", "schema": {"enum": []}},
        {"$handle": "h1", "schema": {"enum": [1.5]}},
        {"$handle": "h1", "$join": ["x"]},
        {"$join": []},
        {"$join": [1]},
        {"$join": ["x", "y"]},
        {"$join": [{"$join": ["x"]}]},
        {"$some": ["text"]},
        {"$some": [H], "x": 1},
        {"$join": "text"},
    ],
)
def test_what_is_no_reference(ref: Any) -> None:
    with pytest.raises(Malformed):
        values.refs("tool.call", {"arguments": {"a": ref}})


def test_a_value_is_put_in_its_place() -> None:
    tree = {"arguments": {"a": H, "b": {"$join": ["<", H, ">"]}, "c": {"$some": [H, H]}, "d": 1}}
    gone = Unfit("gone")
    put: dict[str, Any] = {
        "/arguments/a": {"x": b"bytes"}, "/arguments/b/$join/1": [1, None],
        "/arguments/c/$some/0": gone, "/arguments/c/$some/1": "here",
    }  # fmt: skip
    assert values.fill("tool.call", tree, put) == {
        "arguments": {"a": {"x": "bytes"}, "b": "<[1,null]>", "c": ["here"], "d": 1}
    }
    with pytest.raises(Unfit):
        values.fill("tool.call", tree, {**put, "/arguments/a": gone})
    with pytest.raises(Unfit):
        values.fill("tool.call", {"arguments": {"a": H}}, {"/arguments/a": b"\xff"})
    assert values.fill("fs.write", {"data": H}, {"/data": {"b": 1, "a": 2}}) == {
        "data": b'{"a":2,"b":1}'
    }


def test_a_value_never_becomes_a_reference() -> None:
    """What stands behind a handle is data, also when it looks like a reference."""
    tree = {"arguments": {"a": H}}
    put = {"/arguments/a": {"$handle": "h2"}}
    assert values.fill("tool.call", tree, put) == {"arguments": {"a": {"$handle": "h2"}}}


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [("", {"a": [1, {"b/c": 2}]}), ("/a/0", 1), ("/a/1/b~1c", 2)],
)
def test_a_field(pointer: str, expected: Any) -> None:
    assert pointers.project({"a": [1, {"b/c": 2}]}, pointer) == expected


@pytest.mark.parametrize("pointer", ["/b", "/a/2", "/a/-1", "/a/01", "/a/0/x", "/a/\u0661", "/"])
def test_no_field(pointer: str) -> None:
    with pytest.raises(Unfit):
        pointers.project({"a": [1, {"b/c": 2}]}, pointer)


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (True, {"bool"}),
        (5, {"int"}),
        (-1, set()),
        (2**53, set()),
        ("abc-1_X", {"id"}),
        ("13", {"id"}),
        ("2024-02-29", {"id", "date"}),
        ("2023-02-29", {"id"}),
        ("a@b.c", set()),
        ("evil.example", set()),
        ("../x", set()),
        ("two words", set()),
        ("line\n", set()),
        ("", set()),
        ("x" * 65, set()),
        ("\u0661", set()),
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", {"id", "uuid"}),
        (None, set()),
        (5.0, set()),
        ([5], set()),
    ],
)
def test_narrow_kinds(value: Any, kinds: set[str]) -> None:
    assert set(value_types.kinds(value)) == kinds


@pytest.mark.parametrize(
    ("schema", "bits"),
    [
        ({"type": "boolean"}, 2),
        ({"enum": ["a"]}, 1),
        ({"enum": ["a", "b", "c"]}, 2),
        ({"type": "integer", "minimum": 0, "maximum": 14}, 4),
        ({"type": "integer", "minimum": 0, "maximum": 15}, 5),
        ({"type": "integer", "minimum": -8, "maximum": 6}, 4),
        ({"type": "integer", "minimum": 0}, None),
        ({"type": "string", "format": "date"}, 22),
        ({"type": "string", "format": "id"}, None),
        ({"type": "string"}, None),
        ({"type": "array", "items": {"type": "boolean"}}, None),
    ],
)
def test_how_much_a_type_can_tell(schema: Any, bits: int | None) -> None:
    value_types.check_schema(schema)
    assert value_types.bits(schema) == bits
    assert bool(value_types.kind_of(schema)) == (bits is not None)
    whole = {"type": "object", "properties": {"x": schema}}
    assert value_types.bits(whole, "/x") == bits
    assert value_types.bits(whole) is None


bounds = st.tuples(st.integers(-50, 50), st.integers(0, 200))


@given(bounds)
def test_the_bits_of_a_range_tell_all_of_its_values_apart(bound: tuple[int, int]) -> None:
    low, more = bound
    schema = {"type": "integer", "minimum": low, "maximum": low + more}
    bits = value_types.bits(schema)
    assert bits is not None
    assert 2**bits >= more + 2  # and none of them
    inside = [n for n in range(low - 2, low + more + 3) if value_types.matches(schema, n)]
    assert inside == list(range(low, low + more + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_a_typed_value_is_of_its_type_or_none(value: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": []}
    ref = Ref("/arguments/a", "h1", "", schema, "/a")
    try:
        assert type(values.resolve(ref, value)) is int
    except Unfit:
        assert not (isinstance(value, dict) and set(value) == {"a"} and type(value["a"]) is int)


@given(st.lists(st.text(max_size=4), max_size=4))
def test_pointers_lead_back(names: list[str]) -> None:
    assert pointers.steps(pointers.pointer_of(tuple(names))) == tuple(names)


words = st.sampled_from(
    ["$handle", "$join", "$some", "path", "schema", "within", "h1", "h0", "/0/a", "/~2", "type",
     "enum", "items", "properties", "required", "string", "array", "object", "format", "date",
     "maxItems", "minimum", "arguments", "", "a"]
)  # fmt: skip
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**60)
    | st.floats()
    | words
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(values.SLOTS)), st.dictionaries(words, trees, max_size=3), trees)
def test_any_arguments_are_references_or_malformed(
    effect: str, tree: dict[str, Any], put: Any
) -> None:
    name = values.SLOTS[effect][0][0]
    try:
        found = values.refs(effect, {name: tree})
    except Malformed:
        return
    resolved: dict[str, Any] = {}
    for ref in found:
        try:
            resolved[ref.at] = values.resolve(ref, put)
        except Unfit as no:
            resolved[ref.at] = no
    try:
        filled = values.fill(effect, {name: tree}, resolved)
    except Unfit:
        return
    if not found:
        assert repr(filled) == repr({name: tree})  # nan is not itself


@given(trees, trees)
def test_any_schema_is_a_type_or_malformed(schema: Any, value: Any) -> None:
    try:
        value_types.check_schema(schema)
    except Malformed:
        return
    assert value_types.matches(schema, value) in (True, False)
    bits = value_types.bits(schema)
    assert bits is None or 0 <= bits < 2**12
    assert (value_types.kind_of(schema) != "") == (bits is not None)


@given(st.text(max_size=20) | st.text(alphabet="/~01a", max_size=20))
def test_any_text_is_a_pointer_or_malformed(text: str) -> None:
    try:
        names = pointers.steps(text)
    except Malformed:
        return
    assert pointers.steps(pointers.pointer_of(names)) == names


def test_holding_to_types_takes_so_many_steps_for_all_references_together() -> None:
    schema = {"type": "array", "items": {"enum": list(range(999))}}
    ref = Ref("/arguments/a", "h1", "", schema)
    effort = value_types.Effort()
    assert values.resolve(ref, [1] * 300, effort) == [1] * 300
    with pytest.raises(Unfit, match="too much"):
        values.resolve(ref, [1] * 300, effort)
