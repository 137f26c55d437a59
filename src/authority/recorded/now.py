"""A request that is asked now, as the gate's reader gives it."""

from __future__ import annotations

from typing import Protocol

from authority.kernel.facts import Facts, Request


class Now(Protocol):
    """The request, its facts, and the canonical bytes of its arguments."""

    request: Request
    facts: Facts
    arguments: bytes
    wait: bool
