"""Time at the gate: the wall clock, watched against the boot clock.

Rules
- A time is microseconds since the epoch, from the wall clock.
- The boot clock (CLOCK_BOOTTIME, which also counts sleep) can't be set. When the wall clock runs more
  than five minutes ahead of it, the jump is recorded and the kernel's floor stays where it is until
  a person confirms: otherwise one wrong step would expire everything for good.
- Stepping back needs no rule here: the kernel judges by the later of the time and its floor.
"""

from __future__ import annotations

import time

JUMP_LIMIT = 5 * 60 * 1_000_000


def wall() -> int:
    """Now, in microseconds since the epoch."""
    return time.time_ns() // 1000


def boot() -> int:
    """Microseconds since this machine booted."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def boot_id() -> str:
    """The kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


def jump(anchor_time: int, anchor_boot: int, now: int, now_boot: int) -> int:
    """How far (us) the wall clock ran ahead of the boot clock since the anchor, if too far."""
    ahead = (now - anchor_time) - (now_boot - anchor_boot)
    return ahead if ahead > JUMP_LIMIT else 0
