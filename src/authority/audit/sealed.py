"""Many small secrets under one key: sealed without touching the disk, and destroyed together.

`ContentStore.seal` writes two files a body, which is right for a document and wrong for a keystroke.
Here the key alone is a file, durable before the first body is sealed; the bodies stand in the log.

Rules
- AES-256-GCM with a random nonce for each body: `nonce (12 bytes) || ciphertext || tag`. The key's name
  is authenticated too, so a body can't be passed off as another key's.
- A key seals at most `MOST` bodies, far below where random nonces could meet; then another is made.
- Who has the key's file opens all of its bodies; once it is removed, nobody opens any.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from authority.audit.errors import LogCorrupt

MOST = 1 << 24
_CONTEXT = b"authority/sealed-typing/1/"
_NONCE = 12


@dataclass
class Sealer:
    """One key, by its name. `left` bodies can still be sealed under it."""

    name: str
    key: bytes
    left: int = MOST

    def seal(self, data: bytes) -> bytes:
        """The sealed bytes."""
        if self.left <= 0:
            raise AssertionError("a key that sealed enough was used on")
        self.left -= 1
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(self.key).encrypt(nonce, data, _CONTEXT + self.name.encode())

    def open(self, body: bytes) -> bytes:
        """What was sealed. Raises `LogCorrupt` when it was not, or not under this key."""
        try:
            context = _CONTEXT + self.name.encode()
            return AESGCM(self.key).decrypt(body[:_NONCE], body[_NONCE:], context)
        except (InvalidTag, ValueError) as error:
            raise LogCorrupt(-1, f"the key {self.name} does not open the body") from error
