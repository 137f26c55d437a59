"""Values behind handles: references to them in arguments, fields of them, types that are narrow.

Pure. Rules
- Where a value may stand in a request's arguments, one of three maps may stand in its place:
  `{"$handle": id, "path"?: pointer, "schema"?: type, "within"?: pointer}` for the value itself,
  `{"$join": [text or such a map, ...]}` for the text of all of them put together, and
  `{"$some": [such a map, ...]}` for the list of those that are there. A map with one of these keys
  and anything else is refused, and so are they wherever no value may stand (`SLOTS`).
- `path` is an RFC 6901 pointer into the value. With `schema` the value found there (text and bytes
  are read as JSON first) must be of that type, and `within` points into it.
- What can't be had (no such field, another type, a handle to an error) is `Unfit`. Whoever filled
  the arguments tells nobody but the log: see `handles`.
- Text and bytes stand for each other as UTF-8. Where bytes or text are wanted, anything else is its
  canonical JSON.
- A type is a subset of JSON Schema in which nothing is left open: an object has the members that it
  names and no other. `bits` says how much a value of the type can tell, None when that is unbounded.
- Narrow *kinds* (`KINDS`) are what an identifier may look like: no blank, no dot, no slash and no
  `@`, so that none is an address, a path or a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

HANDLE, JOIN, SOME = "$handle", "$join", "$some"
_KEYS: Final = frozenset({HANDLE, JOIN, SOME})
_FIELDS: Final = frozenset({HANDLE, "path", "schema", "within"})
SLOTS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "tool.call": (("arguments", "*"), "json"),
    "mcp.prompt": (("arguments", "*"), "text"),
    "http.request": (("body",), "bytes"),
    "fs.write": (("data",), "bytes"),
    "fs.append": (("data",), "bytes"),
    "msg.send": (("data",), "bytes"),
    "model.chat": (("request", "messages|input|system"), "text"),
    "value.compute": (("values",), "json"),
}
"""Where handles may stand (below these keys), and what they are turned into there."""
WANTED: Final = frozenset(
    {*SLOTS, "fs.read", "fs.list", "fs.stat", "mcp.read", "msg.receive", "agent.wait"}
)
"""Effects whose answer may be kept as a handle."""
MAX_POINTER: Final = 1024
MAX_REFS: Final = 256
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
_NAME: Final = re.compile(r"h[1-9][0-9]{0,8}\Z")
DATE_BITS: Final = 22
_encode: Final = msgspec.json.Encoder(order="sorted").encode


class Malformed(ValueError):
    """Arguments in which handles stand where none may, or not in their form."""


class Unfit(Exception):
    """The value that was asked for can't be had. Never told to the program that asked."""


class Ref(msgspec.Struct, frozen=True):
    """One reference: where it stands in the arguments (`at`, a pointer), and what it names.

    `whole`: it stands for all of an argument, or for one item of a list that is one.
    """

    at: str
    handle: str
    path: str = ""
    schema: Any = None
    within: str = ""
    whole: bool = True


def mentions(raw: bytes) -> bool:
    """Whether encoded arguments could hold a reference at all; quick, and never wrongly no."""
    return b"$handle" in raw or b"$join" in raw or b"$some" in raw


def refs(effect: str, tree: Any) -> tuple[Ref, ...]:
    """All references of a request's arguments. Raises `Malformed`."""
    slot = SLOTS.get(effect, ((), ""))[0]
    found = list(_scan(tree, (), slot, whole=True))
    if len(found) > MAX_REFS:
        raise Malformed(f"more than {MAX_REFS} handles")
    return tuple(found)


def _scan(value: Any, at: tuple[str, ...], slot: tuple[str, ...], *, whole: bool) -> Iterator[Ref]:
    if isinstance(value, Mapping):
        special = _KEYS & value.keys()
        if not special:
            for key, item in value.items():
                yield from _scan(item, (*at, key), slot, whole=whole and len(at) < len(slot))
            return
        if not slot or not _inside(at, slot):
            raise Malformed(f"no handle may stand at {pointer_of(at)[:100] or '/'}")
        if HANDLE in value:
            yield ref_of(value, pointer_of(at), whole=whole)
            return
        if len(value) != 1:
            raise Malformed(f"{sorted(special)[0]} stands alone")
        (kind, items), texts = next(iter(value.items())), JOIN in value
        if not isinstance(items, list) or not items:
            raise Malformed(f"{kind} is a list")
        if not any(isinstance(item, Mapping) for item in items):
            raise Malformed(f"{kind} holds a handle at least")
        for number, item in enumerate(items):
            if isinstance(item, Mapping) and HANDLE in item:
                yield ref_of(item, pointer_of((*at, kind, str(number))), whole=False)
            elif not (texts and isinstance(item, str)):
                raise Malformed(f"{kind} holds {'texts and ' if texts else ''}handles alone")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _scan(item, (*at, str(number)), slot, whole=whole and len(at) == len(slot))


def _inside(at: tuple[str, ...], slot: tuple[str, ...]) -> bool:
    return len(at) >= len(slot) and all(
        want == "*" or have in want.split("|") for have, want in zip(at, slot, strict=False)
    )


