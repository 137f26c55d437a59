"""Signed notes and their keys, as C2SP writes them (c2sp.org/signed-note and tlog-cosignature).

Rules
- A note is text that ends in a newline, a blank line, and one signature line or more:
  `U+2014 <name> base64(key hash (4 bytes) || signature)`.
- Key hash: the first 4 bytes of `SHA-256(name || 0x0A || kind || public key)`; kind 1 is Ed25519
  over the text, kind 4 a witness's Ed25519 over `cosignature/v1`, `time SECONDS` and the text, its
  signature preceded by the seconds as 8 bytes, big endian.
- Public keys are written `name+hash (8 hex)+base64(kind || key)`, private ones
  `PRIVATE+KEY+name+hash+base64(kind || seed)`. Names hold no blanks and no plus sign.
- A signature by an unknown key is ignored; one that claims a known key and fails refuses the note.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from authority.audit.errors import CheckpointInvalid

LOG = 1
WITNESS = 4
MAX_NOTE = 16 * 1024
_DASH = "\u2014 "


@dataclass(frozen=True)
class VerifyKey:
    """A public key with the name that it signs under. `raw` is 32 bytes, `kind` LOG or WITNESS."""

    name: str
    raw: bytes
    kind: int = LOG

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.raw) != 32 or self.kind not in {LOG, WITNESS}:
            raise CheckpointInvalid("a public key has 32 bytes and is of a log or a witness")

    @property
    def hash(self) -> bytes:
        """The 4 bytes that stand before its signatures."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.raw).digest()[:4]

    @property
    def fingerprint(self) -> str:
        """What a person compares: SHA-256 of the written key, in groups of four hex digits."""
        text = sha256(self.to_text().encode()).hexdigest()
        return " ".join(text[i : i + 4] for i in range(0, 64, 4))

    def to_text(self) -> str:
        """`name+hash+base64`, as `--key` takes it."""
        data = base64.b64encode(bytes([self.kind]) + self.raw).decode()
        return f"{self.name}+{self.hash.hex()}+{data}"

    @classmethod
    def from_text(cls, text: str) -> VerifyKey:
        """Read what `to_text` wrote. Raises `CheckpointInvalid`."""
        name, given, data = _fields(text.strip(), 3)
        key = cls(name, data[1:], data[0] if data else 0)
        if key.hash.hex() != given:
            raise CheckpointInvalid("the public key was copied wrongly: its hash does not match")
        return key

    def verifies(self, text: str, signature: bytes) -> int | None:
        """Whether `signature` (without key hash) is this key's over a note's text.

        Returns a witness's time in seconds (0 for a log's key), or None when it is not.
        """
        message = text.encode()
        when = 0
        if self.kind == WITNESS:
            if len(signature) != 72:
                return None
            when = int.from_bytes(signature[:8], "big")
            signature = signature[8:]
            message = f"cosignature/v1\ntime {when}\n".encode() + message
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return None
        return when


class SigningKey:
    """A private key. It never shows itself in `repr`."""

    def __init__(self, name: str, seed: bytes, kind: int = LOG) -> None:
        if len(seed) != 32:
            raise CheckpointInvalid("a signing key has 32 bytes")
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = VerifyKey(name, self._private.public_key().public_bytes_raw(), kind)

    @property
    def name(self) -> str:
        """The name that it signs under."""
        return self.public.name

    def to_text(self) -> str:
        """The secret, for a 0600 file."""
        data = base64.b64encode(bytes([self.public.kind]) + self._seed).decode()
        return f"PRIVATE+KEY+{self.name}+{self.public.hash.hex()}+{data}"

    @classmethod
    def from_text(cls, text: str) -> SigningKey:
        """Read what `to_text` wrote. Raises `CheckpointInvalid`; the message holds no secret."""
        prefix = "PRIVATE+KEY+"
        text = text.strip()
        if not text.startswith(prefix):
            raise CheckpointInvalid("this is not a signing key")
        name, given, data = _fields(text[len(prefix) :], 3)
        key = cls(name, data[1:], data[0] if data else 0)
        if key.public.hash.hex() != given:
            raise CheckpointInvalid("the signing key was copied wrongly: its hash does not match")
        return key

    def sign(self, text: str, when_s: int = 0) -> str:
        """The signature line (with newline) for a note's text; a witness says when, in seconds."""
        message = text.encode()
        before = b""
        if self.public.kind == WITNESS:
            before = when_s.to_bytes(8, "big")
            message = f"cosignature/v1\ntime {when_s}\n".encode() + message
        signature = self.public.hash + before + self._private.sign(message)
        return f"{_DASH}{self.name} {base64.b64encode(signature).decode()}\n"


@dataclass(frozen=True)
class Note:
    """A parsed note: its text and its signatures as (name, key hash, signature)."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    @classmethod
    def parse(cls, data: str) -> Note:
        """Split a note; verifies nothing. Raises `CheckpointInvalid`."""
        if len(data) > MAX_NOTE:
            raise CheckpointInvalid("a note is too long")
        text, blank, lines = data.rpartition("\n\n")
        if not blank or not lines.endswith("\n"):
            raise CheckpointInvalid("a note has a text, a blank line and signatures")
        if any(ord(c) < 0x20 and c != "\n" for c in data):
            raise CheckpointInvalid("a note holds control characters")
        found = []
        for line in lines[:-1].split("\n"):
            name, _, signature = line.removeprefix(_DASH).partition(" ")
            raw = _base64(signature)
            if not line.startswith(_DASH) or not name or len(raw) < 5:
                raise CheckpointInvalid("a signature line of a note is malformed")
            found.append((name, raw[:4], raw[4:]))
        return cls(text + "\n", tuple(found))

    def verified_by(self, key: VerifyKey) -> int | None:
        """The time of `key`'s signature (0 for a log), or None when it did not sign.

        Raises `CheckpointInvalid` when a signature claims this key and is not its own.
        """
        when = None
        for name, key_hash, signature in self.signatures:
            if name == key.name and key_hash == key.hash:
                when = key.verifies(self.text, signature)
                if when is None:
                    raise CheckpointInvalid(
                        "a signature claims the expected key and is not its own"
                    )
        return when


def _check_name(name: str) -> None:
    if not name or "+" in name or not all(0x21 <= ord(c) <= 0x7E for c in name):
        raise CheckpointInvalid("the name of a key holds blanks, '+' or what is not ASCII")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointInvalid("a key or signature is not base64") from error


def _fields(text: str, count: int) -> tuple[str, str, bytes]:
    parts = text.split("+", count - 1)
    if len(parts) != count:
        raise CheckpointInvalid("a key is written name+hash+base64")
    return parts[0], parts[1], _base64(parts[2])
