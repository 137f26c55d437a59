"""Who performs what: one object an effect, chosen by the run's policy where secrets differ.

Rules
- Credentials and the caller's environment belong to the policy under which they were given. Each
  policy has its own HTTP client and tool starter, made when its first run starts and dropped with its
  last, so no run can reach what another was given.
- What a server answers is read by the worker of the run that asked, also when others share its policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from authority.compat.base import Door
from authority.compat.fetching import Fetches
from authority.compat.models import ModelService
from authority.effects.base import Call, EffectFailed, Performed
from authority.effects.files import FileEffects
from authority.effects.http import Lost
from authority.gate.pipeline import LookUp, Performer
from authority.gate.run import Run
from authority.gate.system import EFFECTS as SYSTEM_EFFECTS
from authority.gate.system import SystemEffects
from authority.kernel.facts import Request
from authority.kernel.models import EFFECTS as MODEL_EFFECTS

FILE_EFFECTS = ("read", "stat", "list", "write", "append", "mkdir", "rename", "delete")


class PerPolicy:
    """Performs with what was given for the call's policy."""

    def __init__(self) -> None:
        self._by_digest: dict[str, Performer] = {}

    def give(self, digest: str, make: Callable[[], Performer]) -> None:
        """Make the performer of a policy, anew: what the last caller gave counts."""
        self._by_digest[digest] = make()

    def drop(self, digest: str) -> None:
        """Forget what was given for a policy."""
        self._by_digest.pop(digest, None)

    async def perform(self, call: Call) -> Performed:
        performer = self._by_digest.get(call.policy.digest)
        if performer is None:
            raise EffectFailed("The gate no longer holds what this effect needs.")
        return await performer.perform(call)


def table(
    files: Performer,
    http: PerPolicy,
    tools: Performer,
    models: Performer,
    family: Performer,
    messages: Performer,
    mcp: Performer,
    values: Performer,
) -> dict[str, Performer]:
    """All effects by name."""
    performers: dict[str, Performer] = {f"fs.{name}": files for name in FILE_EFFECTS}
    performers["http.request"] = http
    performers["tool.call"] = tools
    performers |= dict.fromkeys(MODEL_EFFECTS, models)
    performers["agent.spawn"] = performers["agent.wait"] = family
    performers["msg.send"] = performers["msg.receive"] = messages
    performers |= dict.fromkeys(SYSTEM_EFFECTS, SystemEffects())
    performers["mcp.list"] = performers["mcp.read"] = performers["mcp.prompt"] = mcp
    performers["value.reveal"] = performers["value.compute"] = values
    return performers


class Fetchers:
    """The links to runs' workers over which `http.request` is carried."""

    def __init__(self, running: Mapping[str, Run], door: Callable[[Run], Door]) -> None:
        self._running = running
        self._door = door
        self._of: dict[str, Fetches] = {}

    async def linked(self, name: str) -> Fetches:
        """That of a run. Raises `Lost`."""
        run = self._running.get(name)
        if run is None or run.over:
            raise Lost("the run is over")
        found = self._of.get(name)
        if found is None:
            found = self._of[name] = Fetches(self._door(run))
            run.on_end(lambda: self._of.pop(name, None))
        return await found.linked()


class Models:
    """Model calls that come through the channel: the service of the run's endpoint makes them."""

    def __init__(self, service: Callable[[str], ModelService]) -> None:
        self._service = service

    async def perform(self, call: Call) -> Performed:
        return await self._service(call.run).native(call)

    async def look_up(self, request: Request) -> dict[str, Any]:
        """What the request may cost, or why it is none."""
        assert request.resource is not None
        return self._service(request.run).facts(request.effect, request.resource, request.arguments)


def look_ups(files: FileEffects, models: Models, tool: LookUp) -> Mapping[str, LookUp]:
    """What is looked up before a decision: a file's size, what a tool is now, a call's demand."""

    async def size(request: Request) -> dict[str, Any]:
        assert request.resource is not None
        return dict(await files.prepare("fs.read", request.resource))

    found = {"fs.read": size, "tool.call": tool}
    return {**found, **dict.fromkeys(MODEL_EFFECTS, models.look_up)}