def ref_of(value: Mapping[str, Any], at: str, *, whole: bool) -> Ref:
    """The reference that a map is. Raises `Malformed`."""
    if value.keys() - _FIELDS:
        raise Malformed(f"{HANDLE} takes path, schema and within, and nothing else")
    name, path, within = value[HANDLE], value.get("path", ""), value.get("within", "")
    if not isinstance(name, str) or not _NAME.match(name):
        raise Malformed("not the name of a handle")
    for pointer in (path, within):
        if not isinstance(pointer, str):
            raise Malformed("a pointer is text")
        steps(pointer)
    schema = value.get("schema")
    if schema is None and within:
        raise Malformed("within needs a schema")
    if schema is not None:
        check_schema(schema)
    return Ref(at, name, path, schema, within, whole)


def steps(pointer: str) -> tuple[str, ...]:
    """The names of an RFC 6901 pointer. Raises `Malformed`."""
    if not pointer:
        return ()
    if not pointer.startswith("/") or len(pointer) > MAX_POINTER:
        raise Malformed('a pointer is empty or begins with "/"')
    parts = pointer[1:].split("/")
    if any(re.search(r"~(?![01])", part) for part in parts):
        raise Malformed("~ stands in a pointer as ~0, / as ~1")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def pointer_of(names: tuple[str, ...]) -> str:
    """The pointer that leads through these names."""
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def covers(pattern: str, pointer: str) -> bool:
    """Whether a pattern (a pointer in which `*` is any one name) covers a field or what holds it."""
    wanted, have = steps(pattern), steps(pointer)
    return len(have) >= len(wanted) and all(
        want in ("*", name) for want, name in zip(wanted, have, strict=False)
    )


def project(value: Any, pointer: str) -> Any:
    """The field of a value. Raises `Unfit`."""
    for name in steps(pointer):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9]\d{0,8}", name, re.ASCII):
            if int(name) >= len(value):
                raise Unfit(f"the list has no item {name}")
            value = value[int(name)]
        else:
            raise Unfit("there is no such field")
    return value


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

    def read(self, ref: Ref, text: str | bytes) -> Any:
        """The JSON that a text is. Raises `Unfit`."""
        if (ref.handle, ref.path) not in self._read:
            try:
                self._read[ref.handle, ref.path] = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._read[ref.handle, ref.path] = Unfit("it is not JSON")
        return _had(self._read[ref.handle, ref.path])


def resolve(ref: Ref, value: Any, effort: Effort | None = None) -> Any:
    """What a reference stands for, given its handle's value. Raises `Unfit`."""
    effort = effort or Effort()
    found = project(value, ref.path)
    if ref.schema is None:
        return found
    if isinstance(found, str | bytes):
        found = effort.read(ref, found)
    if not matches(ref.schema, found, effort):
        raise Unfit("it is not of the type that was asked for")
    return project(found, ref.within)


def fill(effect: str, tree: Any, values: Mapping[str, Any]) -> Any:
    """The arguments with every reference (by its `at`) replaced by its value; a value that is an
    `Unfit` is raised where it is needed, and left out of a `$some`."""
    form = SLOTS[effect][1]
    return _fill(tree, (), form, values)


def _fill(tree: Any, at: tuple[str, ...], form: str, values: Mapping[str, Any]) -> Any:
    if isinstance(tree, list):
        return [_fill(item, (*at, str(n)), form, values) for n, item in enumerate(tree)]
    if not isinstance(tree, Mapping):
        return tree
    if HANDLE in tree:
        return _shaped(_had(values[pointer_of(at)]), form)
    if JOIN in tree or SOME in tree:
        kind = JOIN if JOIN in tree else SOME
        items = [
            item if isinstance(item, str) else values[pointer_of((*at, kind, str(n)))]
            for n, item in enumerate(tree[kind])
        ]
        if kind == SOME:
            return _shaped([_json(i) for i in items if not isinstance(i, Unfit)], form)
        text = "".join(_text(_had(item)) for item in items)
        return text.encode() if form == "bytes" else text
    return {key: _fill(item, (*at, key), form, values) for key, item in tree.items()}


def _had(value: Any) -> Any:
    if isinstance(value, Unfit):
        raise value
    return value


def _shaped(value: Any, form: str) -> Any:
    if form == "bytes":
        return value if isinstance(value, bytes) else _text(value).encode()
    return _text(value) if form == "text" else _json(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return _decoded(value)
    return value if isinstance(value, str) else _encode(_json(value)).decode()


def _json(value: Any) -> Any:
    """The value with bytes as text, at every depth. Raises `Unfit`."""
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, list | tuple) else value


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Unfit("it is not text") from None


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


# --- types ---

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
    if schema.get("format", "date") not in KINDS:
        raise Malformed(f"format is one of {', '.join(KINDS)}")
    if schema.get("additionalProperties", False) is not False:
        raise Malformed("an object has the members that it names and no other")
    if kind == "array" and "items" in schema:
        check_schema(schema["items"], depth + 1)
    members = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(members, Mapping) or not isinstance(required, list):
        raise Malformed("properties is a map, required a list")
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
    """How many bits a value of the type (the part that `within` names) can tell at most."""
    for name in steps(within):
        if not isinstance(schema, Mapping):
            return None
        is_object = schema.get("type") == "object"
        schema = schema.get("properties", {}).get(name) if is_object else schema.get("items")
    if not isinstance(schema, Mapping):
        return None
    if "enum" in schema:
        return (len(schema["enum"]) - 1).bit_length()
    kind = schema.get("type")
    if kind == "boolean":
        return 1
    if kind == "integer" and "minimum" in schema and "maximum" in schema:
        return max(int(schema["maximum"]) - int(schema["minimum"]), 0).bit_length()
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
