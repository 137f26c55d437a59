"""Capabilities: minting, reading and verifying tokens, and what a verified one covers.

Pure. The bytes, their rules and attenuation stand in `authority.tokens`, which holders use as well;
here is what needs the key, and what is judged.

Rules
- A token is worth something only after all of: `parse` (its form), `verify` (its MAC, in constant
  time), not revoked (no id of its chain; `Token.ids`), bound to the run that presents it or to an
  ancestor of that run (the caller knows the family), `scope`, `use`. `decide` asks them in this
  order.
- `verify` for an unknown key does the same work with a key that nobody has, and says no: time does
  not tell which key ids exist.
- `scope` looks at one request by itself: method, resource, verb, time, run_only, label ceilings,
  and that the arguments under a quota are there. `use` looks at what was used before, for every
  link that counts: siblings share what their parent has, because its id is in both chains.
- Every link is asked. One that says no ends it.
- `scope` is asked once for each resource that a request touches (a rename has two), `use` once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from hmac import compare_digest

import msgspec

from authority import tokens
from authority.kernel.codes import Code
from authority.kernel.labels import Label
from authority.kernel.rates import Usage, UsageDelta, conform
from authority.kernel.resources import Resource
from authority.kernel.restrictions import LINKS_KEPT, Link, Refusal, amount, link
from authority.tokens import (
    Quota,
    Rate,
    Restriction,
    TokenError,
    from_text,
    restriction_from_plain,
    to_text,
)

__all__ = [
    "MacKey",
    "Quota",
    "Rate",
    "Refusal",
    "Restriction",
    "Token",
    "TokenError",
    "attenuate",
    "from_text",
    "mint",
    "parse",
    "restriction_from_plain",
    "scope",
    "to_text",
    "use",
    "verify",
]

MIN_SECRET = 32
_BLOCK = 64
_IPAD = bytes(i ^ 0x36 for i in range(256))
_OPAD = bytes(i ^ 0x5C for i in range(256))
_UNUSED = Usage()


class MacKey:
    """A key that mints and verifies: its id `kid` stands in tokens, `secret` is 32 to 64 bytes.

    The inner and outer pads of HMAC (RFC 2104) are hashed once, here. Raises ValueError for a
    secret of another length.
    """

    __slots__ = ("_inner", "_outer", "kid")

    def __init__(self, kid: str, secret: bytes) -> None:
        if not MIN_SECRET <= len(secret) <= _BLOCK:
            raise ValueError("a key for capabilities has 32 to 64 bytes")
        padded = secret.ljust(_BLOCK, b"\x00")
        self.kid = kid
        self._inner = hashlib.sha256(padded.translate(_IPAD) + tokens.DOMAIN_HEAD)
        self._outer = hashlib.sha256(padded.translate(_OPAD))

    def __repr__(self) -> str:
        return f"MacKey({self.kid!r})"

    def mac(self, covered: bytes) -> bytes:
        """mac(0) over the framed head and the framed first restriction."""
        inner = self._inner.copy()
        inner.update(covered)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


_NOBODY = MacKey("nobody", b"\x00" * MIN_SECRET)
"""Stands in for an unknown key, so that refusing it costs the same; what it accepts is refused."""


class Token(msgspec.Struct, frozen=True):
    """A token that was read, not yet one that is worth anything.

    `ids[i]` (32 hex digits) belongs to `restrictions[i]`, root first.
    """

    kid: str
    run: str
    ids: tuple[str, ...]
    links: tuple[Link, ...]
    covered: bytes
    parts: tuple[bytes, ...]
    mac: bytes

    @property
    def id(self) -> str:
        """The id of this token itself: the last of its chain."""
        return self.ids[-1]

    @property
    def restrictions(self) -> tuple[Restriction, ...]:
        return tuple(each.restriction for each in self.links)

    @property
    def needs_approval(self) -> bool:
        """Whether a person has to approve each use."""
        return any(each.restriction.approval for each in self.links)


@lru_cache(maxsize=256)
def _head(data: bytes) -> tuple[str, bytes, str, str]:
    """kid, id (as bytes and in hex) and run of a head."""
    kid, id_, run = tokens.decode_head(data)
    return kid, id_, id_.hex(), run


@lru_cache(maxsize=LINKS_KEPT)
def _below(id_: bytes, part: bytes) -> tuple[bytes, str, Link]:
    """The id (as bytes and in hex) and the link that `part` adds below the link `id_`."""
    id_ = tokens.next_id(id_, part)
    return id_, id_.hex(), link(part)


def mint(key: MacKey, *, id: str, run: str, restriction: Restriction) -> bytes:
    """A new token, bound to `run`. `id` is 32 hex digits that were never used before.

    Raises TokenError for an id, run or restriction that may not stand in a token.
    """
    try:
        raw = bytes.fromhex(id)
    except ValueError as error:
        raise TokenError("the id of a capability is 32 hex digits") from error
    if raw.hex() != id:
        raise TokenError("the id of a capability is 32 lowercase hex digits")
    part = tokens.encode_restriction(restriction)
    _checked(part)
    covered = tokens.framed(tokens.encode_head(key.kid, raw, run)) + tokens.framed(part)
    token = tokens.MAGIC + covered + key.mac(covered)
    parse(token)
    return token


def attenuate(token: bytes, restriction: Restriction, *, nonce: bytes | None = None) -> bytes:
    """A narrower token, as `tokens.attenuate`; its patterns are compiled to see that they can be.

    `nonce`: 16 random bytes from the caller. Raises TokenError.
    """
    narrowed = tokens.attenuate(token, restriction, nonce=nonce)
    _checked(tokens.split(narrowed)[1][-1])
    return narrowed


def parse(token: bytes) -> Token:
    """Read a token. Raises TokenError for what `mint` and `attenuate` would never have written."""
    head, parts, covered, mac = tokens.split(token)
    kid, id_, name, run = _head(head)
    ids, links = [name], [link(parts[0])]
    for part in parts[1:]:
        id_, name, below = _below(id_, part)
        ids.append(name)
        links.append(below)
    return Token(kid, run, tuple(ids), tuple(links), covered, tuple(parts), mac)


def verify(token: Token, key: MacKey | None) -> bool:
    """Whether the token was made with `key`, whose id it names; None stands for an unknown key."""
    known = key is not None and key.kid == token.kid
    mac = (key if key is not None and known else _NOBODY).mac(token.covered)
    for part in token.parts[1:]:
        mac = tokens.next_mac(mac, part)
    return compare_digest(mac, token.mac) and known


WAYS = frozenset({"fs.mount"})
"""A mount is a way to acts, each of which is asked for: no method, resource or count limits it."""
MEANT = {
    "fs.open": frozenset({"fs.read"}),
    "fs.modify": frozenset({"fs.write"}),
    "fs.attributes": frozenset({"fs.write"}),
    "fs.symlink": frozenset({"fs.write"}),
    "fs.link": frozenset({"fs.write"}),
}
"""What a mount asks for, and the method that people write for it."""


def scope(
    token: Token,
    *,
    effect: str,
    resource: Resource,
    verb: str = "",
    run: str,
    now: int,
    numbers: Mapping[str, int | None],
    label: Label,
) -> Refusal | None:
    """What keeps this token from covering one use of it, or None.

    `now` (us) comes from a clock with a floor; `label` is the run's own. That the token is bound to
    `run` or an ancestor is asked elsewhere; `run_only` is asked here.
    """
    labelled = not label.clean
    for each in token.links:
        if now >= each.expires:
            return _refusal(Code.CAP_EXPIRED, _id(token, each), "has expired")
        if now < each.not_before:
            return _refusal(Code.CAP_EXPIRED, _id(token, each), "is not valid yet")
        if each.run_only and run != token.run:
            return _refusal(Code.CAP_INVALID, _id(token, each), f"is for the run {token.run} only")
        if effect in WAYS:
            continue
        methods = each.methods
        if (
            methods is not None
            and effect not in methods
            and not effect.startswith(each.families)
            and methods.isdisjoint(MEANT.get(effect, ()))
        ):
            return _refusal(Code.CAP_SCOPE, _id(token, each), f"does not name the method {effect}")
        if each.match is not None:
            try:
                covered = each.match(resource, verb) is not None
            except TokenError as error:
                return _refusal(Code.CAP_INVALID, _id(token, each), error.message)
            if not covered:
                return _refusal(Code.CAP_SCOPE, _id(token, each), f"does not cover {resource.text}")
        if each.quotas and (missing := each.number_missing(numbers)):
            return _refusal(Code.CAP_SCOPE, _id(token, each), missing)
        if labelled and each.ceiling and (missing := each.label_refuses(label)):
            return _refusal(Code.CAP_SCOPE, _id(token, each), missing)
    return None


def use(
    token: Token,
    usage: Mapping[str, Usage],
    *,
    now: int,
    numbers: Mapping[str, int | None],
) -> dict[str, UsageDelta] | Refusal:
    """What this use adds to each link that counts (by its id), or why it is too much.

    Nothing is charged here: the deltas stand in the entry, and applying it charges them.
    """
    deltas: dict[str, UsageDelta] = {}
    for id_, each in zip(token.ids, token.links, strict=True):
        if not each.counted:
            continue
        used = usage.get(id_, _UNUSED)
        restriction, tat, quotas = each.restriction, 0, {}
        if restriction.count is not None and used.count >= restriction.count:
            return _refusal(Code.CAP_RATE, id_, f"allows {restriction.count} uses, all made")
        if restriction.rate is not None:
            burst = restriction.rate.burst
            next_tat = conform(used.tat, now, interval=each.interval, burst=burst)
            if next_tat is None:
                wait = used.tat - (burst - 1) * each.interval - now
                return _refusal(Code.CAP_RATE, id_, f"may be used again in {wait} us")
            tat = next_tat
        for argument, limit in each.quotas:
            value = amount(numbers, argument)
            if value is None:
                return _refusal(Code.CAP_SCOPE, id_, each.number_missing(numbers))
            before = used.quotas.get(argument, 0)
            if before + value > limit:
                return _refusal(
                    Code.CAP_RATE,
                    id_,
                    f"allows {limit} of {argument!r} altogether; {before} were used, {value} asked",
                )
            quotas[argument] = value
        deltas[id_] = UsageDelta(tat, 1, quotas)
    return deltas


def _refusal(code: Code, id_: str, reason: str) -> Refusal:
    return Refusal(code, f"capability {id_} {reason}")


def _id(token: Token, each: Link) -> str:
    return next(i for i, other in zip(token.ids, token.links, strict=True) if other is each)


def _checked(part: bytes) -> None:
    link(part).compile()
