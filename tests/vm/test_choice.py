"""Who gets a machine: which hypervisor is there, whether KVM boots a guest, what `auto` takes.

KVM works on few of the computers that tests run on. So each test has a world of its own (`world`), in
which `/dev/kvm` is what the test says, and in the hypervisor's place is a program that boots a real
guest, hangs, dies, or talks nonsense. The code under test is the same as ever.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from authority.gate.client import ensure
from authority.isolation import IsolationRefused, probe
from authority.isolation.syscalls import X86_64
from authority.vm import Images, acceleration, architectures, cache, hypervisor, jail, kernel
from authority.vm.acceleration import Answer
from gate.lab import OPEN, lab_at

from .world import World, gone_after, standin, trusted_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a world of its own takes root to mount")
NOT_READY = """
from authority.isolation import probe
from authority.vm import acceleration, not_ready
acceleration.PROBE_SECONDS = {seconds}
print(not_ready(probe()))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = trusted_folder()
    yield made
    gone_after(made)


@pytest.fixture
def ready(folder: Path, built: Images) -> Path:
    """A folder whose cache holds a kernel, as after `authority image build`."""
    images = folder / "cache" / "authority" / "vm"
    images.parent.mkdir(mode=0o700, parents=True)
    images.mkdir(mode=0o700)
    for stored in (built.base.kernel, built.base.initramfs):
        for path in (stored.path, stored.path.with_name(stored.path.name + ".json")):
            shutil.copy2(path, images / path.name)
    return folder


def note(world: World, seconds: float = 120) -> str:
    done = world.python(NOT_READY.format(seconds=seconds))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def left(program: Path) -> list[str]:
    """Processes that still run this file."""
    wanted = program.stat()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            seen = os.stat(process / "exe")
        except OSError:
            continue
        if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(process.name)
    return found


# --- the probe ---


@as_root
def test_a_guest_that_boots_is_a_yes_that_is_kept(ready: Path) -> None:
    world = World(ready, qemu=standin(ready, "boots"))
    assert note(world) == ""
    # Nothing could boot in no time at all: this is the kept answer.
    assert note(world, seconds=0) == ""
    # Another hypervisor, another answer.
    world.qemu = standin(ready, "dies")
    assert "failed to set MSR" in note(world)


@as_root
@pytest.mark.parametrize(
    ("behaviour", "seconds", "sentence"),
    [
        ("dies", 120, "failed to set MSR 0x10a to 0x2000000000"),
        ("hangs", 2, "it did not come up within 2 s"),
        ("trickles", 2, "it did not come up within 2 s"),
        ("garbage", 120, r"title\x07\x1b[31mnot a "),
        ("ends", 120, "it ended before it came up"),
    ],
)
def test_a_guest_that_does_not_boot_is_a_no(
    ready: Path, behaviour: str, seconds: float, sentence: str
) -> None:
    program = standin(ready, behaviour)
    world = World(ready, qemu=program)
    found = note(world, seconds)
    assert found.startswith("no working acceleration: a guest did not boot with KVM (")
    assert sentence in found
    assert found.isprintable()
    assert left(program) == []
    assert note(world, seconds=0) == found  # and kept


@as_root
def test_a_device_that_is_not_there(ready: Path) -> None:
    assert "/dev/kvm is not here" in note(World(ready, kvm=None))
    # The hypervisor gives up root, so what only root may open is no use to it.
    assert "only root may open /dev/kvm" in note(World(ready, kvm=0o600))
    assert not (ready / "cache/authority/vm/acceleration.known").exists()


OBSTACLE = """
from authority.vm.acceleration import obstacle
seen = obstacle()
print(f"{seen.problem} | {seen.fix}" if seen else "none")
"""


@as_root
def test_an_ordinary_user_is_told_which_group_to_join(folder: Path) -> None:
    group, number = next(
        (name, int(gid))
        for name, _, gid, _ in (
            line.split(":") for line in Path("/etc/group").read_text().splitlines()
        )
        if int(gid) not in (0, 65534)
    )
    world = World(folder, kvm=0o660, group=number, user=65534)
    said = world.python(OBSTACLE)
    assert "can't be opened by this user" in said.stdout, said
    assert f"join the group {group}: usermod -aG {group} " in said.stdout
    world.user_groups = (number,)
    assert world.python(OBSTACLE).stdout == "none\n"
    world = World(folder, kvm=0o600, user=65534)
    assert "chgrp kvm /dev/kvm && chmod 660" in world.python(OBSTACLE).stdout


