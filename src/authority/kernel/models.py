"""What a model call reserves, when it is refused, and what it costs in the end.

Pure. Rules
- The input is bounded by the forwarded body's bytes (`dialects.demand` says why), less the pictures
  and files inside, for which the price list's own bounds stand, plus the list's overhead. Where the
  policy lets the vendor count (`input_bound = "count"`), its count with a margin of one in twenty
  and the overhead may stand in place of the bytes.
- The output is what the request asks for, or `default_max_output`, cut down to what is left of
  tokens and money in every account above the run. That number is filled in; it is reserved.
- A request that its bytes do not bound is refused when tokens or money are limited anywhere above
  the run, unless the list has the bound. A model without a price is refused when money is.
- Settling believes the vendor within what was reserved and what the answer's own text proves. More
  than was reserved is charged as the reservation and noted (`over`): then either the vendor lies or
  a bound is wrong, and the model is not used again in that run. What was not reported (a stream
  that was cut) is charged as reserved. An answer that refuses (a status of 400 and above) is free.
- Only integers. Money is rounded up, once a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from authority.kernel.budgets import Account
from authority.kernel.model_prices import DEFAULT_OVERHEAD, FREE, TOOL_OVERHEAD, Price, cost

EFFECTS: Final = frozenset({"model.chat", "model.embed", "model.count"})
TOKENS: Final = ("input_tokens", "output_tokens", "cost_usd")
BUILTIN: Final = ("obedient", "obedient-embed")
"""Names of the obedient model's that are listed; every `obedient-…` is one of its own."""
DEFAULT_MAX_OUTPUT: Final = 8192
MAX_LIMIT: Final = 2**31 - 1
LONGEST_TOKEN: Final = 256
"""No vocabulary in use has a token of more bytes."""
UNBOUNDED_INPUT: Final = 2_000_000
"""What is reserved beside for a request that nothing bounds, in a run without limits."""
WHOLE_ANSWER: Final = 1024 * 1024
"""The most bytes of an answer that comes in one piece through the channel."""

Left = Callable[[str], int | None]
"""What is left of a dimension, the least of all accounts above the run; None without a limit."""


class Unbounded(Exception):
    """A request that is not taken, and why, for the operator; `rule` is what could bound it."""

    def __init__(self, reason: str, rule: str = "models") -> None:
        super().__init__(reason)
        self.rule = rule


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's demand, as the facts hold it (`dialects.demand.Demand` has the same fields)."""

    size: int
    max_output: int = 0
    choices: int = 1
    media: int = 0
    images: int = 0
    documents: int = 0
    tools: int = 0
    cache: bool = False
    stream: bool = False
    extras: tuple[str, ...] = ()
    fetched: bool = False


class Terms(msgspec.Struct, frozen=True):
    """What a policy says about one model. `builtin`: it is the obedient model.

    `extras` are those that the policy vouches for: they cost no more than bytes and limit say.
    """

    name: str
    price: Price | None
    default_max_output: int = DEFAULT_MAX_OUTPUT
    count: bool = False
    builtin: bool = False
    extras: frozenset[str] = frozenset()


class Usage(msgspec.Struct, frozen=True):
    """What an answer reported; -1 is not said. `text`: bytes that the model wrote."""

    input: int = -1
    output: int = -1
    cached: int = 0
    written: int = 0
    text: int = 0
    complete: bool = False


class Settled(msgspec.Struct, frozen=True):
    """What is charged, what is noted, and whether a report passed what was reserved."""

    spent: dict[str, int]
    facts: dict[str, Any]
    over: bool = False


def is_builtin(name: str) -> bool:
    """Whether a name is one of the obedient model's, which never leaves this machine."""
    return name == "obedient" or name.startswith("obedient-")


def ask(facts: Mapping[str, Any]) -> Ask | None:
    """The demand that the gate looked up; None when there is none that makes sense."""
    try:
        found = msgspec.convert(facts.get("demand"), Ask)
    except msgspec.ValidationError:
        return None
    numbers = (found.size, found.max_output, found.media, found.images, found.documents)
    sane = all(0 <= n <= MAX_LIMIT for n in (*numbers, found.tools)) and found.media <= found.size
    return found if sane and 1 <= found.choices <= MAX_LIMIT else None


