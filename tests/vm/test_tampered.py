"""What boots is what was built: kernel, first program, root image and saved state, changed on the disk;
and what the first start tells of, which finds none of it.

Through whole gates, each started anew, because one that runs holds in sealed memory what it compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from authority.gate.client import GateError
from authority.vm import Images, cache
from gate.lab import Ran, lab_at

from .conftest import House

PROGRAM = "print('boots')"
PARTS = ("kernel-*", "initramfs-*", "root-*")


class Own(NamedTuple):
    """`first`: the run that made everything."""

    house: House
    folder: Path
    first: Ran


def told(ran: Ran) -> list[str]:
    """What a start waited for, if it was told before there was a run."""
    steps = [event["what"] for event in ran.events if event["event"] == "preparing"]
    assert [event["event"] for event in ran.events[: len(steps) + 1]] == [
        *["preparing"] * len(steps),
        "started",
    ]
    return steps


@pytest.fixture(scope="module")
def own(built: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """Machines whose images lie in a folder of their own. They boot before the first change, and again
    when the last is undone: in between each refusal names its own file, so all others are whole."""
    there = cache.folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        folder = cache.folder()
        for pattern in ("kernel-*", "initramfs-*"):
            for path in there.glob(pattern):
                shutil.copy(path, folder)
        with lab_at() as lab:
            house = House("vm", lab)
            first = house.run(PROGRAM)
            assert first.out == "boots\n"
            yield Own(house, folder, first)
            assert house.run(PROGRAM).out == "boots\n"


def image(folder: Path, pattern: str) -> Path:
    (path,) = [path for path in folder.glob(pattern) if path.suffix != ".json"]
    return path


def flipped(path: Path, at: int) -> bytes:
    """Changes a byte; what it was."""
    path.chmod(0o600)
    with open(path, "r+b") as f:
        f.seek(at)
        before = f.read(1)
        f.seek(at)
        f.write(bytes([before[0] ^ 1]))
    return before


def restored(path: Path, at: int, before: bytes) -> None:
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(before)


def test_a_start_tells_what_it_has_to_make_and_nothing_when_all_is_there(own: Own) -> None:
    assert told(own.first) == ["image", "state"]
    assert told(own.house.run(PROGRAM)) == []


@pytest.mark.parametrize("pattern", PARTS)
@pytest.mark.parametrize("what", ["image", "record"])
def test_a_changed_image_is_refused_by_its_digest(own: Own, pattern: str, what: str) -> None:
    house, folder, _ = own
    path = image(folder, pattern)
    house.lab.stop()
    record = path.with_name(path.name + ".json")
    kept = record.read_text()
    at = path.stat().st_size // 2
    if what == "image":
        before = flipped(path, at)
    else:
        digest = kept.split('"digest": "')[1][:64]
        record.chmod(0o600)
        other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
        if (
            pattern == "kernel-*"
        ):  # the first program's record names the kernel that it was made for
            first = image(folder, "initramfs-*").with_name("initramfs-x86_64.json")
            words = first.read_text()
            first.write_text(words.replace(digest, other))
        record.write_text(kept.replace(digest, other))
    try:
        with pytest.raises(GateError) as refused:
            house.run(PROGRAM)
        assert f"{path.name} is not what was built: its digest is" in str(refused.value)
        assert "authority image build --force" in str(refused.value.answer)
        assert house.lab.log(kind="run.start")[-1]["run"] in {
            entry["run"] for entry in house.lab.log(kind="run.end")
        }
    finally:
        house.lab.stop()
        if what == "image":
            restored(path, at, before)
        else:
            record.write_text(kept)
            if pattern == "kernel-*":
                first.write_text(words)


@pytest.mark.parametrize("part", ["memory", "state"])
def test_a_changed_saved_state_is_not_continued(own: Own, part: str) -> None:
    house, folder, _ = own
    path = image(folder, f"template-*.{part}")
    house.lab.stop()
    with open(path, "rb") as f:  # where it holds anything
        at = next(n for n in range(0, path.stat().st_size, 4096) if any(f.read(4096)))
    before = flipped(path, at + 100)
    try:
        ran = house.run(PROGRAM)
        assert ran.out == "boots\n"
        (first,) = house.lab.log(kind="run.start", run=ran.run)
        said = first["protection"]["machine"]["saved_state"]
        assert f"{path.name} is not what was built" in said
    finally:
        house.lab.stop()
        restored(path, at + 100, before)
    assert told(ran) == []
    again = house.run(PROGRAM)
    (first,) = house.lab.log(kind="run.start", run=again.run)
    assert len(first["protection"]["machine"]["saved_state"]) == 64
