"""Budgets: integers that are reserved before an effect and settled after it.

Rules
- A limit is hard. `spent + reserved` never passes it, at any concurrency, because reserving is part
  of the one synchronous step that admits a request.
- An effect reserves its worst case in every account of its chain (run, parent runs, the state
  directory) or in none. It settles to what was used, never below and never above the reservation.
- What was reserved and not settled when a gate died is in doubt, and in doubt means spent.
- Amounts are non-negative integers: tokens, bytes, microseconds, micro-dollars, counts. Anything
  else is refused before it gets here, and raises `BudgetError` if it does.
- A dimension without a limit is counted and never refused. What is spent stays at the largest amount
  when it gets there: a file can say that it has 2^62 bytes, and a state must always have a form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

DIMENSIONS = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "tool_calls",
        "requests",
        "network_bytes",
        "file_bytes",
        "output_bytes",
        "stored_bytes",
        "wall_time",
        "runs",
        "denials",
    }
)
MAX_AMOUNT = 2**53 - 1


class BudgetError(ValueError):
    """An amount or a dimension that no budget knows: a defect or an attack, never admitted."""


class Account(msgspec.Struct):
    """One budget: hard `limit`s by dimension, what is `spent`, what is `reserved` in flight."""

    limit: dict[str, int] = {}
    spent: dict[str, int] = {}
    reserved: dict[str, int] = {}

    def left(self, dimension: str) -> int | None:
        """What may still be reserved; None when the dimension has no limit here."""
        limit = self.limit.get(dimension)
        if limit is None:
            return None
        return limit - self.spent.get(dimension, 0) - self.reserved.get(dimension, 0)


class Shortfall(msgspec.Struct, frozen=True):
    """Which account lacks what: `wanted` was asked, `left` is there."""

    account: str
    dimension: str
    wanted: int
    left: int


def check(amounts: Mapping[str, int]) -> None:
    """Raise `BudgetError` unless every dimension is known and every amount a sane integer."""
    for dimension, amount in amounts.items():
        if dimension not in DIMENSIONS:
            raise BudgetError(f"unknown budget dimension {dimension!r}")
        if type(amount) is not int or not 0 <= amount <= MAX_AMOUNT:
            raise BudgetError(f"{dimension} must be an integer from 0 to 2^53-1")


def shortfall(
    accounts: Mapping[str, Account], chain: Iterable[str], amounts: Mapping[str, int]
) -> Shortfall | None:
    """The first account of `chain` that can't take `amounts`; None when all can.

    An account that does not exist can take nothing.
    """
    check(amounts)
    for name in chain:
        account = accounts.get(name)
        if account is None:
            return Shortfall(name, "requests", 1, 0)
        for dimension in account.limit.keys() & amounts.keys():
            wanted = amounts[dimension]
            left = account.left(dimension)
            if wanted and left is not None and wanted > left:
                return Shortfall(name, dimension, wanted, max(left, 0))
    return None


def reserve(
    accounts: Mapping[str, Account], chain: Iterable[str], amounts: Mapping[str, int]
) -> None:
    """Move `amounts` into every account's reserved part. The caller has seen no shortfall."""
    for name in chain:
        reserved = accounts[name].reserved
        for dimension, amount in amounts.items():
            if amount:
                reserved[dimension] = reserved.get(dimension, 0) + amount


def settle(
    accounts: Mapping[str, Account],
    chain: Iterable[str],
    reserved: Mapping[str, int],
    spent: Mapping[str, int],
) -> None:
    """Replace a reservation by what was used."""
    for name in chain:
        account = accounts[name]
        for dimension, amount in reserved.items():
            if amount:
                rest = account.reserved.get(dimension, 0) - amount
                if rest < 0:
                    raise BudgetError(f"{name} has less {dimension} reserved than is settled")
                if rest:
                    account.reserved[dimension] = rest
                else:
                    account.reserved.pop(dimension, None)
        for dimension, amount in spent.items():
            if amount:
                whole = account.spent.get(dimension, 0) + amount
                account.spent[dimension] = min(whole, MAX_AMOUNT)
