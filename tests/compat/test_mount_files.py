"""Ordinary use of a mount: what programs do with files works, is counted, and stands in the log."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from authority.effects import room

from .seat import Seat, number, sit


def test_a_small_file_is_read_counted_and_recorded() -> None:
    async def body(seat: Seat) -> None:
        seat.file("docs/a.txt", "hello")
        assert await seat.kernel.get("docs/a.txt") == b"hello"
        assert seat.spent("file_bytes") == 5
        (admit,) = await seat.log(kind="admit", effect="fs.open")
        assert admit["resource"] == f"fs:{seat.work}/docs/a.txt"
        assert admit["reserve"]["file_bytes"] == 5
        (outcome,) = await seat.log(kind="outcome", of=admit["seq"])
        assert outcome["status"] == "done"
        assert sum(e["counts"].get("fs.look", 0) for e in await seat.log(kind="tally")) >= 3

    sit(body)


def test_a_file_is_written_with_one_intent_and_an_outcome_with_its_digest() -> None:
    async def body(seat: Seat) -> None:
        await seat.kernel.put("new.txt", b"content")
        assert (seat.work / "new.txt").read_bytes() == b"content"
        (admit,) = await seat.log(kind="admit", effect="fs.modify")
        (outcome,) = await seat.log(kind="outcome", of=admit["seq"])
        assert outcome["facts"]["written"] == 7
        assert outcome["facts"]["created"] is True
        assert outcome["facts"]["sha256"] == hashlib.sha256(b"content").hexdigest()
        assert seat.spent("file_bytes") == 7
        assert seat.reserved("file_bytes") == 0

    sit(body)


def test_an_intent_is_durable_before_the_first_byte_changes() -> None:
    async def body(seat: Seat) -> None:
        seat.file("old.txt", "old")
        node = (await seat.kernel.walk("old.txt")).node
        ledger = seat.gate.ledger
        seen: list[tuple[int, bytes]] = []
        real = ledger.durable

        async def watched(seq: int) -> None:
            await real(seq)
            seen.append((seq, (seat.work / "old.txt").read_bytes()))

        ledger.durable = watched  # type: ignore[method-assign]
        fh = await seat.kernel.open(node, os.O_WRONLY | os.O_TRUNC)
        ledger.durable = real  # type: ignore[method-assign]
        assert seen
        assert seen[0][1] == b"old"
        assert (seat.work / "old.txt").read_bytes() == b""
        await seat.kernel.close(node, fh)

    sit(body)


def test_leases_go_on_as_a_program_writes_and_nothing_is_overspent() -> None:
    async def body(seat: Seat) -> None:
        entry, fh = await seat.kernel.create(1, "big")
        for at in range(40):
            await seat.kernel.write(entry.node, fh, b"x" * 25_000, at * 25_000)
        await seat.kernel.close(entry.node, fh)
        assert (seat.work / "big").stat().st_size == 1_000_000
        assert seat.spent("file_bytes") == 1_000_000
        assert seat.reserved("file_bytes") == 0
        assert 2 < len(await seat.log(kind="admit", effect="fs.modify")) < 10
        last = (await seat.log(kind="outcome"))[-1]
        assert last["facts"]["sha256"] == hashlib.sha256(b"x" * 1_000_000).hexdigest()

    sit(body)


def test_writing_stops_at_the_budget_to_the_byte() -> None:
    async def body(seat: Seat) -> None:
        entry, fh = await seat.kernel.create(1, "big")
        assert await number(seat.kernel.write(entry.node, fh, b"x" * 600)) == ""
        assert await number(seat.kernel.write(entry.node, fh, b"y" * 500, 600)) == "EDQUOT"
        assert await number(seat.kernel.write(entry.node, fh, b"z" * 400, 600)) == ""
        assert await number(seat.kernel.write(entry.node, fh, b"!", 1000)) == "EDQUOT"
        await seat.kernel.close(entry.node, fh)
        assert (seat.work / "big").read_bytes() == b"x" * 600 + b"z" * 400
        assert seat.spent("file_bytes") == 1000

    sit(body, budgets={"file_bytes": 1000})


def test_what_comes_to_an_open_file_is_counted_when_it_is_read() -> None:
    async def body(seat: Seat) -> None:
        path = seat.file("grows.log", "one")
        found = await seat.kernel.walk("grows.log")
        fh = await seat.kernel.open(found.node)
        assert await seat.kernel.read(found.node, fh) == b"one"
        with path.open("a") as file:
            file.write("two")
        assert await seat.kernel.read(found.node, fh) == b"onetwo"
        assert seat.spent("file_bytes") == 6
        assert await seat.kernel.read(found.node, fh) == b"onetwo"
        assert seat.spent("file_bytes") == 6

    sit(body)


def test_a_label_is_the_runs_before_the_first_byte_is_given() -> None:
    policy = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
[labels]
trusted = ["user"]
secrets = { keys = ["fs:./secret.txt"] }
release = { keys = ["fs:./vault/**"] }
"""

    async def body(seat: Seat) -> None:
        seat.file("secret.txt", "s3cret")
        (seat.work / "vault").mkdir()
        kernel = seat.kernel
        entry, before = await kernel.create(1, "out.txt")
        await kernel.write(entry.node, before, b"clean")
        assert await kernel.get("secret.txt") == b"s3cret"
        # What is open since before is asked about again: it would carry the secret out.
        assert await number(kernel.write(entry.node, before, b"s3cret")) == "EACCES"
        assert await number(kernel.create(1, "later.txt")) == "EACCES"
        assert (seat.work / "out.txt").read_bytes() == b"clean"
        vault = (await kernel.walk("vault")).node
        entry, fh = await kernel.create(vault, "kept.txt")  # the control: released there
        assert await kernel.write(entry.node, fh, b"s3cret") == 6
        codes = {e["code"] for e in await seat.log(kind="denied")}
        assert codes == {"E_TAINT"}

    sit(body, policy)


