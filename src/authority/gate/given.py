"""What a run was given beside its policy, kept so that the run can be played again.

Rules
- Values of variables that the caller passed, and the placeholders of credentials, are sealed: they may
  be secrets. What the policy itself sets stands in the policy. More than `MOST` bytes are not kept.
- The sealed text stands in the run's first entry. Its key is durable before the program begins; a
  crash in between leaves an entry whose key is not there, of a run that never began.
- Every run has a seed for Python's hashes, unless its variables set one.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Mapping

from authority.audit.store import ContentStore
from authority.errors import AuthorityError
from authority.gate.run import Start
from authority.gate.wanted import SEED
from authority.kernel.canonical import decode, encode
from authority.kernel.canonical import digest as digest_of
from authority.kernel.entries import Body

MOST = 64 * 1024


class Given:
    """One run's: `body` for its first entry, None when there is nothing to keep."""

    def __init__(self, spec: Start, placeholders: Mapping[str, str]) -> None:
        own = spec.policy.process.env
        values = {k: v for k, v in spec.environment.items() if own.get(k) != v}
        data = encode({**values, **placeholders}) if values or placeholders else b""
        self.body: Body | None = None
        self._key = b""
        if data and len(data) <= MOST:
            sealed, self._key = ContentStore.encrypted(data)
            text = base64.b64encode(sealed).decode("ascii")
            self.body = Body(digest_of(sealed), len(sealed), "sealed-inline", text)

    async def keep(self, store: ContentStore) -> None:
        """Make it possible to read it again. Raises `AuthorityError`."""
        if self.body is None:
            return
        try:
            await asyncio.to_thread(store.keep_key, self.body.digest, self._key)
        except OSError as error:
            raise AuthorityError(
                f"what the run is given can't be kept: {error.strerror}",
                "see that the state directory can be written, and has room",
            ) from error


def seed_of(environment: Mapping[str, str]) -> str:
    """A fresh seed; that of the variables, where they set one."""
    return environment.get(SEED) or str(secrets.randbelow(2**32))


def read(store: ContentStore, body: Body) -> dict[str, str]:
    """The values again. Raises `BodyMissing` when the key was destroyed, `LogCorrupt`."""
    found = decode(store.open(base64.b64decode(body.text)))
    return {str(name): str(value) for name, value in found.items()}
