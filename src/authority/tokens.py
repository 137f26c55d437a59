"""Capability tokens as bytes: their form, their restrictions, and offline attenuation.

Pure, and shared by both ends: the kernel verifies what is read here (`kernel/capabilities.py`), and
the agent's side uses the same code to narrow a token that it holds. No key is ever needed here.

The bytes (`docs/protocol.md` has the test vectors)
    "aut" 0x01 | u16 length, head | (u16 length, restriction) x 1..16 | MAC, 32 bytes
All integers are big endian. `head` is the MessagePack array [kid, id (16 bytes), run]; each
restriction is a MessagePack map.

Rules
- One meaning, one form: maps have their keys sorted, no key twice, no unknown key, no key that is
  set to its default, every integer and string in its shortest form. Whatever does not come out of
  the encoder byte for byte as it went in is refused, so nobody can hold two spellings of a token.
- The construction is the macaroon's (Birgisson et al., NDSS 2014) over HMAC-SHA256: the MAC of one
  link is the key of the next, so a holder can add a restriction and nobody can take one off.
    mac(0)   = HMAC(key, "authority/cap/1/head" 0x00 | u16, head | u16, restriction 0)
    mac(i+1) = HMAC(mac(i), "authority/cap/1/restriction" 0x00 | restriction i+1)
- Every link has an id, so that it can be revoked and counted by itself: id(0) stands in the head,
    id(i+1)  = first 16 bytes of SHA-256("authority/cap/1/id" 0x00 | id(i) | restriction i+1)
- An absent restriction restricts nothing; an empty list allows nothing. Links are joined by *and*.
- Patterns in a token are absolute: a holder has no folder to which they could be relative.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from authority.errors import AuthorityError

MAGIC = b"aut\x01"
TEXT_PREFIX = "auth1_"
MAC_SIZE = 32
ID_SIZE = 16
NONCE_SIZE = 16
MAX_TOKEN = 8192
MAX_LINKS = 16
MAX_LIST = 128
MAX_PATTERN = 1024
MAX_INT = 2**53 - 1
MAX_PER = 366 * 24 * 3600 * 1_000_000
"""Longest period of a rate: 366 days, in microseconds."""
MAX_AHEAD = 10**15
"""Bound of `burst * interval` in microseconds, so that no stored time can leave 53 bits."""

DOMAIN_HEAD = b"authority/cap/1/head\x00"
DOMAIN_RESTRICTION = b"authority/cap/1/restriction\x00"
DOMAIN_ID = b"authority/cap/1/id\x00"

_KID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_METHOD = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*(?:\.\*)?")
_PATTERN = re.compile(
    r"fs:/[^\x00]*|(?:[A-Z]{1,16}(?:,[A-Z]{1,16})* )?https?://.+|tcp://.+"
    r"|(?:tool|agent|run|model|gate|output|sys|handle|room|mcp):.+",
    re.DOTALL,
)
_IPAD = bytes(i ^ 0x36 for i in range(256))
_OPAD = bytes(i ^ 0x5C for i in range(256))
_IPAD_TAIL = b"\x36" * 32 + DOMAIN_RESTRICTION
_OPAD_TAIL = b"\x5c" * 32


class TokenError(AuthorityError):
    """A token, or a restriction for one, that can't be read or may not exist."""


_Amount = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATTERN)]
_Texts = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=MAX_LIST)]


class _Part(msgspec.Struct, frozen=True, omit_defaults=True):
    pass


