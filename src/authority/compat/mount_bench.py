"""What all parts of one mount share: the run's door, the files, the nodes, the handles, the threads.

Rules
- Work that may wait for a disk runs in threads. Nothing else runs there: nodes, handles and the door
  belong to the gate's loop.
- An admitted change is performed and then has its outcome appended, in this order and before the
  program hears of it. Its intent was durable before; the outcome becomes durable with the next batch,
  since what happened can be seen in the file.
- An error of the system is passed on as it is. What may not be touched, and every refusal, is EACCES;
  a budget that is used up is EDQUOT for what is written.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

from authority.compat.base import Door, Flow, Refused
from authority.compat.mount_handles import Handles
from authority.compat.mount_locks import Stillness
from authority.compat.mount_nodes import Nodes
from authority.compat.mount_own import Own
from authority.effects.beneath import Handle as Looked
from authority.effects.beneath import Untouchable
from authority.effects.file_changes import moment
from authority.effects.tree import Files, Identity
from authority.kernel import flows, resources
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.policy_persist import HOME
from authority.kernel.policy_protect import PathSet
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import Resource

_T = TypeVar("_T")
_LOW = 2**53 - 1


class Denied(OSError):
    """Refused before anything was tried; the errno says how the program hears of it."""


class Bench:
    """One mount's."""

    def __init__(
        self,
        door: Door,
        files: Files,
        nodes: Nodes,
        *,
        handles: Handles,
        own: Own,
        shown: PathSet,
        over: PathSet,
        home: bool,
        threads: Executor,
        still: Stillness,
        writers: Callable[[Looked], bool] | None = None,
    ) -> None:
        self.door = door
        self.files = files
        self.nodes = nodes
        self.handles = handles
        self.own = own
        self.shown = shown
        self.over = over
        self.verb = HOME if home else ""
        self.still = still
        self.writers = writers or (lambda found: handles.writers(found.identity))
        """Whether somebody may still write to a file, by a descriptor that is open."""
        self._threads = threads

    def judge(self, effect: str, resource: Resource, verb: str = "") -> Judgement:
        """What the policy says, not counted."""
        return self.door.policy.judge(effect, resource, self.verb or verb)

    async def thread(self, work: Callable[[], _T]) -> _T:
        """Do something that may wait, elsewhere."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def admit(
        self,
        effect: str,
        resource: Resource,
        arguments: Any,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Flow:
        """Ask at the door. `facts` is what is known of the file. Raises `Denied`."""
        try:
            return await self.door.open(effect, resource, arguments, self.verb or verb, facts)
        except Refused as no:
            raise Denied(_errno(effect, no.code), no.sentence) from None

    async def change(
        self,
        effect: str,
        resource: Resource,
        arguments: Any,
        perform: Callable[[], tuple[_T, dict[str, Any]]],
        verb: str = "",
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> _T:
        """Admit a change and perform it in a thread; `check` looks once more, on the loop, right
        before. That it failed tells what is there, so then it was a look. Raises `OSError`."""
        flow = await self.admit(effect, resource, arguments, verb)
        try:
            return await self.perform(flow, perform, check)
        except (OSError, Untouchable):
            to = getattr(arguments, "to", "")
            facts = {**flows.FAILED, "target": resources.parse(effect, to).text if to else ""}
            self.door.glance(effect, resource, self.verb or verb, facts)
            raise

    async def perform(
        self,
        flow: Flow,
        perform: Callable[[], tuple[_T, dict[str, Any]]],
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> _T:
        """Perform what was admitted, and settle."""
        try:
            if check is not None:
                await check()
            value, facts = await self.thread(perform)
        except (Denied, Untouchable) as no:
            flow.settle("aborted", code=Code.POLICY_DENY, facts=why(no))
            raise
        except OSError as error:
            flow.settle("failed", code=Code.EFFECT_FAILED, facts=why(error))
            raise
        flow.settle("done", facts=facts)
        return value


def _errno(effect: str, code: str) -> int:
    if code == Code.BUDGET_EXCEEDED and effect == "fs.modify":
        return errno.EDQUOT
    return errno.EIO if code == Code.HALTED else errno.EACCES


def why(error: OSError | Untouchable) -> dict[str, Any]:
    """What went wrong, for an entry."""
    if isinstance(error, Untouchable):
        return {"why": error.reason}
    if isinstance(error, Denied):
        return {"why": printable(str(error.strerror), 300)}
    return {"errno": errno.errorcode.get(error.errno or 0, str(error.errno))}


def state_facts(status: os.stat_result) -> dict[str, Any]:
    """The same, with what tells whether it was changed by somebody else since."""
    return identity_facts(status) | moment(status)


def identity_facts(status: os.stat_result) -> dict[str, Any]:
    """Device and inode for an entry, as far as its integers go."""
    return inode_facts((status.st_dev, status.st_ino))


def inode_facts(identity: Identity) -> dict[str, Any]:
    """The same of a file that is known by them."""
    return {"dev": identity[0] & _LOW, "ino": identity[1] & _LOW}
