"""What a `Gate` asks for beside files and the world: other runs, the time, randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from authority.agent.calling import Calling, Capability
from authority.agent.fields import field as _field
from authority.agent.fields import map_of
from authority.agent.filing import Given, given
from authority.agent.handles import Handle, Made, is_handle
from authority.agent.values import Message


class Around(Calling):
    """The part of `Gate` about what is around a run."""

    run: str

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

    @overload
    def wait(
        self,
        run: str,
        timeout_ms: int = 0,
        capability: Capability = None,
        handle: Literal[False] = False,
    ) -> dict[str, Any]: ...

    @overload
    def wait(
        self,
        run: str,
        timeout_ms: int = 0,
        capability: Capability = None,
        *,
        handle: Literal[True],
    ) -> Handle: ...

    def wait(
        self,
        run: str,
        timeout_ms: int = 0,
        capability: Capability = None,
        handle: bool = False,
    ) -> dict[str, Any] | Handle:
        """Whether a child has `ended`, and its `code`; waits for that up to `timeout_ms`."""
        body = {"timeout_ms": timeout_ms}
        value = self.call("agent.wait", f"run:{run}", body, capability, handle)
        return is_handle(value) if handle else map_of("agent.wait", value)

    @overload
    def send(self, run: str, data: bytes | str, capability: Capability = None) -> None: ...

    @overload
    def send(self, run: str, data: Handle | Made, capability: Capability = None) -> Handle: ...

    def send(self, run: str, data: Given, capability: Capability = None) -> Handle | None:
        """Send a message to the parent or to a child. With handles in it, a handle to how it went."""
        value = self.call("msg.send", f"run:{run}", {"data": given(data)}, capability)
        return value if isinstance(value, Handle) else None

    @overload
    def receive(
        self, timeout_ms: int = 0, capability: Capability = None, handle: Literal[False] = False
    ) -> Message | None: ...

    @overload
    def receive(
        self, timeout_ms: int = 0, capability: Capability = None, *, handle: Literal[True]
    ) -> Handle: ...

    def receive(
        self, timeout_ms: int = 0, capability: Capability = None, handle: bool = False
    ) -> Message | Handle | None:
        """The next message for this run, or None when none came within `timeout_ms`.

        As a handle (`/from`, `/data`) nothing of it was read, not even whether it came.
        """
        body = {"timeout_ms": timeout_ms}
        value = self.call("msg.receive", f"run:{self.run}", body, capability, handle)
        if handle:
            return is_handle(value)
        value = map_of("msg.receive", value)
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
