"""How fast, how often and how much: the generic cell rate algorithm, and what a link has used.

Pure, integers only; times in microseconds.

Rules
- GCRA in its virtual scheduling form (ITU-T I.371, annex A; ATM Forum TM 4.1, 4.4.3): a link keeps
  one number, the theoretical arrival time `tat`. A use at `now` conforms when
  now >= tat - (burst - 1) * interval, and then tat = max(now, tat) + interval.
  In any window of w microseconds at most burst + w // interval uses conform.
- `tat` never goes back. A clock that stepped back makes a link wait, never gives it more. A use
  that was aborted gets its count and quota back, but not its place in the rate: handed back later,
  when the time has drained it already, it would let two through at one instant.
- A delta holds what one use adds; `add` and `subtract` make the new state from the old one.
"""

from __future__ import annotations

import msgspec

__all__ = ["Usage", "UsageDelta", "add", "conform", "subtract"]


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one link has used: `tat` in us, `count` of uses, and a sum per quota argument."""

    tat: int = 0
    count: int = 0
    quotas: dict[str, int] = {}


class UsageDelta(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one use adds to a link: `tat` is its new value, the other two are amounts."""

    tat: int = 0
    count: int = 0
    quotas: dict[str, int] = {}


def conform(tat: int, now: int, *, interval: int, burst: int) -> int | None:
    """The new `tat` if a use at `now` conforms, else None.

    `interval` is the time between two uses in us (>= 1), `burst` how many may come at once (>= 1).
    """
    if interval < 1 or burst < 1:
        raise ValueError("interval and burst are at least 1")
    if now < tat - (burst - 1) * interval:
        return None
    return max(now, tat) + interval


def add(usage: Usage, delta: UsageDelta) -> Usage:
    """What was used, and this use with it."""
    quotas = usage.quotas
    if delta.quotas:
        quotas = dict(quotas)
        for name, amount in delta.quotas.items():
            quotas[name] = quotas.get(name, 0) + amount
    return Usage(max(usage.tat, delta.tat), usage.count + delta.count, quotas)


def subtract(usage: Usage, delta: UsageDelta) -> Usage:
    """What was used, without a use that was aborted; `tat` stays (the module's rules say why).

    Raises ValueError when more would be given back than was ever taken.
    """
    count = usage.count - delta.count
    quotas = dict(usage.quotas)
    for name, amount in delta.quotas.items():
        quotas[name] = quotas.get(name, 0) - amount
    if count < 0 or any(amount < 0 for amount in quotas.values()):
        raise ValueError("more would be given back than was used")
    return Usage(usage.tat, count, quotas)
