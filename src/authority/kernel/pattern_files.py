"""Patterns of files: a path with wildcards, or the `fs:` form with percent escapes.

Pure. The rules stand in `patterns`. Every reader raises `PatternError`, with what to write instead.
"""

from __future__ import annotations

import re
from typing import Final

from authority.kernel.addresses import ResourceError, shown
from authority.kernel.pattern_match import ANY_QUERY, Part, Pattern, PatternError
from authority.kernel.pattern_parts import UNSAFE, below, check_source, double, limited
from authority.kernel.resource_files import decode_name, file_segments

_RESERVED: Final = frozenset("?[]{}")
_FIRST: Final = {
    "!": "a rule can't be turned round; put it into deny",
    "~": "a home directory is not looked up; write the path",
    "$": "variables are not looked up; write the path",
}
_STAR: Final = object()


def file_pattern(text: str, *, base: str, forbids: bool = False) -> Pattern:
    """A pattern of `[filesystem]`: a path with wildcards, or the `fs:` form."""
    check_source(text)
    if text.startswith("fs:"):
        return read_file(text, text[3:], base, forbids, decode=True)
    if "://" in text:
        raise PatternError(f"{shown(text)!r} is a URL, not a file", "move it to [network]")
    return read_file(text, text, base, forbids, decode=False)


def escape_file(path: str, *, encode: bool = False) -> str:
    """A path as a file pattern that covers only itself; `encode` for the `fs:` form."""
    out = []
    for segment in path.split("/"):
        kept = ""
        for index, char in enumerate(segment):
            if encode and (char == "%" or not char.isprintable() or UNSAFE.match(char)):
                kept += "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
            elif char in "\\*" or char in _RESERVED or (char in _FIRST and index == 0):
                kept += "\\" + char
            else:
                kept += char
        out.append(kept)
    return "/".join(out)


def read_file(text: str, raw: str, base: str | None, forbids: bool, *, decode: bool) -> Pattern:
    """The pattern of the path `raw` in the rule `text`; with `decode` percent escapes are read.

    `base` is the real folder that a relative path is joined to; without it such a path is refused.
    """
    if raw in ("*", "**"):
        raise PatternError(f"a bare {raw} would cover everything", "say which directory, as ./**")
    prefix: list[Part] = []
    segments = raw.split("/")
    anywhere = forbids and segments[0] == "**"
    if raw.startswith("/"):
        segments = segments[1:]
    elif not anywhere:
        if base is None:
            raise PatternError(f"{shown(text)!r} is relative", "write an absolute path")
        try:
            prefix = list(file_segments(base, None))
        except ResourceError as error:
            raise PatternError(f"the folder of the rule: {error.message}", error.hint) from None
    while segments and segments[0] in (".", ".."):
        if segments.pop(0) == "..":
            if raw.startswith("/") or not prefix:
                raise PatternError(f"{shown(text)!r} leads above the root", "write the path")
            prefix.pop()
    if segments == [""] and raw == "/":
        segments = []
    parts = prefix + [_file_part(segment, text, decode=decode) for segment in segments]
    done = tuple(parts)
    return Pattern(
        text,
        frozenset({"fs"}),
        limited(below(done) if forbids else done, text),
        query=ANY_QUERY,
        forbids=forbids,
    )


def _file_part(raw: str, text: str, *, decode: bool) -> Part:
    if raw == "**":
        return None
    if raw in ("", ".", ".."):
        raise PatternError(
            f"{shown(text)!r} holds an empty, . or .. segment",
            "write the path plainly; ../ may stand only in front, and dir/** covers a folder",
        )
    tokens: list[bytes | object] = []
    index = 0
    while index < len(raw):
        char = raw[index]
        if char == "\\":
            index += 1
            if index == len(raw):
                raise PatternError(f"{shown(text)!r} ends in a backslash", "write \\\\ for one")
            tokens.append(raw[index].encode())
        elif char == "*":
            if tokens and tokens[-1] is _STAR:
                raise double(text)
            tokens.append(_STAR)
        elif char in _RESERVED:
            raise PatternError(
                f"{shown(text)!r} holds {char}, which is no wildcard here",
                f"use *, or \\{char} for the character itself",
            )
        elif char in _FIRST and index == 0:
            raise PatternError(
                f"{shown(text)!r} holds a name that begins with {char}",
                f"{_FIRST[char]}, or \\{char} for the character itself",
            )
        elif char == "%" and decode:
            escape = raw[index : index + 3]
            if not re.fullmatch(r"%[0-9A-Fa-f]{2}", escape):
                raise PatternError(f"{shown(text)!r} holds a bad percent escape", "write %25")
            tokens.append(bytes((int(escape[1:], 16),)))
            index += 2
        else:
            tokens.append(char.encode())
        index += 1
    return _joined(tokens, text)


def _joined(tokens: list[bytes | object], text: str) -> Part:
    pieces = [b""]
    for token in tokens:
        if isinstance(token, bytes):
            pieces[-1] += token
        else:
            pieces.append(b"")
    names = tuple(decode_name(piece) for piece in pieces)
    if any("/" in name or "\x00" in name for name in names) or names in ((".",), ("..",)):
        raise PatternError(
            f"{shown(text)!r} holds an escaped slash, dot or NUL", "write it plainly"
        )
    return names[0] if len(names) == 1 else names
