"""Files: one canonical form for a path.

Pure. Rules
- A plain path is taken literally, byte for byte; a relative one is joined to `cwd`. Single dots and
  repeated or trailing slashes vanish. Linux compares names as bytes, so nothing is case-folded or
  normalised.
- `fs:/…` is the canonical form and is percent-decoded exactly once; there `.`, empty names and an
  encoded `/` are refused.
- `..` is refused in both: what it means depends on links, which only the file system knows.
- NUL and control characters (C0, DEL, C1) are refused; so are names over 255 and paths over 4,095
  bytes, which Linux could not open.
- In the canonical text `%` is `%25` and every byte that is not part of UTF-8 is `%XX`; all else
  stands as it is, so two paths have the same text only if they are the same bytes.
- Segments are the names themselves, bytes that are not UTF-8 as lone surrogates (PEP 383), so that
  a wildcard never matches half of an escape.
"""

from __future__ import annotations

import re

from authority.kernel.addresses import ResourceError, shown

MAX_PATH = 4095
MAX_SEGMENT = 255
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_ESCAPE = re.compile("%|[\udc80-\udcff]")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


def file_segments(raw: str | bytes, cwd: str | bytes | None) -> tuple[str, ...]:
    """The names of an absolute path, from plain or `fs:` text. Raises `ResourceError`."""
    data = _bytes(raw)
    if len(data) > 3 * MAX_PATH + 4:
        raise ResourceError("the path is longer than a path can be")
    if data.startswith(b"fs:"):
        return _checked(_decoded(data), raw)
    if not data:
        raise ResourceError("the path is empty", "write a path")
    if not data.startswith(b"/"):
        if cwd is None:
            raise ResourceError(
                f"the path {shown(raw)!r} is relative", "write a path that begins with /"
            )
        base = _bytes(cwd)
        if not base.startswith(b"/"):
            raise ResourceError("the working directory is not an absolute path")
        data = base + b"/" + data
    return _checked([name for name in data.split(b"/") if name not in (b"", b".")], raw)


def file_text(segments: tuple[str, ...]) -> str:
    """The canonical text of a path."""
    plain = "fs:/" + "/".join(segments)
    if "%" not in plain and plain.isascii():
        return plain
    return _ESCAPE.sub(_escaped, plain)


def file_path(segments: tuple[str, ...]) -> bytes:
    """The absolute path for the operating system."""
    return ("/" + "/".join(segments)).encode("utf-8", "surrogateescape")


def decode_name(data: bytes) -> str:
    """Bytes of a name as text, what is not UTF-8 as lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def has_control(segment: str) -> bool:
    """Whether a name holds a control character, so that no resource can name it."""
    return _CONTROL.search(segment) is not None


def percent_decode(data: bytes) -> bytes:
    """Percent-decoding, once. Raises `ResourceError` on a percent sign that begins no escape."""
    if _BAD_PERCENT.search(data):
        raise ResourceError(
            f"{shown(data)!r} has a percent sign that begins no escape", "write %25 for it"
        )
    return _PERCENT.sub(lambda found: bytes((int(found[1], 16),)), data)


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    return "%25" if char == "%" else f"%{ord(char) - 0xDC00:02X}"


def _bytes(raw: str | bytes) -> bytes:
    if isinstance(raw, bytes):
        return raw
    try:
        return raw.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ResourceError("the path holds a lone surrogate, which is no character") from None


def _decoded(data: bytes) -> list[bytes]:
    if not data.startswith(b"fs:/"):
        raise ResourceError(
            f"{shown(data)!r} is not an absolute file resource", "write fs:/ and the path"
        )
    names = data[4:].split(b"/")
    if names == [b""]:
        return []
    decoded = [percent_decode(name) for name in names]
    for name in decoded:
        if name in (b"", b".") or b"/" in name:
            raise ResourceError(
                f"{shown(data)!r} holds an empty name, a dot or an encoded slash",
                "write the canonical form, as in fs:/data/a.txt",
            )
    return decoded


def _checked(names: list[bytes], raw: str | bytes) -> tuple[str, ...]:
    if sum(map(len, names)) + len(names) > MAX_PATH:
        raise ResourceError("the path is longer than 4095 bytes")
    segments = []
    for name in names:
        if name == b"..":
            raise ResourceError(f"the path {shown(raw)!r} holds ..", "write the path without ..")
        if len(name) > MAX_SEGMENT:
            raise ResourceError("the path holds a name longer than 255 bytes")
        segment = decode_name(name)
        if _CONTROL.search(segment):
            raise ResourceError(f"the path {shown(raw)!r} holds a control character")
        segments.append(segment)
    return tuple(segments)
