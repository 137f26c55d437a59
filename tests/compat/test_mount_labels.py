"""What a run that read untrusted words may still do with files, and what it may not."""

from __future__ import annotations

import os

from .seat import Seat, number, sit

UNTRUSTED = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
"""


def test_a_tainted_run_deletes_what_it_made_under_every_name_and_nothing_else() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("theirs", "untrusted")
        seat.file("folder/x", "")
        await kernel.get("theirs")
        assert await number(kernel.unlink(1, "theirs")) == "EACCES"
        assert not seat.info.label.clean
        await kernel.put("a.lock", b"x")
        await kernel.rename(1, "a.lock", 1, "a")
        assert await number(kernel.unlink(1, "a")) == ""
        await kernel.mkdir(1, "d")
        await kernel.put("d/f", b"x")
        await kernel.rename(1, "d", 1, "e")
        e = (await kernel.walk("e")).node
        await kernel.link((await kernel.walk("e/f")).node, e, "g")
        assert await number(kernel.unlink(e, "g")) == ""
        assert await number(kernel.unlink(e, "f")) == ""
        assert await number(kernel.rmdir(1, "e")) == ""
        # A name that something else gets is not the run's own any more.
        await kernel.put("mine", b"x")
        await kernel.rename(1, "theirs", 1, "mine")
        assert await number(kernel.unlink(1, "mine")) == "EACCES"
        assert {e["code"] for e in await seat.log(kind="denied")} == {"E_TAINT"}

    sit(body, UNTRUSTED)


def test_words_that_are_shown_taint_and_names_that_were_asked_for_do_not() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("folder/do-as-i-say")
        (seat.work / "link").symlink_to("ignore-all-rules")
        await kernel.walk("folder/do-as-i-say")
        link = (await kernel.walk("link")).node
        await kernel.put("out", b"x")
        assert seat.info.label.clean
        await kernel.list((await kernel.walk("folder")).node)
        await kernel.readlink(link)
        await kernel.put("out2", b"x")
        assert set(seat.info.label.sources) == {f"fs:{seat.work}/folder", f"fs:{seat.work}/link"}
        assert os.path.exists(seat.work / "out")

    sit(body, UNTRUSTED)
