"""Files that a run may still write to by a descriptor that was handed in, and what it knows since.

Through a mount, writing on after the run's label rose is asked for again. Here nobody sees the writing,
so it is asked for when the label rises, for every file that was opened for writing and may be open.

Rules
- A file is held here (`O_PATH`) from its opening until the kernel says that nobody has it open for
  writing; a lease on it says that, of all processes, and of mappings.
- When the run's label rose, each is asked for by the name that it has now: the entry joins the label to
  what is recorded of the file. That happens before a file that raises the label is handed in, and for
  what comes from elsewhere as soon as its entry is made.
- What the run may not write any more, and has open, ends the run: a descriptor can't be taken back.
- More than `MOST` are not opened (ENFILE). What has lost its name is nobody's to read later.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from typing import Final, NamedTuple

from authority.compat.base import Door
from authority.compat.calls_seat import Seat
from authority.compat.mount_bench import Denied
from authority.compat.mount_nodes import below
from authority.effects.beneath import Beneath, Untouchable
from authority.effects.beneath import Handle as Looked
from authority.kernel.requests import FsModify
from authority.kernel.resources import Resource

MOST: Final = 1000
_PRUNE_FROM: Final = 32
_F_SETSIG: Final = 10
_DELETED: Final = b" (deleted)"


def writers(beneath: Beneath, found: Looked) -> bool:
    """Whether anybody has the file open for writing: then the kernel gives no lease on it."""
    try:
        fd = beneath.reopen(found, os.O_RDONLY)
    except (OSError, Untouchable):
        return True
    try:
        # Should it be broken right now, the signal is one that does nothing.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


class _Open(NamedTuple):
    seat: Seat
    found: Looked
    verb: str
    label_at: int


class Writes:
    """Those of one run. `end` ends the run."""

    def __init__(self, door: Door, beneath: Beneath, end: Callable[[str], None]) -> None:
        self._door = door
        self._beneath = beneath
        self._end = end
        self._open: list[_Open] = []
        self._asking = asyncio.Lock()

    def __bool__(self) -> bool:
        return bool(self._open)

    def close(self) -> None:
        for each in self._open:
            each.found.close()
        self._open.clear()

    def forget_closed(self) -> None:
        """What nobody can write to any more, and was asked for under the label that still holds, needs
        no further question."""
        if self._open:
            now = self._door.label_at()
            self._keep([one for one in self._open if one.label_at != now or self._is_open(one)])

    def room(self) -> None:
        """Make room for one more. Raises `OSError` (ENFILE)."""
        if len(self._open) >= _PRUNE_FROM:
            self.forget_closed()
        if len(self._open) >= MOST:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def opened(self, seat: Seat, fd: int, verb: str, label_at: int) -> None:
        """A file is about to be handed in; it was admitted when the label was that of `label_at`."""
        held = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        self._open.append(_Open(seat, Looked(held, os.fstat(held), 0), verb, label_at))

    async def ask_again(self) -> None:
        """The label may have risen: ask for what was opened before."""
        async with self._asking:
            while any(one.label_at != (now := self._door.label_at()) for one in self._open):
                for one in [each for each in self._open if each.label_at != now]:
                    again = await self._asked(one, now)
                    at = next((n for n, each in enumerate(self._open) if each is one), -1)
                    if at < 0:
                        return  # closed meanwhile
                    if again is None:
                        del self._open[at]
                        one.found.close()
                    else:
                        self._open[at] = again

    async def _asked(self, one: _Open, now: int) -> _Open | None:
        """The file as it is asked for now; None when it is not to be followed any longer."""
        resource = self._name(one)
        if resource is None:
            return None
        bench = one.seat.desk.bench
        try:
            flow = await bench.admit("fs.modify", resource, FsModify(), one.verb)
        except Denied:
            if self._is_open(one):
                self._end("a file is open for writing that the run may not write any more")
            return None
        flow.settle("done", spent={"file_bytes": 0}, facts={"written": "not counted"})
        return one._replace(label_at=now) if self._is_open(one) else None

    def _is_open(self, one: _Open) -> bool:
        return writers(self._beneath, one.found)

    def _name(self, one: _Open) -> Resource | None:
        """What the file is called now; None when it has no name."""
        path = os.readlink(os.fsencode(f"/proc/self/fd/{one.found.fd}"))
        if path.endswith(_DELETED) and not os.fstat(one.found.fd).st_nlink:
            return None
        resource = one.seat.nodes.root
        try:
            for name in path.split(b"/")[1:]:
                resource = below(resource, name)
        except OSError:
            return None  # no name that anything of a run could have
        return resource

    def _keep(self, kept: list[_Open]) -> None:
        for one in self._open:
            if not any(one is each for each in kept):
                one.found.close()
        self._open = kept
