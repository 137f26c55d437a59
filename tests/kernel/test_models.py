"""Money and tokens: reserved enough, settled between what was used and what was reserved."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from authority.gate.policyfile import shipped_prices
from authority.kernel import models
from authority.kernel.budgets import Account
from authority.kernel.model_prices import FREE, KEYS, Price, cost, dearest, find
from authority.kernel.models import Ask, Terms, Usage, reserve, settle
from authority.kernel.policy import Policy, PolicyError, from_canonical, load, narrow
from authority.kernel.policy_models import choose
from authority.kernel.policy_sections import Source
from authority.kernel.resources import parse

rates = st.integers(0, 200_000_000)
known = st.integers(-1, 200_000_000)
prices = st.builds(
    Price,
    input=rates,
    output=rates,
    cached=known,
    cache_write=known,
    overhead=st.integers(0, 4096),
    image=st.integers(-1, 4096),
    stored=st.integers(-1, 4096),
    hosted=st.integers(-1, 4096),
    hosted_cost=known,
    max_output=st.integers(-1, 100_000),
    choices=st.integers(-1, 4),
)
sizes = st.integers(0, 2_000_000)


@st.composite
def demands(draw: Any) -> Ask:
    size = draw(sizes)
    return Ask(
        size=size,
        max_output=draw(st.integers(0, 200_000)),
        choices=draw(st.integers(1, 4)),
        media=draw(st.integers(0, size)),
        images=draw(st.integers(0, 3)),
        tools=draw(st.integers(0, 3)),
        cache=draw(st.booleans()),
        extras=tuple(
            draw(st.lists(st.sampled_from(["stored:x", "hosted:y", "key:z"]), unique=True))
        ),
    )


usages = st.builds(
    Usage,
    input=st.integers(-1, 2**53 - 1) | st.integers(0, 5000),
    output=st.integers(-1, 2**53 - 1) | st.integers(0, 5000),
    cached=st.integers(0, 2**53 - 1) | st.integers(0, 50),
    written=st.integers(0, 2**53 - 1) | st.integers(0, 50),
    text=st.integers(0, 10**7),
    complete=st.booleans(),
)
effects = st.sampled_from(sorted(models.EFFECTS))


def no_limit(_: str) -> None:
    return None


@given(effects, demands(), prices, usages, st.booleans())
def test_settling_stays_within_the_reservation(
    effect: str, demand: Ask, price: Price, usage: Usage, free: bool
) -> None:
    terms = Terms("m", price)
    held = reserve(effect, demand, terms, no_limit)
    done = settle(effect, held, demand, terms, usage, free=free)
    assert set(done.spent) <= set(held)
    for name, amount in done.spent.items():
        assert 0 <= amount <= held[name]


@given(demands(), prices, usages)
def test_settling_never_goes_below_what_was_used(demand: Ask, price: Price, usage: Usage) -> None:
    """An honest report inside the reservation is charged whole, at its price, rounded up."""
    terms = Terms("m", price)
    held = reserve("model.chat", demand, terms, no_limit)
    assume(0 <= usage.input <= held["input_tokens"])
    assume(0 <= usage.output <= held["output_tokens"])
    done = settle("model.chat", held, demand, terms, usage)
    assert done.spent["input_tokens"] >= usage.input
    assert done.spent["output_tokens"] >= usage.output
    assert not done.over
    cheapest = min(price.input, *(r for r in (price.cached, price.cache_write) if r >= 0), 10**12)
    assert done.spent["cost_usd"] * 10**6 >= usage.input * cheapest + usage.output * price.output


@given(demands(), prices)
def test_what_is_not_reported_is_charged_as_reserved(demand: Ask, price: Price) -> None:
    terms = Terms("m", price)
    held = reserve("model.chat", demand, terms, no_limit)
    done = settle("model.chat", held, demand, terms, Usage())
    assert done.spent["input_tokens"] == held["input_tokens"]
    assert done.spent["output_tokens"] == held["output_tokens"]


@pytest.mark.parametrize(("text", "tokens"), [(0, 0), (1, 1), (256, 1), (257, 2)])
def test_text_proves_tokens_whatever_is_reported(text: int, tokens: int) -> None:
    terms, demand = Terms("m", FREE), Ask(size=0, max_output=100)
    held = reserve("model.chat", demand, terms, no_limit)
    usage = Usage(input=0, output=0, text=text, complete=True)
    done = settle("model.chat", held, demand, terms, usage)
    assert done.spent["output_tokens"] == tokens
    assert done.facts.get("under", False) is (tokens > 0)


@given(
    demands(),
    prices,
    st.none() | st.integers(0, 10**6),
    st.none() | st.integers(0, 10**8),
    st.integers(1, 10**6),
)
def test_the_output_is_cut_to_fit_and_never_raised(
    demand: Ask, price: Price, tokens: int | None, money: int | None, default: int
) -> None:
    terms = Terms("m", price, default)
    account = Account(
        limit={k: v for k, v in (("output_tokens", tokens), ("cost_usd", money)) if v is not None}
    )
    held = reserve("model.chat", demand, terms, account.left)
    each, rest = divmod(held["output_tokens"], demand.choices)
    assert rest == 0
    assert 1 <= each <= max(1, demand.max_output or default)
    if each > 1:  # then it was cut to what fits, in both
        assert tokens is None or held["output_tokens"] <= tokens
        assert money is None or held["cost_usd"] <= money or not price.output


@given(prices, prices)
def test_two_lists_together_are_dearer_than_each(one: Price, other: Price) -> None:
    both = dearest([one, other])
    assert both is not None
    assert both == dearest([other, one])
    for key in ("input", "output", "overhead"):
        assert getattr(both, key) == max(getattr(one, key), getattr(other, key))
    for key in ("image", "stored", "hosted", "hosted_cost", "cache_write", "choices"):
        if -1 in (getattr(one, key), getattr(other, key)):
            assert getattr(both, key) == -1
    assert dearest([one, None]) is None
    assert dearest([one]) == one


def test_money_is_rounded_up_once() -> None:
    assert cost((1, 1)) == 1
    assert cost((1_000_000, 3), (1, 1)) == 4
    assert cost((0, 5)) == 0
    assert cost((2**31, 10**9)) == 2**31 * 1000


def table(*names: str) -> dict[str, Any]:
    return {name: {"input": number, "output": 0} for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("m", 0),
        ("m-20250101", 1),
        ("m-2025-01-01", 1),
        ("m-0613", 1),
        ("m-2024-02-02", 2),
        *(
            (name, None)
            for name in ("m-", "m-1", "m-mini", "m-2025010", "m-20250101-x", "M", "m-٢٠٢٥")
        ),
        *((name, None) for name in ("m-20250101-20250101", "m-DATE-0613", "m-latest", "mm")),
    ],
)
def test_a_name_has_its_own_price_only(name: str, found: int | None) -> None:
    price = find(table("m", "m-DATE", "m-2024-02-02"), name)
    assert (price and price.input) == found if found is not None else price is None


# --- the policy ---

BASE = """version = 1
[models]
allow = ["m-*", "obedient"]
[models.upstream.a]
url = "https://a.example/v1/"
api = "openai"
from_env = "A_KEY"
[models.upstream.b]
url = "https://b.example"
api = "anthropic"
models = ["m-c*"]
[models.price.m-a]
input = 5
output = 7
[models.price.m-c]
input = 50
output = 70
image = 10
"""


def make(text: str, **others: str) -> Policy:
    def parent(base: str, name: str) -> Source:
        if name == "authority:prices":
            return shipped_prices()
        return Source(others[name], "toml", "/p", name)

    return load(text, format="toml", base="/p", name="x.toml", read_parent=parent)


def allowed(policy: Policy, name: str) -> bool:
    return policy.judge("model.chat", parse("model.chat", f"model:{name}")).allowed


def test_the_section() -> None:
    policy = make(BASE)
    assert allowed(policy, "m-a")
    assert not allowed(policy, "n-a")
    assert policy.model("m-a").price == Price(5, 7)
    assert policy.model("m-b").price is None
    assert policy.model("gpt-4o").price is not None  # from the list that is shipped
    assert policy.model("obedient").price == FREE
    assert policy.model("obedient-x").builtin
    assert not policy.model("obedientx").builtin
    name, upstream = choose(policy.models, "m-a", "openai") or ("", None)
    assert (name, upstream and upstream.url) == ("a", "https://a.example:443/v1")
    assert choose(policy.models, "m-a", "anthropic") is None
    assert (choose(policy.models, "m-c", "anthropic") or ("",))[0] == "b"
    again = from_canonical(policy.canonical)
    assert (again.digest, again.model("m-c")) == (policy.digest, policy.model("m-c"))


def test_a_policy_without_upstreams_has_the_vendors_own() -> None:
    policy = make('version = 1\n[models]\nallow = ["gpt-*", "claude-*"]\n')
    found = choose(policy.models, "gpt-4o", "openai")
    assert found is not None
    assert found[1].url == "https://api.openai.com:443/v1"
    assert found[1].limit == "max_completion_tokens"
    assert choose(policy.models, "claude-x", "anthropic") is not None
    assert choose(policy.models, "claude-x", "openai") is None
    assert not make("version = 1").models.upstream


def test_extending_tightens() -> None:
    child = 'version = 1\nextends = "base"\n'
    same = make(child, base=BASE)
    assert allowed(same, "m-a")
    assert same.model("m-a") == make(BASE).model("m-a")
    assert same.models.upstream == make(BASE).models.upstream
    fewer = make(child + '[models]\nallow = ["m-a", "n-*"]\ndeny = ["m-b"]\n', base=BASE)
    assert [allowed(fewer, name) for name in ("m-a", "m-b", "m-c", "n-a")] == [
        True,
        False,
        False,
        False,
    ]
    cheaper = make(child + "[models.price.m-a]\ninput = 1\noutput = 100\n", base=BASE)
    assert cheaper.model("m-a").price == Price(5, 100, cached=5)
    limit = make(child + "[models]\ndefault_max_output = 9\n", base=BASE)
    assert limit.model("m-a").default_max_output == 9
    counted = make(child + '[models]\ninput_bound = "count"\n', base=BASE)
    assert not counted.model("m-a").count  # the base says bytes
    vouched = '[models]\nextras = ["key:a"]\n'
    assert make("version = 1\n" + vouched).model("m-a").extras == {"key:a"}
    assert make(child + vouched, base=BASE).model("m-a").extras == frozenset()
    narrower = make(child + '[models.upstream.b]\nmodels = ["m-c*"]\n', base=BASE)
    assert list(narrower.models.upstream) == ["b"]


@pytest.mark.parametrize(
    "more",
    [
        '[models.upstream.a]\nurl = "https://evil.example"\n',
        '[models.upstream.a]\nfrom_env = "B_KEY"\n',
        '[models.upstream.c]\nurl = "https://c.example"\napi = "openai"\n',
    ],
)
def test_extending_can_not_send_elsewhere(more: str) -> None:
    with pytest.raises(PolicyError):
        make('version = 1\nextends = "base"\n' + more, base=BASE)
    make('version = 1\nextends = "base"\n[models.upstream.a]\napi = "openai"\n', base=BASE)


def test_a_child_has_no_more_than_its_parent() -> None:
    parent = make(BASE)
    child = make(
        BASE.replace("https://b.example", "https://evil.example").replace("= 5\n", "= 1\n")
    )
    both = narrow(parent, child)
    assert allowed(both, "m-a")
    assert both.model("m-a").price == Price(5, 7, cached=5)
    assert list(both.models.upstream) == ["a"]
    empty = narrow(parent, make("version = 1"))
    assert not allowed(empty, "m-a")
    assert not narrow(make("version = 1"), child).models.upstream


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[models]\nallow = ['*']", "everything"),
        ("[models]\nallow = ['m a']", "names no model"),
        ("[models]\nprice = { m = { input = 1 } }", "output"),
        ("[models]\nprice = { m = { input = 1, output = 1.5 } }", "float"),
        ("[models]\nprice = { m = { input = -1, output = 1 } }", "negative"),
        ("[models]\nprice = { m = { input = 1, output = 1, x = 1 } }", "not a key"),
        ("[models]\nprice = { 'm m' = { input = 1, output = 1 } }", "name of a model"),
        ("[models]\ndefault_max_output = 0", "more than zero"),
        ("[models]\ninput_bound = 'guess'", "one of"),
        ("[models.upstream.a]\napi = 'openai'", "url"),
        ("[models.upstream.a]\nurl = 'ftp://x'\napi = 'openai'", "url"),
        ("[models.upstream.a]\nurl = 'https://x/?a=b'\napi = 'openai'", "query"),
        ("[models.upstream.a]\nurl = 'https://u:p@x/'\napi = 'openai'", "url"),
        ("[models.upstream.a]\nurl = 'https://x'\napi = 'grpc'", "one of"),
        ("[models.upstream.a]\nurl = 'https://x'\napi = 'openai'\nmodels = ['a b']", "pattern"),
        (
            "[process]\npass_env = ['K']\n[models.upstream.a]\nurl = 'https://x'\napi = 'openai'\n"
            "from_env = 'K'",
            "pass_env",
        ),
    ],
)
def test_mistakes_are_named(text: str, word: str) -> None:
    with pytest.raises(PolicyError) as error:
        make("version = 1\n" + text)
    assert word in str(error.value)


def test_the_shipped_list_loads_and_every_key_is_documented() -> None:
    from pathlib import Path

    policy = make('version = 1\n[models]\nallow = ["gpt-*", "claude-*"]\n')
    dated = policy.model("claude-sonnet-4-5-20250929").price
    assert dated == policy.model("claude-sonnet-4-5").price
    assert policy.model("gpt-4o-audio-preview").price is None
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    assert [key for key in KEYS if f"`{key}`" not in text] == []