def test_append_truncate_exclusive_and_sizes() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        path = seat.file("log", "one\n")
        node = (await kernel.walk("log")).node
        fh = await kernel.open(node, os.O_WRONLY | os.O_APPEND)
        with path.open("a") as file:
            file.write("other\n")
        await kernel.write(node, fh, b"two\n", 4, flags=os.O_APPEND)
        assert path.read_text() == "one\nother\ntwo\n"
        await kernel.setattr(node, size=3, fh=fh)
        assert path.read_text() == "one"
        await kernel.close(node, fh)
        assert (await kernel.setattr(node, size=5)).size == 5
        assert await number(kernel.create(1, "log", os.O_WRONLY | os.O_EXCL)) == "EEXIST"
        entry, fh = await kernel.create(1, "log", os.O_RDWR)  # raced: it is there already
        assert entry.node == node
        assert await kernel.read(node, fh) == b"one\0\0"

    sit(body)


def test_holes_space_copies_and_syncs() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        entry, fh = await kernel.create(1, "f", os.O_RDWR)
        node = entry.node
        await kernel.write(node, fh, b"a" * 4096, 65536)
        assert await kernel.lseek(node, fh, 0, os.SEEK_DATA) == 65536
        assert await kernel.lseek(node, fh, 0, os.SEEK_HOLE) == 0
        await kernel.fallocate(node, fh, 0, 8192)
        assert seat.gate.ledger.state.accounts[f"run:{seat.run.id}"].left("file_bytes") is None
        await kernel.fsync(node, fh, data=True)
        other, fh2 = await kernel.create(1, "g", os.O_RDWR)
        assert await kernel.copy(node, fh, 65536, other.node, fh2, 0, 4096) == 4096
        await kernel.close(node, fh)
        await kernel.close(other.node, fh2)
        assert (seat.work / "g").read_bytes() == b"a" * 4096
        assert seat.spent("file_bytes") == 4096 + 8192 + 4096

    sit(body)


def test_what_runs_write_leaves_a_rest_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole disk has to stay free, so nothing is really filled; then nothing has to."""

    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        made, fh = await kernel.create(1, "f", os.O_RDWR)
        for kept, said in ((lambda whole: whole, ["ENOSPC"] * 3), (lambda _: 0, [""] * 3)):
            monkeypatch.setattr(room, "kept", kept)
            assert [
                await number(kernel.fallocate(made.node, fh, 0, 1 << 20)),
                await number(kernel.write(made.node, fh, b"x", 0)),
                await number(kernel.write(made.node, fh, b"y", 1)),
            ] == said
        await kernel.close(made.node, fh)
        assert seat.spent("file_bytes") == (1 << 20) + 2

    sit(body)


def test_the_rest_that_stays_free(tmp_path: Path) -> None:
    assert (room.kept(1 << 40), room.kept(1 << 30)) == (256 << 20, 64 << 20)
    with open(tmp_path / "f", "wb") as file:
        room.leave(file.fileno(), 0)
        disk = os.fstatvfs(file.fileno())
        with pytest.raises(OSError, match="No space"):
            room.leave(file.fileno(), disk.f_blocks * disk.f_frsize)


UNLIMITED = """
import os, subprocess, sys
from authority.audit.files import OsLayer
from authority.effects import room
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=0", "disk", sys.argv[1]], check=True)
with open(sys.argv[1] + "/f", "wb") as file:
    assert os.fstatvfs(file.fileno()).f_blocks == 0
    room.leave(file.fileno(), 1 << 20)
space = OsLayer().space(sys.argv[1])
assert min(space.for_log, space.for_bodies) > 1 << 40
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a disk of its own, which root can make")
def test_a_disk_that_does_not_say_how_large_it_is_takes_what_is_written(tmp_path: Path) -> None:
    words = ["unshare", "--mount", sys.executable, "-c", UNLIMITED, str(tmp_path)]
    subprocess.run(words, check=True, timeout=120)


