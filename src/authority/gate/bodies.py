"""Where the bytes of requests and answers are kept, so that an entry says it before it is written.

Rules
- What is short stands in the entry. What is longer is synced to the content store before the entry
  that names it, as far as the run's budget for that goes; beyond it the entry has the digest alone.
- When the run's own label or the body's may reveal a secret, the body is sealed.
"""

from __future__ import annotations

import msgspec

from authority.audit.store import ContentStore
from authority.gate.ledger import Ledger
from authority.gate.reader import short_body
from authority.kernel.entries import Body
from authority.kernel.labels import Label

STORED_DEFAULT = 256 * 1024 * 1024
"""Bytes of bodies kept for a run whose policy sets no `stored_bytes`; then digests alone."""


class Bodies:
    """The bodies of one gate's runs."""

    def __init__(self, ledger: Ledger, store: ContentStore) -> None:
        self._ledger = ledger
        self._store = store

    def secret(self, run: str) -> bool:
        """Whether what the run says may reveal a secret."""
        info = self._ledger.state.runs.get(run)
        return bool(info and info.label.secrets)

    async def keep(self, run: str, data: bytes, label: Label) -> Body:
        """Put a body where its entry will say it is."""
        if label.secrets or self.secret(run):
            return Body(await self._store.seal_durable(data), len(data), "sealed")
        body = short_body(data)
        info = self._ledger.state.runs.get(run)
        if body.kept != "digest" or info is None:
            return body
        account = self._ledger.state.accounts[info.accounts[0]]
        left = account.left("stored_bytes")
        if left is None:
            left = STORED_DEFAULT - account.spent.get("stored_bytes", 0)
        if left < len(data):
            return body
        await self._store.put_durable(data)
        return msgspec.structs.replace(body, kept="store")
