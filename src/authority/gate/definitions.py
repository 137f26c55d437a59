"""Definitions of MCP servers' tools: recorded when they are seen, shown to a person, answered.

Rules
- A definition is a text that the worker wrote (printable ASCII), kept in the content store before the
  entry that names it. The log holds its digest and what became of it.
- Whether a first sight waits for a person is the policy's word; a change always waits.
- The id of a waiting definition names its server, the tool, and exactly this text: an answer to one
  that changed meanwhile meets nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.store import ContentStore
from authority.gate.ledger import Ledger
from authority.gate.run import Run
from authority.kernel import entries
from authority.kernel.mcp_rules import McpServer
from authority.kernel.state import PINS_LIMIT, Pin, pin_name


class Definitions:
    """All definitions of one gate."""

    def __init__(self, ledger: Ledger, store: ContentStore) -> None:
        self._ledger = ledger
        self._store = store

    def approved(self, server: McpServer, name: str, tool: str, digest: str) -> bool:
        """Whether a tool may be shown and called with this definition."""
        pin = self._ledger.state.pins.get(pin_name(server.key(name), tool))
        return not server.unapproved(tool, pin.approved if pin else "", {"definition": digest})

    def _new(
        self, server: McpServer, name: str, found: Mapping[str, str]
    ) -> Iterator[tuple[Pin, str]]:
        """What of `found` (digests by tool) nobody has seen or answered yet."""
        key, pins = server.key(name), self._ledger.state.pins
        for tool, digest in found.items():
            pin = pins.get(pin_name(key, tool)) or Pin(name, tool, key)
            if digest not in {pin.approved, pin.waiting, pin.refused, *server.pins(tool)}:
                yield pin, digest

    async def see(self, run: Run, name: str, tools: Mapping[str, str]) -> None:
        """Record the texts of a server's tools that are new. Durable on return."""
        server = run.spec.policy.mcp[name]
        texts = {tool: text.encode("ascii") for tool, text in tools.items()}
        found = {tool: hashlib.sha256(text).hexdigest() for tool, text in texts.items()}
        for pin, _ in self._new(server, name, found):
            await self._store.put_durable(texts[pin.tool])
        new: list[entries.AnyEntry] = []
        for pin, digest in self._new(server, name, found):  # as it is now, in one step
            if len(self._ledger.state.pins) + len(new) >= PINS_LIMIT:
                run.on_trouble(f"mcp.{name}: too many definitions are kept; {pin.tool} is not")
                continue
            first = not pin.approved and server.approve == "changes" and not server.pins(pin.tool)
            new.append(
                entries.Definition(
                    run=run.id,
                    server=name,
                    key=pin.key,
                    tool=pin.tool,
                    digest=digest,
                    action="approved" if first else "seen",
                    by="policy" if first else "",
                    before=pin.approved,
                )
            )
            what = "is taken as it is, at first sight" if first else "waits for approval"
            run.on_trouble(f"mcp.{name}: the tool {pin.tool} {what} ('authority approvals')")
        if new:
            receipt = self._ledger.step(new)
            await self._ledger.durable(receipt.seq)

    async def waiting(self) -> list[dict[str, Any]]:
        """What waits, with its text and the text that was approved before."""
        return [
            {
                "id": _id(pin),
                "server": pin.server,
                "tool": pin.tool,
                "digest": pin.waiting,
                "before": pin.approved,
                "asked": pin.seen,
                "text": await self._text(pin.waiting),
                "approved_text": await self._text(pin.approved),
            }
            for pin in list(self._ledger.state.pins.values())
            if pin.waiting
        ]

    async def _text(self, digest: str) -> str:
        if not digest:
            return ""
        try:
            data = await asyncio.to_thread(self._store.get, digest)
        except (BodyMissing, LogCorrupt):
            return "(the text is gone)"
        return data.decode("ascii")

    def answer(self, key: str, by: str, *, granted: bool) -> int | None:
        """A person's answer; its entry, or None when nothing of this id waits."""
        for pin in self._ledger.state.pins.values():
            if pin.waiting and _id(pin) == key:
                entry = entries.Definition(
                    server=pin.server,
                    key=pin.key,
                    tool=pin.tool,
                    digest=pin.waiting,
                    action="approved" if granted else "refused",
                    by=by,
                    before=pin.approved,
                )
                return self._ledger.step([entry]).seq
        return None


def _id(pin: Pin) -> str:
    return f"mcp.{pin.key[:8]}.{pin.tool}.{pin.waiting[:12]}"
