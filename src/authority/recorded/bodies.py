"""What the log and the content store still have of bodies, and the answers that are made of them.

Rules
- A body is read by its digest and hashed again. What is not there is named with the reason: kept as a
  digest alone, gone from the store, or sealed under a key that is not here any more.
- An answer's bytes are JSON; its members that were bytes are base64 there and become bytes again.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec

from authority.audit.errors import BodyMissing, LogError
from authority.audit.store import ContentStore
from authority.kernel.canonical import digest as digest_of
from authority.kernel.entries import Body

_BYTES: Final = {
    "fs.read": ("data",),
    "http.request": ("body",),
    "model.chat": ("body",),
    "model.embed": ("body",),
    "model.count": ("body",),
    "msg.receive": ("data",),
    "sys.random": ("data",),
}
_decode = msgspec.json.Decoder().decode


class Missing(Exception):
    """A body is not at hand; why."""


class Kept:
    """The bodies of one log. Without a store, entries alone."""

    def __init__(self, store: ContentStore | None) -> None:
        self._store = store

    def read(self, body: Body) -> bytes:
        """The bytes that an entry commits to. Raises `Missing`."""
        if body.kept == "inline":
            data = body.text.encode()
        elif body.kept == "base64":
            try:
                data = base64.b64decode(body.text, validate=True)
            except (binascii.Error, ValueError):
                raise Missing("the entry holds no base64") from None
        elif body.kept == "digest":
            raise Missing(f"its {body.size} bytes were kept as a digest alone (stored_bytes)")
        else:
            return self._stored(body)
        if digest_of(data) != body.digest:
            raise Missing("the entry's text does not have the digest that stands beside it")
        return data

    def _stored(self, body: Body) -> bytes:
        if self._store is None:
            raise Missing("there is no content store")
        try:
            if body.kept == "sealed":
                return self._store.unseal(body.digest)
            if body.kept == "sealed-inline":
                return self._store.open(base64.b64decode(body.text, validate=True))
            return self._store.get(body.digest)
        except (BodyMissing, LogError) as error:
            raise Missing(error.message) from None
        except (binascii.Error, ValueError):
            raise Missing("the entry holds no base64") from None

    def value(self, effect: str, body: Body | None) -> Any:
        """The value of an answer, as it was given. Raises `Missing`."""
        if body is None:
            return {}
        try:
            value = _decode(self.read(body))
        except msgspec.DecodeError:
            raise Missing("the recorded answer is no JSON") from None
        names = _BYTES.get(effect)
        if names and isinstance(value, dict):
            for name in names:
                if isinstance(value.get(name), str):
                    value[name] = base64.b64decode(value[name])
        return value
