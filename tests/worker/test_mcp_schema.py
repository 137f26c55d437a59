"""Schemas from a server: applied, bounded, or refused, each beside one that works."""

from __future__ import annotations

import time
from typing import Any

import pytest

from authority.worker.mcp_schema import MAX_SCHEMA, Checker, Misfit, SchemaRefused

GOOD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "uniqueItems": True},
    },
    "patternProperties": {"^x-": {"type": "integer"}},
    "additionalProperties": False,
    "required": ["name"],
    "$defs": {"tag": {"enum": ["a", "b", 3]}},
}


@pytest.mark.parametrize(
    "value", [{"name": "abc"}, {"name": "a", "tags": ["a", "b", 3]}, {"name": "a", "x-y": 1}]
)
def test_what_fits(value: Any) -> None:
    Checker(GOOD).check(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": "ABC"},
        {"name": "abc\n"},
        {"name": 1},
        {"name": "a", "tags": ["c"]},
        {"name": "a", "tags": ["a", "a"]},
        {"name": "a", "other": 1},
        {"name": "a", "x-y": "1"},
        [],
        None,
    ],
)
def test_what_does_not(value: Any) -> None:
    with pytest.raises(Misfit):
        Checker(GOOD).check(value)


def test_the_older_draft() -> None:
    made = Checker(
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    )
    made.check(["a", 1])
    with pytest.raises(Misfit):
        made.check([1])


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        True,
        [],
        "x",
        {"$ref": "https://evil.example/schema.json"},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"properties": {"a": {"$ref": "other.json#/a"}}},
        {"type": "nonsense"},
        {"properties": 3},
        {"description": "x" * MAX_SCHEMA},
        nested(40),
        {"enum": list(range(9000))},
        {"pattern": "(?=a)b"},
        {"pattern": r"(a)\1"},
        {"pattern": "("},
        {"properties": {"a": {"pattern": "(?<!x)y"}}},
        {"patternProperties": {"(?!a)": {}}},
        {"$dynamicRef": "#x"},
        {"unevaluatedProperties": False},
        {"const": float("nan")},
    ],
    ids=lambda s: repr(s)[:40],
)
def test_a_schema_that_is_not_applied(schema: Any) -> None:
    with pytest.raises(SchemaRefused):
        Checker(schema)


def quickly(call: Any) -> None:
    began = time.process_time()
    call()
    assert time.process_time() - began < 3


def test_a_pattern_that_backtracks_takes_linear_time() -> None:
    made = Checker({"type": "string", "pattern": "^(a+)+$"})

    def check() -> None:
        with pytest.raises(Misfit):
            made.check("a" * 50_000 + "!")

    quickly(check)
    made.check("aaa")


def test_a_schema_that_explodes_is_stopped() -> None:
    made = Checker({"$ref": "#/$defs/a", "$defs": {
        "a": {"anyOf": [{"properties": {"n": {"$ref": "#/$defs/a"}}, "not": {}},
                        {"properties": {"n": {"$ref": "#/$defs/a"}}, "required": ["zz"]}]},
    }})  # fmt: skip
    value: Any = {}
    for _ in range(40):
        value = {"n": value}

    def check() -> None:
        with pytest.raises(Misfit):
            made.check(value)

    quickly(check)


def test_a_reference_to_itself_is_stopped() -> None:
    made = Checker({"$ref": "#"})

    def check() -> None:
        with pytest.raises(Misfit):
            made.check(1)

    quickly(check)


def test_a_reference_to_nothing_does_not_pass() -> None:
    with pytest.raises(Misfit):
        Checker({"$ref": "#/$defs/nothing"}).check(1)


def test_large_values_are_refused() -> None:
    made = Checker({"type": "array", "uniqueItems": True})
    quickly(lambda: made.check([{"n": n} for n in range(20_000)]))
    with pytest.raises(Misfit):
        made.check(list(range(60_000)))
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(Misfit):
        made.check(deep)


def test_the_sentence_holds_nothing_of_the_value() -> None:
    with pytest.raises(Misfit) as caught:
        Checker(GOOD).check({"name": "SECRET\x1b[2J"})
    assert str(caught.value) == "/name: pattern of the schema is not met"
