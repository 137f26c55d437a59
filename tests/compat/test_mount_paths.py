"""Attacks by path: what a run may not see does not exist for it, and no name leads elsewhere."""

from __future__ import annotations

import os

import pytest

from .fuse_kernel import HEADER
from .seat import Seat, number, sit

NARROW = """\
version = 1
[filesystem]
read = ["./docs/**", "./deep/er/file.txt"]
write = ["./out/**"]
deny = ["**/.env"]
[labels]
trusted = ["user", "fs:./**"]
"""


def fill(seat: Seat) -> None:
    for name in ("docs/a.txt", "docs/.env", "hidden/b.txt", "deep/er/file.txt", "deep/other.txt"):
        seat.file(name, "content")
    (seat.work / "out").mkdir()
    os.mkfifo(seat.work / "docs/fifo")
    seat.file("top.txt", "top")


def narrow(body: object) -> None:
    sit(body, NARROW, before=fill)  # type: ignore[arg-type]


def test_what_may_not_be_seen_is_not_there() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        for name in ("hidden", "top.txt", "missing"):
            assert await number(kernel.lookup(1, name)) == "ENOENT"
        docs = (await kernel.lookup(1, "docs")).node
        assert await number(kernel.lookup(docs, ".env")) == "ENOENT"
        assert await number(kernel.lookup(docs, "fifo")) == "ENOENT"
        assert await kernel.list(docs) == ["a.txt"]
        assert await kernel.list(1) == ["deep", "docs", "out"]
        deep = (await kernel.walk("deep")).node
        assert await kernel.list(deep) == ["er"]
        assert await kernel.get("deep/er/file.txt") == b"content"
        assert await seat.log(kind="denied") == [], "a probe is tallied, and no denial"
        counts = [e["counts"].get("!fs.look", 0) for e in await seat.log(kind="tally")]
        assert sum(counts) == 4

    narrow(body)


def test_a_readable_folder_is_not_writable_and_the_other_way_round() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        a = (await kernel.walk("docs/a.txt")).node
        docs = (await kernel.walk("docs")).node
        assert await number(kernel.open(a, os.O_WRONLY)) == "EACCES"
        assert await number(kernel.open(a, os.O_RDONLY | os.O_TRUNC)) == "EACCES"
        assert await number(kernel.setattr(a, size=0)) == "EACCES"
        assert await number(kernel.setattr(a, mode=0o777)) == "EACCES"
        assert await number(kernel.setxattr(a, "user.x", b"x")) == "EACCES"
        assert await number(kernel.create(docs, "new")) == "EACCES"
        assert await number(kernel.mkdir(docs, "new")) == "EACCES"
        assert await number(kernel.symlink(docs, "new", "a.txt")) == "EACCES"
        assert await number(kernel.unlink(docs, "a.txt")) == "EACCES"
        assert (seat.work / "docs/a.txt").read_text() == "content"
        assert await number(kernel.access(a, os.W_OK)) == "EACCES"
        assert await number(kernel.access(a, os.R_OK)) == ""
        layers = {e["layer"] for e in await seat.log(kind="denied")}
        assert layers == {"policy"}
        # The control: what may be written is written and seen, and not read again by its name.
        entry, fh = await kernel.create((await kernel.walk("out")).node, "f", os.O_RDWR)
        await kernel.write(entry.node, fh, b"mine")
        assert await kernel.read(entry.node, fh) == b"mine"
        await kernel.close(entry.node, fh)
        assert (await kernel.walk("out/f")).attr.size == 4
        assert await number(kernel.open(entry.node)) == "EACCES"
        assert await number(kernel.open(entry.node, os.O_RDWR)) == "EACCES"

    narrow(body)


def test_nothing_becomes_readable_by_moving_it() -> None:
    policy = NARROW.replace('write = ["./out/**"]', 'write = ["./out/**", "./docs/**"]')

    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("out/dropped", "not to be read")
        seat.file("out/folder/dropped", "not to be read")
        out, docs = (await kernel.walk("out")).node, (await kernel.walk("docs")).node
        dropped = (await kernel.walk("out/dropped")).node
        assert await number(kernel.rename(out, "dropped", docs, "mine")) == "EACCES"
        assert await number(kernel.link(dropped, docs, "mine")) == "EACCES"
        assert await number(kernel.rename(out, "folder", docs, "mine")) == "EACCES"
        assert await number(kernel.rename(docs, "a.txt", out, "dropped", 2)) == "EACCES"
        assert await number(kernel.rename(docs, "a.txt", docs, "b.txt")) == ""  # the control

    sit(body, policy, before=fill)


def test_a_directory_does_not_carry_what_is_denied_past_the_rules() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("out/x/y/.env", "SECRET=1")
        seat.file("out/plain/y/z", "")
        out = (await kernel.walk("out")).node
        assert await number(kernel.rename(out, "x", out, "moved")) == "EACCES"
        assert (seat.work / "out/x/y/.env").exists()
        assert await number(kernel.rename(out, "plain", out, "moved")) == ""

    narrow(body)


