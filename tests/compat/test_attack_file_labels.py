"""Attacks: words are laundered through a mounted file: another name, its size, its times, the host.

Each run of words is written by one run, under a label, and met by a later run of the same gate, which
has read nothing. The control beside each is the same way taken by a run that had read nothing either.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from authority.compat import fuse_abi as abi
from authority.kernel.file_labels import recorded

from .fuse_kernel import Kernel
from .seat import Seat, number, sit, successor

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
[labels]
trusted = ["user", "fs:./mine/**", "fs:./mine"]
"""
WORDS = b"13 words that pay eve"


async def wrote(seat: Seat, *, tainted: bool) -> None:
    """The first run: it may read somebody's words, and then writes `mine/a`."""
    seat.file("theirs", "untrusted")
    (seat.work / "mine").mkdir()
    await seat.kernel.mkdir((await seat.kernel.walk("mine")).node, "good")
    for name in ("before", "one", "two", "good/x"):
        await seat.kernel.put(f"mine/{name}", b"x")
    if tainted:
        await seat.kernel.get("theirs")
    await seat.kernel.put("mine/a", WORDS)


async def linked(kernel: Kernel) -> None:
    folder = (await kernel.walk("mine")).node
    await kernel.link((await kernel.walk("mine/a")).node, folder, "b")


async def exchanged(kernel: Kernel) -> None:
    folder = (await kernel.walk("mine")).node
    await kernel.rename(folder, "before", folder, "a", flags=abi.RENAME_EXCHANGE)


async def moved(kernel: Kernel) -> None:
    folder = (await kernel.walk("mine")).node
    await kernel.mkdir(folder, "deep")
    await kernel.rename(folder, "a", (await kernel.walk("mine/deep")).node, "b")
    await kernel.rename(folder, "deep", folder, "other")


async def met(kernel: Kernel, name: str) -> None:
    await kernel.walk(name)


async def sized(kernel: Kernel, name: str) -> None:
    assert (await kernel.getattr((await kernel.walk(name)).node)).size == len(WORDS)


async def got(kernel: Kernel, name: str) -> None:
    assert await kernel.get(name) == WORDS


async def got_one(kernel: Kernel, name: str) -> None:
    """Which of two files it is was the choice: both were written before anything was read."""
    assert await kernel.get(name) == b"x"


WAYS: dict[str, tuple[Callable[[Seat], Awaitable[None]], str, Callable[..., Awaitable[None]]]] = {}


def way(name: str, at: str, read: Callable[..., Awaitable[None]]) -> Callable[..., object]:
    def keep(change: Callable[[Seat], Awaitable[None]]) -> Callable[[Seat], Awaitable[None]]:
        WAYS[name] = change, at, read
        return change

    return keep


@way("itself", "mine/a", got)
@way("its size", "mine/a", sized)
@way("a look", "mine/a", met)
async def as_it_is(_seat: Seat) -> None:
    """Nothing is done."""


@way("a link that the run made", "mine/b", got)
@way("the size of such a link", "mine/b", sized)
async def a_link(seat: Seat) -> None:
    await linked(seat.kernel)


@way("a link that the host made", "mine/c", got)
@way("the size of a link that the host made", "mine/c", sized)
async def a_link_outside(seat: Seat) -> None:
    os.link(seat.work / "mine/a", seat.work / "mine/c")


@way("a name that the host gave", "mine/c", got)
async def renamed_outside(seat: Seat) -> None:
    (seat.work / "mine/a").rename(seat.work / "mine/c")


@way("another file's name", "mine/before", got)
async def an_exchange(seat: Seat) -> None:
    await exchanged(seat.kernel)


@way("a folder that moved", "mine/other/b", got)
async def a_folder(seat: Seat) -> None:
    await moved(seat.kernel)


@way("a look at a folder that it made", "mine/made", met)
async def a_folder_made(seat: Seat) -> None:
    await seat.kernel.mkdir((await seat.kernel.walk("mine")).node, "made")


@way("a look at another name of what it only read", "mine/also", met)
async def a_link_of_before(seat: Seat) -> None:
    folder = (await seat.kernel.walk("mine")).node
    await seat.kernel.link((await seat.kernel.walk("mine/before")).node, folder, "also")


@way("which of two files has a name", "mine/chosen", got_one)
@way("a look at a name that it chose", "mine/chosen", met)
async def a_choice(seat: Seat) -> None:
    folder = (await seat.kernel.walk("mine")).node
    await seat.kernel.rename(folder, "before", folder, "chosen")


@way("which of two files has a name, exchanged", "mine/one", got_one)
@way("and the other", "mine/two", got_one)
async def a_choice_of_two(seat: Seat) -> None:
    folder = (await seat.kernel.walk("mine")).node
    await seat.kernel.rename(folder, "one", folder, "two", flags=abi.RENAME_EXCHANGE)


