"""Attacks on tokens: forging, cutting, swapping, stripping, respelling, widening, splitting.

Every refusal stands beside a control: the untouched token is read, verifies and covers.
"""

from __future__ import annotations

import hmac
import os
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority import tokens
from authority.kernel import capabilities, restrictions
from authority.kernel.capabilities import (
    MacKey,
    Quota,
    Rate,
    Refusal,
    Restriction,
    Token,
    TokenError,
    attenuate,
    mint,
    parse,
    scope,
    use,
    verify,
)
from authority.kernel.codes import Code
from authority.kernel.labels import Label
from authority.kernel.rates import Usage, add
from authority.kernel.resources import parse as resource_of

SECRET = bytes(range(32))
KEY = MacKey("k1", SECRET)
ID = "00112233445566778899aabbccddeeff"
NOW = 1_800_000_000_000_000
HEAD = msgspec.msgpack.encode(["k1", bytes.fromhex(ID), "run-1"])


def valid(raw: bytes, key: MacKey | None = KEY) -> bool:
    """Whether the bytes are a token that is worth something."""
    try:
        return verify(parse(raw), key)
    except TokenError:
        return False


def chain(*parts: Restriction, id_: str = ID, run: str = "run-1", key: MacKey = KEY) -> bytes:
    raw = mint(key, id=id_, run=run, restriction=parts[0])
    for i, part in enumerate(parts[1:]):
        raw = attenuate(raw, part, nonce=bytes([i + 1]) * 16)
    return raw


def assemble(head: bytes, parts: list[bytes], mac: bytes | None = None) -> bytes:
    """A token of these bytes with a right MAC, as somebody who holds the key could make."""
    framed = len(head).to_bytes(2, "big") + head
    first = framed + len(parts[0]).to_bytes(2, "big") + parts[0]
    made = hmac.digest(SECRET, b"authority/cap/1/head\0" + first, "sha256")
    out = b"aut\x01" + first
    for part in parts[1:]:
        made = hmac.digest(made, b"authority/cap/1/restriction\0" + part, "sha256")
        out += len(part).to_bytes(2, "big") + part
    return out + (made if mac is None else mac)


TOKEN = chain(
    Restriction(resources=("fs:/data/**",), expires=NOW + 1),
    Restriction(methods=("fs.read",)),
    Restriction(count=3),
)


def test_controls() -> None:
    assert valid(TOKEN)
    assert assemble(HEAD, [b"\x80"]) == chain(Restriction())
    assert valid(assemble(HEAD, [b"\x80", msgspec.msgpack.encode({"count": 3})]))


def test_cut_at_every_byte() -> None:
    assert not any(valid(TOKEN[:n]) for n in range(len(TOKEN)))


def test_cut_at_every_byte_from_the_front() -> None:
    assert not any(valid(TOKEN[n:]) for n in range(1, len(TOKEN)))


def test_every_bit_flipped() -> None:
    for at in range(len(TOKEN)):
        for bit in range(8):
            changed = bytearray(TOKEN)
            changed[at] ^= 1 << bit
            assert not valid(bytes(changed)), (at, bit)


def test_every_byte_removed_doubled_and_followed() -> None:
    for at in range(len(TOKEN)):
        assert not valid(TOKEN[:at] + TOKEN[at + 1 :])
        assert not valid(TOKEN[: at + 1] + TOKEN[at:])
    for tail in (b"\0", b"\x80", b"\0\0", b"\0\1\x80", TOKEN):
        assert not valid(TOKEN + tail)


def test_restrictions_stripped_swapped_reordered_and_repeated() -> None:
    head, parts, _, mac = tokens.split(TOKEN)
    assert assemble(head, parts) == TOKEN
    for fewer in (parts[:1], parts[:2], parts[1:], [parts[0], parts[2]], [parts[2]]):
        assert not valid(assemble(head, fewer, mac))
    for other in ([parts[0], parts[2], parts[1]], parts[::-1], [*parts, parts[2]]):
        assert not valid(assemble(head, other, mac))
    wider = tokens.encode_restriction(Restriction(resources=("fs:/**",)))
    assert not valid(assemble(head, [wider, *parts[1:]], mac))


