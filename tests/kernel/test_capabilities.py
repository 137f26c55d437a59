"""Capabilities that are used as they are meant: minting, reading, narrowing, covering, counting."""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority import tokens
from authority.kernel.capabilities import (
    MacKey,
    Quota,
    Rate,
    Refusal,
    Restriction,
    Token,
    TokenError,
    attenuate,
    from_text,
    mint,
    parse,
    restriction_from_plain,
    scope,
    to_text,
    use,
    verify,
)
from authority.kernel.codes import Code
from authority.kernel.labels import CLEAN, Label
from authority.kernel.patterns import PatternSet
from authority.kernel.rates import Usage, UsageDelta, add
from authority.kernel.resources import parse as resource_of
from authority.kernel.restrictions import link

SECRET = bytes(range(32))
KEY = MacKey("k1", SECRET)
ID = "00112233445566778899aabbccddeeff"
NOW = 1_800_000_000_000_000


def token_of(*restrictions: Restriction, run: str = "run-1") -> Token:
    raw = mint(KEY, id=ID, run=run, restriction=restrictions[0])
    for i, restriction in enumerate(restrictions[1:]):
        raw = attenuate(raw, restriction, nonce=bytes([i]) * 16)
    token = parse(raw)
    assert verify(token, KEY)
    return token


def asked(
    token: Token,
    effect: str = "fs.read",
    resource: str = "fs:/data/a.txt",
    *,
    verb: str = "",
    run: str = "run-1",
    now: int = NOW,
    numbers: dict[str, int | None] | None = None,
    label: Label = CLEAN,
) -> Code | None:
    refusal = scope(
        token,
        effect=effect,
        resource=resource_of(effect, resource),
        verb=verb,
        run=run,
        now=now,
        numbers=numbers or {},
        label=label,
    )
    assert refusal is None or refusal.reason.startswith("capability ")
    return refusal.code if refusal else None


class Ledger:
    """Uses a token and charges what it used, as the fold does."""

    def __init__(self) -> None:
        self.usage: dict[str, Usage] = {}

    def use(self, token: Token, now: int = NOW, **numbers: int | None) -> Code | None:
        deltas = use(token, self.usage, now=now, numbers=numbers)
        if isinstance(deltas, Refusal):
            return deltas.code
        for id_, delta in deltas.items():
            self.usage[id_] = add(self.usage.get(id_, Usage()), delta)
        return None


def test_the_mac_is_hmac_sha256_chained() -> None:
    """Against the standard library's HMAC, link by link."""
    first, second = Restriction(methods=("fs.*",)), Restriction(count=3)
    raw = attenuate(mint(KEY, id=ID, run="r", restriction=first), second, nonce=b"n" * 16)
    head = msgspec.msgpack.encode(["k1", bytes.fromhex(ID), "r"])
    one = msgspec.msgpack.encode({"methods": ["fs.*"]})
    two = msgspec.msgpack.encode({"count": 3, "nonce": b"n" * 16})
    framed = len(head).to_bytes(2, "big") + head + len(one).to_bytes(2, "big") + one
    mac = hmac.digest(SECRET, b"authority/cap/1/head\0" + framed, "sha256")
    mac = hmac.digest(mac, b"authority/cap/1/restriction\0" + two, "sha256")
    assert raw == b"aut\x01" + framed + len(two).to_bytes(2, "big") + two + mac


def test_what_was_minted_is_read_again() -> None:
    restriction = Restriction(
        resources=("fs:/data/**", "GET https://api.example/**"),
        methods=("fs.*", "http.request"),
        not_before=1,
        expires=NOW,
        rate=Rate(count=5, per=1_000_000, burst=2),
        count=9,
        quotas=(Quota(argument="amount", limit=10_000),),
        approval=True,
        sources=("host",),
        secrets=(),
        run_only=True,
    )
    token = token_of(restriction, Restriction(count=1))
    assert (token.kid, token.run, token.ids[0]) == ("k1", "run-1", ID)
    assert token.restrictions[0] == restriction
    assert token.restrictions[1].count == 1
    assert token.needs_approval
    assert len(set(token.ids)) == 2
    assert token.id == token.ids[1]