class Rate(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most `count` uses per `per` microseconds on average, and `burst` of them at once."""

    burst: _Positive = 1
    count: _Positive
    per: Annotated[int, msgspec.Meta(ge=1, le=MAX_PER)]

    def __post_init__(self) -> None:
        _integers("rate", self.burst, self.count, self.per)
        if self.burst * self.interval > MAX_AHEAD:
            raise ValueError("rate: burst times the time between two uses is more than 31 years")

    @property
    def interval(self) -> int:
        """Microseconds between two uses; rounded up, so never faster than stated."""
        return -(-self.per // self.count)


class Quota(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All uses together may sum the integer `argument` up to `limit`."""

    argument: _Text
    limit: _Amount

    def __post_init__(self) -> None:
        _integers("quota", self.limit)


class Restriction(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one link allows. Every field is optional; times are microseconds since the epoch.

    - `resources`: patterns, absolute, with an optional HTTP method in front of a URL.
    - `methods`: names of effects, or families (`fs.*`).
    - `not_before`, `expires`: valid while not_before <= now < expires.
    - `run_only`: only for the run that the head names, not for its descendants.
    - `rate`, `count`, `quotas`: how often, how many times, and how much altogether.
    - `approval`: a person has to approve each use.
    - `sources`, `secrets`: usable only while the run's label holds nothing else than these.
    - `nonce`: 16 bytes that give two otherwise equal attenuations different ids.

    Raises ValueError (TypeError for a wrong type) when a field breaks these rules.
    """

    # In alphabetical order: this is the order of the keys in the token.
    approval: bool = False
    count: _Amount | None = None
    expires: _Amount | None = None
    methods: _Texts | None = None
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)] | None = (
        None
    )
    not_before: _Amount | None = None
    quotas: Annotated[tuple[Quota, ...], msgspec.Meta(min_length=1, max_length=MAX_LIST)] | None = (
        None
    )
    rate: Rate | None = None
    resources: _Texts | None = None
    run_only: bool = False
    secrets: _Texts | None = None
    sources: _Texts | None = None

    def __post_init__(self) -> None:
        for method in self.methods or ():
            if not _METHOD.fullmatch(method):
                raise ValueError(f"methods: {method!r} is no effect and no family like 'fs.*'")
        for pattern in self.resources or ():
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"resources: {pattern!r} is not absolute (fs:/..., https://..., tool:NAME)"
                )
        names = [quota.argument for quota in self.quotas or ()]
        if len(set(names)) != len(names):
            raise ValueError("quotas: one argument is limited twice")
        if "*" in (self.sources or ()) or "*" in (self.secrets or ()):
            raise ValueError("sources, secrets: '*' is no name; leave the field out for no ceiling")

    @property
    def counted(self) -> bool:
        """Whether uses have to be counted for this link."""
        return self.rate is not None or self.count is not None or bool(self.quotas)

    def plain(self) -> dict[str, Any]:
        """The fields that are set, as JSON has them (the nonce in hex): for entries and screens."""
        out: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(bytes,))
        for key, value in out.items():
            if isinstance(value, tuple):
                out[key] = list(value)
        if self.nonce is not None:
            out["nonce"] = self.nonce.hex()
        return out


def restriction_from_plain(fields: Mapping[str, Any]) -> Restriction:
    """The restriction that `plain` describes, or that a program or a person wrote as a table.

    Raises TokenError for an unknown key or a value that breaks a rule.
    """
    values = dict(fields)
    try:
        if isinstance(values.get("nonce"), str):
            values["nonce"] = bytes.fromhex(values["nonce"])
        restriction: Restriction = msgspec.convert(values, Restriction)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        raise TokenError(
            f"the restriction is not valid: {_one_line(error)}",
            "docs/protocol.md lists the keys of a restriction",
        ) from error
    decode_restriction(encode_restriction(restriction))
    return restriction


class _Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kid: str
    id: bytes
    run: str


_encoder = msgspec.msgpack.Encoder()
_restriction_decoder = msgspec.msgpack.Decoder(Restriction)
_head_decoder = msgspec.msgpack.Decoder(_Head)


def encode_restriction(restriction: Restriction) -> bytes:
    """The one form of this restriction in a token. Raises TokenError for a value it can't hold."""
    try:
        return _encoder.encode(restriction)
    except (UnicodeError, OverflowError, TypeError) as error:
        raise TokenError(f"the restriction is not valid: {_one_line(error)}") from error


def decode_restriction(data: bytes) -> Restriction:
    """Read a restriction strictly: unknown or repeated keys and any second spelling are refused."""
    try:
        restriction = _restriction_decoder.decode(data)
        again = _encoder.encode(restriction)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise TokenError(f"a restriction of the token is not valid: {_one_line(error)}") from error
    if again != data:
        raise TokenError("a restriction of the token is not in its one canonical form")
    return restriction


def encode_head(kid: str, id_: bytes, run: str) -> bytes:
    """The head's bytes. Raises TokenError for a name or id that may not stand there."""
    head = _encoder.encode(_Head(kid, id_, run))
    decode_head(head)
    return head


def decode_head(data: bytes) -> tuple[str, bytes, str]:
    """kid, id and run of a head, read strictly."""
    try:
        head = _head_decoder.decode(data)
        again = _encoder.encode(head)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise TokenError(f"the head of the token is not valid: {_one_line(error)}") from error
    if again != data:
        raise TokenError("the head of the token is not in its one canonical form")
    if not _KID.fullmatch(head.kid) or not _RUN.fullmatch(head.run) or len(head.id) != ID_SIZE:
        raise TokenError("the head of the token names no key, no id or no run")
    return head.kid, head.id, head.run


def framed(part: bytes) -> bytes:
    """A part with its length in front."""
    if len(part) > MAX_TOKEN:
        raise TokenError(f"the token would be longer than {MAX_TOKEN} bytes")
    return len(part).to_bytes(2, "big") + part


def split(token: bytes) -> tuple[bytes, list[bytes], bytes, bytes]:
    """Cut a token into head, restrictions, the bytes that mac(0) covers, and the MAC.

    Only lengths are looked at here. Raises TokenError when they do not fit together exactly.
    """
    if type(token) is not bytes:
        raise TokenError("a token is a string of bytes")
    size = len(token)
    if size > MAX_TOKEN:
        raise TokenError(f"the token is longer than {MAX_TOKEN} bytes")
    if token[:4] != MAGIC:
        raise TokenError("this is not a token of Authority, version 1")
    end = size - MAC_SIZE
    if end < 10:
        raise TokenError("the token is cut off")
    at = 6 + (token[4] << 8 | token[5])
    head = token[6:at]
    parts: list[bytes] = []
    while at < end:
        start = at + 2
        at = start + (token[at] << 8 | token[at + 1])
        parts.append(token[start:at])
    if at != end or not parts:
        raise TokenError("the token is cut off or its lengths do not fit")
    covered = 8 + len(head) + len(parts[0])
    if len(parts) > MAX_LINKS:
        raise TokenError(f"the token has more than {MAX_LINKS} restrictions")
    return head, parts, token[4:covered], token[end:]


def next_mac(mac: bytes, part: bytes) -> bytes:
    """HMAC-SHA256(mac, domain | part), RFC 2104 with a key of 32 bytes.

    Written out, because two plain hashes cost a third of what `hmac.digest` does here.
    """
    sha256 = hashlib.sha256
    inner = sha256(mac.translate(_IPAD) + _IPAD_TAIL + part).digest()
    return sha256(mac.translate(_OPAD) + _OPAD_TAIL + inner).digest()


def next_id(id_: bytes, part: bytes) -> bytes:
    """The id of the link that `part` adds below the link `id_`."""
    return hashlib.sha256(DOMAIN_ID + id_ + part).digest()[:ID_SIZE]


def attenuate(token: bytes, restriction: Restriction, *, nonce: bytes | None = None) -> bytes:
    """A narrower token: this one and `restriction` on top. Needs no key.

    `nonce` (16 random bytes, from the caller, since this is pure) goes into the restriction unless
    it has one already. Without any, equal attenuations have one id and share what they may use.
    Raises TokenError when the token can't be read or the result would be over a limit.
    """
    _, parts, _, mac = split(token)
    if nonce is not None and restriction.nonce is None:
        restriction = msgspec.structs.replace(restriction, nonce=nonce)
    if len(parts) >= MAX_LINKS:
        raise TokenError(f"a token can't have more than {MAX_LINKS} restrictions")
    part = encode_restriction(restriction)
    decode_restriction(part)
    narrowed = token[:-MAC_SIZE] + framed(part) + next_mac(mac, part)
    if len(narrowed) > MAX_TOKEN:
        raise TokenError(f"the token would be longer than {MAX_TOKEN} bytes")
    return narrowed


def to_text(token: bytes) -> str:
    """The token as text: `auth1_` and base64url (RFC 4648, section 5) without padding."""
    encoded = binascii.b2a_base64(token, newline=False).rstrip(b"=")
    return TEXT_PREFIX + encoded.replace(b"+", b"-").replace(b"/", b"_").decode("ascii")


def from_text(text: str) -> bytes:
    """The token's bytes. Raises TokenError for anything that `to_text` would not have written."""
    if not text.startswith(TEXT_PREFIX):
        raise TokenError(f"a token as text begins with {TEXT_PREFIX}")
    if len(text) > len(TEXT_PREFIX) + (MAX_TOKEN * 4 + 2) // 3:
        raise TokenError(f"the token is longer than {MAX_TOKEN} bytes")
    body = text[len(TEXT_PREFIX) :].replace("-", "+").replace("_", "/")
    try:
        token = binascii.a2b_base64(body + "=" * (-len(body) % 4), strict_mode=True)
    except ValueError as error:
        raise TokenError("the token's text is damaged: it is not base64url") from error
    if to_text(token) != text:
        raise TokenError("the token's text is not in its one canonical form")
    return token


def _integers(what: str, *values: int) -> None:
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_INT:
            raise ValueError(f"{what}: not an integer from 0 to 2**53 - 1")


def _one_line(error: BaseException) -> str:
    """A parser's message without anything that could steer a terminal, and not too long."""
    text = str(error)[:200]
    return "".join(c if " " <= c <= "~" else f"\\u{{{ord(c):x}}}" for c in text)
