"""From TOML or JSON text to plain values, and from a key back to its line.

Pure. Rules
- At most `MAX_TEXT` characters and `MAX_DEPTH` brackets inside each other, checked before parsing.
- Floats survive as `Float`, so that the schema refuses them by key and line; NaN and infinities
  too. Keys that are given twice are refused, in JSON as well.
- Invisible characters that reorder or hide text (bidirectional controls, zero width) are refused
  anywhere, comments included: what a reviewer reads is what is loaded (Boucher and Anderson,
  "Trojan Source", 2021).
- `locate` is a help for people: TOML's parser gives no lines, so the key is searched for again.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final

from authority.kernel.addresses import shown
from authority.kernel.policy_sections import PolicyError, Source

MAX_TEXT: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 24
MAX_DOTS: Final = 32
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_AT_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_TABLE: Final = re.compile(r"\s*\[\[?([^\]\[]+)\]")
_KEY: Final = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'|\s*\.\s*)+?)\s*=")
_PIECE: Final = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")
_STRINGS: Final = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|#[^\n]*")


class Float:
    """A float of the text, kept as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text


def read(source: Source) -> dict[str, Any]:
    """The table that a text holds. Raises `PolicyError`."""
    text, name = source.text, source.name
    if source.format not in ("toml", "json"):
        raise PolicyError(name, "", 0, "a policy is TOML or JSON", "name it .toml or .json")
    if len(text) > MAX_TEXT:
        raise PolicyError(name, "", 0, f"the policy is longer than {MAX_TEXT} characters")
    found = _HIDDEN.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise PolicyError(
            name,
            "",
            line,
            f"a control or invisible character ({shown(found[0])})",
            "take it out; a file of that name is written with percent escapes, as fs:/NAME",
        )
    _check_depth(source)
    try:
        value = _toml(source) if source.format == "toml" else _json(source)
    except RecursionError:
        raise PolicyError(name, "", 0, "the policy is nested too deep") from None
    if not isinstance(value, dict):
        raise PolicyError(name, "", 1, "a policy is a table", 'write {"version": 1, …}')
    return value


def locate(source: Source, path: Sequence[str | int], needle: str = "") -> int:
    """The line (from 1) of a key, or of `needle` in its value; 0 when it can't be told."""
    keys = [str(part) for part in path if isinstance(part, str)]
    if not keys or not source.text:
        return 0
    lines = source.text.split("\n")
    start = _toml_line(lines, keys) if source.format == "toml" else _json_line(lines, keys)
    if start and needle:
        for number in range(start, len(lines) + 1):
            if needle in lines[number - 1]:
                return number
    return start


def _toml(source: Source) -> Any:
    try:
        return tomllib.loads(source.text, parse_float=Float)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = _AT_LINE.search(message)
        line = int(at[1]) if at and at[1] else source.text.count("\n") + 1
        message = _AT_LINE.sub("", message)
        hint = "check quotes, brackets and commas around there"
        if "overwrite" in message or "twice" in message or "already" in message:
            hint = "a key or table is given twice; keep one"
        raise PolicyError(source.name, "", line, f"not TOML: {shown(message)}", hint) from None
    except (ValueError, OverflowError) as error:  # an impossible date, an endless number
        raise PolicyError(source.name, "", 0, f"not TOML: {shown(str(error))}") from None


def _json(source: Source) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise PolicyError(
                    source.name,
                    shown(key),
                    locate(source, [key]),
                    "is given twice",
                    "keep one of the two",
                )
            seen[key] = value
        return seen

    try:
        return json.loads(
            source.text, object_pairs_hook=unique, parse_float=Float, parse_constant=Float
        )
    except json.JSONDecodeError as error:
        raise PolicyError(
            source.name, "", error.lineno, f"not JSON: {shown(error.msg)}", "check the syntax"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise PolicyError(source.name, "", 0, f"not JSON: {shown(str(error))}") from None


def _check_depth(source: Source) -> None:
    depth = 0
    bare = _STRINGS.sub("", source.text) if source.format == "toml" else source.text
    for found in re.finditer(r"[\[\]{}]", bare):
        depth += 1 if found[0] in "[{" else -1
        if depth > MAX_DEPTH:
            line = bare.count("\n", 0, found.start()) + 1
            raise PolicyError(source.name, "", line, "the policy is nested too deep")
    if source.format == "toml":
        for number, line_text in enumerate(bare.split("\n"), 1):
            head = line_text.partition("=")[0]
            if head.count(".") > MAX_DOTS:
                raise PolicyError(source.name, "", number, "the key has too many parts")


def _toml_line(lines: list[str], keys: list[str]) -> int:
    table: list[str] = []
    best, matched = 0, 0
    for number, line in enumerate(lines, 1):
        header = _TABLE.match(line)
        key = None if header else _KEY.match(line)
        if header:
            path = table = _pieces(header[1])
        elif key:
            path = table + _pieces(key[1])
        else:
            continue
        if path == keys[: len(path)] and len(path) > matched:
            best, matched = number, len(path)
    return best


def _pieces(text: str) -> list[str]:
    return [piece.strip("\"'") for piece in _PIECE.findall(text)]


def _json_line(lines: list[str], keys: list[str]) -> int:
    number = 0
    for key in keys:
        wanted = json.dumps(key)
        following = next(
            (i for i in range(max(number, 1), len(lines) + 1) if wanted in lines[i - 1]), 0
        )
        if not following:
            break
        number = following
    return number