def test_plain_and_back() -> None:
    restriction = Restriction(
        nonce=b"\xff" * 16, quotas=(Quota(argument="a", limit=1),), secrets=()
    )
    plain = restriction.plain()
    assert plain == {
        "nonce": "ff" * 16,
        "quotas": [{"argument": "a", "limit": 1}],
        "secrets": [],
    }
    assert restriction_from_plain(plain) == restriction


def test_text_and_back() -> None:
    raw = mint(KEY, id=ID, run="r", restriction=Restriction())
    assert to_text(raw).startswith("auth1_")
    assert from_text(to_text(raw)) == raw


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[6:],
        lambda t: t + "=",
        lambda t: t[:-1],
        lambda t: t + "A",
        lambda t: t.replace("_", "-", 1),
        lambda t: t[:20] + "\n" + t[20:],
        lambda t: t[:20] + "+" + t[21:],
        lambda t: t[:-1] + "\N{LATIN SMALL LETTER E WITH ACUTE}",
        lambda t: "auth1_" + "A" * 20_000,
    ],
)
def test_other_texts_are_refused(change: Any) -> None:
    text = to_text(mint(KEY, id=ID, run="r", restriction=Restriction(count=1)))
    with pytest.raises(TokenError):
        from_text(change(text))


def test_text_has_one_spelling() -> None:
    """The last character carries unused bits; only one of its spellings is taken."""
    raw = mint(KEY, id=ID, run="rr", restriction=Restriction())
    text = to_text(raw)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    taken = [c for c in alphabet if _reads(text[:-1] + c) == raw]
    assert taken == [text[-1]]


def _reads(text: str) -> bytes | None:
    try:
        return from_text(text)
    except TokenError:
        return None


@pytest.mark.parametrize(
    "fields",
    [
        {"unknown": 1},
        {"\x1b[31m\u202e": 1},
        {"resources": ["**"]},
        {"resources": ["*"]},
        {"resources": ["./docs/**"]},
        {"resources": ["docs/**"]},
        {"resources": ["/docs/**"]},
        {"resources": "fs:/data/**"},
        {"resources": [""]},
        {"resources": ["fs:/" + "a" * 2000]},
        {"methods": ["*"]},
        {"methods": ["*.read"]},
        {"methods": ["fs*"]},
        {"methods": ["FS.read"]},
        {"count": -1},
        {"count": 1.0},
        {"count": True},
        {"count": 2**53},
        {"expires": "tomorrow"},
        {"rate": {"count": 1}},
        {"rate": {"count": 0, "per": 1}},
        {"rate": {"count": 1, "per": 0}},
        {"rate": {"count": 1, "per": 10**15}},
        {"rate": {"count": 1, "per": 10**12, "burst": 10**6}},
        {"quotas": []},
        {"quotas": [{"argument": "a", "limit": -1}]},
        {"quotas": [{"argument": "a", "limit": 1}, {"argument": "a", "limit": 2}]},
        {"sources": ["*"]},
        {"nonce": "00"},
        {"nonce": "zz" * 16},
        {"methods": ["fs.\udc80"]},
    ],
)
def test_a_restriction_that_breaks_a_rule_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TokenError) as caught:
        restriction_from_plain(fields)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "restriction",
    [
        Restriction(count=-1),
        Restriction(count=2**70),
        Restriction(expires=1.5),  # type: ignore[arg-type]
        Restriction(nonce=b"short"),
        Restriction(resources=("fs:/a/[b]",)),
        Restriction(resources=("fs:/a/../b",)),
        Restriction(resources=("https://*/**",)),
    ],
)
def test_what_was_built_wrong_is_neither_minted_nor_attenuated(restriction: Restriction) -> None:
    good = mint(KEY, id=ID, run="r", restriction=Restriction())
    with pytest.raises(TokenError):
        mint(KEY, id=ID, run="r", restriction=restriction)
    with pytest.raises(TokenError):
        attenuate(good, restriction)