@way("which of two folders has a name", "mine/chosen/x", got_one)
async def a_choice_of_folders(seat: Seat) -> None:
    folder = (await seat.kernel.walk("mine")).node
    await seat.kernel.rename(folder, "good", folder, "chosen")


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("tainted", [False, True], ids=["control", "tainted"])
def test_a_later_run_that_meets_the_words_has_their_label(name: str, tainted: bool) -> None:
    change, at, read = WAYS[name]

    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=tainted)
        await change(seat)
        async with successor(seat) as later:
            assert later.info.label.clean
            await read(later.kernel, at)
            assert later.tainted() == tainted

    sit(body, POLICY)


def test_what_is_written_under_one_name_is_found_under_the_other() -> None:
    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=False)
        await linked(seat.kernel)
        await seat.kernel.get("theirs")
        node = (await seat.kernel.walk("mine/b")).node
        fh = await seat.kernel.open(node, os.O_WRONLY)
        await seat.kernel.write(node, fh, b"more")
        async with successor(seat) as later:  # while the first one still has it open
            await later.kernel.get("mine/before")
            assert not later.tainted()
            await later.kernel.get("mine/a")
            assert later.tainted()

    sit(body, POLICY)


def test_an_inode_that_serves_again_carries_nothing() -> None:
    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=True)
        await linked(seat.kernel)
        folder = (await seat.kernel.walk("mine")).node
        for name in ("a", "b"):
            await seat.kernel.unlink(folder, name)
        files = seat.gate.ledger.state.files
        assert [name for name in files if name.startswith("inode:")] == []
        assert [name for name in files if not name.endswith("/")] == []

    sit(body, POLICY)


@pytest.mark.parametrize("change", ["", "length", "same length", "replaced"])
def test_a_file_that_the_host_changed_is_the_hosts_through_a_mount(change: str) -> None:
    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=True)
        path = seat.work / "mine/a"
        if change == "length":
            path.write_bytes(b"other")
        elif change == "same length":
            path.write_bytes(WORDS.replace(b"eve", b"bob"))
        elif change == "replaced":
            (seat.work / "new").write_bytes(WORDS)
            (seat.work / "new").rename(path)
        async with successor(seat) as later:
            await later.kernel.get("mine/a")
            sources = later.label().sources
            assert f"fs:{seat.work}/theirs" in sources
            assert ("host" in sources) == bool(change)

    sit(body, POLICY)


def test_listing_a_folder_shows_sizes_and_what_is_gone() -> None:
    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=False)
        async with successor(seat) as control:
            await control.kernel.list((await control.kernel.walk("mine")).node)
            assert not control.tainted()
        await seat.kernel.get("theirs")
        assert await number(seat.kernel.unlink((await seat.kernel.walk("mine")).node, "a")) == ""
        async with successor(seat) as later:
            await later.kernel.list((await later.kernel.walk("mine")).node)
            assert later.tainted()

    sit(body, POLICY)


@pytest.mark.parametrize("tainted", [False, True], ids=["control", "tainted"])
def test_what_cannot_be_removed_tells_what_is_there(*, tainted: bool) -> None:
    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=tainted)
        good = (await seat.kernel.walk("mine/good")).node
        await seat.kernel.unlink(good, "x")
        await seat.kernel.put("mine/good/y", b"x")
        async with successor(seat) as later:
            folder = (await later.kernel.walk("mine")).node
            await later.kernel.walk("mine/good")
            assert not later.tainted()
            assert await number(later.kernel.rmdir(folder, "good")) == "ENOTEMPTY"
            assert later.tainted() == tainted

    sit(body, POLICY)


@pytest.mark.parametrize("tainted", [False, True], ids=["control", "tainted"])
def test_a_folder_that_moved_is_known_to_who_asks_for_what_is_in_it(*, tainted: bool) -> None:
    """Without a mount nobody looks at the folders on the way."""

    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=tainted)
        await a_choice_of_folders(seat)
        name = f"fs:{seat.work}/mine/chosen/x"
        label = recorded(seat.gate.ledger.state.files, "fs.read", name, {})
        assert bool(label.sources) == tainted
        elsewhere = f"fs:{seat.work}/mine/before"
        assert recorded(seat.gate.ledger.state.files, "fs.read", elsewhere, {}).clean

    sit(body, POLICY)


def test_a_look_at_a_folder_does_not_count_what_is_in_it() -> None:
    async def body(seat: Seat) -> None:
        await wrote(seat, tainted=True)
        mine = (await seat.kernel.walk("mine")).node
        before = await seat.kernel.getattr(mine)
        for number_of in range(40):
            await seat.kernel.mkdir(mine, f"{number_of}-{'x' * 200}")
        async with successor(seat) as later:
            after = await later.kernel.getattr((await later.kernel.walk("mine")).node)
            assert (after.nlink, after.size) == (1, before.size)
            assert not later.tainted()

    sit(body, POLICY)
