"""A request that is asked now, as the gate's reader gives it."""

from __future__ import annotations

from typing import Protocol

from authority.kernel.facts import Facts, Request


class Now(Protocol):
    """The request, its facts, its arguments as canonical bytes, and whether it waits for a person."""

    request: Request
    facts: Facts
    arguments: bytes
    wait: bool
