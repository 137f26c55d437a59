"""Tokens that nobody with the key ever made, from what an attacker can have: genuine tokens.

Pure. Everything is derived from a seed, so that a run can be repeated. The attacker knows the format
and every domain string (they stand in `docs/protocol.md`), holds two genuine tokens, and guesses keys.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Iterator

import msgspec

from authority import tokens
from authority.tokens import MAC_SIZE, Restriction

GUESSED_KEYS = (
    bytes(32), b"\xff" * 32, b"", b"key", b"secret", b"authority", tokens.DOMAIN_HEAD,
)  # fmt: skip
"""Secrets that somebody might have left in."""


def forgeries(mine: bytes, other: bytes, *, randoms: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Each forged token with the way it was made. `mine` and `other` are genuine; `mine` has been
    attenuated at least once. `randoms`: how many MACs are random. A genuine one never comes out."""
    genuine = {mine, other}
    for name, token in _made(mine, other, randoms, seed):
        if token not in genuine:
            yield name, token


def _made(mine: bytes, other: bytes, randoms: int, seed: int) -> Iterator[tuple[str, bytes]]:
    dice = random.Random(seed)  # noqa: S311
    body = mine[:-MAC_SIZE]
    for _ in range(randoms):
        yield "random MAC", body + dice.randbytes(MAC_SIZE)
    for bit in range(MAC_SIZE * 8):
        yield "one bit of the MAC", flipped(mine, (len(body) * 8) + bit)
    for bit in range(len(body) * 8):
        yield "one bit of the body", flipped(mine, bit)
    for size in range(len(mine)):
        yield "truncated", mine[:size]
    for extra in (b"\0", mine[-1:], mine[-MAC_SIZE:], dice.randbytes(40), mine):
        yield "lengthened", mine + extra
    yield from spliced(mine, other)
    yield from guessed(mine)
    for size in (0, 1, 4, 40, 500, 4000):
        yield "random bytes", tokens.MAGIC + dice.randbytes(size)


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def built(head: bytes, parts: list[bytes], mac: bytes) -> bytes:
    """A token from its parts, whatever they are."""
    framed = b"".join(tokens.framed(part) for part in parts)
    return tokens.MAGIC + tokens.framed(head) + framed + mac


def chained(key: bytes, head: bytes, parts: list[bytes]) -> bytes:
    """The MAC that a holder of `key` would make."""
    covered = tokens.framed(head) + tokens.framed(parts[0])
    mac = hmac.digest(key, tokens.DOMAIN_HEAD + covered, hashlib.sha256)
    for part in parts[1:]:
        mac = tokens.next_mac(mac, part)
    return mac


def spliced(mine: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Parts of two genuine tokens put together; restrictions stripped, swapped, widened."""
    head, parts, _, mac = tokens.split(mine)
    head2, parts2, _, mac2 = tokens.split(other)
    wide = tokens.encode_restriction(Restriction())
    yield "another's MAC", built(head, parts, mac2)
    yield "another's head", built(head2, parts, mac)
    yield "another's restrictions", built(head, parts2, mac)
    yield "another's restriction in front", built(head, [parts2[0], *parts[1:]], mac)
    yield "restriction stripped", built(head, parts[:-1], mac)
    yield (
        "restriction stripped, MAC chained on",
        built(head, parts[:-1], tokens.next_mac(mac, parts[-1])),
    )
    yield "restrictions swapped", built(head, parts[::-1], mac)
    yield "restriction doubled", built(head, [*parts, parts[-1]], mac)
    yield "restriction widened", built(head, [*parts[:-1], wide], mac)
    yield "first restriction widened", built(head, [wide, *parts[1:]], mac)
    yield "restriction added without the MAC", built(head, [*parts, wide], mac)
    kid, id_, run = tokens.decode_head(head)
    kid2, id2, run2 = tokens.decode_head(head2)
    for name, changed in (
        ("another run", (kid, id_, run2)),
        ("another id", (kid, id2, run)),
        ("the gate itself", (kid, id_, "gate")),
        ("an unknown key", ("nobody", id_, run)),
        ("an unknown key", (hashlib.sha256(kid2.encode()).hexdigest()[:8], id_, run)),
    ):
        forged = tokens.encode_head(*changed)
        if forged != head:
            yield f"head changed to {name}", built(forged, parts, mac)


def guessed(mine: bytes) -> Iterator[tuple[str, bytes]]:
    """Well made with a guessed key, under the genuine key's name and under unknown ones."""
    head, parts, _, _ = tokens.split(mine)
    kid, id_, run = tokens.decode_head(head)
    for name in (kid, "nobody", "00000000"):
        forged = tokens.encode_head(name, id_, run)
        for key in (*GUESSED_KEYS, kid.encode(), run.encode(), id_, id_.hex().encode()):
            yield "guessed key", built(forged, parts, chained(key, forged, parts))
            yield "guessed key, alone", built(forged, parts[:1], chained(key, forged, parts[:1]))


def attenuated_raw(token: bytes, restriction: object) -> bytes:
    """`token` with any MessagePack as its last restriction and the right MAC for it: a holder can do
    that without a key, so whatever it says must not help."""
    part = restriction if isinstance(restriction, bytes) else msgspec.msgpack.encode(restriction)
    head, parts, _, mac = tokens.split(token)
    return built(head, [*parts, part], tokens.next_mac(mac, part))
