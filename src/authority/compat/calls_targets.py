"""What a call that sets attributes is about: a mediated file, or one of the run's own.

Such a call is never continued, whatever it is about. By `/proc/self/fd`, or by a descriptor itself, it
could reach a file that was handed in, and neither Landlock nor, where the gate is an ordinary user, an
owner's right stands in between. So it is performed here, on an object that is held meanwhile.

Rules
- A descriptor that was handed in is known by the mount that it was opened through; its path there must
  lead to the same object still, and that is judged like any path.
- Of the run's own files those alone are changed that lie in its private folders and belong to its user.
  Everything else is EPERM, `/proc` too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from types import TracebackType

from authority.compat.calls_base import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, Case
from authority.compat.calls_seat import Seat
from authority.compat.calls_walk import Native, Place, Walker

PRIVATE = (b"/tmp", b"/home/agent", b"/dev/shm")


class Target:
    """`place` is a mediated file's; otherwise `fd` holds one of the run's own, to the block's end."""

    def __init__(self, place: Place | None, fd: int = -1) -> None:
        self.place = place
        self.fd = fd

    @property
    def path(self) -> str:
        """Leads to the run's own file, in this process."""
        return f"/proc/self/fd/{self.fd}"

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Targets:
    """Those of one run. `trees` are the mounts that files are handed in from, with their seats."""

    def __init__(
        self, walker: Walker, native: Native, trees: Iterable[tuple[int, Seat]], owner: int
    ) -> None:
        self._walker = walker
        self._native = native
        self._trees = {mount_of(fd): seat for fd, seat in trees}
        self._owner = owner
        self._devices = set()
        for path in PRIVATE:
            if walker.seat_of(path) is None:
                held = native.hold(path)
                self._devices.add(os.fstat(held).st_dev)
                os.close(held)

    async def of_path(self, case: Case, dirfd: int, at: int, flags: int) -> Target:
        """What a path, or with `AT_EMPTY_PATH` a descriptor, is about. Raises `OSError`."""
        path = case.path(at)
        if not path and flags & AT_EMPTY_PATH:
            return await self.of_descriptor(case, dirfd)
        place = await self._walker.walk(case, dirfd, path, follow=not flags & AT_SYMLINK_NOFOLLOW)
        case.links.clear()
        if place.seat is not None:
            if not place.node:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return Target(place)
        return self._own(self._native.hold(place.path))

    async def of_descriptor(self, case: Case, fd: int) -> Target:
        """What a descriptor is about. Raises `OSError`."""
        held = case.hold(fd)
        try:
            status = os.fstat(held)
            path = os.readlink(os.fsencode(f"/proc/self/fd/{held}"))
            seat = self._trees.get(mount_of(held))
        except BaseException:
            os.close(held)
            raise
        if seat is None and not (stat.S_ISDIR(status.st_mode) and self._walker.seat_of(path)):
            return self._own(held)
        os.close(held)
        if seat is None:
            return Target(_found(await self._walker.exact(case, path)))
        place = _found(await self._walker.exact(case, seat.path + path))
        if place.seat is not seat or seat.nodes.get(place.node).identity != (
            status.st_dev,
            status.st_ino,
        ):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return Target(place)

    def _own(self, held: int) -> Target:
        status = os.fstat(held)
        if status.st_dev not in self._devices or status.st_uid != self._owner:
            os.close(held)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return Target(None, held)


def _found(place: Place) -> Place:
    if place.seat is None or not place.node:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return place


def mount_of(fd: int) -> int:
    """The mount that a descriptor of this process was opened through."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise OSError(errno.EIO, "a descriptor has no mount")
