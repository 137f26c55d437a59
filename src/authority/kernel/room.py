"""How much of a disk stays free of what runs cause.

Rules
- The rest is 256 MiB, and of a small disk a sixteenth. Nothing that a run writes, and no body that is
  kept of what it said or got, takes of it (`effects/room.py`, `gate/bodies.py`).
- The log may take half of it, so it goes on when files and bodies do not. The other half is left to
  what the gate needs to end in order: checkpoints, keys, what is kept of an incident.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_MOST: Final = 256 << 20
_SHARE: Final = 16


def kept(whole: int) -> int:
    """How many bytes stay free on a disk of so many."""
    return min(_MOST, whole // _SHARE)


class Space(NamedTuple):
    """A disk: the bytes that are `free` to others than root (none without a name to give), and all."""

    free: int
    whole: int

    @property
    def for_bodies(self) -> int:
        """What bodies of runs may take."""
        return self.free - kept(self.whole)

    @property
    def for_log(self) -> int:
        """What the log may take."""
        return self.free - kept(self.whole) // 2


UNLIMITED: Final = Space(1 << 62, 0)
"""A disk that does not say how large it is. It has no rest to keep."""
