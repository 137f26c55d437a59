"""References to values behind handles, where they stand in a request's arguments.

Pure. Rules
- Where a value may stand in a request's arguments, one of three maps may stand in its place:
  `{"$handle": id, "path"?: pointer, "schema"?: type, "within"?: pointer}` for the value itself,
  `{"$join": [text or such a map, ...]}` for the text of all of them put together, and
  `{"$some": [such a map, ...]}` for the list of those that are there. A map with one of these keys
  and anything else is refused, and so are they wherever no value may stand (`SLOTS`).
- `path` is a pointer (`pointers`) into the value. With `schema` the value found there (text and
  bytes are read as JSON first) must be of that type (`value_types`), and `within` points into it.
- What can't be had (no such field, another type, a handle to an error) is `Unfit`. Whoever filled
  the arguments tells nobody but the log: see `handles`.
- Text and bytes stand for each other as UTF-8. Where bytes or text are wanted, anything else is its
  canonical JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from authority.kernel.pointers import Malformed, Unfit, pointer_of, project, steps
from authority.kernel.value_types import Effort, check_schema, matches

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
_WORDS: Final = frozenset({"content", "text", "output", "arguments", "input", "system"})
"""Where a model reads words. A role, a kind of part or an address is the program's own to say: what a
request may cost and where it reaches must not depend on a value that nobody has seen."""
MAX_REFS: Final = 256
_NAME: Final = re.compile(r"h[1-9][0-9]{0,8}\Z")
_encode: Final = msgspec.json.Encoder(order="sorted").encode


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
    for ref in found if effect == "model.chat" else ():
        if _place(ref.at) not in _WORDS:
            raise Malformed(f"no handle may stand at {ref.at[:100]}")
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


def _place(at: str) -> str:
    """The name under which a reference stands, or the list that holds it."""
    names = [name for name in steps(at) if name not in _KEYS and not name.isdecimal()]
    return names[-1] if names else ""


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


def resolve(ref: Ref, value: Any, effort: Effort | None = None) -> Any:
    """What a reference stands for, given its handle's value. Raises `Unfit`."""
    effort = effort or Effort()
    found = project(value, ref.path)
    if ref.schema is None:
        return found
    if isinstance(found, str | bytes):
        found = effort.read(ref.handle, ref.path, found)
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
