"""Lines of JSON from a server or a client that speaks MCP over plain streams, read strictly.

Rules
- A message is one line of at most `MAX_LINE` bytes: one JSON object in UTF-8, without a member named
  twice, `NaN`, integers beyond 64 bits or more than `MAX_DEPTH` containers inside each other.
- What is no message is trouble, counted by whoever reads; a line that is too long is the end, because
  where the next one begins is not known.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

MAX_LINE: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 200_000


class Garbled(Exception):
    """A line that is no message. The text says why, without any of the line."""


class TooLong(Exception):
    """More than a line may hold, and no end in sight."""


class Lines:
    """Bytes in, lines out."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now. Raises `TooLong`."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > MAX_LINE:
                raise TooLong
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
            raise TooLong
        return [line for line in lines if line.strip()]


def read(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises `Garbled`."""
    try:
        value = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise Garbled(f"not JSON as it is taken here: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise Garbled("not one JSON object")
    if depth(value, MAX_VALUES) > MAX_DEPTH:
        raise Garbled("nested too deep, or of too many parts")
    return value


def depth(value: object, limit: int) -> int:
    """How many containers are inside each other; more than can be when there are too many parts."""
    deepest, count, waiting = 0, 0, [(value, 1)]
    while waiting:
        node, at = waiting.pop()
        count += 1
        if count > limit or at > MAX_DEPTH + 1:
            return MAX_DEPTH + 1
        if isinstance(node, dict | list):
            deepest = max(deepest, at)
            parts = node.values() if isinstance(node, dict) else node
            waiting += [(part, at + 1) for part in parts]
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError("an integer beyond 64 bits")
    return int(text)
