"""Where an auditor finds what entries name: policies and bodies, from the content store.

Rules
- Everything is read by digest and hashed again (`ContentStore.get`). What is not there is said to be
  missing, never guessed.
- Sealed bodies are read only where their keys are given.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.store import ContentStore
from authority.kernel.entries import Body
from authority.kernel.policy import Policy, PolicyError, from_canonical
from authority.kernel.policy_remembered import Remembered

REMEMBERED = 65_536
"""Judgements that are remembered for each policy."""


class Sources:
    """Policies and bodies of one log. Without a store, entries alone."""

    def __init__(
        self,
        store: ContentStore | None,
        *,
        sealed: bool = False,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self._store = store
        self._sealed = sealed
        self._policies: dict[str, Policy | None] = {
            digest: Remembered(policy, REMEMBERED) for digest, policy in (policies or {}).items()
        }

    def policy(self, digest: str) -> Policy | None:
        """The policy of a run, or None when it is not at hand."""
        if digest not in self._policies:
            self._policies[digest] = self._read_policy(digest)
        return self._policies[digest]

    def _read_policy(self, digest: str) -> Policy | None:
        if self._store is None:
            return None
        try:
            return Remembered(from_canonical(self._store.get(digest)), REMEMBERED)
        except (BodyMissing, LogCorrupt, PolicyError):
            return None

    def body(self, body: Body) -> bytes | None:
        """The bytes that an entry commits to, or None when they are not at hand."""
        if body.kept == "inline":
            return body.text.encode()
        if body.kept == "base64":
            try:
                return base64.b64decode(body.text, validate=True)
            except (binascii.Error, ValueError):
                return None
        if self._store is None or body.kept not in ("store", "sealed"):
            return None
        try:
            if body.kept == "store":
                return self._store.get(body.digest)
            return self._store.unseal(body.digest) if self._sealed else None
        except (BodyMissing, LogCorrupt):
            return None
