"""Arguments of a request: which MessagePack is taken, checked without building anything.

- One map with string keys, none twice, at every level; no extension types (timestamps neither).
- Strings are UTF-8; integers |n| < 2**53; floats are 64 bits wide and finite, and allowed only in
  the arguments of a tool, because JSON has them; no effect of our own takes any.
- Every value in its shortest form, at most `MAX_DEPTH` deep, at most `MAX_ITEMS` values.

So what was judged has one reading, and its bytes are its canonical form. The check reads the bytes
themselves: a frame of 9 MiB could announce nine million empty lists, which must not be built first.
"""

from __future__ import annotations

import math
import struct

import msgspec

from authority.protocol.frames import INVALID, ProtocolError

MAX_DEPTH = 32
MAX_ITEMS = 65_536
MAX_INT = 2**53 - 1


def checked_arguments(arguments: msgspec.Raw | bytes, *, floats: bool = False) -> bytes:
    """The canonical bytes of a request's arguments, after every rule above was checked.

    `floats` is for the arguments of tools. Raises ProtocolError with `E_SCHEMA_INVALID`.
    """
    data = bytes(arguments)
    if data == b"\x80":
        return data
    if not data or not (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):
        raise _bad("they are no map")
    check_value(data, floats=floats)
    return data


# Tag: (bytes of the length, least length that needs them)
_STRINGS = {0xD9: (1, 32), 0xDA: (2, 256), 0xDB: (4, 65536)}
_BINARIES = {0xC4: (1, 0), 0xC5: (2, 256), 0xC6: (4, 65536)}
_ARRAYS = {0xDC: (2, 16), 0xDD: (4, 65536)}
_MAPS = {0xDE: (2, 16), 0xDF: (4, 65536)}
_SIZED = _STRINGS | _BINARIES | _ARRAYS | _MAPS
# Tag: (bytes, signed, least, most) of the integers that are shortest with it
_INTEGERS = {
    0xCC: (1, False, 128, 255),
    0xCD: (2, False, 256, 65535),
    0xCE: (4, False, 65536, 2**32 - 1),
    0xCF: (8, False, 2**32, MAX_INT),
    0xD0: (1, True, -128, -33),
    0xD1: (2, True, -32768, -129),
    0xD2: (4, True, -(2**31), -32769),
    0xD3: (8, True, -MAX_INT, -(2**31) - 1),
}
_NIL_TRUE_FALSE = frozenset({0xC0, 0xC2, 0xC3})
_FLOAT64 = 0xCB


def check_value(data: bytes, *, floats: bool) -> None:
    """Check one MessagePack value that is all of `data`, without building it.

    An explicit stack, since the depth is the sender's choice; each frame of it is how many values
    are left and, for a map, the keys seen (a key is due when an odd number is left after it).
    """
    at, size, items = 0, len(data), 0
    left, keys = 1, None
    stack: list[tuple[int, set[bytes] | None]] = []
    while True:
        while not left:
            if not stack:
                if at != size:
                    raise _bad("bytes follow them")
                return
            left, keys = stack.pop()
        left -= 1
        items += 1
        if items > MAX_ITEMS:
            raise _bad(f"they hold more than {MAX_ITEMS} values")
        if at >= size:
            raise _bad("they are cut off")
        start, tag = at, data[at]
        at += 1
        length, kind = 0, 0
        if tag < 0x80 or tag >= 0xE0 or tag in _NIL_TRUE_FALSE:
            pass
        elif tag < 0xC0:
            length, kind = (
                (tag & 0x1F, 0xD9) if tag >= 0xA0 else (tag & 0x0F, 0xDC if tag >= 0x90 else 0xDE)
            )
        elif tag in _SIZED:
            width, least = _SIZED[tag]
            length = int.from_bytes(data[at : at + width], "big")
            at += width
            kind = tag
            if at > size:
                raise _bad("they are cut off")
            if length < least:
                raise _bad("a length is not in its shortest form")
        elif tag in _INTEGERS:
            width, signed, low, high = _INTEGERS[tag]
            value = int.from_bytes(data[at : at + width], "big", signed=signed)
            at += width
            if at > size:
                raise _bad("they are cut off")
            if not low <= value <= high:
                raise _bad("an integer is not in its shortest form, or too large")
        elif tag == _FLOAT64 and floats:
            at += 8
            if at > size:
                raise _bad("they are cut off")
            if not math.isfinite(struct.unpack_from(">d", data, at - 8)[0]):
                raise _bad("a number is not finite")
        else:
            raise _bad("they hold a float or an extension type")
        if kind in _STRINGS or kind in _BINARIES:
            at += length
            if at > size:
                raise _bad("they are cut off")
            if kind in _STRINGS:
                _utf8(data[at - length : at])
        if keys is not None and left & 1:
            if kind not in _STRINGS:
                raise _bad("a key is no string")
            key = data[start:at]
            if key in keys:
                raise _bad("a key stands there twice")
            keys.add(key)
        elif kind in _ARRAYS or kind in _MAPS:
            count = length if kind in _ARRAYS else 2 * length
            if count > size - at:
                raise _bad("they are cut off")
            stack.append((left, keys))
            if len(stack) > MAX_DEPTH:
                raise _bad(f"they are more than {MAX_DEPTH} deep")
            left, keys = count, (set() if kind in _MAPS else None)


def _utf8(data: bytes) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad("a string is not UTF-8") from error


def _bad(what: str) -> ProtocolError:
    return ProtocolError(INVALID, f"The arguments are not valid: {what}.")