def test_a_restriction_can_not_be_moved_into_the_head_or_its_neighbour() -> None:
    """Lengths are under the MAC: the same bytes cut elsewhere are another token."""
    head, parts, _, mac = tokens.split(TOKEN)
    for n in range(1, len(parts[0])):
        assert not valid(assemble(head + parts[0][:n], [parts[0][n:], *parts[1:]], mac))
    assert not valid(assemble(head, [parts[0] + parts[1], parts[2]], mac))


def test_a_link_is_no_root_and_a_root_is_no_link() -> None:
    """Domains: the MAC of a restriction never stands for that of a head, whatever is in it."""
    _, parts, covered, _ = tokens.split(TOKEN)
    as_link = hmac.digest(SECRET, b"authority/cap/1/restriction\0" + covered, "sha256")
    assert not valid(assemble(HEAD, parts[:1], as_link))
    mac = tokens.split(chain(Restriction(), Restriction(count=1)))[3]
    assert not valid(assemble(HEAD, [b"\x80"], mac))


def test_the_mac_of_another_token() -> None:
    others = [
        chain(Restriction()),
        chain(Restriction(resources=("fs:/**",))),
        chain(Restriction(resources=("fs:/data/**",), expires=NOW + 1), id_="ff" * 16),
        chain(Restriction(resources=("fs:/data/**",), expires=NOW + 1), run="run-2"),
    ]
    for other in others:
        assert valid(other)
        assert not valid(TOKEN[:-32] + other[-32:])


def test_other_keys() -> None:
    other = MacKey("k1", b"\xff" * 32)
    assert not valid(TOKEN, other)
    assert not valid(chain(Restriction(), key=other))
    assert valid(chain(Restriction(), key=other), other)


def test_an_unknown_kid_and_a_key_under_another_name() -> None:
    assert not valid(TOKEN, None)
    assert not valid(TOKEN, MacKey("k2", SECRET))
    assert not valid(chain(Restriction(), key=MacKey("k2", SECRET)))


def test_the_stand_in_for_unknown_keys_verifies_nothing() -> None:
    """Its secret is in the source: a token that it made is still refused."""
    nobody = capabilities._NOBODY
    forged = mint(nobody, id=ID, run="run-1", restriction=Restriction())
    assert not valid(forged, None)
    assert not valid(forged, KEY)


