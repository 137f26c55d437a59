"""Files with more than one name: which of them a run may change.

A file's other name may lie where the run has no right, so a file with several names is neither written
nor has its attributes set, unless the run itself gave it all names but one: then each of them was
judged when it was made.
"""

from __future__ import annotations

import os
import stat

from authority.effects.beneath import Untouchable
from authority.effects.tree import Files, Identity

MOST = 100_000


class Links:
    """The further names that one run gave, counted by file."""

    def __init__(self) -> None:
        self._made: dict[Identity, int] = {}

    def made(self, identity: Identity) -> None:
        """The run gave the file one more name."""
        if len(self._made) < MOST or identity in self._made:
            self._made[identity] = self._made.get(identity, 0) + 1

    def removed(self, status: os.stat_result) -> None:
        """One name is gone; `status` is from before."""
        identity = status.st_dev, status.st_ino
        left = min(self._made.get(identity, 0), status.st_nlink - 1) - 1
        if left > 0:
            self._made[identity] = left
        else:
            self._made.pop(identity, None)

    def check_status(self, status: os.stat_result) -> None:
        """Raises `Untouchable` when the file has names that the run did not give it."""
        identity = status.st_dev, status.st_ino
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1 + self._made.get(identity, 0):
            raise Untouchable("has more than one name (hard links), so it is never changed")

    def check(self, files: Files, path: bytes, expect: Identity) -> None:
        """The same, by its path; what is another object by now is left to the change itself."""
        with files.look(path) as found:
            if found.identity == expect:
                self.check_status(found.status)
