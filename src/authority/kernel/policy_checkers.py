"""The checkers that the sections of a policy's schema are made of, and the error that finds its line.

Pure. A checker takes where it is, the key's path and the plain value, and gives the normalised value or
raises `PolicyError`. Types are exact: `true` is no number, a float is nothing. A table takes the keys
that it knows; an unknown one names its nearest neighbour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from authority.kernel import policy_values as values
from authority.kernel.addresses import shown
from authority.kernel.policy_sections import PolicyError, Source
from authority.kernel.policy_text import Float, locate
from authority.kernel.resources import NAME

Path: TypeAlias = tuple[str | int, ...]
MAX_LIST: Final = 100_000
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class Context:
    """Where an error is: it finds the line."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def error(self, path: Path, message: str, hint: str = "", needle: str = "") -> PolicyError:
        """The error for a key, ready to be raised."""
        return PolicyError(
            self.source.name, show(path), locate(self.source, path, needle), message, hint
        )


Checker: TypeAlias = Callable[[Context, Path, Any], Any]


def show(path: Path) -> str:
    """A key as people write it: `filesystem.read[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text


def need(context: Context, path: Path, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise `PolicyError` for the first of the keys that is not given."""
    for name in names:
        if name not in given:
            raise context.error(path, f"needs {name}", f"add {name} = ...")


def table(
    context: Context, path: Path, value: Any, fields: Mapping[str, Checker]
) -> dict[str, Any]:
    """A table whose keys are known, each checked by its own checker."""
    if not isinstance(value, dict):
        raise context.error(path, f"must be a table, not {_kind(value)}")
    out = {}
    for key, item in value.items():
        checker = fields.get(key)
        if checker is None:
            near = difflib.get_close_matches(str(key)[:64], fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise context.error((*path, key), "is not a key of a policy", hint)
        out[key] = checker(context, (*path, key), item)
    return out


def _kind(value: Any) -> str:
    return f"a float ({shown(value.text)})" if isinstance(value, Float) else values.kind(value)


def text(context: Context, path: Path, value: Any) -> str:
    """Printable text, 1 to 4096 characters."""
    if not isinstance(value, str):
        raise context.error(path, f"must be text, not {_kind(value)}", "put it into quotes")
    if not value or len(value) > 4096:
        raise context.error(path, "must have 1 to 4096 characters")
    if not value.isprintable():
        raise context.error(path, f"holds a control or invisible character: {shown(value)!r}")
    return value


def texts(context: Context, path: Path, value: Any) -> list[str]:
    """A list of texts, which may be empty."""
    if not isinstance(value, list):
        hint = "put it into square brackets" if isinstance(value, str) else ""
        raise context.error(path, f"must be a list of texts, not {_kind(value)}", hint)
    if len(value) > MAX_LIST:
        raise context.error(path, f"holds more than {MAX_LIST} items")
    return [text(context, (*path, index), item) for index, item in enumerate(value)]


def command(context: Context, path: Path, value: Any) -> list[str]:
    """A list of texts that is not empty."""
    found = texts(context, path, value)
    if not found:
        raise context.error(path, "is empty", 'write ["python3", "tool.py"]')
    return found


def one_of(*choices: str) -> Checker:
    """A checker: one of these texts."""

    def check(context: Context, path: Path, value: Any) -> str:
        if value not in choices or not isinstance(value, str):
            raise context.error(path, f"must be one of {', '.join(choices)}")
        return value

    return check


def quantity(reader: Callable[[object], int], *, positive: bool = False) -> Checker:
    """A checker: a whole number, read with its unit by `reader` (`policy_values`)."""

    def check(context: Context, path: Path, value: Any) -> int:
        try:
            if isinstance(value, Float):
                reader(None)  # says what is wanted
            found = reader(value)
        except ValueError as error:
            hint = "floats are refused: they are not exact" if isinstance(value, Float) else ""
            raise context.error(path, str(error), hint) from None
        if positive and not found:
            raise context.error(path, "must be more than zero")
        return found

    return check


def env_name(context: Context, path: Path, value: Any) -> str:
    """The name of an environment variable that is not the gate's own."""
    name = text(context, path, value)
    if not _ENV.match(name):
        raise context.error(path, f"{shown(name)!r} is not the name of a variable")
    if name.startswith("AUTHORITY_"):
        raise context.error(path, "names that begin with AUTHORITY_ belong to the gate")
    return name


def env_names(context: Context, path: Path, value: Any) -> list[str]:
    """A list of names of environment variables."""
    found = texts(context, path, value)
    return [env_name(context, (*path, index), item) for index, item in enumerate(found)]


def env(context: Context, path: Path, value: Any) -> dict[str, str]:
    """A table of environment variables and their values."""
    if not isinstance(value, dict):
        raise context.error(path, "must be a table of texts", 'write env = { MODE = "demo" }')
    out = {}
    for key, item in value.items():
        env_name(context, (*path, key), key)
        if not isinstance(item, str) or "\x00" in item or len(item) > 32_768:
            raise context.error((*path, key), "must be text", "put it into quotes")
        out[key] = item
    return out


def arguments(context: Context, path: Path, value: Any) -> list[str]:
    """A list of the names of arguments; `*` is none."""
    found = texts(context, path, value)
    if "*" in found:
        raise context.error(path, "a bare * would cover everything", "name the arguments")
    return found


def named_tables(fields: Mapping[str, Checker]) -> Checker:
    """A checker: a table of plain names, each with a table of these fields."""

    def check(context: Context, path: Path, value: Any) -> dict[str, Any]:
        return {
            name: table(context, (*path, name), item, fields)
            for name, item in named(context, path, value).items()
        }

    return check


def named(context: Context, path: Path, value: Any) -> dict[str, Any]:
    """A table whose keys are plain names; its values are not looked at."""
    if not isinstance(value, dict):
        raise context.error(path, f"must be a table of names, not {_kind(value)}")
    for name in value:
        if not NAME.match(name):
            raise context.error((*path, name), "is not a plain name", "use letters, digits, . _ -")
    return value


def section(fields: Mapping[str, Checker]) -> Checker:
    """A checker: a table of these fields."""
    return lambda context, path, value: table(context, path, value, fields)


duration: Final = quantity(values.duration, positive=True)
"""A length of time that is not zero, in microseconds."""