def test_what_the_program_needs_is_shown_and_a_denial_still_holds() -> None:
    async def body(seat: Seat) -> None:
        seat.file("app/main.py", "print()")
        seat.file("app/.env", "S=1")
        kernel = await seat.mount(shown=("app", "top.txt"))
        assert await kernel.get("app/main.py") == b"print()"
        assert await kernel.get("top.txt") == b"top"
        app = (await kernel.walk("app")).node
        assert await kernel.list(app) == ["main.py"]
        assert await number(kernel.lookup(app, ".env")) == "ENOENT"
        assert await number(kernel.open((await kernel.walk("top.txt")).node, os.O_RDWR)) == "EACCES"
        assert await number(kernel.create(app, "new.py")) == "EACCES"
        assert await seat.log(kind="admit", effect="fs.open") == []

    sit(body, NARROW, before=fill, mount=False)


def test_what_something_is_put_upon_may_be_looked_at_alone() -> None:
    async def body(seat: Seat) -> None:
        kernel = await seat.mount(over=("hidden/b.txt",))
        found = await kernel.walk("hidden/b.txt")
        assert await number(kernel.open(found.node)) == "EACCES"

    sit(body, NARROW, before=fill, mount=False)


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"", b"x" * 256])
def test_a_name_that_is_no_name_ends_the_mount(name: bytes) -> None:
    async def body(seat: Seat) -> None:
        assert await number(seat.kernel.lookup(1, name)) != ""
        await seat.kernel.ended.wait()
        (denied,) = await seat.log(kind="denied")
        assert "no message of a kernel" in denied["reason"]

    sit(body)


@pytest.mark.parametrize("name", [b"a\nb", b"\x1b[2J", b"\x7f", "\x9b31m".encode()])
def test_control_characters_make_no_file(name: bytes) -> None:
    async def body(seat: Seat) -> None:
        assert await number(seat.kernel.create(1, name)) == "EILSEQ"
        assert await number(seat.kernel.mkdir(1, name)) == "EILSEQ"
        (seat.work / os.fsdecode(name)).write_text("the host's")
        assert await number(seat.kernel.lookup(1, name)) == "EILSEQ"
        assert await seat.kernel.list(1) == []
        await seat.kernel.put("fine", b"")

    sit(body)


def test_names_that_are_not_utf8_are_one_resource() -> None:
    async def body(seat: Seat) -> None:
        entry, fh = await seat.kernel.create(1, b"\xff%41")
        await seat.kernel.close(entry.node, fh)
        (admit,) = await seat.log(kind="admit", effect="fs.modify")
        assert admit["resource"] == f"fs:{seat.work}/%FF%2541"
        assert os.listdir(os.fsencode(seat.work)) == [b"\xff%41"]

    sit(body)


def test_a_protected_place_beneath_the_mount_is_out_of_reach() -> None:
    policy = 'version = 1\n[filesystem]\nread = ["../**"]\nwrite = ["../**"]\n'

    async def body(seat: Seat) -> None:
        seat.work = seat.root
        kernel = await seat.mount()
        assert await number(kernel.lookup(1, "state")) == "ENOENT"
        assert await number(kernel.create(1, "state")) == "EACCES"
        assert await number(kernel.rename(1, "work", 1, "state")) == "EACCES"
        assert "state" not in await kernel.list(1)
        assert "work" in await kernel.list(1)

    sit(body, policy, mount=False)


def test_a_node_is_what_it_was_when_the_kernel_was_told() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        path = seat.file("a", "first")
        node = (await kernel.walk("a")).node
        other = seat.file("b", "second")
        os.rename(other, path)
        assert await number(kernel.open(node)) == "ESTALE"
        assert await number(kernel.setattr(node, mode=0o600)) == "ESTALE"
        assert await number(kernel.setattr(node, size=0)) == "ESTALE"
        assert path.read_text() == "second"
        assert await kernel.get("a") == b"second"

    sit(body)


def test_handles_are_bounded_and_a_neighbour_still_opens() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.mounts._handles.most = 50
        seat.file("a", "x")
        node = (await kernel.walk("a")).node
        opened = [await kernel.open(node) for _ in range(50)]
        admitted = len(await seat.log(kind="admit", effect="fs.open"))
        assert await number(kernel.open(node)) == "ENFILE"
        assert len(await seat.log(kind="admit", effect="fs.open")) == admitted
        await kernel.close(node, opened[0])
        assert await number(kernel.open(node)) == ""

    sit(body)


def test_a_handle_that_was_never_given_is_refused() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        entry, fh = await kernel.create(1, "a", os.O_WRONLY)
        assert await number(kernel.read(entry.node, fh + 1)) == "EBADF"
        assert await number(kernel.write(entry.node, fh + 1, b"x")) == "EBADF"
        assert await number(kernel.read(entry.node, fh)) == "EBADF", "not opened for reading"
        reading = await kernel.open(entry.node)
        assert await number(kernel.write(entry.node, reading, b"x")) == "EBADF"
        assert await number(kernel.getattr(99999)) == "ESTALE"

    sit(body)


def test_forgotten_nodes_are_gone_and_no_more_are_forgotten_than_were_told() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("a", "x")
        node = (await kernel.lookup(1, "a")).node
        assert (await kernel.lookup(1, "a")).node == node
        kernel.forget(node, 2)
        assert await number(kernel.getattr(node)) == "ESTALE"
        again = (await kernel.lookup(1, "a")).node
        assert again > node, "no number is given twice"
        kernel.forget(again, 2)
        await kernel.ended.wait()

    sit(body)


def test_a_second_mount_of_one_number_is_refused() -> None:
    async def body(seat: Seat) -> None:
        from .fuse_kernel import Stream

        for number_ in (0, 1):
            stream = Stream(number_)
            await seat.mounts.serve(stream)
            assert stream.gone
        assert HEADER.size == 40

    sit(body)
