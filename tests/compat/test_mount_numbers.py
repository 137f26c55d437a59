"""Numbers that a file system can say and an entry can't: none of them stops the gate."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from authority.compat.base import Folder, Refused
from authority.effects.beneath import Beneath, Handle
from authority.effects.tree import Identity, Tree
from authority.kernel.requests import FsModify

from .fuse_kernel import Kernel
from .seat import Seat, number, sit

HUGE = 2**62


def _grown(status: os.stat_result) -> os.stat_result:
    """As XFS, btrfs or tmpfs say it of a sparse file."""
    values = [*status[:10]]
    values[6] = HUGE
    return os.stat_result(
        values, {"st_blocks": 8, "st_mtime_ns": 0, "st_atime_ns": 0, "st_ctime_ns": 0}
    )


class Sparse(Tree):
    """Files all of which are huge, and so is what truncating them gives."""

    def look(self, path: bytes, *, now: bool = False) -> Handle:
        found = super().look(path, now=now)
        if not found.is_directory:
            found.status = _grown(found.status)
        return found

    def truncate(self, path: bytes, size: int, expect: Identity | None = None) -> os.stat_result:
        return _grown(super().truncate(path, 1, expect))

    def unlink(self, path: bytes) -> os.stat_result:
        return _grown(super().unlink(path))


async def _truncated(kernel: Kernel) -> None:
    await kernel.setattr((await kernel.walk("f")).node, size=HUGE)


async def _opened(kernel: Kernel) -> None:
    await kernel.open((await kernel.walk("f")).node)


async def _removed(kernel: Kernel) -> None:
    await kernel.unlink(1, "f")


async def _renamed(kernel: Kernel) -> None:
    await kernel.rename(1, "f", 1, "g")


@pytest.mark.parametrize("change", [_truncated, _opened, _removed, _renamed])
def test_a_file_larger_than_the_numbers_of_an_entry(
    change: Callable[[Kernel], Awaitable[None]],
) -> None:
    async def body(seat: Seat) -> None:
        held = Beneath()

        def files(folder: Folder) -> Tree:
            return Sparse(held, os.fsencode(folder.source))

        seat.file("f", "x")
        kernel = await seat.mount(files=files)
        assert await number(change(kernel)) == ""
        assert seat.gate.ledger.failure is None
        await kernel.put("after", b"x")
        assert await seat.log(kind="outcome", status="done")

    sit(body, mount=False)


@pytest.mark.parametrize("length", [2**53, HUGE, 2**63 - 1])
@pytest.mark.parametrize("mode", [0, 1, 3])
def test_room_that_nobody_has(length: int, mode: int) -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        entry, fh = await kernel.create(1, "f")
        assert await number(kernel.fallocate(entry.node, fh, 0, length, mode)) == "EFBIG"
        assert await number(kernel.fallocate(entry.node, fh, length, 1, mode)) == "EFBIG"
        assert seat.gate.ledger.failure is None
        await kernel.fallocate(entry.node, fh, 0, 4096)  # the control
        await kernel.write(entry.node, fh, b"x")
        assert Path(seat.work / "f").stat().st_size == 4096

    sit(body)


def test_a_place_before_the_beginning_is_no_defect() -> None:
    """The kernel passes on what a program says: lseek(fd, -1, SEEK_DATA)."""

    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("f", "x")
        node = (await kernel.walk("f")).node
        fh = await kernel.open(node)
        assert await number(kernel.lseek(node, fh, 2**64 - 1, os.SEEK_DATA)) == "ENXIO"
        assert await kernel.lseek(node, fh, 0, os.SEEK_DATA) == 0  # the control

    sit(body)


def test_a_number_that_no_entry_holds_is_a_denial() -> None:
    async def body(seat: Seat) -> None:
        door = seat.gate.door(seat.run)
        resource = f"fs:{seat.work}/f"
        with pytest.raises(Refused) as refused:
            await door.open("fs.modify", resource, FsModify(lease=HUGE))
        assert refused.value.code == "E_SCHEMA_INVALID"
        flow = await door.open("fs.modify", resource, FsModify(lease=10))
        await flow.finish("done", facts={"size": HUGE, "made": True})
        (outcome,) = await seat.log(kind="outcome", of=flow.seq)
        assert outcome["facts"] == {"size": 2**53 - 1, "made": True}

    sit(body, mount=False)
