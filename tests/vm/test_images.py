"""Images: the same from the same files, refused when they were changed, never half there."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authority.isolation import Host, IsolationRefused, Plan, SandboxSpec, plan, probe
from authority.vm import (
    Images,
    architectures,
    cache,
    contents,
    initramfs,
    installed,
    kernel,
    root,
    template,
    tools,
)

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for images, and nothing held in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_held", {})
    return cache.folder()


@pytest.fixture(scope="module")
def small(built: Images) -> Iterator[tuple[Plan, Host, Path]]:
    """A plan that shows a small program, started by everybody, and the folder that it lies in."""
    place = Path("/var/tmp") / f"authority-image-test-{os.getpid()}"
    place.mkdir(mode=0o755)
    shutil.copy("/bin/true", place / "true")
    (place / "true").chmod(0o755)
    host = probe()
    yield plan(SandboxSpec((str(place / "true"),), str(place)), host), host, place
    shutil.rmtree(place)


def kept(digest: str = "") -> cache.Stored:
    with cache.building() as where:
        made = cache.aside(where)
        made.write_bytes(b"an image" * 1000)
        return cache.keep(where, "image", made, {"of": digest})


def test_an_image_is_found_and_loaded_as_it_was_made() -> None:
    stored = kept("x")
    assert cache.find("image") == stored
    held = cache.load(stored)
    assert held.digest == hashlib.sha256(b"an image" * 1000).hexdigest() == stored.digest
    assert os.pread(held.fd, 8, 0) == b"an image"
    with pytest.raises(PermissionError):
        os.pwrite(held.fd, b"X", 0)


@pytest.mark.parametrize("change", ["a byte", "longer", "shorter", "the record"])
def test_what_was_changed_is_refused(change: str) -> None:
    stored = kept()
    stored.path.chmod(0o600)
    data = bytearray(stored.path.read_bytes())
    if change == "a byte":
        data[4321] ^= 1
    elif change == "longer":
        data += b"x"
    elif change == "shorter":
        del data[-1]
    stored.path.write_bytes(data)
    if change == "the record":
        record = stored.path.with_name("image.json")
        record.chmod(0o600)
        record.write_text(record.read_text().replace(stored.digest, "0" * 64))
    found = cache.find("image")
    assert found is not None
    with pytest.raises(IsolationRefused, match="not what was built"):
        cache.load(found)


def test_a_large_image_is_compared_before_each_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_IN_MEMORY", 100)
    stored = kept()
    assert cache.load(stored).digest == stored.digest
    assert cache.load(stored).digest == stored.digest
    stored.path.chmod(0o600)
    stored.path.write_bytes(b"An image" * 1000)
    with pytest.raises(IsolationRefused, match="not what was built"):
        cache.load(stored)


def test_a_change_that_leaves_no_trace_in_number_size_and_times_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has a file mapped changes it later without changing its times: only its bytes tell."""
    monkeypatch.setattr(cache, "MOST_IN_MEMORY", 100)
    stored = kept()
    stored.path.chmod(0o600)
    with open(stored.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"a"  # the same, but from here on the page is theirs to write
        assert cache.load(stored).digest == stored.digest
        mapped[0:1] = b"A"
        with pytest.raises(IsolationRefused, match="not what was built"):
            cache.load(stored)


def test_a_sparse_image_has_a_digest_over_what_it_holds() -> None:
    fd = cache.memory_file()
    os.ftruncate(fd, 256 << 20)
    os.pwrite(fd, b"here", 100 << 20)
    with cache.building() as where:
        made = cache.aside(where)
        cache.store(fd, made)
        stored = cache.keep(where, "memory", made, {}, sparse=True)
    assert stored.path.stat().st_blocks * 512 < 4 << 20
    held = cache.load(stored)
    assert os.pread(held.fd, 4, 100 << 20) == b"here"
    stored.path.chmod(0o600)
    with open(stored.path, "r+b") as file:
        file.seek(200 << 20)
        file.write(b"there")
    cache._held.clear()
    with pytest.raises(IsolationRefused, match="not what was built"):
        cache.load(stored)


def test_a_state_that_was_just_made_is_the_one_that_is_held() -> None:
    """The next start of the same gate reads nothing, and has nothing twice in its memory."""

    def in_memory() -> int:
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return sum("authority-image" in os.readlink(one) for one in links if os.path.lexists(one))

    files = [cache.Held(cache.memory_file(), "", 0) for _ in range(2)]
    for one in files:
        os.ftruncate(one.fd, 32 << 20)
        os.pwrite(one.fd, os.urandom(3 << 20), 5 << 20)
        cache.seal(one.fd)
    before = in_memory()
    made = template._keep("made", *files, {})
    found = template._find("made")
    assert found == made
    assert (found.memory.fd, found.state.fd) == tuple(one.fd for one in files)
    assert in_memory() == before
    # Another gate reads what was written, and it is the same.
    cache._held.clear()
    again = template._find("made")
    assert again is not None
    assert again.memory.fd != found.memory.fd
    assert again.memory.digest == found.memory.digest
    assert in_memory() == before + 2  # a control: now it is there twice


def test_what_is_held_is_bounded_and_the_longest_unused_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "_MAX_HELD", 3 << 20)
    stored = []
    for number in range(4):
        with cache.building() as where:
            made = cache.aside(where)
            made.write_bytes(bytes([number]) * (1 << 20))
            stored.append(cache.keep(where, f"image-{number}", made, {}))
    first = cache.load(stored[0])
    for one in (*stored[1:3], stored[0], stored[3]):
        cache.load(one)
    assert list(cache._held) == [stored[n].digest for n in (2, 0, 3)]
    assert cache.load(stored[0]) is first


