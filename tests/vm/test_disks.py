"""The folder for images: on a disk that is full or can't be written to, somebody else's, nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from authority.isolation import Host, IsolationRefused, Plan
from authority.vm import Images, cache

from .world import World

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a world of its own takes root to mount")


def with_a_disk(place: Path, built: Images, program: str) -> subprocess.CompletedProcess[str]:
    """A program in a world where the folder for images is a disk of its own; it is told the run's
    program, and the files of the kernel and the first program."""
    stored = [built.base.kernel.path, built.base.initramfs.path]
    files = [str(path) for one in stored for path in (one, f"{one}.json")]
    (place / "cache").mkdir(mode=0o700)
    world = World(place, disks={str(place / "cache"): 400 << 20})
    return world.python(program, str(place / "true"), *files)


FULL = """
import asyncio, os, subprocess, sys
from authority.isolation import IsolationRefused, SandboxSpec, probe
from authority.vm import cache, furnish, images, template
spec = SandboxSpec((sys.argv[1],), "/", memory=64 << 20)
def room(spare):
    folder = os.environ["XDG_CACHE_HOME"]
    found = os.statvfs(folder)
    size = (found.f_blocks - found.f_bfree) * found.f_frsize + (spare << 20)
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
def start():
    try:
        found = asyncio.run(furnish(spec, probe(), emulate=True))
        print("template" if found.template else found.no_template)
    except IsolationRefused as refused:
        print(refused.reason, "|", refused.fix)
    print(sorted(p.name.partition("-")[0] for p in cache.folder().iterdir()), flush=True)
os.makedirs(cache.folder().parent, mode=0o700, exist_ok=True)
for path in sys.argv[2:]:
    subprocess.run(["cp", "-p", path, cache.folder()], check=True)
room(2)
start()
room(300)
images(spec, probe(), emulate=True)
room(10)
start()
start()
room(300)
template._failed.clear()
start()
"""


@as_root
def test_a_full_disk_while_an_image_is_built_or_a_state_is_saved(
    small: tuple[Plan, Host], place: Path, built: Images
) -> None:
    done = with_a_disk(place, built, FULL)
    base = ["initramfs", "initramfs", "kernel", "kernel", "lock"]
    image, again = [*base, "root", "root"], "['initramfs', 'initramfs'"
    said = done.stdout.splitlines()
    assert len(said) == 8, done
    # The root image: refused, nothing of it is left, and it says where room is wanted.
    assert "No space left on device" in said[0]
    assert f"| make room in {place}/cache/authority/vm" in said[0]
    assert said[1] == str(base)
    # The saved state: the image is kept, machines boot, and the statement says why.
    assert "no saved state could be made: " in said[2]
    assert "No space left on device" in said[2]
    assert said[3] == str(image)
    assert said[4:6] == said[2:4]
    # With room it is there.
    assert said[6] == "template"
    assert again in said[7]
    assert said[7].count("template") == 4


READ_ONLY = """
import asyncio, os, subprocess, sys
from authority.isolation import IsolationRefused, SandboxSpec, probe
from authority.vm import cache, furnish, images, template
spec = SandboxSpec((sys.argv[1],), "/", memory=64 << 20)
disk = os.environ["XDG_CACHE_HOME"]
def start():
    told = []
    try:
        found = asyncio.run(furnish(spec, probe(), emulate=True, tell=told.append))
        print(found.no_template)
    except IsolationRefused as refused:
        print(refused.reason, "|", refused.fix)
    print(told, flush=True)
def change(way):
    subprocess.run(["mount", "-o", f"remount,{way}", disk], check=True)
os.makedirs(cache.folder().parent, mode=0o700, exist_ok=True)
for path in sys.argv[2:]:
    subprocess.run(["cp", "-p", path, cache.folder()], check=True)
change("ro")
start()
change("rw")
images(spec, probe(), emulate=True)
made = [cache.Held(cache.memory_file(), "", 0) for _ in range(2)]
for one in made:
    os.ftruncate(one.fd, 4096)
    cache.seal(one.fd)
template._keep("made", *made, {})
change("ro")
start()
print(template._find("made").memory.fd == made[0].fd)
"""


@as_root
def test_what_is_there_is_used_from_a_disk_that_nothing_can_be_written_to(
    small: tuple[Plan, Host], place: Path, built: Images
) -> None:
    done = with_a_disk(place, built, READ_ONLY)
    sentence = f"the folder for images {place}/cache/authority/vm can't be written to"
    assert done.stdout.splitlines() == [
        # The root image is missing: refused, and nobody was told that it is being made.
        f"{sentence} | set XDG_CACHE_HOME to a folder that you may write to",
        "[]",
        # The saved state is: no machine is booted to save one, and this run boots without.
        f"no saved state could be made: {sentence} (set XDG_CACHE_HOME to a folder that you may "
        "write to)",
        "[]",
        "True",
    ], done


@as_root
def test_a_disk_that_is_full_while_a_kernel_is_unpacked_is_named(place: Path) -> None:
    (place / "made" / "boot").mkdir(parents=True)
    (place / "made" / "DEBIAN").mkdir()
    (place / "made" / "DEBIAN" / "control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: all\nMaintainer: -\nDescription: -\n"
    )
    (place / "made" / "boot" / "vmlinuz-6.1.0").write_bytes(bytes(8 << 20))
    deb = place / "kernel.deb"
    subprocess.run(["dpkg-deb", "-b", str(place / "made"), str(deb)], check=True)
    (place / "cache").mkdir(mode=0o700)
    world = World(place, disks={str(place / "cache"): 2 << 20})
    words = [sys.executable, "-m", "authority.cli.main", "image", "build", "--kernel", str(deb)]
    done = world.run(*words)
    assert done.returncode == 125, done
    assert "unpacking a kernel" in done.stderr
    assert "dpkg-deb failed: no space left on the disk (" in done.stderr
    assert f"make room in {place}/cache/authority/vm" in done.stderr


@pytest.mark.parametrize(
    "kind",
    [
        "a link",
        "a file",
        "loose",
        "loose above",
        "a link above",
        "relative",
        "no home",
        "foreign",
        "ours",
    ],
)
def test_a_folder_that_is_not_ours_alone_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    where = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "here" if kind == "relative" else str(where))
    if kind == "no home":  # a user without a record has no other
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    images = where / "authority" / "vm"
    real = tmp_path / "real"
    (real / "vm").mkdir(mode=0o700, parents=True)
    real.chmod(0o700)
    if kind == "a link above":
        where.mkdir()
        images.parent.symlink_to(real)
    else:
        images.parent.mkdir(mode=0o700, parents=True)
    if kind == "a link":
        images.symlink_to(real / "vm")
    elif kind == "a file":
        images.write_text("")
    elif kind != "a link above":
        images.mkdir(mode=0o770 if kind == "loose" else 0o700)
        images.chmod(0o770 if kind == "loose" else 0o700)
    if kind == "loose above":
        images.parent.chmod(0o777)
    if kind == "foreign":
        if os.geteuid():
            pytest.skip("only root can give files away")
        os.chown(images, 65534, 65534)
    if kind == "ours":
        assert cache.folder() == images
        return
    sentence = {
        "relative": "XDG_CACHE_HOME is no absolute path: here",
        "no home": "there is no home that images could lie in",
        "a file": "can't be made: File exists",
    }.get(kind, "is not yours alone")
    with pytest.raises(IsolationRefused, match=sentence) as refused:
        cache.find("root-1")
    assert refused.value.fix
    assert list((real / "vm").iterdir()) == []
