"""Attacks with links and with files that are none: symbolic, hard and magic links, FIFOs, devices.

Each refusal has its control beside it: the plain file that is read, or plain `open` that would have
followed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.beneath import Beneath, Untouchable
from authority.effects.files import FileEffects
from authority.kernel.codes import Code
from authority.kernel.resources import ResourceError, parse

from .support import call, run

SECRET = b"not for the run\n"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A workspace `in`, and beside it `out`, which holds what the run must not reach."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/secret").write_bytes(SECRET)
    (tmp_path / "in/dir").mkdir(parents=True)
    (tmp_path / "in/plain").write_bytes(b"plain")
    return tmp_path / "in"


def perform(files: FileEffects, effect: str, path: Any, **options: Any) -> Any:
    if effect == "fs.read":
        options.setdefault("reserved", {"file_bytes": 1000})
    return run(files.perform(call(effect, os.fsencode(path), **options)))


ALL: list[tuple[str, dict[str, Any]]] = [
    ("fs.read", {}),
    ("fs.stat", {}),
    ("fs.list", {}),
    ("fs.write", {"data": b"overwritten"}),
    ("fs.append", {"data": b"overwritten"}),
    ("fs.delete", {}),
    ("fs.mkdir", {"parents": True}),
]
IDS = [effect for effect, _ in ALL]


def refused(files: FileEffects, effect: str, path: Any, **options: Any) -> str:
    with pytest.raises(EffectRefused) as error:
        perform(files, effect, path, **options)
    assert error.value.code == Code.POLICY_DENY
    return error.value.sentence


@pytest.mark.parametrize(("effect", "options"), ALL, ids=IDS)
@pytest.mark.parametrize("target", ["absolute", "relative", "dangling", "loop"])
def test_a_symbolic_link_as_the_last_name(
    files: FileEffects, room: Path, effect: str, options: dict[str, Any], target: str
) -> None:
    to = {
        "absolute": str(room.parent / "out/secret"),
        "relative": "../out/secret",
        "dangling": "../out/new",
        "loop": "link",
    }[target]
    (room / "link").symlink_to(to)
    assert "symbolic link" in refused(files, effect, room / "link", **options)
    assert (room.parent / "out/secret").read_bytes() == SECRET
    assert os.listdir(room.parent / "out") == ["secret"]
    assert (room / "link").is_symlink()


@pytest.mark.parametrize(("effect", "options"), ALL, ids=IDS)
def test_a_symbolic_link_on_the_way(
    files: FileEffects, room: Path, effect: str, options: dict[str, Any]
) -> None:
    (room / "way").symlink_to("../out")
    name = "secret" if effect != "fs.mkdir" else "made"
    assert "symbolic link" in refused(files, effect, room / "way" / name, **options)
    assert (room.parent / "out/secret").read_bytes() == SECRET
    assert os.listdir(room.parent / "out") == ["secret"]
    assert (room / "way/secret").read_bytes() == SECRET, "control: open() follows"


def test_rename_through_links(files: FileEffects, room: Path) -> None:
    (room / "way").symlink_to("../out")
    (room / "link").symlink_to("../out/secret")
    refused(files, "fs.rename", room / "plain", to=str(room / "way/stolen"))
    refused(files, "fs.rename", room / "way/secret", to=str(room / "stolen"))
    refused(files, "fs.rename", room / "plain", to=str(room / "link"))
    refused(files, "fs.rename", room / "link", to=str(room / "stolen"))
    assert os.listdir(room.parent / "out") == ["secret"]
    perform(files, "fs.rename", room / "plain", to=str(room / "dir/plain"))


def test_a_hard_link_is_read_but_never_changed(files: FileEffects, room: Path) -> None:
    secret = room.parent / "out/secret"
    os.link(secret, room / "hard")
    for effect in ("fs.write", "fs.append"):
        assert "more than one name" in refused(files, effect, room / "hard", data=b"overwritten")
    assert "more than one name" in refused(
        files, "fs.rename", room / "plain", to=str(room / "hard")
    )
    assert secret.read_bytes() == SECRET
    assert (room / "plain").exists()
    assert perform(files, "fs.read", room / "hard").value["data"] == SECRET
    perform(files, "fs.delete", room / "hard")
    assert secret.read_bytes() == SECRET, "deleting takes one name away"
    perform(files, "fs.write", room / "plain", data=b"control")
    perform(files, "fs.append", room / "plain", data=b"!")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)
        server.bind(path.name)


@pytest.mark.parametrize(("effect", "options"), ALL, ids=IDS)
@pytest.mark.parametrize("make", [fifo, unix_socket])
def test_a_fifo_or_socket_is_refused_without_being_opened(
    files: FileEffects,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    effect: str,
    options: dict[str, Any],
    make: Callable[[Path], None],
) -> None:
    monkeypatch.chdir(room)
    make(room / "odd")
    before = time.monotonic()
    assert "neither a regular file nor a directory" in refused(
        files, effect, room / "odd", **options
    )
    assert time.monotonic() - before < 60, "an opened FIFO would wait for its other end"


def test_a_fifo_wakes_nobody(files: FileEffects, room: Path) -> None:
    """A writer waits until a reader opens: the effect must not be that reader."""
    os.mkfifo(room / "fifo")
    opened = threading.Event()

    def write() -> None:
        fd = os.open(room / "fifo", os.O_WRONLY)
        opened.set()
        os.close(fd)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    refused(files, "fs.read", room / "fifo")
    refused(files, "fs.stat", room / "fifo")
    assert not opened.wait(0.1)
    fd = os.open(room / "fifo", os.O_RDONLY | os.O_NONBLOCK)  # control: this one wakes it
    assert opened.wait(60)
    os.close(fd)
    thread.join()


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/tty", "/dev/ptmx", "/dev/random"])
def test_devices(files: FileEffects, path: str) -> None:
    if os.path.exists(path):
        for effect, options in ALL:
            if effect not in ("fs.delete", "fs.mkdir"):
                refused(files, effect, path, **options)


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/environ",
        "/proc/self/mem",
        "/proc/self/fd/0",
        "/proc/self/root/etc/hostname",
        "/proc/self/cwd",
        "/proc/1/environ",
        "/proc/thread-self/environ",
        "/proc/version",
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys",
        "/proc",
    ],
)
def test_kernel_interfaces_that_look_like_files(files: FileEffects, path: str) -> None:
    for effect in ("fs.read", "fs.stat", "fs.list"):
        with pytest.raises((EffectRefused, EffectFailed)) as error:
            perform(files, effect, path)
        missing = isinstance(error.value, EffectFailed) and "no such" in error.value.sentence
        assert isinstance(error.value, EffectRefused) or (missing and not os.path.exists(path))


def test_procfs_by_its_own_number(files: FileEffects) -> None:
    """Without a link on the way it is the type of the file system that refuses."""
    path = f"/proc/{os.getpid()}/status"
    for effect in ("fs.read", "fs.stat"):
        assert "file system" in refused(files, effect, path)
    assert "file system" in refused(files, "fs.write", path, data=b"x")
    assert "file system" in refused(files, "fs.mkdir", f"/proc/{os.getpid()}/x")
    assert Path(path).read_bytes(), "control: open() reads it"


def test_another_file_system_only_where_it_is_listed(room: Path) -> None:
    """Unknown means no: a type that the list does not hold is refused."""
    none = Beneath(frozenset())
    with pytest.raises(Untouchable, match="file system"):
        none.look(os.fsencode(room / "plain"))
    none.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"/in/../out/secret",
        b"fs:/in/%2e%2e/out/secret",
        b"/in/pl\0ain",
        b"fs:/in/pl%00ain",
        b"/" + b"x" * 256,
        b"/x" * 2100,
        b"fs:/in%2Fplain",
    ],
)
def test_names_that_never_become_a_resource(raw: bytes) -> None:
    with pytest.raises(ResourceError):
        parse("fs.read", raw)


def test_names_that_are_not_utf8(files: FileEffects, room: Path) -> None:
    name = os.fsencode(room) + b"/\xff\xfe \xc3"
    perform(files, "fs.write", name, data=b"odd")
    assert perform(files, "fs.read", name).value["data"] == b"odd"
    with open(name, "rb") as file:
        assert file.read() == b"odd"
    with pytest.raises(EffectFailed, match="%FF%FF"):
        perform(files, "fs.read", os.fsencode(room) + b"/\xff\xff")
