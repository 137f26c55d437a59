"""What a person types to a run, in the log before the program reads it.

Rules
- Each piece is an `input` entry, durable before its bytes go on. The bytes are sealed: what is typed at
  a prompt may be a password. Its length and its moment are told by the log all the same.
- The key is the run's own, made with the first piece and kept outside the log (`audit.sealed`).
- A run that was halted, or has ended, hears nothing more; that is asked again when the entry is safe.
- What is piped into a run without a terminal is recorded likewise, up to `PIPED_KEPT` bytes. After
  that one entry without a key says that more came, and it goes to the run as it comes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib

from authority.audit.sealed import Sealer
from authority.audit.store import ContentStore
from authority.errors import AuthorityError
from authority.gate.ledger import Ledger
from authority.gate.run import Run
from authority.kernel import decide, entries
from authority.kernel.canonical import printable
from authority.kernel.entries import Body

PIPED_KEPT = 1024 * 1024


class NotHeard(AuthorityError):
    """The run takes no more input."""


class Typing:
    """Commits typed input for all runs of a gate."""

    def __init__(self, ledger: Ledger, store: ContentStore) -> None:
        self._ledger = ledger
        self._store = store

    async def give(self, run: Run, data: bytes) -> None:
        """Commit `data` and pass it on. Raises `NotHeard`."""
        async with run.typing:
            if run.spec.terminal is None and run.piped + len(data) > PIPED_KEPT:
                await self._unkept(run, data)
                return
            run.piped += len(data)
            if run.sealer is None or not run.sealer.left:
                run.sealer = await asyncio.to_thread(self._store.sealer)
            self._listening(run)
            receipt = self._ledger.step([self._entry(run, run.sealer, data)])
            await self._ledger.durable(receipt.seq)
            self._listening(run)
            await run.give_input(data)

    async def _unkept(self, run: Run, data: bytes) -> None:
        self._listening(run)
        if run.piped <= PIPED_KEPT:
            run.piped = PIPED_KEPT + 1
            self._ledger.step([entries.Input(run=run.id, key="", body=Body("", 0))])
        await run.give_input(data)

    @staticmethod
    def _entry(run: Run, sealer: Sealer, data: bytes) -> entries.Input:
        sealed = sealer.seal(data)
        text = base64.b64encode(sealed).decode()
        body = Body(hashlib.sha256(sealed).hexdigest(), len(data), "sealed-inline", text)
        return entries.Input(run=run.id, key=sealer.name, body=body)

    def _listening(self, run: Run) -> None:
        if self._ledger.log.trouble:
            raise NotHeard(printable(self._ledger.log.trouble), "make room for the log")
        if run.ended.is_set() or decide.recheck(self._ledger.state, run.id, []) is not None:
            raise NotHeard("the run takes no more input: it was halted or has ended")