def interrupted_build() -> None:
    with cache.building() as where:
        cache.aside(where).write_bytes(b"half")
        raise KeyboardInterrupt


def test_there_is_no_half_image(folder: Path) -> None:
    kept("first")
    with pytest.raises(KeyboardInterrupt):
        interrupted_build()
    found = cache.find("image")
    assert found is not None
    assert found.facts == {"of": "first"}
    # A process that dies between the two renames leaves a file without a record.
    (folder / "image.json").unlink()
    assert cache.find("image") is None
    with cache.building():
        assert list(folder.glob(".new-*")) == []


def test_a_folder_that_others_may_change_is_refused(folder: Path) -> None:
    folder.chmod(0o770)
    with pytest.raises(IsolationRefused, match="not yours alone"):
        cache.find("image")
    folder.chmod(0o700)
    assert cache.find("image") is None


def test_the_same_files_give_the_same_image(
    small: tuple[Plan, Host, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, host, place = small
    first = root.ready(planned, host)
    assert root.ready(planned, host) == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    os.utime(place / "true", (1, 1))  # another time, another number: the same content
    shutil.copy(place / "true", place / "copy")
    os.replace(place / "copy", place / "true")
    (place / "true").chmod(0o755)
    second = root.ready(planned, host)
    assert second.path.name != first.path.name
    assert second.digest == first.digest
    with open(place / "true", "ab") as file:
        file.write(b"x")
    assert root.ready(planned, host).digest != first.digest


def test_an_image_holds_what_is_shown_and_nothing_else(small: tuple[Plan, Host, Path]) -> None:
    planned, host, place = small
    (place / "secret").write_text("not for the run")
    found = contents.of(planned, host)
    assert str(place / "true") in found.files
    assert str(place) not in found.trees
    assert "/usr/lib" not in found.trees
    assert not any("secret" in path for path in found.files)
    loaders = [path for path in found.files if "/ld-linux" in path]
    assert loaders


@pytest.mark.skipif(not installed.known(), reason="no packages are recorded here")
@pytest.mark.parametrize("recorded", [True, False])
def test_an_image_that_is_too_large_is_refused_and_says_why(
    small: tuple[Plan, Host, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    planned, host, _ = small
    monkeypatch.setattr(root, "MAX_BYTES", 1 << 20)
    if not recorded:
        monkeypatch.setattr(installed, "RECORD", tmp_path)
    why = "the packages of what the policy lists" if installed.known() else "for Debian's packages"
    with pytest.raises(IsolationRefused, match=rf"MiB, and an image at most 1: .*{why}") as refused:
        root.ready(planned, host)
    assert "list fewer programs" in refused.value.fix


def held(image: Path, into: Path) -> dict[str, tuple[int, bytes | str]]:
    """What an image holds: kind and rights, content or target."""
    subprocess.run(["fsck.erofs", f"--extract={into}", str(image)], check=True, capture_output=True)
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(into.rglob("*")):
        mode = path.lstat().st_mode
        what: bytes | str = os.readlink(path) if path.is_symlink() else b""
        found[str(path.relative_to(into))] = (mode, path.read_bytes() if path.is_file() else what)
    return found


def test_however_much_is_left_out_the_rest_is_there(
    built: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More paths than a command takes as its arguments are left out by copying the rest."""
    tree = tmp_path / "tree"
    for name in ("a", "a/b", "shut"):
        (tree / name).mkdir(mode=0o755, parents=True)
    for number in range(40):
        (tree / "a" / "b" / f"file-{number:0100}").write_text(f"content {number}")
    for path in sorted((tree / "a" / "b").iterdir())[5:]:
        path.chmod(0)
    (tree / "a" / "link").symlink_to("../nowhere")
    (tree / "shut" / "in").write_text("not for the run")
    (tree / "shut").chmod(0)
    host = probe()
    made_of = contents.Contents((str(tree),), (), (), ())
    walked = root.Walked(made_of, root=host.root)
    assert len(walked.left_out) == 36
    images = []
    for most in (root._MOST_NAMED, 1000):
        monkeypatch.setattr(root, "_MOST_NAMED", most)
        named, copied = root._left_out(made_of, walked.left_out)
        assert (len(named), copied) == ((36, set()) if most > 1000 else (0, {str(tree)}))
        with cache.building() as where:
            root._make(made_of, walked, host, where / "made")
            images.append(held(where / "made", tmp_path / f"found-{most}"))
            assert sorted(path.name for path in where.iterdir()) == ["lock", "made"]
    (tree / "shut").chmod(0o755)
    assert images[0] == images[1]
    inside = {name.partition("tree/")[2]: found for name, found in images[1].items()}
    assert sum(name.startswith("a/b/file") for name in inside) == 5
    assert inside[f"a/b/file-{4:0100}"][1] == b"content 4"
    assert inside["a/link"][1] == "../nowhere"
    assert not [name for name in inside if name.startswith("shut")]


def test_of_the_system_an_image_holds_what_the_listed_programs_need() -> None:
    def holds(path: str, *programs: str) -> bool:
        spec = SandboxSpec(("sh", "-c", "true"), "/", exec_allowed=programs)
        found = contents.of(plan(spec, probe()), probe())
        above = {path, *(str(one) for one in Path(path).parents)}
        return not above.isdisjoint({*found.trees, *found.files})

    needed = {"git": "/usr/share/git-core/templates", "gcc": "/usr/include/stdio.h"}
    for program, path in needed.items():
        if os.path.exists(path) and shutil.which(program):
            assert holds(path, program), program
            assert not holds(path), program
    assert holds("/usr/share/zoneinfo/UTC")
    if os.path.exists("/usr/lib/terminfo/x"):
        assert holds("/usr/lib/terminfo/x")
    assert not holds("/usr/share/doc/libc6/copyright")


def test_what_a_run_has_certificates_put_over_is_there() -> None:
    """Whatever the program: a run's own bundle lies over each that it would see in name spaces."""
    spec = SandboxSpec(("/bin/true",), "/", loopback=True, certificates=b"-")
    planned = plan(spec, probe())
    found = contents.of(planned, probe())
    for _, covered in planned.configuration["covers"]:
        path = os.fsdecode(covered)
        assert path in found.files or any(path.startswith(f"{t}/") for t in found.trees), path


def test_init_is_compiled_to_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        made.append(initramfs.compiled(tmp_path / name))
    assert made[0] == made[1]
    archive = initramfs.archive(made[0], [("a.ko", b"abc")])
    assert archive == initramfs.archive(made[1], [("a.ko", b"abc")])
    done = subprocess.run(
        ["cpio", "-it", "--quiet"], input=archive, capture_output=True, check=True
    )
    assert done.stdout.split() == [b"dev", b"root", b"init", b"modules", b"a.ko"]


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PATH", "/nowhere")
    with pytest.raises(IsolationRefused, match=r"gcc.* not installed") as refused:
        kernel.build(architectures.of(probe().architecture))
    assert "apt-get install -y gcc" in refused.value.fix


FULL = """
import sys
from authority.isolation import IsolationRefused
from authority.vm import cache
try:
    with cache.building() as where:
        made = cache.aside(where)
        made.write_bytes(bytes(8 << 20))
except IsolationRefused as refused:
    print(refused.reason, "|", refused.fix)
with cache.building() as where:
    print(sorted(path.name for path in where.iterdir()))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk takes root to mount")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    mounted = f"mount -t tmpfs -o size=2m tmpfs {tmp_path} && exec {sys.executable} -c '{FULL}'"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("no mounts here")
    assert "No space left on device | make room in" in done.stdout, done
    assert done.stdout.splitlines()[-1] == "['lock']"
