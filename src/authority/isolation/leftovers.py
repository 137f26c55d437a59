"""Control groups of runs: made for a start, removed when the kernel lets them go.

Rules
- The kernel takes a moment to empty a group of the dead. Until then it is kept here and tried again;
  should this loop end before, the next start, or the next gate, removes it.
- What a gate that died left behind is swept once, before the first group is made.
"""

from __future__ import annotations

import asyncio
import atexit

from authority.isolation import cgroups
from authority.isolation.plan import Plan
from authority.isolation.refusal import IsolationRefused, shown

_swept: set[str] = set()
_leftovers: list[cgroups.Group] = []
_removing: set[asyncio.Task[None]] = set()


def take(group: cgroups.Group) -> None:
    """A group that could not be removed yet."""
    _leftovers.append(group)
    task = asyncio.get_running_loop().create_task(_remove_later())
    _removing.add(task)
    task.add_done_callback(_removing.discard)


async def _remove_later() -> None:
    for pause in (0.005, 0.02, 0.1, 0.5, 2.0):
        await asyncio.sleep(pause)
        if remove_leftovers():
            return


@atexit.register
def remove_leftovers() -> bool:
    """Removes the groups of runs that have ended; True when none is left."""
    _leftovers[:] = [group for group in _leftovers if not group.remove()]
    return not _leftovers


def _sweep_once(support: cgroups.Support) -> None:
    remove_leftovers()
    key = repr(support)
    if key not in _swept:
        _swept.add(key)
        cgroups.sweep(support)


def group_for(plan: Plan) -> cgroups.Group | None:
    """The group of a run that is to be started; None where there are none. `IsolationRefused`."""
    spec = plan.spec
    # Process 1 counts too.
    count = spec.processes + 1 if spec.processes else 0
    return make(plan.cgroup, memory=spec.memory, processes=count, millicpus=spec.millicpus)


def make(
    support: cgroups.Support, *, memory: int, processes: int, millicpus: int
) -> cgroups.Group | None:
    """A group with these limits; None where there are none. Raises `IsolationRefused`."""
    if not support.version:
        return None
    _sweep_once(support)
    try:
        return cgroups.create(support, memory=memory, processes=processes, millicpus=millicpus)
    except OSError as error:
        raise IsolationRefused(
            f"the run's control group could not be made: {shown(str(error))}",
            "look at the limits in the policy, and at `authority doctor`",
        ) from error
