"""A dry run's files: every change is kept aside, shown as a diff, and applied or thrown away whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from authority.compat.base import Folder
from authority.compat.dry import Apply, NotApplied
from authority.effects import room
from authority.effects.beneath import Beneath
from authority.effects.overlay import Overlay
from authority.effects.overlay_changes import Change, changes, diff, read_table

from .seat import Seat, number, sit


def dry(body: object, **more: object) -> None:
    async def work(seat: Seat) -> None:
        def files(folder: Folder) -> Overlay:
            return Overlay(Beneath(), os.fsencode(folder.source), seat.root / "store")

        await seat.mount(files=files)
        await body(seat)  # type: ignore[operator]

    sit(work, mount=False, **more)  # type: ignore[arg-type]


async def ended(seat: Seat) -> tuple[Path, list[Change], str]:
    seat.kernel.stop()
    async with asyncio.timeout(60):
        await asyncio.wait({seat.served})
    seat.served.result()
    store = seat.root / "store"
    table = read_table(store)
    found = changes(store, table)
    return store, found, diff(store, table, found)


def tree(folder: Path) -> dict[str, object]:
    return {
        str(p.relative_to(folder)): (
            os.readlink(p)
            if p.is_symlink()
            else (p.stat().st_mode, p.read_bytes() if p.is_file() else "")
        )
        for p in folder.rglob("*")
    }


async def work_on(seat: Seat) -> None:
    """Changes of every kind, each also seen through the mount afterwards."""
    kernel = seat.kernel
    await kernel.put("a.txt", b"one\nTWO\nthree\n")
    assert await kernel.get("a.txt") == b"one\nTWO\nthree\n"
    await kernel.unlink(1, "gone.txt")
    assert await number(kernel.lookup(1, "gone.txt")) == "ENOENT"
    d = await kernel.mkdir(1, "new")
    await kernel.put("new/b.txt", b"b\n")
    await kernel.symlink(d.node, "l", "b.txt")
    await kernel.put("deep/er/c.bin", b"\0\1")
    script = (await kernel.walk("script")).node
    await kernel.setattr(script, mode=0o755)
    assert (await kernel.walk("script")).attr.mode & 0o777 == 0o755
    await kernel.rename(1, "old-name", 1, "new-name")
    assert await kernel.get("new-name") == b"renamed\n"
    emptied = (await kernel.walk("emptied")).node
    await kernel.unlink(emptied, "x")
    await kernel.rmdir(1, "emptied")
    assert await number(kernel.lookup(1, "emptied")) == "ENOENT"
    names = await kernel.list(1)
    assert names == ["a.txt", "deep", "new", "new-name", "script", "untouched"]


def fill(seat: Seat) -> None:
    seat.file("a.txt", "one\ntwo\nthree\n")
    seat.file("gone.txt", "gone\n")
    seat.file("deep/er/other", "other")
    seat.file("script", "#!/bin/sh\n")
    seat.file("old-name", "renamed\n")
    seat.file("emptied/x", "x")
    seat.file("untouched", "as it was")


def test_nothing_is_written_and_everything_is_shown() -> None:
    async def body(seat: Seat) -> None:
        before = tree(seat.work)
        await work_on(seat)
        await seat.kernel.put("untouched", b"as it was")  # written, and the same again
        assert tree(seat.work) == before
        _, _, text = await ended(seat)
        assert tree(seat.work) == before
        for line in (
            "changed file a.txt",
            "-two",
            "+TWO",
            "removed file gone.txt",
            "-gone",
            "new directory new",
            "new file new/b.txt",
            "+b",
            "new link new/l -> b.txt",
            "new file deep/er/c.bin",
            "  (binary or long: 0 -> 2 bytes)",
            "changed file script (mode 644 -> 755)",
            "removed file old-name",
            "new file new-name",
            "removed file emptied/x",
            "removed directory emptied",
        ):
            assert line in text.splitlines(), (line, text)
        assert "untouched" not in text
        assert "deep/er/other" not in text

    dry(body, before=fill)


def test_applied_it_is_what_the_run_saw() -> None:
    async def body(seat: Seat) -> None:
        await work_on(seat)
        store, found, _ = await ended(seat)
        apply = Apply(seat.gate.door(seat.run), Beneath(), store, frozenset())
        assert await apply.apply(read_table(store), found) == len(found)
        assert (seat.work / "a.txt").read_text() == "one\nTWO\nthree\n"
        assert not (seat.work / "gone.txt").exists()
        assert os.readlink(seat.work / "new/l") == "b.txt"
        assert (seat.work / "deep/er/c.bin").read_bytes() == b"\0\1"
        assert (seat.work / "script").stat().st_mode & 0o777 == 0o755
        assert (seat.work / "new-name").read_text() == "renamed\n"
        assert not (seat.work / "old-name").exists()
        assert not (seat.work / "emptied").exists()
        assert await seat.log(kind="admit", effect="fs.write")
        assert changes(store, read_table(store)), "the diff is against what was"

    dry(body, before=fill)


@pytest.mark.parametrize("what", ["changed", "removed", "appeared", "replaced by a link"])
def test_a_base_that_moved_on_refuses_the_whole(what: str) -> None:
    async def body(seat: Seat) -> None:
        await seat.kernel.put("a.txt", b"mine\n")
        await seat.kernel.put("added.txt", b"mine\n")
        await seat.kernel.put("script", b"mine\n")
        store, found, _ = await ended(seat)
        if what == "changed":
            (seat.work / "a.txt").write_text("somebody else's\n")
        elif what == "removed":
            (seat.work / "a.txt").unlink()
        elif what == "appeared":
            (seat.work / "added.txt").write_text("somebody else's\n")
        else:
            (seat.work / "a.txt").unlink()
            (seat.work / "a.txt").symlink_to("/etc/passwd")
        before = tree(seat.work)
        apply = Apply(seat.gate.door(seat.run), Beneath(), store, frozenset())
        with pytest.raises(NotApplied, match="changed meanwhile"):
            await apply.apply(read_table(store), found)
        assert tree(seat.work) == before

    dry(body, before=fill)


def test_what_is_applied_is_judged_again() -> None:
    async def body(seat: Seat) -> None:
        await seat.kernel.put("a.txt", b"mine\n")
        store, found, _ = await ended(seat)
        planted = store / "upper/.envrc"
        planted.write_text("evil")
        found = changes(store, read_table(store))
        apply = Apply(seat.gate.door(seat.run), Beneath(), store, frozenset())
        with pytest.raises(NotApplied, match="envrc"):
            await apply.apply(read_table(store), found)
        assert not (seat.work / ".envrc").exists()

    dry(body, before=fill)


def test_the_diff_carries_nothing_to_a_terminal() -> None:
    async def body(seat: Seat) -> None:
        await seat.kernel.put("x\u202etxt", b"\x1b]0;evil\x07 \xc2\x9b31m\n")
        _, _, text = await ended(seat)
        assert "\x1b" not in text
        assert "\x9b" not in text
        assert "\u202e" not in text

    dry(body)


def test_rules_hold_in_a_dry_run_as_well() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        assert await number(kernel.create(1, ".envrc")) == "EACCES"
        seat.file("linked", "x")
        os.link(seat.work / "linked", seat.root / "elsewhere")
        node = (await kernel.walk("linked")).node
        fh = await kernel.open(node, os.O_WRONLY)  # a copy has no other name
        await kernel.write(node, fh, b"y")
        await kernel.close(node, fh)
        assert (seat.root / "elsewhere").read_text() == "x"

    dry(body)


def test_renames_copies_and_what_is_made_again() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        assert await number(kernel.rename(1, "deep", 1, "moved")) == "EXDEV"
        await kernel.mkdir(1, "made")
        await kernel.put("made/f", b"f")
        await kernel.rename(1, "made", 1, "kept")
        assert await kernel.get("kept/f") == b"f"
        # A directory that was removed and made again does not show what was in it.
        emptied = (await kernel.walk("emptied")).node
        await kernel.unlink(emptied, "x")
        await kernel.rmdir(1, "emptied")
        await kernel.mkdir(1, "emptied")
        assert await kernel.list((await kernel.walk("emptied")).node) == []
        # A handle that was open before the copy reads what it opened; the new one the new.
        node = (await kernel.walk("a.txt")).node
        reading = await kernel.open(node)
        await kernel.put("a.txt", b"new")
        assert await kernel.read(node, reading) == b"one\ntwo\nthree\n"
        assert await kernel.get("a.txt") == b"new"
        assert (await kernel.getattr(node)).size == 3
        linked = await kernel.link(node, 1, "second")
        assert await kernel.get("second") == b"new"
        assert linked.attr.nlink == 2
        _, found, _ = await ended(seat)
        assert {os.fsdecode(c.path) for c in found} == {
            "a.txt",
            "kept",
            "kept/f",
            "emptied/x",
            "second",
        }

    dry(body, before=fill)


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_copy_that_finds_no_room_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """A dry run copies before it writes; where the disk is full, at once or meanwhile, none is cut."""
    (tmp_path / "base").mkdir()
    content = os.urandom(1 << 20) * 3
    (tmp_path / "base/f").write_bytes(content)
    files = Overlay(Beneath(), os.fsencode(tmp_path / "base"), tmp_path / "store")
    room_left = [0] * (2 * pieces)
    monkeypatch.setattr(room, "kept", lambda _whole: room_left.pop() if room_left else 1 << 60)
    with pytest.raises(OSError, match="No space"):
        files.open(b"f", os.O_WRONLY)
    assert list((tmp_path / "store/upper").iterdir()) == []
    monkeypatch.setattr(room, "kept", lambda _whole: 0)
    with files.look(b"f") as found:
        assert found.status.st_size == len(content)
    os.close(files.open(b"f", os.O_WRONLY))
    assert (tmp_path / "store/upper/f").read_bytes() == content
    files.close()
