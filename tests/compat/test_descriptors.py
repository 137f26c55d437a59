"""A run that opens all it can leaves the gate what it needs itself."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from authority.compat.model_upstreams import Target, Unreachable
from authority.compat.model_upstreams import dial as dial_model
from authority.compat.mount_handles import LISTED_AT_ONCE, Directory
from authority.compat.mount_view import View
from authority.effects.base import EffectFailed
from authority.effects.descriptors import pair, scarce
from authority.effects.dial import dial
from authority.effects.tree import Row
from authority.kernel.policy import load
from authority.kernel.policy_sections import Upstream
from authority.kernel.resources import parse

from .seat import Seat, number, sit

ROOM = 400
"""Above what this process holds already, other tests' gates among it."""
MOST = 5000
LEFT = 90
"""Of the hundred or more that are kept; a thread or a name server may need some of them meanwhile."""


@contextmanager
def few() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = max(int(number) for number in os.listdir("/proc/self/fd"))
    # A quarter of all is kept, so room for the rest grows with what is held.
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + held // 3 + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def none_left() -> Iterator[None]:
    """Everything that a run may have is in use."""
    with few():
        held = []
        while not scarce():
            held.append(os.open("/", os.O_PATH))
        try:
            yield
        finally:
            for fd in held:
                os.close(fd)


def free(count: int) -> None:
    """So many can be opened."""
    held = [os.open("/", os.O_PATH) for _ in range(count)]
    for fd in held:
        os.close(fd)


def test_open_files_of_a_mount() -> None:
    async def body(seat: Seat) -> None:
        seat.file("a", "hello")
        kernel = seat.kernel
        node = (await kernel.walk("a")).node

        async def open_one(opened: list[int]) -> None:
            opened.append(await kernel.open(node))

        with few():
            opened: list[int] = []
            while not (why := await number(open_one(opened))) and len(opened) < MOST:
                pass
            assert why == "ENFILE"
            assert len(opened) > 200
            free(LEFT)
            for fh in opened[:20]:  # the control: what is given back can be had again
                await kernel.release(node, fh)
            await kernel.open(node)

    sit(body)


POLICY = """\
version = 1
[network]
allow = ["127.0.0.1:{port}"]
private = ["127.0.0.1:{port}"]
"""


def test_sockets_to_servers() -> None:
    async def body() -> None:
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        policy = load(
            POLICY.format(port=port),
            format="toml",
            base="/",
            name="p",
            read_parent=lambda *_: pytest.fail("nothing is extended"),
        )
        place = parse("net.connect", f"tcp://127.0.0.1:{port}")
        url = f"http://127.0.0.1:{port}/"
        upstream = Target("local", Upstream(url, "openai"), parse("http.request", url), "")

        async def there(*_: object) -> list[str]:
            return ["127.0.0.1"]

        with none_left():
            with pytest.raises(EffectFailed):
                await dial(policy, place)
            with pytest.raises(Unreachable):
                await dial_model(there, policy, upstream)
            free(LEFT)
        (await dial(policy, place)).sock.close()  # the controls
        (await dial_model(there, policy, upstream)).close()
        server.close()

    asyncio.run(body())


def test_connections_of_a_program() -> None:
    with none_left():
        with pytest.raises(OSError, match="too many open files") as refused:
            pair()
        assert refused.value.errno == errno.ENFILE
        free(LEFT)
    for each in pair():  # the control
        each.close()


def test_directories_are_read_a_few_at_a_time() -> None:
    """What was read of a directory is held while it is judged, and counts only afterwards."""

    async def body(seat: Seat) -> None:
        for number_ in range(1000):
            seat.file(f"many/{number_}")
        held, most = 0, 0
        handles = seat.mounts._handles
        fill = handles.fill
        judged = View._listed

        def count(view: View, *arguments: Any) -> bool:
            nonlocal held, most
            task = asyncio.current_task()
            if task not in reading:
                reading.add(task)
                held += 1
                most = max(most, held)
            return judged(view, *arguments)

        def filled(directory: Directory, rows: list[Row]) -> None:
            nonlocal held
            held -= 1
            reading.discard(asyncio.current_task())
            fill(directory, rows)

        reading: set[Any] = set()
        handles.fill = filled  # type: ignore[method-assign]
        node = (await seat.kernel.walk("many")).node
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(View, "_listed", count)
            names = await asyncio.gather(*(seat.kernel.list(node) for _ in range(40)))
        assert most <= LISTED_AT_ONCE
        assert all(len(each) == 1000 for each in names)  # the control: everybody gets all

    sit(body)
