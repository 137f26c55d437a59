"""Races: what a path means is changed in a loop while the effects use it.

A thread swaps a file or a directory on the way with a symbolic link to the outside, as often as it
can. Whatever the effects return or refuse, not one byte may come from outside and not one may be
written there. The control runs the same loop with plain `open`, and there it leaks: so the loop
does hit the moment between a check and its use.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.files import FileEffects
from authority.kernel.resources import parse

from .support import call

SECRET = b"OUTSIDE"
SECONDS = 1.0
_libc = ctypes.CDLL(None, use_errno=True)
_EXCHANGE = 2


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step, so that both are there at every moment."""
    _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _EXCHANGE)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_bytes(SECRET)
    (tmp_path / "in/way").mkdir(parents=True)
    (tmp_path / "in/way/file").write_bytes(b"inside")
    return tmp_path


@contextmanager
def swapping(step: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            step()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def swap(room: Path, what: str) -> Callable[[], None]:
    """A step that exchanges the directory `way`, or the file in it, with a link to the outside."""
    if what == "directory":
        (room / "link").symlink_to(room / "out")
        return lambda: exchange(room / "in/way", room / "link")
    (room / "link").symlink_to(room / "out/file")
    return lambda: exchange(room / "in/way/file", room / "link")


def naive_read(path: Path) -> bytes:
    """Check, then use: what everybody writes first."""
    if os.path.realpath(path) != str(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("what", ["directory", "file"])
def test_reads(room: Path, what: str) -> None:
    path = room / "in/way/file"
    files = FileEffects()
    counts = {"read": 0, "refused": 0}

    async def main() -> None:
        resource = parse("fs.read", str(path))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            looked_up = await files.prepare("fs.read", resource)
            for found in (looked_up, {}):
                try:
                    done = await files.perform(
                        call("fs.read", str(path), looked_up=found, reserved={"file_bytes": 99})
                    )
                except (EffectRefused, EffectFailed):
                    counts["refused"] += 1
                    continue
                counts["read"] += 1
                assert done.value["data"] == b"inside"

    with swapping(swap(room, what)):
        asyncio.run(main())
    files.close()
    assert min(counts.values()) > 10, counts


@pytest.mark.parametrize("what", ["directory", "file"])
def test_control_a_check_before_open_does_leak(room: Path, what: str) -> None:
    path = room / "in/way/file"
    leaked = False
    with swapping(swap(room, what)):
        end = time.monotonic() + 30
        while not leaked and time.monotonic() < end:
            try:
                leaked = naive_read(path) == SECRET
            except OSError:
                continue
    assert leaked


@pytest.mark.parametrize("what", ["directory", "file"])
def test_changes(room: Path, what: str) -> None:
    path = room / "in/way/file"
    files = FileEffects()
    done = {"done": 0, "refused": 0}

    async def main() -> None:
        end = time.monotonic() + SECONDS
        number = 0
        while time.monotonic() < end:
            number += 1
            calls = [
                call("fs.append", str(path), data=b"appended"),
                call("fs.write", str(path), data=b"written"),
                call("fs.mkdir", str(path.with_name(f"d{number}"))),
                call("fs.write", str(path.with_name(f"n{number}")), data=b"new"),
                call("fs.delete", str(path.with_name(f"n{number}"))),
                call("fs.rename", str(path.with_name(f"n{number}")), to=str(path)),
            ]
            for one in calls:
                try:
                    await files.perform(one)
                    done["done"] += 1
                except (EffectRefused, EffectFailed):
                    done["refused"] += 1

    with swapping(swap(room, what)):
        asyncio.run(main())
    files.close()
    assert os.listdir(room / "out") == ["file"]
    assert (room / "out/file").read_bytes() == SECRET
    assert min(done.values()) > 10, done


def test_control_a_plain_write_does_reach_outside(room: Path) -> None:
    path = room / "in/way/file"
    with swapping(swap(room, "directory")):
        end = time.monotonic() + 30
        while os.listdir(room / "out") == ["file"] and time.monotonic() < end:
            try:
                if os.path.realpath(path) == str(path):
                    path.with_name("new").write_bytes(b"x")
            except OSError:
                continue
    assert sorted(os.listdir(room / "out")) == ["file", "new"]


def test_a_hard_link_that_appears_is_never_written_through(room: Path) -> None:
    """The name is exchanged with a hard link of the outside file while it is appended to."""
    path = room / "in/way/file"
    os.link(room / "out/file", room / "hard")
    files = FileEffects()

    async def main() -> int:
        appended = 0
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                await files.perform(call("fs.append", str(path), data=b"+"))
                appended += 1
            except (EffectRefused, EffectFailed):
                continue
        return appended

    with swapping(lambda: exchange(path, room / "hard")):
        appended = asyncio.run(main())
    files.close()
    assert (room / "out/file").read_bytes() == SECRET
    assert appended > 5