@pytest.mark.parametrize(
    ("id_", "run", "kid"),
    [
        ("00", "r", "k"),
        (ID.upper(), "r", "k"),
        ("zz" * 16, "r", "k"),
        (ID, "", "k"),
        (ID, "r/..", "k"),
        (ID, "r", ""),
        (ID, "r", "k" * 65),
        (ID, "r" * 129, "k"),
    ],
)
def test_names_that_may_not_stand_in_a_head(id_: str, run: str, kid: str) -> None:
    with pytest.raises(TokenError):
        mint(MacKey(kid, SECRET), id=id_, run=run, restriction=Restriction())
    assert parse(mint(KEY, id=ID, run="r" * 128, restriction=Restriction()))


def test_short_keys_are_refused_and_no_key_shows_itself() -> None:
    for size in (0, 16, 31, 65):
        with pytest.raises(ValueError, match="32 to 64"):
            MacKey("k", b"x" * size)
    assert "x" * 8 not in repr(MacKey("k", b"x" * 32))


@pytest.mark.parametrize(
    ("restriction", "yes", "no", "code"),
    [
        (
            Restriction(resources=("fs:/data/**",)),
            {"resource": "fs:/data/x/y"},
            {"resource": "fs:/database"},
            Code.CAP_SCOPE,
        ),
        (Restriction(resources=()), None, {}, Code.CAP_SCOPE),
        (Restriction(methods=()), None, {}, Code.CAP_SCOPE),
        (Restriction(methods=("fs.read",)), {}, {"effect": "fs.write"}, Code.CAP_SCOPE),
        (
            Restriction(methods=("fs.*",)),
            {"effect": "fs.write"},
            {"effect": "tool.call", "resource": "tool:fs"},
            Code.CAP_SCOPE,
        ),
        (
            Restriction(resources=("GET https://api.example/**",)),
            {"effect": "http.request", "resource": "https://api.example/x", "verb": "GET"},
            {"effect": "http.request", "resource": "https://api.example/x", "verb": "POST"},
            Code.CAP_SCOPE,
        ),
        (
            Restriction(resources=("tool:search",)),
            {"effect": "tool.call", "resource": "tool:search"},
            {"effect": "tool.call", "resource": "tool:searcher"},
            Code.CAP_SCOPE,
        ),
        (Restriction(expires=NOW), {"now": NOW - 1}, {"now": NOW}, Code.CAP_EXPIRED),
        (Restriction(not_before=NOW), {"now": NOW}, {"now": NOW - 1}, Code.CAP_EXPIRED),
        (Restriction(run_only=True), {}, {"run": "run-1.child"}, Code.CAP_INVALID),
        (
            Restriction(quotas=(Quota(argument="amount", limit=5),)),
            {"numbers": {"amount": 99}},
            {"numbers": {"other": 1}},
            Code.CAP_SCOPE,
        ),
        (
            Restriction(sources=("host",)),
            {"label": Label(frozenset({"host"}))},
            {"label": Label(frozenset({"host", "web"}))},
            Code.CAP_SCOPE,
        ),
        (
            Restriction(secrets=()),
            {"label": Label(frozenset({"web"}))},
            {"label": Label(frozenset(), frozenset({"key"}))},
            Code.CAP_SCOPE,
        ),
    ],
)
def test_each_restriction_covers_what_it_says_and_no_more(
    restriction: Restriction, yes: dict[str, Any] | None, no: dict[str, Any], code: Code
) -> None:
    for token in (token_of(restriction), token_of(Restriction(), restriction, Restriction())):
        if yes is not None:
            assert asked(token, **yes) is None
        assert asked(token, **no) is code


