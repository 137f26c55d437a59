"""Quantities in a policy: durations, sizes, money, processors. Integers out, never a float.

Pure. Every reader raises `ValueError` with a sentence for a person. Results stay below 2^53.
"""

from __future__ import annotations

import re
from typing import Final

MAX_AMOUNT: Final = 2**53 - 1
_TIME: Final = {
    "us": 1,
    "ms": 1000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_SIZE: Final = {
    "B": 1,
    **{unit + "B": 1000**power for power, unit in enumerate("KMGT", 1)},
    **{unit + "iB": 1024**power for power, unit in enumerate("KMGT", 1)},
}
_AMOUNT: Final = re.compile(r"([0-9]{1,16}) ?([A-Za-z]{1,3})\Z")
_DECIMAL: Final = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,6}))?\Z")


def count(value: object) -> int:
    """A plain non-negative integer."""
    if type(value) is not int:
        raise ValueError(f"must be a whole number, not {kind(value)}")
    return _bounded(value)


def duration(value: object) -> int:
    """`"5m"` in microseconds; units us ms s m h d."""
    return _amount(value, _TIME, 'a duration with its unit, as "500ms" or "5m" (us ms s m h d)')


def size(value: object) -> int:
    """`"20MB"` or a plain number of bytes; KB is 1000, KiB is 1024."""
    if type(value) is int:
        return _bounded(value)
    return _amount(value, _SIZE, 'a size, as "20MB", "64KiB" or a number of bytes')


def dollars(value: object) -> int:
    """`"2.50"` in millionths of a dollar; a whole number means whole dollars."""
    if type(value) is int:
        return _bounded(value * 1_000_000)
    return _decimal(value, 1_000_000, 6, 'an amount in quotes, as "2.50"')


def processors(value: object) -> int:
    """`"1.5"` or `2` in thousandths of a processor, more than zero."""
    if type(value) is int:
        found = _bounded(value * 1000)
    else:
        found = _decimal(value, 1000, 3, 'a number of processors, as 2 or "1.5"')
    if not found:
        raise ValueError("must be more than zero")
    return found


def kind(value: object) -> str:
    """What a value of TOML or JSON is, for a person."""
    names = {str: "text", bool: "true/false", int: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "something else")


def _amount(value: object, units: dict[str, int], wanted: str) -> int:
    found = _AMOUNT.match(value) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise ValueError(f"must be {wanted}")
    return _bounded(int(found[1]) * units[found[2]])


def _decimal(value: object, scale: int, digits: int, wanted: str) -> int:
    found = _DECIMAL.match(value) if isinstance(value, str) else None
    if found is None or len(found[2] or "") > digits:
        raise ValueError(f"must be {wanted}, with at most {digits} decimals")
    return _bounded(int(found[1]) * scale + int((found[2] or "").ljust(digits, "0")))


def _bounded(value: int) -> int:
    if value < 0:
        raise ValueError("must not be negative")
    if value > MAX_AMOUNT:
        raise ValueError("must be below 2^53")
    return value