def elsewhere(facts: Mapping[str, Any], terms: Terms) -> bool:
    """Whether a request has the vendor bring words from elsewhere, or act there: by tools that it runs,
    by what it has stored, from an address, or by what is not known here and not vouched for."""
    demand = ask(facts)
    if demand is None or terms.builtin:
        return False
    unknown = (extra for extra in demand.extras if extra not in terms.extras)
    kinds = {extra.partition(":")[0] for extra in demand.extras} & {"hosted", "stored"}
    kinds |= {extra.partition(":")[0] for extra in unknown} & {"key", "part"}
    return demand.fetched or bool(kinds)


def input_bound(demand: Ask, price: Price | None, counted: int | None = None) -> int:
    """The most tokens that a request can have as input, given what the list bounds."""
    price = price or Price(input=0, output=0, overhead=DEFAULT_OVERHEAD)
    kinds = {extra.partition(":")[0] for extra in demand.extras}
    own = demand.size - demand.media + demand.tools * TOOL_OVERHEAD
    own += demand.images * max(price.image, 0) + demand.documents * max(price.document, 0)
    if counted is not None and counted >= 0:
        own = min(own, counted + counted // 20)
    later = max(price.stored, 0) if "stored" in kinds else 0
    later += max(price.hosted, 0) if "hosted" in kinds else 0
    return own + price.overhead + later


class Lack(msgspec.Struct, frozen=True):
    """Why a request is not taken, for the operator, and the key of a price that would bound it."""

    reason: str
    key: str = ""


def refusal(
    effect: str, demand: Ask, terms: Terms, limited: frozenset[str], counted: int | None = None
) -> Lack | None:
    """What a request lacks at these limits; None when it is taken."""
    if effect == "model.count" or not limited or terms.builtin:
        return None
    price, name = terms.price, terms.name
    if price is None and "cost_usd" in limited:
        return Lack(f"the price of {name} is not known and money is budgeted", "input")
    known = price or Price(input=0, output=0)
    if "cost_usd" in limited:
        if demand.cache and known.cache_write < 0:
            return Lack("the price of writing to the prompt cache is not known", "cache_write")
        if 0 <= known.max_input < input_bound(demand, price, counted):
            most = known.max_input
            return Lack(f"the price is not known for more than {most} tokens of input", "max_input")
    for extra in demand.extras:
        kind = extra.partition(":")[0]
        if extra in terms.extras:
            continue
        if kind == "stored" and known.stored >= 0:
            continue
        if kind == "hosted" and known.hosted >= 0 and known.hosted_cost >= 0:
            continue
        key = kind if kind in ("stored", "hosted") else ""
        return Lack(f"what {extra} costs is not bounded by the request, nor by the price", key)
    for key, wanted in (("image", demand.images), ("document", demand.documents)):
        if wanted and getattr(known, key) < 0:
            return Lack(f"the price of {name} bounds no {key}", key)
    most = max(known.choices, 1)
    if demand.choices > most:
        return Lack(f"{demand.choices} choices are asked for, and {most} is the most", "choices")
    return None


def bounded(effect: str, demand: Ask, terms: Terms) -> bool:
    """Whether the request and the price list bound its tokens."""
    return refusal(effect, demand, terms, frozenset({"input_tokens"})) is None


def reserve(
    effect: str,
    demand: Ask,
    terms: Terms,
    left: Left,
    counted: int | None = None,
    *,
    whole: bool = False,
) -> dict[str, int]:
    """The worst case, with the output cut down to what is left (never below one token).

    `whole`: the answer comes in one piece through the channel, so its bytes are reserved too; those
    of an answer that goes on are charged piece by piece.
    """
    amounts = {"requests": 1}
    if whole and not terms.builtin:
        amounts["network_bytes"] = demand.size + WHOLE_ANSWER
    if effect == "model.count":
        return amounts
    price = terms.price
    read = input_bound(demand, price, counted)
    if not bounded(effect, demand, terms):
        read += UNBOUNDED_INPUT  # nothing is limited here, or it would have been refused
    amounts["input_tokens"] = read
    rate = 0 if price is None else max(price.input, price.cache_write if demand.cache else 0)
    output_rate = 0 if price is None else price.output
    hosted = _hosted_cost(demand, price)
    if effect == "model.chat":
        granted = demand.max_output or terms.default_max_output
        if not demand.max_output and price is not None and price.max_output > 0:
            granted = min(granted, price.max_output)
        tokens, money = left("output_tokens"), left("cost_usd")
        if tokens is not None:
            granted = min(granted, tokens // demand.choices)
        if money is not None and output_rate:
            rest = (money - hosted) * 1_000_000 - read * rate
            granted = min(granted, rest // (output_rate * demand.choices))
        amounts["output_tokens"] = max(1, min(granted, MAX_LIMIT)) * demand.choices
    if price is not None:
        wrote = amounts.get("output_tokens", 0)
        amounts["cost_usd"] = cost((read, rate), (wrote, output_rate)) + hosted
    return amounts


def worst(
    effect: str, facts: Mapping[str, Any], terms: Terms, chain: Sequence[Account]
) -> dict[str, int]:
    """What a call reserves in the accounts above a run. Raises `Unbounded` when it is refused."""
    demand = ask(facts)
    if demand is None:
        raise Unbounded("what the request may cost was not looked up")
    if facts.get("distrusted"):
        why = "an earlier answer of this model reported more than was reserved"
        raise Unbounded(why, "models.usage")

    def left(dimension: str) -> int | None:
        found = [n for account in chain if (n := account.left(dimension)) is not None]
        return min(found, default=None)

    limited = frozenset(d for d in TOKENS if left(d) is not None)
    counted = facts.get("counted") if terms.count else None
    lack = refusal(effect, demand, terms, limited, counted)
    if lack is not None:
        raise Unbounded(lack.reason, f"models.price.{lack.key}" if lack.key else "models")
    return reserve(effect, demand, terms, left, counted, whole=bool(facts.get("whole")))


def settle(
    effect: str,
    reserved: Mapping[str, int],
    demand: Ask,
    terms: Terms,
    usage: Usage,
    *,
    free: bool = False,
) -> Settled:
    """What a call costs. `free`: nothing reached the vendor, or it refused."""
    facts = {
        name: value
        for name, value in (("reported_input", usage.input), ("reported_output", usage.output))
        if value >= 0
    }
    spent = {"requests": reserved.get("requests", 0)}
    if free or effect == "model.count":
        return Settled(spent, facts)
    most_in, most_out = reserved.get("input_tokens", 0), reserved.get("output_tokens", 0)
    least_in = min(most_in, (demand.size - demand.media) // LONGEST_TOKEN)
    least_out = min(most_out, -(-usage.text // LONGEST_TOKEN))
    read = most_in if usage.input < 0 else min(max(usage.input, least_in), most_in)
    known = usage.complete and usage.output >= 0
    wrote = min(max(usage.output, least_out), most_out) if known else most_out
    over = usage.input > most_in or usage.output > most_out
    over = over and bounded(effect, demand, terms)
    if over:
        facts["over"] = True
    if not usage.complete:
        facts["incomplete"] = True
    if (0 <= usage.input < least_in) or (known and usage.output < least_out):
        facts["under"] = True
    spent |= {"input_tokens": read}
    if "output_tokens" in reserved:
        spent["output_tokens"] = wrote
    price = terms.price
    if price is not None:
        parts = _input_parts(read, usage, price, cache=demand.cache)
        money = cost(*parts, (wrote, price.output)) + _hosted_cost(demand, price)
        spent["cost_usd"] = min(money, reserved.get("cost_usd", 0))
    return Settled(spent, facts, over)


def _input_parts(read: int, usage: Usage, price: Price, *, cache: bool) -> list[tuple[int, int]]:
    """Input tokens by their price. What is not said, or does not add up, is at the dearest."""
    written = price.cache_write if cache and price.cache_write >= 0 else price.input
    cached = price.cached if price.cached >= 0 else price.input
    if usage.input < 0 or usage.cached + usage.written > read:
        return [(read, max(written, price.input))]
    plain = read - usage.cached - usage.written
    return [(plain, price.input), (usage.cached, cached), (usage.written, written)]


def _hosted_cost(demand: Ask, price: Price | None) -> int:
    hosted = any(extra.partition(":")[0] == "hosted" for extra in demand.extras)
    return max(0, price.hosted_cost) if hosted and price is not None else 0


def builtin_terms(name: str, default_max_output: int) -> Terms:
    """The obedient model's: free of charge, and nothing that it does not bound."""
    return Terms(name, FREE, default_max_output, builtin=True)
