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
    if not plan.cgroup.version:
        return None
    _sweep_once(plan.cgroup)
    spec = plan.spec
    try:
        return cgroups.create(
            plan.cgroup,
            memory=spec.memory,
            # Process 1 counts too.
            processes=spec.processes + 1 if spec.processes else 0,
            millicpus=spec.millicpus,
        )
    except OSError as error:
        raise IsolationRefused(
            f"the run's control group could not be made: {shown(str(error))}",
            "look at the limits in the policy, and at `authority doctor`",
        ) from error