def test_directories_links_modes_times_and_attributes() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        d = await kernel.mkdir(1, "d", 0o750)
        assert (seat.work / "d").stat().st_mode & 0o777 == 0o750
        await kernel.put("d/a", b"a")
        await kernel.symlink(d.node, "l", "a")
        link = await kernel.walk("d/l")
        assert await kernel.readlink(link.node) == b"a"
        assert await kernel.list(d.node) == ["a", "l"]
        a = await kernel.walk("d/a")
        assert (a.attr.uid, a.attr.gid) == (1000, 1000)
        changed = await kernel.setattr(a.node, mode=0o600, mtime=1_000_000)
        assert changed.mode & 0o777 == 0o600
        assert (seat.work / "d/a").stat().st_mtime == 1_000_000
        await kernel.setattr(a.node, uid=1000, gid=1000)
        assert await number(kernel.setattr(a.node, uid=0)) == "EPERM"
        assert await number(kernel.setattr(a.node, mode=0o4755)) == "EPERM"
        await kernel.setxattr(a.node, "user.note", b"x")
        assert await kernel.getxattr(a.node, "user.note") == b"x"
        assert await kernel.listxattr(a.node) == b"user.note\0"
        assert await number(kernel.setxattr(a.node, "security.capability", b"x")) == "ENOTSUP"
        await kernel.rename(d.node, "a", 1, "b")
        assert await kernel.get("b") == b"a"
        await kernel.rename(1, "b", d.node, "l", 2)  # exchange
        assert (seat.work / "b").is_symlink()
        assert await number(kernel.rename(1, "b", d.node, "l", 1)) == "EEXIST"
        assert await number(kernel.rmdir(1, "d")) == "ENOTEMPTY"
        await kernel.unlink(d.node, "l")
        await kernel.rmdir(1, "d")
        assert not (seat.work / "d").exists()
        assert await number(kernel.mknod(1, "fifo", 0o010644)) == "EPERM"
        assert await number(kernel.mknod(1, "plain", 0o100644)) == ""

    sit(body)


def test_a_file_that_is_deleted_while_open_goes_on_working() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        entry, fh = await kernel.create(1, "t", os.O_RDWR)
        await kernel.write(entry.node, fh, b"still here")
        await kernel.unlink(1, "t")
        assert await kernel.read(entry.node, fh) == b"still here"
        assert (await kernel.getattr(entry.node)).size == 10
        await kernel.setattr(entry.node, mode=0o600)
        await kernel.write(entry.node, fh, b"!", 10)
        await kernel.close(entry.node, fh)
        assert await number(kernel.getattr(entry.node)) == "ESTALE"

    sit(body)


def test_a_renamed_directory_takes_its_nodes_along() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("a/b/c.txt", "c")
        found = await kernel.walk("a/b/c.txt")
        await kernel.rename(1, "a", 1, "z")
        fh = await kernel.open(found.node)
        assert await kernel.read(found.node, fh) == b"c"
        admits = await seat.log(kind="admit", effect="fs.open")
        assert admits[-1]["resource"] == f"fs:{seat.work}/z/b/c.txt"

    sit(body)


def test_long_listings_come_in_pieces() -> None:
    async def body(seat: Seat) -> None:
        names = [f"file-{n:04}" for n in range(700)]
        for name in names:
            seat.file(f"many/{name}")
        node = (await seat.kernel.walk("many")).node
        assert await seat.kernel.list(node, 512) == names

    sit(body)


def test_init_agrees_on_what_both_sides_know() -> None:
    async def body(seat: Seat) -> None:
        kernel = await seat.mount(begin=False)
        major, minor, _, low, _, _, max_write, _, pages, _, high = await kernel.init(2**40 - 1, 45)
        assert (major, minor, max_write, pages) == (7, 41, 1024 * 1024, 256)
        flags = low | high << 32
        assert flags & (1 << 36)
        assert not flags & (1 << 16), "no writeback cache"
        assert not flags & (1 << 13), "no READDIRPLUS"
        assert not any("mappings" in str(e) for e in seat.events)

    sit(body, mount=False)


def test_a_kernel_without_shared_mappings_is_named() -> None:
    async def body(seat: Seat) -> None:
        await seat.mount(flags=(1 << 22) | (1 << 3), minor=31)
        assert any("ENODEV" in str(e.get("text")) for e in seat.events)

    sit(body, mount=False)


def test_a_narrowed_capability_means_its_methods_through_a_mount_too() -> None:
    from authority.kernel import capabilities
    from authority.kernel.capabilities import Restriction

    async def body(seat: Seat) -> None:
        seat.file("a", "x")
        narrow = Restriction(methods=("fs.read", "fs.mkdir"), count=4)
        seat.run.token = capabilities.attenuate(seat.run.token, narrow, nonce=b"n" * 16)
        kernel = await seat.mount()
        assert await kernel.get("a") == b"x"
        assert await number(kernel.mkdir(1, "d")) == ""
        assert await number(kernel.create(1, "b")) == "EACCES"
        assert await number(kernel.symlink(1, "b", "a")) == "EACCES"
        assert await kernel.get("a") == b"x"
        assert await kernel.get("a") == b"x"
        node = (await kernel.walk("a")).node
        assert await number(kernel.open(node)) == "EACCES", "used four times"
        codes = [e["code"] for e in await seat.log(kind="denied")]
        assert codes == ["E_CAP_SCOPE", "E_CAP_SCOPE", "E_CAP_RATE"]

    sit(body, mount=False)
