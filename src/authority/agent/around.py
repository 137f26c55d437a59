"""What a `Gate` asks for beside files and the world: other runs, the time, randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from authority.agent.fields import as_bytes as _bytes
from authority.agent.fields import field as _field
from authority.agent.values import Message


class Around:
    """The part of `Gate` about what is around a run."""

    run: str

    def _map(
        self,
        effect: str,
        resource: str | bytes,
        arguments: Mapping[str, Any] | None,
        capability: str | bytes | None,
    ) -> dict[str, Any]:
        """A call whose answer is a map."""
        raise NotImplementedError

    def spawn(
        self,
        name: str,
        arguments: Sequence[str] = (),
        budgets: Mapping[str, int] | None = None,
        restriction: Mapping[str, Any] | None = None,
        capability: str | bytes | None = None,
    ) -> str:
        """Start an agent that the policy names, with no more than this run has; its run's id."""
        body = {
            "arguments": list(arguments),
            "budgets": dict(budgets or {}),
            "restriction": None if restriction is None else dict(restriction),
        }
        return _field(self._map("agent.spawn", f"agent:{name}", body, capability), "run", str)

    def wait(
        self, run: str, timeout_ms: int = 0, capability: str | bytes | None = None
    ) -> dict[str, Any]:
        """Whether a child has `ended`, and its `code`; waits for that up to `timeout_ms`."""
        return self._map("agent.wait", f"run:{run}", {"timeout_ms": timeout_ms}, capability)

    def send(self, run: str, data: bytes | str, capability: str | bytes | None = None) -> None:
        """Send a message to the parent or to a child."""
        self._map("msg.send", f"run:{run}", {"data": _bytes(data)}, capability)

    def receive(self, timeout_ms: int = 0, capability: str | bytes | None = None) -> Message | None:
        """The next message for this run, or None when none came within `timeout_ms`."""
        value = self._map("msg.receive", f"run:{self.run}", {"timeout_ms": timeout_ms}, capability)
        if not value:
            return None
        return Message(_field(value, "from", str), _field(value, "data", bytes))

    def time(self, capability: str | bytes | None = None) -> float:
        """Seconds since 1970 by the gate's clock. Recorded, so a replay gives the same."""
        return _field(self._map("sys.time", "sys:time", None, capability), "us", int) / 1_000_000

    def random(self, size: int = 16, capability: str | bytes | None = None) -> bytes:
        """Random bytes, at most 64 KiB. Recorded for replays, so they are no secret."""
        found = self._map("sys.random", "sys:random", {"size": size}, capability)
        return _field(found, "data", bytes)

    def uuid(self, capability: str | bytes | None = None) -> str:
        """A random UUID as text, recorded."""
        return _field(self._map("sys.uuid", "sys:uuid", None, capability), "uuid", str)
