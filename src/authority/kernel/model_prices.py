"""The price list of models: whole millionths of a dollar for a million tokens, and bounds.

Pure. Rules
- An entry is looked up by the model's exact name. A name may end in `-DATE`, which stands for a
  vendor's date (`20250929`, `2025-09-29`, `0613`) and nothing else, so that a dearer variant never
  passes for a known model. An exact name beats one with a date.
- `input` and `output` are required; zero is a price like any other. What is left out is not known,
  and what is not known is not allowed where money or tokens are budgeted.
- Several lists (of a policy and those that it extends, of a child and its parent) are put together
  to the dearest and narrowest: a price that one of them does not know is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

MILLION: Final = 1_000_000
DEFAULT_OVERHEAD: Final = 1024
"""Tokens that a vendor may add to a request of its own, where the list says nothing."""
TOOL_OVERHEAD: Final = 1024
"""Tokens for each tool that the vendor describes to the model by its name alone."""
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")
_DATED: Final = re.compile(r"(.+)-(?:[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4})\Z")
_SUFFIX: Final = "-DATE"
_PRICES: Final = ("input", "output", "cached", "cache_write", "hosted_cost")
_BOUNDS: Final = ("overhead", "image", "document", "stored", "hosted")
_MOST: Final = ("max_output", "max_input", "choices")
KEYS: Final = (*_PRICES, *_BOUNDS, *_MOST)


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one model costs and how far its requests are bounded; -1 is not known.

    `cached` and `cache_write`: input that is read from or written to a prompt cache. `overhead`:
    tokens beside what bytes bound. `image`, `document`, `stored`, `hosted`: the most tokens of one
    picture, one file, all that a stored conversation adds, all that tools of the vendor's add;
    `hosted_cost` what those cost at most in one request. `max_output`: what the vendor writes at
    most. `max_input`: how long a request may be for these prices to hold. `choices`: the largest
    `n` that may be asked for.
    """

    input: int
    output: int
    cached: int = -1
    cache_write: int = -1
    overhead: int = DEFAULT_OVERHEAD
    image: int = -1
    document: int = -1
    stored: int = -1
    hosted: int = -1
    hosted_cost: int = -1
    max_output: int = -1
    max_input: int = -1
    choices: int = -1


FREE: Final = Price(input=0, output=0, overhead=0, cached=0, cache_write=0, image=0, document=0)
"""What the built-in model costs: nothing, said explicitly."""


def find(table: Mapping[str, Any], name: str) -> Price | None:
    """The entry of a model in a checked table."""
    entry = table.get(name)
    if entry is None and (dated := _DATED.match(name)):
        entry = table.get(dated[1] + _SUFFIX)
    return None if entry is None else Price(**entry)


def dearest(found: Iterable[Price | None]) -> Price | None:
    """The one price that is at least as dear and narrow as all; None when one does not know it."""
    result: Price | None = None
    for price in found:
        if price is None:
            return None
        result = price if result is None else _both(result, price)
    return result


def cost(*parts: tuple[int, int]) -> int:
    """Millionths of a dollar for (tokens, price for a million) together, rounded up."""
    return -(-sum(tokens * rate for tokens, rate in parts) // MILLION)


def _both(one: Price, other: Price) -> Price:
    fields = {}
    for key in KEYS:
        a, b = getattr(one, key), getattr(other, key)
        if key in _MOST:
            fields[key] = min(a, b) if min(a, b) >= 0 else max(a, b)
        elif key == "cached":
            fields[key] = max(_cached(one), _cached(other))
        else:
            fields[key] = -1 if min(a, b) < 0 else max(a, b)
    if -1 in (one.choices, other.choices):
        fields["choices"] = -1
    return Price(**fields)


def _cached(price: Price) -> int:
    return price.input if price.cached < 0 else price.cached
