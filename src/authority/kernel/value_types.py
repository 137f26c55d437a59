"""Types of values, and how much a value of a type can tell.

Pure. Rules
- A type is a subset of JSON Schema in which nothing is left open: an object has the members that it
  names and no other. What is no type of the subset is `Malformed`.
- Narrow *kinds* (`KINDS`) are what an identifier may look like: no blank, no dot, no slash and no
  `@`, so that none is an address, a path or a sentence.
- `bits` says how much a value of the type can tell, None when that is unbounded.
- Holding the values of one request to types takes at most `STEPS` steps together; a value that
  would take more is `Unfit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from authority.kernel.pointers import Malformed, Unfit, steps

STEPS: Final = 500_000
"""How many parts of values and choices of enums are looked at to hold a request's values to types."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
KINDS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: type(v) is int and 0 <= v < 2**53,
    "id": lambda v: isinstance(v, str) and bool(_ID.match(v)),
    "uuid": lambda v: isinstance(v, str) and bool(_UUID.match(v)),
    "date": lambda v: isinstance(v, str) and _is_date(v),
}
_DATE: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})\Z", re.ASCII)
_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DATE_BITS: Final = 22
_PLAIN: Final = frozenset({"type", "title", "description"})
_SCHEMAS: Final[Mapping[str, frozenset[str]]] = {
    "boolean": frozenset(),
    "null": frozenset(),
    "number": frozenset(),
    "integer": frozenset({"minimum", "maximum"}),
    "string": frozenset({"maxLength", "format"}),
    "array": frozenset({"items", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}


def kinds(value: Any) -> tuple[str, ...]:
    """The narrow kinds that a value is of."""
    return tuple(name for name, fits in KINDS.items() if fits(value))


def _is_date(text: str) -> bool:
    found = _DATE.match(text)
    if found is None:
        return False
    year, month, day = map(int, found.groups())
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return year > 0 and 1 <= month <= 12 and 1 <= day <= _DAYS[month - 1] + leap


class Effort:
    """What the references of one request cost together: texts are read once, and holding values to
    types takes so many steps and no more."""

    def __init__(self) -> None:
        self._left = STEPS
        self._read: dict[tuple[str, str], Any] = {}

    def take(self, steps: int) -> None:
        """Raises `Unfit` when too many were taken."""
        self._left -= steps
        if self._left < 0:
            raise Unfit("it is too much to be held to a type")

    def read(self, handle: str, path: str, text: str | bytes) -> Any:
        """The JSON that the text at a handle's path is. Raises `Unfit`."""
        if (handle, path) not in self._read:
            try:
                self._read[handle, path] = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._read[handle, path] = Unfit("it is not JSON")
        found = self._read[handle, path]
        if isinstance(found, Unfit):
            raise found
        return found


def check_schema(schema: Any, depth: int = 0) -> None:
    """Raise `Malformed` for what is no type of the subset."""
    if not isinstance(schema, Mapping) or depth > 8:
        raise Malformed("a schema is a map, at most 8 deep")
    if "enum" in schema:
        choices = schema["enum"]
        if not isinstance(choices, list) or not 1 <= len(choices) <= 1000:
            raise Malformed("enum lists 1 to 1000 values")
        if any(not isinstance(c, str | int | bool | None) for c in choices):
            raise Malformed("enum holds texts, integers, true, false and null")
        if schema.keys() - _PLAIN - {"enum"}:
            raise Malformed("enum stands alone")
        return
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in _SCHEMAS:
        raise Malformed(f"a schema's type is one of {', '.join(_SCHEMAS)}, or it has an enum")
    if unknown := schema.keys() - _PLAIN - _SCHEMAS[kind]:
        raise Malformed(f"a schema of type {kind} has no {str(sorted(unknown)[0])[:40]}")
    for bound in ("minimum", "maximum", "maxLength", "maxItems"):
        if bound in schema and type(schema[bound]) is not int:
            raise Malformed(f"{bound} is an integer")
    name = schema.get("format", "date")
    if not isinstance(name, str) or name not in KINDS:
        raise Malformed(f"format is one of {', '.join(KINDS)}")
    if schema.get("additionalProperties", False) is not False:
        raise Malformed("an object has the members that it names and no other")
    if kind == "array" and "items" in schema:
        check_schema(schema["items"], depth + 1)
    members = schema.get("properties", {})
    required = schema.get("required", [])
    listed = isinstance(required, list) and all(isinstance(one, str) for one in required)
    if not isinstance(members, Mapping) or not listed:
        raise Malformed("properties is a map, required a list of names")
    for member in members.values():
        check_schema(member, depth + 1)


def matches(schema: Mapping[str, Any], value: Any, effort: Effort | None = None) -> bool:
    """Whether a value is of a type. Raises `Unfit` when that takes too many steps."""
    effort = effort or Effort()
    effort.take(1 + len(schema.get("enum", ())))
    if "enum" in schema:
        return any(type(c) is type(value) and c == value for c in schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "null":
        return value is None
    if kind == "number":
        return type(value) in (int, float)
    if kind == "integer":
        if type(value) is not int or not -(2**53) < value < 2**53:
            return False
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if kind == "string":
        if not isinstance(value, str) or len(value) > schema.get("maxLength", len(value)):
            return False
        return "format" not in schema or KINDS[schema["format"]](value)
    if kind == "array":
        items = schema.get("items")
        return (
            isinstance(value, list)
            and len(value) <= schema.get("maxItems", len(value))
            and (items is None or all(matches(items, item, effort) for item in value))
        )
    members = schema.get("properties", {})
    return (
        isinstance(value, Mapping)
        and value.keys() <= members.keys()
        and set(schema.get("required", members)) <= value.keys()
        and all(matches(members[name], item, effort) for name, item in value.items())
    )


def bits(schema: Any, within: str = "") -> int | None:
    """How many bits a value of the type (the part that `within` names) can tell at most.

    That there is none, or one of another type, is one more thing that it can tell: a call that it is
    for is not made then. So of n values it is the logarithm of n + 1, and of one value one bit.
    """
    for name in steps(within):
        if not isinstance(schema, Mapping):
            return None
        is_object = schema.get("type") == "object"
        schema = schema.get("properties", {}).get(name) if is_object else schema.get("items")
    if not isinstance(schema, Mapping):
        return None
    if "enum" in schema:
        return len(schema["enum"]).bit_length()
    kind = schema.get("type")
    if kind == "boolean":
        return 2
    if kind == "integer" and "minimum" in schema and "maximum" in schema:
        return max(int(schema["maximum"]) - int(schema["minimum"]) + 1, 0).bit_length()
    return DATE_BITS if kind == "string" and schema.get("format") == "date" else None


def kind_of(schema: Any, within: str = "") -> str:
    """`bool`, `enum`, `int` or `date` for a type whose bits are bounded; else empty."""
    if bits(schema, within) is None:
        return ""
    for name in steps(within):
        is_object = schema.get("type") == "object"
        schema = schema["properties"][name] if is_object else schema["items"]
    if "enum" in schema:
        return "enum"
    return {"boolean": "bool", "integer": "int", "string": "date"}[schema["type"]]
