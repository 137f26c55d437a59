"""Attacks by link: planted, swapped while it is used, hard ones whose other name lies elsewhere."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from .seat import Seat, number, sit


def test_a_link_is_shown_and_never_followed_here() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        (seat.root / "outside.txt").write_text("outside")
        (seat.work / "l").symlink_to(seat.root / "outside.txt")
        (seat.work / "up").symlink_to("..")
        link = await kernel.walk("l")
        assert await kernel.readlink(link.node) == os.fsencode(seat.root / "outside.txt")
        assert await number(kernel.open(link.node)) == "ELOOP"
        assert await number(kernel.open(link.node, os.O_WRONLY)) == "ELOOP"
        assert await number(kernel.setattr(link.node, size=0)) == "ELOOP"
        up = await kernel.walk("up")
        assert await number(kernel.lookup(up.node, "outside.txt")) == "ENOENT"
        assert await number(kernel.create(up.node, "planted")) in ("EACCES", "ENOTDIR")
        assert (seat.root / "outside.txt").read_text() == "outside"
        assert not (seat.root / "planted").exists()

    sit(body)


def test_a_folder_that_becomes_a_link_leads_nowhere() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("d/a", "inside")
        (seat.root / "elsewhere").mkdir()
        (seat.root / "elsewhere/a").write_text("outside")
        d = await kernel.walk("d")
        a = await kernel.walk("d/a")
        os.rename(seat.work / "d", seat.work / "was")
        (seat.work / "d").symlink_to(seat.root / "elsewhere")
        assert await number(kernel.open(a.node)) == "ESTALE"
        assert await number(kernel.lookup(d.node, "a")) == "ESTALE"
        assert await number(kernel.create(d.node, "b")) == "ESTALE"
        assert await number(kernel.unlink(d.node, "a")) == "ESTALE"
        assert await number(kernel.walk("d/a")) == "ENOENT"
        assert sorted(os.listdir(seat.root / "elsewhere")) == ["a"]

    sit(body)


def test_a_name_that_flips_between_file_and_link_never_reads_outside() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        (seat.root / "outside").write_text("outside")
        real, link = seat.work / "real", seat.work / "link"
        stop = threading.Event()
        seat.file("f", "inside")

        def flip() -> None:
            while not stop.is_set():
                link.symlink_to(seat.root / "outside")
                os.rename(link, seat.work / "f")
                real.write_text("inside")
                os.rename(real, seat.work / "f")
                time.sleep(0.01)

        thread = threading.Thread(target=flip)
        thread.start()
        got = set()
        try:
            for _ in range(150):
                try:
                    got.add(await kernel.get("f"))
                except OSError as error:
                    got.add(error.errno)
                await asyncio.sleep(0)
        finally:
            stop.set()
            thread.join()
        assert b"outside" not in got
        assert got & {b"inside", b""}

    sit(body)


def test_a_file_with_a_name_elsewhere_is_not_changed() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        outside = seat.root / "outside"
        outside.write_text("outside")
        os.link(outside, seat.work / "planted")
        node = (await kernel.walk("planted")).node
        assert await number(kernel.open(node, os.O_WRONLY)) == "EACCES"
        assert await number(kernel.open(node, os.O_WRONLY | os.O_TRUNC)) == "EACCES"
        assert await number(kernel.setattr(node, size=0)) == "EACCES"
        assert await number(kernel.setattr(node, mode=0o777)) == "EACCES"
        assert await number(kernel.setxattr(node, "user.a", b"b")) == "EACCES"
        assert await number(kernel.link(node, 1, "further")) == "EACCES"
        assert outside.read_text() == "outside"
        assert await kernel.get("planted") == b"outside"

    sit(body)


def test_removing_ones_own_name_opens_no_way_to_the_other() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        outside = seat.root / "outside"
        outside.write_text("outside")
        outside.chmod(0o600)
        os.link(outside, seat.work / "planted")
        node = (await kernel.walk("planted")).node
        fh = await kernel.open(node)
        await kernel.unlink(1, "planted")
        assert await number(kernel.setattr(node, mode=0o777)) == "EACCES"
        assert await number(kernel.setattr(node, mtime=1)) == "EACCES"
        assert outside.stat().st_mode & 0o777 == 0o600
        await kernel.close(node, fh)

    sit(body)


def test_names_that_the_run_gave_itself_may_be_written() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        entry = await kernel.put("a", b"one")
        linked = await kernel.link(entry.node, 1, "b")
        assert linked.attr.nlink == 2
        await kernel.put("b", b"two")
        assert (seat.work / "a").read_text() == "two"
        await kernel.unlink(1, "a")
        await kernel.put("b", b"three")
        os.link(seat.work / "b", seat.root / "elsewhere")
        fresh = (await kernel.walk("b")).node
        assert await number(kernel.open(fresh, os.O_WRONLY)) == "EACCES"

    sit(body)


def test_read_only_and_set_id_files_stay_as_they_are() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("ro", "x", 0o444)
        seat.file("suid", "x", 0o4755)
        for name in ("ro", "suid"):
            node = (await kernel.walk(name)).node
            assert await number(kernel.open(node, os.O_WRONLY)) == "EACCES"
            assert await number(kernel.setattr(node, size=0)) == "EACCES"
        entry, fh = await kernel.create(1, "s", mode=0o4755)
        await kernel.close(entry.node, fh)
        assert (seat.work / "s").stat().st_mode & 0o7000 == 0

    sit(body)


def test_a_link_over_which_a_write_goes_is_replaced_and_not_followed() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        (seat.root / "target").write_text("kept")
        (seat.work / "l").symlink_to(seat.root / "target")
        await kernel.put("new", b"new")
        await kernel.rename(1, "new", 1, "l")
        assert (seat.root / "target").read_text() == "kept"
        assert (seat.work / "l").read_text() == "new"
        (seat.work / "m").symlink_to(seat.root / "target")
        assert await number(kernel.create(1, "m", os.O_WRONLY)) in ("ELOOP", "EACCES")
        await kernel.unlink(1, "m")
        assert (seat.root / "target").read_text() == "kept"

    sit(body)
