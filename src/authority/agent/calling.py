"""The one primitive that the short forms of a `Gate` are made of; `Gate` has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from authority.agent.errors import Wait
from authority.agent.fields import map_of

Capability = str | bytes | None


class Calling:
    """What can be asked for one effect."""

    def call(
        self,
        effect: str,
        resource: str | bytes,
        arguments: Mapping[str, Any] | None = None,
        capability: Capability = None,
        handle: bool = False,
        wait: Wait = False,
    ) -> Any:
        """See `Gate.call`."""
        raise NotImplementedError

    def _map(
        self,
        effect: str,
        resource: str | bytes,
        arguments: Mapping[str, Any] | None,
        capability: Capability,
    ) -> dict[str, Any]:
        """A call whose answer is a map."""
        return map_of(effect, self.call(effect, resource, arguments, capability))