def test_unknown_keys_cost_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: as many MACs for a key that is known as for one that is not."""
    calls: list[str] = []
    mac, step = MacKey.mac, tokens.next_mac

    def counted_mac(self: MacKey, covered: bytes) -> bytes:
        calls.append("mac")
        return mac(self, covered)

    def counted_step(key: bytes, part: bytes) -> bytes:
        calls.append("step")
        return step(key, part)

    monkeypatch.setattr(MacKey, "mac", counted_mac)
    monkeypatch.setattr(tokens, "next_mac", counted_step)
    token = parse(TOKEN)
    for key in (KEY, None, MacKey("k2", SECRET), MacKey("k1", b"x" * 32)):
        calls.clear()
        verify(token, key)
        assert calls == ["mac", "step", "step"]


def test_ten_thousand_random_forgeries() -> None:
    chance = random.Random(1)
    head, parts, _, _ = tokens.split(TOKEN)
    for _ in range(5_000):
        assert not valid(assemble(head, parts, chance.randbytes(32)))
    for _ in range(5_000):
        assert not valid(b"aut\x01" + chance.randbytes(chance.randrange(0, 300)))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([b"", b"aut\x01", TOKEN[:6], TOKEN[:40]]))
def test_no_bytes_raise_anything_but_token_error(data: bytes, start: bytes) -> None:
    assert not valid(start + data)


@pytest.mark.parametrize(
    "raw", [None, "text", 5, bytearray(TOKEN), memoryview(TOKEN), b"", b"aut\x01", b"aut\x02" * 30]
)
def test_what_is_no_string_of_bytes(raw: Any) -> None:
    with pytest.raises(TokenError):
        parse(raw)


nested = b"\x81\xa9resources" + b"\x91" * 3000 + b"\x90"
RESPELLED: dict[str, bytes] = {
    "key twice": b"\x82\xa5count\x03\xa5count\x03",
    "key twice, other values": b"\x82\xa5count\x01\xa5count\xcd\x03\xe8",
    "keys not sorted": b"\x82\xa7methods\x91\xa4fs.*\xa5count\x03",
    "unknown key": b"\x81\xa7comment\xa1x",
    "default set": b"\x81\xa8approval\xc2",
    "nil set": b"\x81\xa5count\xc0",
    "long integer": b"\x81\xa5count\xcc\x03",
    "longer integer": b"\x81\xa5count\xcf" + bytes(7) + b"\x03",
    "signed integer": b"\x81\xa5count\xd0\x03",
    "float": b"\x81\xa5count\xcb\x40\x08" + bytes(6),
    "negative": b"\x81\xa5count\xff",
    "above 2**53": b"\x81\xa5count\xcf\x00\x20" + bytes(6),
    "true for one": b"\x81\xa5count\xc3",
    "long string": b"\x81\xd9\x05count\x03",
    "key as bytes": b"\x81\xc4\x05count\x03",
    "key as integer": b"\x81\x05\x03",
    "long map": b"\xde\x00\x01\xa5count\x03",
    "long array": b"\x81\xa7methods\xdc\x00\x01\xa4fs.*",
    "value as bytes": b"\x81\xa7methods\x91\xc4\x04fs.*",
    "nonce as text": b"\x81\xa5nonce\xb0" + b"n" * 16,
    "trailing bytes": b"\x81\xa5count\x03\xc0",
    "cut": b"\x81\xa5count",
    "no map": b"\x90",
    "nil": b"\xc0",
    "empty": b"",
    "not UTF-8": b"\x81\xa7methods\x91\xa4fs.\xff",
    "extension": b"\x81\xa5count\xd4\x05\x03",
    "timestamp": b"\x81\xa7expires\xd6\xff\x00\x00\x00\x01",
    "never used tag": b"\x81\xa5count\xc1",
    "deep": nested,
    "rate with unknown key": b"\x81\xa4rate\x83\xa5count\x01\xa3per\x01\xa1x\x01",
    "rate, burst at its default": b"\x81\xa4rate\x83\xa5burst\x01\xa5count\x01\xa3per\x01",
    "quota twice": b"\x81\xa6quotas\x92" + b"\x82\xa8argument\xa1a\xa5limit\x01" * 2,
}


@pytest.mark.parametrize("part", RESPELLED.values(), ids=RESPELLED.keys())
def test_a_second_spelling_is_refused_even_under_a_right_mac(part: bytes) -> None:
    """A holder can put any bytes under the next MAC, so the MAC does not protect from these."""
    for raw in (assemble(HEAD, [part]), assemble(HEAD, [b"\x80", part])):
        with pytest.raises(TokenError):
            parse(raw)


@pytest.mark.parametrize(
    "head",
    [
        msgspec.msgpack.encode({"kid": "k1", "id": bytes(16), "run": "r"}),
        msgspec.msgpack.encode(["k1", bytes(15), "r"]),
        msgspec.msgpack.encode(["k1", bytes(17), "r"]),
        msgspec.msgpack.encode(["k1", "x" * 16, "r"]),
        msgspec.msgpack.encode(["k1", bytes(16), "r", 1]),
        msgspec.msgpack.encode(["k1", bytes(16)]),
        msgspec.msgpack.encode(["k1", bytes(16), "r\n"]),
        msgspec.msgpack.encode(["k1", bytes(16), ""]),
        msgspec.msgpack.encode(["../k1", bytes(16), "r"]),
        b"\x93\xd9\x02k1\xc4\x10" + bytes(16) + b"\xa1r",
        b"\xdc\x00\x03\xa2k1\xc4\x10" + bytes(16) + b"\xa1r",
        msgspec.msgpack.encode(["k1", bytes(16), "r"]) + b"\xc0",
        b"\x93\xa2k1\xc8\x00\x10\x05" + bytes(16) + b"\xa1r",
        b"",
    ],
)
def test_heads_that_are_none(head: bytes) -> None:
    with pytest.raises(TokenError):
        parse(assemble(head, [b"\x80"]))


def test_a_pattern_that_does_not_compile_makes_the_token_invalid() -> None:
    part = msgspec.msgpack.encode({"resources": ["fs:/a/[b]"]})
    token = parse(assemble(HEAD, [b"\x80", part]))
    assert verify(token, KEY)
    assert code_of(token) is Code.CAP_INVALID
    assert code_of(parse(chain(Restriction(), Restriction(resources=("fs:/a/**",))))) is None


def test_too_long_and_too_many() -> None:
    most = chain(*[Restriction()] * tokens.MAX_LINKS)
    assert valid(most)
    with pytest.raises(TokenError, match="16 restrictions"):
        attenuate(most, Restriction())
    part = tokens.encode_restriction(Restriction(count=1))
    longer = assemble(HEAD, [b"\x80", *[part] * tokens.MAX_LINKS])
    with pytest.raises(TokenError, match="16 restrictions"):
        parse(longer)
    big = Restriction(resources=tuple(f"fs:/{i}/" + "a" * 1000 for i in range(7)))
    large = chain(big)
    assert valid(large)
    with pytest.raises(TokenError, match="longer than 8192"):
        attenuate(large, big)
    with pytest.raises(TokenError, match="longer than 8192"):
        parse(large + bytes(tokens.MAX_TOKEN))


def test_the_tables_of_compiled_links_are_bounded() -> None:
    for i in range(restrictions.LINKS_KEPT + 50):
        parse(assemble(HEAD, [b"\x80", msgspec.msgpack.encode({"count": i})]))
    assert restrictions.link.cache_info().currsize <= restrictions.LINKS_KEPT
    assert capabilities._below.cache_info().currsize <= restrictions.LINKS_KEPT


# Using a good token for more than it is good for


def code_of(token: Token, **change: Any) -> Code | None:
    request: dict[str, Any] = {
        "effect": "fs.read",
        "resource": resource_of("fs.read", "fs:/a/b"),
        "run": "run-1",
        "now": NOW,
        "numbers": {},
        "label": Label(),
    }
    refusal = scope(token, **(request | change))
    return refusal.code if refusal else None


def test_the_run_is_under_the_mac() -> None:
    """Who presents it is compared with `Token.run`, which nobody can write anew."""
    mine, theirs = chain(Restriction()), chain(Restriction(), run="run-2")
    assert parse(theirs).run == "run-2"
    assert not valid(theirs.replace(b"run-2", b"run-1"))
    assert not valid(theirs[:-32] + mine[-32:])
    only = parse(chain(Restriction(), Restriction(run_only=True)))
    assert code_of(only) is None
    assert code_of(only, run="run-1.child") is Code.CAP_INVALID


def test_an_attenuation_does_not_prolong() -> None:
    token = parse(chain(Restriction(expires=NOW), Restriction(expires=NOW + 10**6)))
    assert code_of(token, now=NOW - 1) is None
    assert code_of(token, now=NOW) is Code.CAP_EXPIRED


def test_every_id_depends_on_all_above_it() -> None:
    """So revoking one revokes what is below it, and cannot be escaped by a new attenuation."""
    parent = chain(Restriction(), Restriction(count=5))
    children = [parse(attenuate(parent, Restriction(), nonce=os.urandom(16))) for _ in range(20)]
    above = parse(parent).ids
    assert all(child.ids[:2] == above for child in children)
    assert len({child.id for child in children}) == 20
    other = parse(chain(Restriction(), Restriction(count=6)))
    assert other.ids[0] == above[0]
    assert other.ids[1] != above[1]
    root = parse(chain(Restriction(), Restriction(count=5), id_="ab" * 16))
    assert root.ids[1] != above[1]


class Ledger:
    """Uses tokens and charges what they used, as the fold does."""

    def __init__(self) -> None:
        self.usage: dict[str, Usage] = {}

    def use(self, token: Token, now: int = NOW, **numbers: int | None) -> bool:
        deltas = use(token, self.usage, now=now, numbers=numbers)
        if isinstance(deltas, Refusal):
            return False
        for id_, delta in deltas.items():
            self.usage[id_] = add(self.usage.get(id_, Usage()), delta)
        return True


def siblings(parent: Restriction, *, number: int = 3) -> list[Token]:
    raw = chain(parent)
    made = [attenuate(raw, Restriction(), nonce=os.urandom(16)) for _ in range(number)]
    return [parse(raw), *map(parse, made)]


def test_siblings_share_their_parents_count() -> None:
    ledger = Ledger()
    family = siblings(Restriction(count=5))
    assert sum(ledger.use(token) for token in family * 5) == 5


def test_siblings_share_their_parents_rate() -> None:
    ledger = Ledger()
    family = siblings(Restriction(rate=Rate(count=1, per=10**6, burst=2)))
    assert sum(ledger.use(token) for token in family * 5) == 2
    assert [ledger.use(token, NOW + 10**6) for token in family] == [True, False, False, False]


@pytest.mark.parametrize("split_into", [[9_000] * 3, [5_000, 5_001], [10_001], [1] * 10_050])
def test_a_quota_is_not_to_be_split(split_into: list[int]) -> None:
    ledger = Ledger()
    family = siblings(Restriction(quotas=(Quota(argument="amount", limit=10_000),)))
    passed = [
        amount
        for i, amount in enumerate(split_into)
        if ledger.use(family[i % len(family)], amount=amount)
    ]
    assert sum(passed) <= 10_000
    assert sum(passed) < sum(split_into)


def test_a_child_may_say_more_than_its_parent_and_gets_no_more() -> None:
    ledger = Ledger()
    token = parse(
        chain(
            Restriction(count=2, quotas=(Quota(argument="n", limit=10),)),
            Restriction(count=100, quotas=(Quota(argument="n", limit=100),)),
        )
    )
    assert not ledger.use(token, n=11)
    assert [ledger.use(token, n=5) for _ in range(3)] == [True, True, False]


def test_a_clock_that_steps_back_gives_nothing_back() -> None:
    ledger = Ledger()
    token = parse(chain(Restriction(rate=Rate(count=1, per=10**6))))
    assert ledger.use(token)
    assert not any(ledger.use(token, NOW - back) for back in (0, 1, 10**6, NOW))
    assert ledger.use(token, NOW + 10**6)


# Attenuation never widens

names = st.sampled_from(["a", "b", "secret", ".env"])
paths = st.lists(names, min_size=1, max_size=3).map(lambda s: "fs:/" + "/".join(s))
patterns = st.one_of(
    paths,
    paths.map(lambda p: p + "/**"),
    paths.map(lambda p: p + "/*"),
    st.just("fs:/**"),
    st.just("fs:/**/.env"),
)
effects = ["fs.read", "fs.write", "fs.delete"]
methods = st.sampled_from([*effects, "fs.*", "tool.*"])
labels = st.frozensets(st.sampled_from(["host", "web"]), max_size=2)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def listed(strategy: st.SearchStrategy[Any], size: int = 2) -> st.SearchStrategy[Any]:
    return maybe(st.lists(strategy, max_size=size).map(tuple))


restriction_values: Callable[..., st.SearchStrategy[Restriction]] = st.builds
any_restriction = restriction_values(
    Restriction,
    resources=listed(patterns),
    methods=listed(methods),
    not_before=maybe(st.integers(0, 20)),
    expires=maybe(st.integers(0, 20)),
    run_only=st.booleans(),
    count=maybe(st.integers(0, 3)),
    rate=maybe(
        st.builds(Rate, count=st.integers(1, 3), per=st.integers(1, 9), burst=st.integers(1, 2))
    ),
    quotas=maybe(st.just((Quota(argument="n", limit=5),))),
    sources=listed(st.sampled_from(["host", "web"])),
    secrets=listed(st.just("key")),
    approval=st.booleans(),
)
requests = st.fixed_dictionaries(
    {
        "effect": st.sampled_from(effects),
        "resource": paths.map(lambda p: resource_of("fs.read", p)),
        "run": st.sampled_from(["run-1", "run-1.child"]),
        "now": st.integers(0, 25),
        "numbers": st.sampled_from([{}, {"n": 2}, {"n": 6}, {"n": -1}]),
        "label": st.builds(Label, labels, st.frozensets(st.just("key"), max_size=1)),
    }
)


@settings(max_examples=200)
@given(
    st.lists(any_restriction, min_size=2, max_size=4),
    st.lists(requests, min_size=1, max_size=6),
)
def test_what_a_child_may_its_parent_may(
    links: list[Restriction], asked: list[dict[str, Any]]
) -> None:
    child, parent = parse(chain(*links)), parse(chain(*links[:-1]))
    assert child.needs_approval or not parent.needs_approval
    usage: dict[str, Usage] = {}
    for request in sorted(asked, key=lambda r: r["now"]):
        when = {"now": request["now"], "numbers": request["numbers"]}
        if code_of(child, **request) is None:
            assert code_of(parent, **request) is None
        charged = use(child, usage, **when)
        if not isinstance(charged, Refusal):
            assert not isinstance(use(parent, usage, **when), Refusal)
            for id_, delta in charged.items():
                usage[id_] = add(usage.get(id_, Usage()), delta)