@pytest.fixture
def asked(
    built: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[int, Answer]]:
    """Asks for KVM where a device that everybody may open stands for it; how often a guest was
    booted for the answers so far, each of which was told before."""
    boots: list[Answer] = []
    told: list[str] = []

    def boot(*_: object) -> Answer:
        boots.append(Answer(True, milliseconds=5))
        return boots[-1]

    monkeypatch.setattr(jail, "KVM", "/dev/zero")
    monkeypatch.setattr(acceleration, "_boot", boot)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def ask() -> tuple[int, Answer]:
        of = architectures.of(probe().architecture)
        answer = acceleration.works(probe(), of, built.base, tell=told.append)
        assert told == ["acceleration"] * len(boots)
        return len(boots), answer

    return ask


@pytest.mark.parametrize("change", ["kernel", "boot", "hypervisor", "guest", "device", "nothing"])
def test_an_answer_is_for_one_boot_of_one_host(
    asked: Callable[[], tuple[int, Answer]],
    built: Images,
    change: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert asked()[0] == 1
    assert asked()[0] == 1
    if change == "kernel":
        monkeypatch.setattr(platform, "release", lambda: "99.1")
    elif change == "boot":
        (tmp_path / "boot").write_text("another boot\n")
        monkeypatch.setattr(acceleration, "_BOOT", str(tmp_path / "boot"))
    elif change == "hypervisor":
        found = hypervisor.Hypervisor("/usr/bin/qemu", "99", "another file")
        monkeypatch.setattr(hypervisor, "find", lambda _: found)
    elif change == "guest":
        object.__setattr__(built.base.kernel, "digest", built.base.kernel.digest[::-1])
    elif change == "device":
        monkeypatch.setattr(jail, "KVM", "/dev/null")
    times, answer = asked()
    if change == "guest":
        object.__setattr__(built.base.kernel, "digest", built.base.kernel.digest[::-1])
    assert times == (1 if change == "nothing" else 2)
    assert answer == Answer(True, milliseconds=5)


def test_a_kept_no_is_asked_again_by_who_builds(
    built: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [Answer(False, "too busy"), Answer(True, milliseconds=5)]
    monkeypatch.setattr(jail, "KVM", "/dev/zero")
    monkeypatch.setattr(acceleration, "_boot", lambda *_: said.pop(0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    of = architectures.of(probe().architecture)
    for again, works in ((False, False), (False, False), (True, True), (True, True), (False, True)):
        answer = acceleration.works(probe(), of, built.base, again=again)
        assert answer.works == works
        assert works or answer.problem == "too busy"
    assert not said


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"of": 1, "works": true}', "\0" * 100])
def test_a_kept_answer_that_can_not_be_read_is_asked_for_again(
    asked: Callable[[], tuple[int, Answer]], text: str
) -> None:
    assert asked()[0] == 1
    (cache.folder() / "acceleration.known").write_text(text)
    assert asked()[0] == 2


# --- the hypervisor ---


@pytest.fixture
def instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Puts a program in the hypervisor's place."""

    def put(program: Path) -> None:
        place = folder / "bin"
        place.mkdir()
        os.replace(program, place / "qemu-system-x86_64")
        monkeypatch.setattr(hypervisor, "FOLDER", str(place))

    return put


@as_root
@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("QEMU emulator version 9.9.1 (a stand-in)", ""),
        ("QEMU emulator version 7.2.0", ""),
        (
            "QEMU emulator version 7.1.99 (Debian 1:7.1)",
            "is 7.1.99, and machines need 7.2 or later",
        ),
        ("QEMU emulator version 10.0.2", ""),
        ("QEMU", "does not say its version; it said: QEMU"),
        (r"\033[31mversion", r"it said: \x1b[31mversion"),
    ],
)
def test_a_hypervisor_that_is_too_old(
    folder: Path, instead: Callable[[Path], None], version: str, sentence: str
) -> None:
    instead(standin(folder, "ends", version))
    architecture = architectures.of(X86_64)
    if not sentence:
        assert hypervisor.find(architecture).version in version
        return
    with pytest.raises(IsolationRefused) as refused:
        hypervisor.find(architecture)
    assert sentence in refused.value.reason
    assert refused.value.fix


@as_root
@pytest.mark.parametrize("kind", ["missing", "not executable", "changeable", "hangs when asked"])
def test_a_hypervisor_that_can_not_be_used(
    folder: Path, instead: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    instead(standin(folder, "hangs when asked" if kind == "hangs when asked" else "ends"))
    program = Path(hypervisor.FOLDER) / "qemu-system-x86_64"
    sentence = {
        "missing": "is not installed",
        "not executable": "is no program",
        "changeable": "can be changed by others than root",
        "hangs when asked": "does not say its version; it said: nothing",
    }[kind]
    if kind == "missing":
        program.unlink()
    elif kind == "hangs when asked":
        monkeypatch.setattr(hypervisor, "_SECONDS", 0.5)
    else:
        program.chmod(0o644 if kind == "not executable" else 0o757)
    with pytest.raises(IsolationRefused, match=sentence) as refused:
        hypervisor.find(architectures.of(X86_64))
    if kind in ("missing", "not executable"):
        assert refused.value.fix == "apt-get install -y qemu-system-x86"
    if program.exists():
        assert left(program) == []


# --- what is chosen ---

RUN = f"""
cd "$1" && export AUTHORITY_STATE="$1/state" && shift &&
"{sys.executable}" -m authority.cli.main init --no-policy >&2 &&
"{sys.executable}" -m authority.cli.main run --quiet --policy policy.toml "$@" \
    -- {os.path.realpath(sys.executable)} -c "print('ran')"
code=$?
"{sys.executable}" -m authority.cli.main audit query --kind run.start --json > entries
"{sys.executable}" -m authority.cli.main gate stop >&2
exit $code
"""


def a_run(world: World, *arguments: str) -> tuple[int, str, str, list[dict[str, Any]]]:
    """A run through the command: its code, what it printed, its messages, the first entries."""
    work = world.folder / "work"
    work.mkdir(mode=0o755)
    (work / "policy.toml").write_text(OPEN)
    assert tomllib.loads(OPEN)
    done = world.run("sh", "-c", RUN, "sh", str(work), *arguments)
    text = (work / "entries").read_text() if (work / "entries").exists() else ""
    entries = [json.loads(line) for line in text.splitlines()]
    return done.returncode, done.stdout, done.stderr, entries


@as_root
def test_auto_takes_a_machine_when_a_guest_has_booted_with_kvm(ready: Path) -> None:
    world = World(ready, qemu=standin(ready, "boots"))
    assert note(world) == ""  # on a busy computer emulation may take longer than KVM is given
    code, out, messages, entries = a_run(world)
    assert (code, out) == (0, "ran\n"), messages
    (entry,) = entries
    assert entry["protection"]["isolation"] == "vm"
    assert entry["protection"]["machine"]["hardware"].startswith("q35, KVM, ")
    assert "warning" not in entry["protection"]["machine"]


@as_root
def test_auto_takes_name_spaces_and_says_why(ready: Path) -> None:
    world = World(ready, qemu=standin(ready, "dies"))
    code, out, messages, entries = a_run(world)
    assert (code, out) == (0, "ran\n"), messages
    (entry,) = entries
    assert entry["protection"]["isolation"] == "namespace"
    assert "failed to set MSR 0x10a" in entry["protection"]["machine"]["none"]


@as_root
def test_auto_builds_nothing(folder: Path) -> None:
    world = World(folder, qemu=standin(folder, "boots"))
    assert "its kernel was not built (authority image build)" in note(world)
    images = folder / "cache" / "authority" / "vm"
    assert not images.exists() or list(images.iterdir()) == []


@as_root
@pytest.mark.parametrize("kvm", [None, 0o666])
def test_a_machine_by_its_word_without_acceleration_is_refused(
    ready: Path, kvm: int | None
) -> None:
    world = World(ready, kvm=kvm, qemu=standin(ready, "dies"))
    code, out, messages, entries = a_run(world, "--isolation", "vm")
    assert (code, out, entries) == (125, "", [])
    reason = "/dev/kvm is not here" if kvm is None else "failed to set MSR"
    for part in ("there is no working acceleration here", reason, "--emulate", "namespace"):
        assert part in messages


@as_root
def test_what_can_be_seen_is_said_before_a_kernel_is_fetched(folder: Path) -> None:
    world = World(folder, kvm=None)
    code, _, messages, _ = a_run(world, "--isolation", "vm")
    assert code == 125
    assert "/dev/kvm is not here" in messages
    assert kernel.find(architectures.of(X86_64)) is not None  # here it is there
    assert not list((folder / "cache").glob("authority/vm/kernel*"))


def test_a_gate_looks_for_images_where_its_caller_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given no home, and would take that of the user's record."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    with lab_at() as lab:
        ensure(lab.directory)
        given = Path(f"/proc/{lab.pid()}/environ").read_bytes().split(b"\0")
    assert f"XDG_CACHE_HOME={tmp_path}/.cache".encode() in given
    assert cache.folder() == tmp_path / ".cache/authority/vm"
    assert not [word for word in given if word.startswith(b"HOME=")]
