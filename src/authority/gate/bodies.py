"""Where the bytes of requests and answers are kept, so that an entry says it before it is written.

Rules
- What is short stands in the entry. What is longer is synced to the content store before the entry
  that names it, as far as the run's budget for that goes; beyond it the entry has the digest alone.
- When the run's own label or the body's may reveal a secret, the body is sealed; beyond that budget
  there is nothing of it, because a digest could be guessed from.
- The budget is that of the run and of whoever started it.
- No body takes what has to stay free of the disk (`kernel/room.py`): then it is as if the budget were
  used up. A disk that is full all the same harms the record's detail and nothing else.
- What is refused for its budget is kept for who judges the log again, but nothing pays for it: so no
  more than `UNPAID` bytes of a run, each body as no less than `UNPAID_LEAST`.
- What was stored is paid for also when its request was given up at the last moment.
"""

from __future__ import annotations

import errno
from typing import Final

from authority.audit.store import ContentStore
from authority.gate.ledger import Ledger
from authority.gate.reader import short_body
from authority.kernel.entries import Admit, Body
from authority.kernel.labels import Label
from authority.kernel.state import Run

STORED_DEFAULT = 256 * 1024 * 1024
"""Bytes of bodies kept for a run whose policy sets no `stored_bytes`; then digests alone."""

UNPAID = 1024 * 1024
UNPAID_LEAST = 8192
STORED: Final = frozenset({"store", "sealed"})
"""How a body is kept that takes room in the content store."""


class Bodies:
    """The bodies of one gate's runs."""

    def __init__(self, ledger: Ledger, store: ContentStore) -> None:
        self._ledger = ledger
        self._store = store
        self._unpaid: dict[str, int] = {}

    def secret(self, run: str) -> bool:
        """Whether what the run says may reveal a secret."""
        info = self._ledger.state.runs.get(run)
        return bool(info and info.label.secrets)

    async def keep(self, run: str, data: bytes, label: Label) -> Body:
        """Put a body where its entry will say it is."""
        secret = bool(label.secrets) or self.secret(run)
        body = Body("", 0) if secret else short_body(data)
        info = self._ledger.state.runs.get(run)
        if info is None or (not secret and body.kept != "digest"):
            return body
        if not self._left(info, len(data)):
            return body
        put, kept = self._store.put_durable, "store"
        if secret:
            put, kept = self._store.seal_durable, "sealed"
        try:
            return Body(await put(data), len(data), kept)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return body  # others took the room meanwhile

    async def keep_refused(self, run: str, data: bytes) -> Body | None:
        """The same for a request that is refused; None beyond what is kept unpaid."""
        taken = self._unpaid.get(run, 0) + max(len(data), UNPAID_LEAST)
        if taken > UNPAID:
            return None
        self._unpaid[run] = taken
        return await self.keep(run, data, Label())

    def forget(self, run: str) -> None:
        """The run is over."""
        self._unpaid.pop(run, None)

    def _left(self, info: Run, size: int) -> bool:
        accounts = [self._ledger.state.accounts[name] for name in info.accounts]
        left = [each.left("stored_bytes") for each in accounts]
        if left[0] is None:
            left[0] = STORED_DEFAULT - accounts[0].spent.get("stored_bytes", 0)
        return all(each is None or each >= size for each in left) and self._store.takes(size)


def stored(admit: Admit) -> dict[str, int]:
    """What an admission stored of its request, which stays whatever comes of it."""
    body = admit.arguments
    return (
        {"stored_bytes": body.size}
        if body is not None and body.kept in STORED and body.size
        else {}
    )
