"""JSON Schemas that a server wrote, applied to values that somebody else wrote: in bounded time.

Rules
- A schema is taken when it is an object of at most `MAX_SCHEMA` bytes, `MAX_DEPTH` deep, with at most
  `MAX_NODES` values; every `$ref` leads inside it. Nothing is ever fetched.
- Patterns are matched by an engine that takes linear time, and what that engine does not know
  (look-around, back references) refuses the schema: a check that may take for ever is none, and one
  that is left out is none either.
- A check makes at most `MAX_STEPS` steps, and a value has at most `MAX_VALUES` parts; `uniqueItems`
  compares canonical texts. Whatever goes beyond is refused, as if it did not fit.
- `format` asserts nothing, as the standard says; defaults are not filled in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from jsonschema import Draft7Validator, Draft202012Validator, ValidationError, exceptions
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from pydantic_core import SchemaError, SchemaValidator, core_schema
from pydantic_core import ValidationError as NoMatch
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_SCHEMA: Final = 64 * 1024
MAX_DEPTH: Final = 32
MAX_NODES: Final = 8_000
MAX_VALUES: Final = 50_000
MAX_STEPS: Final = 100_000
_ANCHORED: Final = frozenset({"$dynamicRef", "$recursiveRef"})


class SchemaRefused(Exception):
    """The schema is none that is applied here; the text says why, without any of the schema's."""


class Misfit(Exception):
    """The value does not fit; the text says where and why, for whoever made the value."""


class _Steps(Exception):
    """More steps than a check may take."""


class Checker:
    """One schema, compiled. Raises `SchemaRefused` when it is not applied here."""

    def __init__(self, schema: object) -> None:
        self._steps = 0
        if not isinstance(schema, dict):
            raise SchemaRefused("it is no object")
        _bounded(schema)
        draft7 = "draft-07" in str(schema.get("$schema", ""))
        base = Draft7Validator if draft7 else Draft202012Validator
        try:
            base.check_schema(schema)
            self._patterns(schema)
        except (exceptions.SchemaError, SchemaError, RecursionError, Unresolvable) as error:
            raise SchemaRefused(f"it is not valid ({type(error).__name__})") from None
        made = extend(base, {name: self._counted(f) for name, f in _keywords(base).items()})
        self._validator: Validator = made(schema, registry=Registry())

    def check(self, value: object) -> None:
        """Raises `Misfit`."""
        self._steps = 0
        if _count(value, MAX_VALUES) < 0:
            raise Misfit("it has more parts than are checked")
        try:
            error = next(iter(self._validator.iter_errors(value)), None)
        except (_Steps, RecursionError):
            raise Misfit("checking it takes more steps than are made") from None
        except Unresolvable:
            raise Misfit("the schema names a part that it does not have") from None
        if error is not None:
            raise Misfit(_sentence(error))

    def _counted(self, keyword: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def count(validator: Any, part: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
            for error in keyword(validator, part, value, schema) or ():
                self._step()
                yield error

        def counted(validator: Any, part: Any, value: Any, schema: Any) -> Any:
            self._step()
            return count(validator, part, value, schema)

        return counted

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _Steps

    def _patterns(self, node: Any) -> None:
        """Compile every pattern now: one that can't be is no surprise later."""
        if isinstance(node, Mapping):
            pattern = node.get("pattern")
            if isinstance(pattern, str):
                _pattern(pattern)
            named = node.get("patternProperties")
            for each in named if isinstance(named, Mapping) else ():
                _pattern(each)
            for part in node.values():
                self._patterns(part)
        elif isinstance(node, list):
            for part in node:
                self._patterns(part)


def _keywords(base: Any) -> dict[str, Callable[..., Any]]:
    found = dict(base.VALIDATORS)
    found.update(
        pattern=_check_pattern,
        patternProperties=_check_pattern_properties,
        uniqueItems=_check_unique,
    )
    if "additionalProperties" in found:
        found["additionalProperties"] = _check_additional
    return found


@lru_cache(maxsize=1024)
def _pattern(text: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=text, regex_engine="rust-regex"))


def _matches(pattern: str, text: str) -> bool:
    try:
        _pattern(pattern).validate_python(text)
    except NoMatch:
        return False
    return True


def _check_pattern(_v: Any, pattern: str, value: Any, _s: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _matches(pattern, value):
        yield ValidationError("does not match the pattern")


def _check_pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, _s: Any
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    for pattern, part in patterns.items():
        for name, item in value.items():
            if _matches(pattern, name):
                yield from validator.descend(item, part, path=name, schema_path=pattern)


def _check_additional(
    validator: Any, part: Any, value: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, item in value.items():
        if name in named or any(_matches(each, name) for each in patterns):
            continue
        if part is False:
            yield ValidationError("has a member that the schema does not name")
        elif isinstance(part, dict):
            yield from validator.descend(item, part, path=name)


def _check_unique(_v: Any, wanted: Any, value: Any, _s: Any) -> Iterator[ValidationError]:
    if wanted is True and isinstance(value, list):
        texts = {json.dumps(item, sort_keys=True) for item in value}
        if len(texts) != len(value):
            yield ValidationError("holds an item twice")


def _bounded(schema: Mapping[str, Any]) -> None:
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise SchemaRefused("it is no JSON") from None
    if size > MAX_SCHEMA:
        raise SchemaRefused(f"it is larger than {MAX_SCHEMA} bytes")
    if _count(schema, MAX_NODES, MAX_DEPTH) < 0:
        raise SchemaRefused(f"it has more than {MAX_NODES} parts or is more than {MAX_DEPTH} deep")
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise SchemaRefused("it refers to something outside itself")
            if (
                _ANCHORED & node.keys()
                or {"unevaluatedProperties", "unevaluatedItems"} & node.keys()
            ):
                raise SchemaRefused("it uses keywords whose meaning depends on the way to them")
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _count(value: object, limit: int, depth: int = 64) -> int:
    """The number of parts, or -1 when it is above `limit` or deeper than `depth`."""
    total, waiting = 0, [(value, 0)]
    while waiting:
        node, at = waiting.pop()
        total += 1
        if total > limit or at > depth:
            return -1
        if isinstance(node, dict):
            waiting += [(part, at + 1) for part in node.values()]
        elif isinstance(node, list):
            waiting += [(part, at + 1) for part in node]
    return total


def _sentence(error: ValidationError) -> str:
    where = "/".join(str(part)[:64] for part in list(error.absolute_path)[:8])
    keyword = str(error.validator or "schema")[:32]
    return f"{'/' + where}: {keyword} of the schema is not met"