@pytest.mark.parametrize("value", [None, -1, 2**53, True, 1.0, "1"])
def test_a_quota_argument_is_a_non_negative_integer(value: Any) -> None:
    token = token_of(Restriction(quotas=(Quota(argument="n", limit=10),)))
    assert asked(token, numbers={"n": value}) is Code.CAP_SCOPE
    assert Ledger().use(token, n=value) is Code.CAP_SCOPE
    assert asked(token, numbers={"n": 0}) is None
    assert Ledger().use(token, n=0) is None


def test_counts_and_quotas_end() -> None:
    ledger = Ledger()
    token = token_of(Restriction(count=3, quotas=(Quota(argument="amount", limit=10_000),)))
    assert ledger.use(token, amount=9_000) is None
    assert ledger.use(token, amount=9_000) is Code.CAP_RATE
    assert ledger.use(token, amount=1_000) is None
    assert ledger.use(token, amount=0) is None
    assert ledger.use(token, amount=0) is Code.CAP_RATE


def test_rates_hold_over_time() -> None:
    ledger = Ledger()
    token = token_of(Restriction(rate=Rate(count=1, per=1_000_000, burst=2)))
    assert [ledger.use(token, NOW + t) for t in (0, 0, 0, 999_999, 1_000_000, 1_000_001)] == [
        None,
        None,
        Code.CAP_RATE,
        Code.CAP_RATE,
        None,
        Code.CAP_RATE,
    ]


def test_a_refused_use_charges_nobody() -> None:
    ledger = Ledger()
    token = token_of(Restriction(count=10), Restriction(count=1))
    assert ledger.use(token) is None
    assert ledger.use(token) is Code.CAP_RATE
    assert ledger.usage[token.ids[0]].count == 1


def test_links_that_count_nothing_leave_nothing_behind() -> None:
    token = token_of(Restriction(), Restriction(count=2), Restriction(methods=("fs.*",)))
    assert use(token, {}, now=NOW, numbers={}) == {token.ids[1]: UsageDelta(0, 1, {})}


def test_deltas_stand_in_entries() -> None:
    token = token_of(Restriction(rate=Rate(count=1, per=7), quotas=(Quota(argument="n", limit=9),)))
    deltas = use(token, {}, now=NOW, numbers={"n": 3})
    assert msgspec.to_builtins(deltas) == {ID: {"tat": NOW + 7, "count": 1, "quotas": {"n": 3}}}


segments = st.sampled_from(["a", "b", "a.txt", ".env", "%41"])
paths = st.lists(segments, min_size=1, max_size=4).map(lambda s: "fs:/" + "/".join(s))


@settings(max_examples=200)
@given(paths, paths, st.sampled_from(["/**", "", "/*", "/**/a.txt"]))
def test_the_short_way_for_one_folder_agrees_with_the_patterns(
    folder: str, asked_for: str, tail: str
) -> None:
    pattern = folder + tail
    resource = resource_of("fs.read", asked_for)
    match = link(tokens.encode_restriction(Restriction(resources=(pattern,)))).match
    assert match is not None
    assert match(resource, "") == PatternSet((pattern,)).match(resource, "")


@pytest.mark.parametrize("pattern", ["fs:/**", "fs:/a/**"])
@pytest.mark.parametrize(
    ("effect", "text"),
    [
        ("fs.read", "fs:/"),
        ("fs.read", "fs:/a"),
        ("fs.read", "fs:/a/b"),
        ("fs.read", "fs:/ab"),
        ("tool.call", "tool:a"),
        ("http.request", "https://a.example/a/b"),
    ],
)
def test_the_short_way_knows_its_scheme(pattern: str, effect: str, text: str) -> None:
    resource = resource_of(effect, text)
    match = link(tokens.encode_restriction(Restriction(resources=(pattern,)))).match
    assert match is not None
    assert match(resource, "") == PatternSet((pattern,)).match(resource, "")
