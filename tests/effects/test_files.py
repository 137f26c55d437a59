"""Files through the real file system: what each effect does, says and records."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from authority.effects import beneath, room
from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.beneath import Beneath, BeneathUnavailable, Untouchable
from authority.effects.files import QUICK_READ, FileEffects
from authority.kernel import canonical
from authority.kernel.codes import Code
from authority.kernel.requests import LIST_LIMIT, MAX_READ
from authority.kernel.resources import parse

from .support import call, policy, run


def perform(files: FileEffects, effect: str, path: Path | bytes, **options: Any) -> Any:
    done = run(files.perform(call(effect, os.fsencode(path), **options)))
    canonical.encode(done.facts)
    return done


def read(files: FileEffects, path: Path | bytes, **options: Any) -> Any:
    looked_up = run(files.prepare("fs.read", parse("fs.read", os.fsencode(path))))
    return perform(files, "fs.read", path, looked_up=looked_up, **options)


def test_what_runs_write_leaves_a_rest_of_the_disk(
    files: FileEffects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    monkeypatch.setattr(room, "kept", lambda whole: whole)
    for effect in ("fs.write", "fs.append"):
        with pytest.raises(EffectFailed, match="the disk is full"):
            perform(files, effect, file, data=b"x")
    assert not file.exists() or not file.read_bytes()
    assert [path for path in tmp_path.iterdir() if path != file] == []
    monkeypatch.setattr(room, "kept", lambda _: 0)
    perform(files, "fs.write", file, data=b"x")
    assert file.read_bytes() == b"x"


# --- reading ---


@pytest.mark.parametrize("size", [0, 1, 4096, QUICK_READ, QUICK_READ + 1, 3_000_000])
def test_a_file_is_read_whole_and_recorded(files: FileEffects, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = tmp_path / "a.bin"
    file.write_bytes(content)
    done = read(files, file)
    assert done.value == {"data": content, "size": size, "eof": True}
    assert done.spent == {"requests": 1, "file_bytes": size}
    status = file.stat()
    assert (done.facts["dev"], done.facts["ino"]) == (status.st_dev, status.st_ino)
    assert done.facts["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("offset", "length", "data", "eof"),
    [(0, 3, b"abc", False), (3, None, b"defg", True), (7, 5, b"", True), (99, None, b"", True)],
)
def test_a_part_of_a_file(
    files: FileEffects, tmp_path: Path, offset: int, length: int | None, data: bytes, eof: bool
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abcdefg")
    done = read(files, file, offset=offset, length=length)
    assert (done.value["data"], done.value["eof"]) == (data, eof)


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (2**60, None)])
def test_a_senseless_part_is_refused(
    files: FileEffects, tmp_path: Path, offset: int, length: int | None
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(EffectRefused) as refused:
        perform(
            files,
            "fs.read",
            tmp_path / "a",
            offset=offset,
            length=length,
            reserved={"file_bytes": 9},
        )
    assert refused.value.code == Code.SCHEMA_INVALID


def test_never_more_than_was_reserved_even_if_the_file_grew(
    files: FileEffects, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"short")
    looked_up = run(files.prepare("fs.read", parse("fs.read", str(file))))
    with file.open("ab") as more:
        more.write(b"x" * 100_000)
    done = perform(files, "fs.read", file, looked_up=looked_up)
    assert done.value == {"data": b"short", "size": 100_005, "eof": False}
    assert done.spent["file_bytes"] == 5


def test_another_file_in_the_place_of_the_prepared_one_is_not_read(
    files: FileEffects, tmp_path: Path
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"first")
    looked_up = run(files.prepare("fs.read", parse("fs.read", str(file))))
    assert perform(files, "fs.read", file, looked_up=looked_up).value["data"] == b"first"
    (tmp_path / "b").write_bytes(b"other")
    os.replace(tmp_path / "b", file)
    with pytest.raises(EffectRefused, match="became another file"):
        perform(files, "fs.read", file, looked_up=looked_up)


def test_prepare_tells_nothing_apart_and_raises_for_nothing(
    files: FileEffects, tmp_path: Path
) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("dir", "link", "fifo", "missing", "dir/missing"):
        found = run(files.prepare("fs.read", parse("fs.read", str(tmp_path / name))))
        assert found == {"size": 0, "dev": 0, "ino": 0}, name
    assert run(files.prepare("fs.write", parse("fs.write", str(tmp_path / "dir")))) == {}


def test_a_file_that_appears_after_prepare_is_not_read(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "late"
    looked_up = run(files.prepare("fs.read", parse("fs.read", str(file))))
    file.write_bytes(b"content")
    with pytest.raises(EffectRefused):
        perform(files, "fs.read", file, looked_up=looked_up)


def test_a_huge_sparse_file_costs_no_more_than_a_read_may(
    files: FileEffects, tmp_path: Path
) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    done = read(files, file)
    assert len(done.value["data"]) == MAX_READ
    assert done.value["size"] == 1 << 40
    assert not done.value["eof"]


def test_a_size_beyond_what_the_log_can_hold(files: FileEffects) -> None:
    file = Path("/dev/shm") / f"authority-{os.getpid()}"
    try:
        with file.open("wb") as out:
            out.truncate(1 << 60)
        assert run(files.prepare("fs.read", parse("fs.read", str(file))))["size"] == 2**53 - 1
        with pytest.raises(EffectFailed, match="too large"):
            perform(files, "fs.read", file, reserved={"file_bytes": 10})
        assert perform(files, "fs.stat", file).value["size"] == 2**53 - 1
    finally:
        file.unlink(missing_ok=True)


def test_stat(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    file.chmod(0o640)
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    assert perform(files, "fs.stat", file).value == {
        "type": "file",
        "size": 3,
        "mtime": 1_700_000_000_123_456,
        "mode": 0o640,
    }
    assert perform(files, "fs.stat", tmp_path).value["type"] == "directory"


def test_list_is_sorted_and_odd_names_can_be_used(files: FileEffects, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / "a").mkdir()
    (tmp_path / "c").symlink_to("b")
    os.mkfifo(tmp_path / "d")
    odd = os.fsencode(tmp_path) + b"/e\xff%"
    with open(odd, "wb") as out:
        out.write(b"odd")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\n\x1b[31m")).touch()
    (tmp_path / "g%41é").touch()
    rows = perform(files, "fs.list", tmp_path).value
    assert rows == [
        {"name": "a", "type": "directory", "size": 0},
        {"name": "b", "type": "file", "size": 2},
        {"name": "c", "type": "link", "size": 0},
        {"name": "d", "type": "other", "size": 0},
        {"name": "e%FF%25", "type": "file", "size": 3, "resource": f"fs:{tmp_path}/e%FF%25"},
        {"name": "f%0A%1B[31m", "type": "file", "size": 0},
        {"name": "g%41é", "type": "file", "size": 0},
    ]
    assert read(files, rows[4]["resource"].encode()).value["data"] == b"odd"


def test_a_listing_is_bounded(files: FileEffects, tmp_path: Path) -> None:
    for number in range(LIST_LIMIT):
        os.close(os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY))
    assert len(perform(files, "fs.list", tmp_path).value) == LIST_LIMIT
    (tmp_path / "one-more").touch()
    with pytest.raises(EffectFailed, match=f"more than {LIST_LIMIT} entries"):
        perform(files, "fs.list", tmp_path)


def test_a_directory_that_is_only_the_way_shows_the_way_alone(
    files: FileEffects, tmp_path: Path
) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    narrow = policy(f'[filesystem]\nread = ["{tmp_path}/open/**"]\n')
    names = [row["name"] for row in perform(files, "fs.list", tmp_path, under=narrow).value]
    assert names == ["open"]
    names = [row["name"] for row in perform(files, "fs.list", tmp_path).value]
    assert names == ["closed", "open"]


# --- changing ---


def test_write_creates_then_replaces(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "a"
    umask = os.umask(0o027)
    try:
        done = perform(files, "fs.write", file, data=b"one")
    finally:
        os.umask(umask)
    assert (done.value, done.facts["created"]) == ({"size": 3}, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    file.chmod(0o4755)
    done = perform(files, "fs.write", file, data=b"twice")
    assert (file.read_bytes(), done.facts["created"]) == (b"twice", False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755, "permission kept, set-id dropped"
    assert done.facts["ino"] == file.stat().st_ino
    assert done.facts["sha256"] == hashlib.sha256(b"twice").hexdigest()
    assert done.spent == {"requests": 1, "file_bytes": 5}
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "no temporary file stays"


def test_readers_see_the_old_or_the_new_content(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "a"
    contents = [bytes([n]) * 200_000 for n in range(8)]
    file.write_bytes(contents[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            data = file.read_bytes()
            seen.add(data[:1] if data == data[:1] * 200_000 else b"torn")

    thread = threading.Thread(target=look)
    thread.start()
    for content in contents:
        perform(files, "fs.write", file, data=content)
    stop.set()
    thread.join()
    assert b"torn" not in seen


def test_create_only(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "a"
    perform(files, "fs.write", file, data=b"one", create_only=True)
    with pytest.raises(EffectFailed, match="exists already"):
        perform(files, "fs.write", file, data=b"two", create_only=True)
    assert file.read_bytes() == b"one"


def test_writers_at_once_leave_one_whole_file(files: FileEffects, tmp_path: Path) -> None:
    async def both(create_only: bool) -> list[Any]:
        calls = [
            call(
                "fs.write",
                str(tmp_path / f"x{create_only}"),
                data=b"%d" % n * 5000,
                create_only=create_only,
            )
            for n in range(6)
        ]
        return await asyncio.gather(*map(files.perform, calls), return_exceptions=True)

    done = run(both(True))
    assert sum(isinstance(one, EffectFailed) for one in done) == 5
    done = run(both(False))
    assert not [one for one in done if isinstance(one, BaseException)]
    data = (tmp_path / "xFalse").read_bytes()
    assert data == data[:1] * 5000
    assert len(list(tmp_path.iterdir())) == 2


def test_append(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "log"
    done = perform(files, "fs.append", file, data=b"one\n")
    assert (done.value, done.facts["created"]) == ({"size": 4}, True)
    inode = file.stat().st_ino
    done = perform(files, "fs.append", file, data=b"two\n")
    assert (done.value, done.facts["created"]) == ({"size": 8}, False)
    assert (file.read_bytes(), file.stat().st_ino) == (b"one\ntwo\n", inode)
    file.chmod(0o4755)
    with pytest.raises(EffectRefused, match="set-id"):
        perform(files, "fs.append", file, data=b"x")


def test_more_than_reserved_is_never_written(files: FileEffects, tmp_path: Path) -> None:
    for effect in ("fs.write", "fs.append"):
        with pytest.raises(EffectRefused) as refused:
            perform(files, effect, tmp_path / "a", data=b"12345", reserved={"file_bytes": 4})
        assert refused.value.code == Code.BUDGET_EXCEEDED
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_stays_as_it_is(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"kept")
    file.chmod(0o444)
    (tmp_path / "b").write_bytes(b"other")
    for attempt in (
        lambda: perform(files, "fs.write", file, data=b"x"),
        lambda: perform(files, "fs.append", file, data=b"x"),
        lambda: perform(files, "fs.rename", tmp_path / "b", to=str(file)),
    ):
        with pytest.raises(EffectFailed, match="permission"):
            attempt()
    assert file.read_bytes() == b"kept"
    file.chmod(0o644)
    perform(files, "fs.write", file, data=b"x")


def test_mkdir(files: FileEffects, tmp_path: Path) -> None:
    assert perform(files, "fs.mkdir", tmp_path / "a").facts["created"] is True
    with pytest.raises(EffectFailed, match="exists already"):
        perform(files, "fs.mkdir", tmp_path / "a")
    with pytest.raises(EffectFailed, match="no such"):
        perform(files, "fs.mkdir", tmp_path / "b" / "c")
    perform(files, "fs.mkdir", tmp_path / "b" / "c" / "d", parents=True)
    assert (tmp_path / "b" / "c" / "d").is_dir()
    done = perform(files, "fs.mkdir", tmp_path / "b" / "c" / "d", parents=True)
    assert done.facts["created"] is False
    (tmp_path / "file").touch()
    with pytest.raises(EffectFailed, match="not a directory"):
        perform(files, "fs.mkdir", tmp_path / "file" / "d", parents=True)


def test_mkdir_makes_no_parent_that_the_policy_forbids(files: FileEffects, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    narrow = policy(f'[filesystem]\nwrite = ["{tmp_path}/out/sub/x/**"]\n')
    with pytest.raises(EffectRefused) as refused:
        perform(files, "fs.mkdir", tmp_path / "out/sub/x/y", parents=True, under=narrow)
    assert refused.value.code == Code.POLICY_DENY
    assert not (tmp_path / "out/sub").exists()
    (tmp_path / "out/sub/x").mkdir(parents=True)
    perform(files, "fs.mkdir", tmp_path / "out/sub/x/y/z", parents=True, under=narrow)


def test_rename(files: FileEffects, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "sub").mkdir()
    done = perform(files, "fs.rename", tmp_path / "a", to=str(tmp_path / "sub/b"))
    assert done.facts["replaced"] is False
    (tmp_path / "c").write_bytes(b"c")
    done = perform(files, "fs.rename", tmp_path / "c", to=str(tmp_path / "sub/b"))
    assert done.facts["replaced"] is True
    assert (tmp_path / "sub/b").read_bytes() == b"c"
    with pytest.raises(EffectRefused, match="is a directory"):
        perform(files, "fs.rename", tmp_path / "sub", to=str(tmp_path / "other"))
    with pytest.raises(EffectFailed, match="is a directory"):
        perform(files, "fs.rename", tmp_path / "sub/b", to=str(tmp_path / "sub"))
    with pytest.raises(EffectFailed, match="different file systems"):
        perform(files, "fs.rename", tmp_path / "sub/b", to=f"/dev/shm/authority-{os.getpid()}")


def test_delete(files: FileEffects, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b").touch()
    perform(files, "fs.delete", tmp_path / "a")
    with pytest.raises(EffectFailed, match="not empty"):
        perform(files, "fs.delete", tmp_path / "sub")
    perform(files, "fs.delete", tmp_path / "sub/b")
    perform(files, "fs.delete", tmp_path / "sub")
    assert not list(tmp_path.iterdir())
    with pytest.raises(EffectFailed, match="no such"):
        perform(files, "fs.delete", tmp_path / "a")
    with pytest.raises(EffectRefused, match="root directory"):
        perform(files, "fs.delete", b"/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other owners")
def test_root_leaves_nothing_of_roots_in_a_users_folder(files: FileEffects, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 4321, 4322)
    perform(files, "fs.write", home / "new", data=b"x")
    perform(files, "fs.append", home / "log", data=b"x")
    perform(files, "fs.mkdir", home / "a/b", parents=True)
    perform(files, "fs.write", home / "a/b/c", data=b"x")
    (home / "theirs").touch()
    os.chown(home / "theirs", 5000, 5001)
    perform(files, "fs.write", home / "theirs", data=b"x")
    owners = {
        str(path.relative_to(home)): (path.stat().st_uid, path.stat().st_gid)
        for path in home.rglob("*")
    }
    user = (4321, 4322)
    expected = dict.fromkeys(("new", "log", "a", "a/b", "a/b/c"), user)
    assert owners == expected | {"theirs": (5000, 5001)}


# --- trouble ---


def test_errors_name_the_resource_and_nothing_else(files: FileEffects, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases = {
        "missing": "there is no such file or directory",
        "file/below": "a part of the path is not a directory",
        ".": "it is a directory",
    }
    for name, sentence in cases.items():
        path = os.path.normpath(tmp_path / name)
        with pytest.raises(EffectFailed) as failed:
            perform(files, "fs.read", path.encode(), reserved={"file_bytes": 5})
        assert failed.value.sentence == f"fs:{path}: {sentence}."
        assert failed.value.spent == {"requests": 1}


def test_a_name_too_long_for_this_directory(files: FileEffects, tmp_path: Path) -> None:
    deep = tmp_path / ("é" * 127) / ("x" * 255)
    with pytest.raises(EffectFailed, match="no such"):
        perform(files, "fs.read", deep)
    with pytest.raises(OSError, match="36") as error, Beneath().look(b"/" + b"x" * 256):
        pass
    assert error.value.errno == 36


def test_a_limit_on_file_size_leaves_the_old_file(files: FileEffects, tmp_path: Path) -> None:
    file = tmp_path / "a"
    perform(files, "fs.write", file, data=b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(EffectFailed, match="too large"):
            perform(files, "fs.write", file, data=b"x" * 2_000_000)
        with pytest.raises(EffectFailed) as failed:
            perform(files, "fs.append", file, data=b"x" * 2_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.spent["file_bytes"] == 1_000_000 - 3, "what was written is not free"
    assert file.read_bytes()[:4] == b"oldx"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_leaves_the_old_file(files: FileEffects, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        perform(files, "fs.write", tmp_path / "a", data=b"old")
        with pytest.raises(EffectFailed, match="disk is full"):
            perform(files, "fs.write", tmp_path / "a", data=b"x" * 1_000_000)
        assert (tmp_path / "a").read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1
        perform(files, "fs.write", tmp_path / "a", data=b"x" * 1000)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_kernel_without_openat2_is_refused_at_construction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Beneath().close()
    monkeypatch.setitem(beneath._OPENAT2, beneath.platform.machine(), 9999)
    with pytest.raises(BeneathUnavailable, match="ENOSYS"):
        FileEffects()


def test_something_else_than_procfs_is_refused_at_construction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(beneath, "_PROC_FD", str(tmp_path))
    with pytest.raises(BeneathUnavailable, match="procfs"):
        FileEffects()


def test_handles_are_not_used_across_a_fork(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    held = Beneath()
    child = os.fork()
    if child == 0:
        try:
            with held.look(os.fsencode(tmp_path / "a")) as found:
                held.reopen(found, os.O_RDONLY)
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    held.close()


def test_no_descriptor_is_left_open(files: FileEffects, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dir").mkdir()
    os.link(tmp_path / "link", tmp_path / "link2", follow_symlinks=False)
    before = None
    for _ in range(3):
        for effect, name, options in (
            ("fs.write", "a", {"data": b"x"}),
            ("fs.append", "a", {"data": b"x"}),
            ("fs.read", "a", {}),
            ("fs.read", "link", {}),
            ("fs.read", "dir", {}),
            ("fs.write", "dir", {"data": b"x"}),
            ("fs.append", "link", {"data": b"x"}),
            ("fs.list", ".", {}),
            ("fs.stat", "a", {}),
            ("fs.mkdir", "a/b", {"parents": True}),
            ("fs.mkdir", "m/n", {"parents": True}),
            ("fs.rename", "a", {"to": str(tmp_path / "link")}),
            ("fs.rename", "dir", {"to": str(tmp_path / "x")}),
            ("fs.delete", "m/n", {}),
            ("fs.delete", "dir/none", {}),
        ):
            try:
                perform(files, effect, tmp_path / name, **options)
            except (EffectFailed, EffectRefused):
                continue
        count = len(os.listdir("/proc/self/fd"))
        assert before in (None, count)
        before = count


def test_drain_waits_for_what_a_cancelled_call_left_behind(
    files: FileEffects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, slow = threading.Event(), threading.Event()
    sync = os.fsync

    def wait(fd: int) -> None:
        begun.set()
        slow.wait(60)
        sync(fd)

    monkeypatch.setattr(os, "fsync", wait)

    async def main() -> tuple[int, int, int]:
        task = asyncio.create_task(files.perform(call("fs.write", str(tmp_path / "a"), data=b"x")))
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        doubtful = await files.drain("r1", 10_000)
        others = await files.drain("r2", 10_000)
        slow.set()
        return doubtful, others, await files.drain("r1", 10_000_000)

    assert run(main()) == (1, 0, 0)
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_slow_disk_does_not_stall_the_loop(
    files: FileEffects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(b"x" * (QUICK_READ + 1))
    pread, ticked = os.pread, threading.Event()
    monkeypatch.setattr(os, "pread", lambda *a: (ticked.wait(20), pread(*a))[1])

    async def main() -> int:
        ticks = 0
        looked_up = await files.prepare("fs.read", parse("fs.read", str(tmp_path / "big")))
        task = asyncio.create_task(
            files.perform(call("fs.read", str(tmp_path / "big"), looked_up=looked_up))
        )
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
            if ticks > 5:
                ticked.set()
        return ticks

    assert run(main()) > 5


def test_a_path_component_is_checked_again_here() -> None:
    held = Beneath()
    for path in (
        b"/etc/../etc/hostname",
        b"/etc//hostname",
        b"/etc/./hostname",
        b"/etc/host\0name",
    ):
        with pytest.raises(Untouchable), held.look(path):
            pass
    held.look(b"/etc/hostname").close()
    held.close()


@pytest.mark.parametrize(
    ("effect", "options", "order"),
    [
        ("fs.write", {"data": b"x"}, ["sync file", "move", "sync directory"]),
        ("fs.append", {"data": b"x"}, ["sync file"]),
        ("fs.rename", {"to": "new"}, ["move", "sync directory"]),
        ("fs.delete", {}, ["sync directory"]),
        ("fs.mkdir", {"parents": True}, ["sync directory"]),
    ],
)
def test_a_change_is_on_the_disk_before_it_is_told(
    files: FileEffects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    effect: str,
    options: dict[str, Any],
    order: list[str],
) -> None:
    if effect != "fs.mkdir":
        (tmp_path / "a").write_bytes(b"old")
    if "to" in options:
        options = {"to": str(tmp_path / options["to"])}
    seen: list[str] = []

    def noted(real: Any, name: str | None = None) -> Any:
        def wrapper(first: Any, *rest: Any, **more: Any) -> Any:
            directory = isinstance(first, int) and stat.S_ISDIR(os.fstat(first).st_mode)
            seen.append(name or ("sync directory" if directory else "sync file"))
            return real(first, *rest, **more)

        return wrapper

    monkeypatch.setattr(os, "fsync", noted(os.fsync))
    monkeypatch.setattr(os, "fdatasync", noted(os.fdatasync))
    monkeypatch.setattr(files._beneath, "move", noted(files._beneath.move, "move"))
    perform(files, effect, tmp_path / "a", **options)
    assert seen == order
