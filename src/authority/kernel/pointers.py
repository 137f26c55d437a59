"""Pointers: a place within a value, in the form of RFC 6901.

Pure. Rules
- A pointer is empty (the whole value) or names joined by "/", each with `~0` for "~" and `~1` for
  "/". What is not in this form is `Malformed`.
- A name leads into a map by its key and into a list by its index, written in decimal without
  leading zeros. Where nothing is found the value is `Unfit`: whoever filled the arguments tells
  nobody but the log (see `handles`).
- In a *pattern* `*` stands for any one name. A pattern covers a field when it names the field or
  what holds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

MAX_POINTER: Final = 1024
"""Characters."""


class Malformed(ValueError):
    """Arguments in which handles stand where none may, or not in their form."""


class Unfit(Exception):
    """The value that was asked for can't be had. Never told to the program that asked."""


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
