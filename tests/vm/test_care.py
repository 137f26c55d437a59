"""Images when something goes wrong: a killed build, two at once, a tool that is missing; what is kept,
and for how long; what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from authority.cli import doctor
from authority.cli import image as command
from authority.cli.run import Follower
from authority.cli.usage import Usage
from authority.gate.statedir import StateDir
from authority.isolation import Host, IsolationRefused, Plan, probe
from authority.vm import (
    Images,
    architectures,
    cache,
    condition,
    hypervisor,
    initramfs,
    kernel,
    kernel_package,
    root,
    shelf,
    tools,
)
from gate.lab import OPEN, wait_for

from .conftest import PYTHON, House
from .world import World

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a world of its own takes root to mount")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


# --- interrupted ---


def keep(content: bytes) -> None:
    """A root image and a saved state, as builds leave them."""
    with cache.building() as folder:
        for name in ("root-1", "template-1.memory", "template-1.state"):
            made = cache.aside(folder)
            made.write_bytes(content * 1000)
            memory = cache.find("template-1.memory")
            facts = {"memory": memory.digest} if memory and name.endswith("state") else {}
            cache.keep(folder, name, made, facts)
        shelf.tidy(folder)


def killed_at(step: int, act: Callable[[], None]) -> bool:
    """Does it in a process that is killed at its `step`th change of a file; whether it was."""
    child = os.fork()
    if not child:
        left = [step]

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if opened or event in ("os.rename", "os.remove", "os.chmod", "os.truncate"):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_build_that_is_killed_anywhere_leaves_no_half_image(images: Path) -> None:
    keep(b"before")
    steps = 0
    while killed_at(steps + 1, lambda: keep(b"after.")):
        steps += 1
        for item in shelf.items():
            stored = cache.find(item.files[0])
            assert stored is not None
            assert os.pread(cache.load(stored).fd, 6, 0) in (b"before", b"after."), steps
        cache._held.clear()
        keep(b"before")
        assert [item.name for item in shelf.items()] == ["root-1", "template-1"], steps
        assert not [name for name in names(images) if name.startswith(".new-")]
    assert steps > 15
    assert len(names(images)) == 6


BUILD = """
import sys
from authority.isolation import SandboxSpec, plan, probe
from authority.vm import root
host = probe()
program = sys.argv[1]
print(root.ready(plan(SandboxSpec((program,), "/"), host), host).digest)
"""


def building(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, program], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_a_killed_build_of_a_root_image_is_done_again(images: Path, built: Images) -> None:
    program = os.path.realpath(sys.executable)
    with building(program) as child:
        wait_for(lambda: any(path.stat().st_size for path in images.glob(".new-*")))
        child.kill()
    assert [n for n in names(images) if not n.startswith(".new-")] == []
    with building(program) as child:
        assert child.stdout is not None
        digest = child.stdout.read().strip()
    (item,) = shelf.items()
    assert item.digest == digest
    assert names(images) == [item.name, f"{item.name}.json"]


def test_who_comes_second_waits_and_finds_what_the_first_built(
    small: tuple[Plan, Host], images: Path, place: Path
) -> None:
    planned, host = small
    with cache.building():
        child = building(str(place / "true"))

        def waits() -> bool:
            assert child.poll() is None, "it did not wait"
            return any(
                "->" in line and f" {child.pid} " in line
                for line in Path("/proc/locks").read_text().splitlines()
            )

        wait_for(waits)
        assert names(images) == []
    with child:
        assert child.stdout is not None
        digest = child.stdout.read().strip()
    before = shelf.items()
    assert [item.digest for item in before] == [digest]
    assert root.ready(planned, host).digest == digest
    with building(str(place / "true")) as one, building(str(place / "true")) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        assert one.stdout.read() == other.stdout.read()
    assert [item.name for item in shelf.items()] == [item.name for item in before]


def test_a_kernel_that_another_has_built_meanwhile_is_taken(
    built: Images, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the lock another process has built it."""
    looked: list[int] = []

    def find(_: object) -> object:
        looked.append(1)
        return built.base if len(looked) > 1 else None

    def fetch(*_: object) -> Path:
        raise IsolationRefused("fetched again")

    monkeypatch.setattr(kernel, "find", find)
    monkeypatch.setattr(kernel_package, "fetch", fetch)
    architecture = architectures.of(probe().architecture)
    told: list[str] = []
    assert kernel.build(architecture, tell=told.append) is built.base
    assert told == ["kernel"]  # it had to wait for the other
    assert kernel.build(architecture, tell=told.append) is built.base
    assert told == ["kernel"]
    with pytest.raises(IsolationRefused, match="fetched again"):
        kernel.build(architecture, force=True)  # a control


def test_an_image_that_is_gone_is_refused_whatever_its_size(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_IN_MEMORY", 100)
    for size in (10, 1000):
        shelved("root-1", size, time.time())
        stored = cache.find("root-1")
        assert stored is not None
        cache.load(stored)
        cache._held.clear()
        stored.path.unlink()
        with pytest.raises(IsolationRefused, match="could not be read"):
            cache.load(stored)


# --- what is missing ---


@as_root
def test_all_missing_tools_are_named_at_once(place: Path) -> None:
    program = (
        "from authority.isolation import IsolationRefused\n"
        "from authority.vm import architectures, kernel\n"
        "try: kernel.build(architectures.of('x86_64'))\n"
        "except IsolationRefused as refused: print(refused.reason, '|', refused.fix)"
    )
    world = World(place, hidden=("gcc", "mkfs.erofs"))
    said = world.python(program).stdout
    assert said == (
        "gcc, mkfs.erofs are not installed | apt-get install -y gcc libc6-dev erofs-utils\n"
    )
    assert list((place / "cache/authority/vm").iterdir()) == []


def test_a_compiler_without_the_static_library_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initramfs, "_COMPILE", (*initramfs._COMPILE, "-lnothing_of_that_name"))
    with pytest.raises(IsolationRefused, match="gcc failed") as refused:
        initramfs.compiled(tmp_path)
    assert "apt-get install -y gcc libc6-dev" in refused.value.fix


def test_a_kernel_that_nothing_here_unpacks_boots_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = bytearray(4096)
    packed[0x1F1] = 1
    packed[0x202:0x206] = b"HdrS"
    packed[0x248:0x250] = (0).to_bytes(4, "little") + (1024).to_bytes(4, "little")
    packed[1024:1028] = b"\x02\x21\x4c\x18"  # lz4's magic
    monkeypatch.setattr(tools, "PATH", "/nowhere")
    assert kernel_package.uncompressed(bytes(packed), tmp_path) == bytes(packed)


# --- what stays ---


def shelved(name: str, size: int, used: float, **facts: Any) -> None:
    with cache.building() as folder:
        made = cache.aside(folder)
        made.write_bytes(os.urandom(size))
        if name.startswith("template"):
            memory = cache.keep(folder, f"{name}.memory", made, {})
            made = cache.aside(folder)
            made.write_bytes(b"state")
            cache.keep(folder, f"{name}.state", made, {"memory": memory.digest, **facts})
        else:
            cache.keep(folder, name, made, {})
    for path in folder.glob(f"{name}*"):
        os.utime(path, (used, used))


def tidied() -> list[str]:
    with cache.building() as folder:
        shelf.tidy(folder)
    return [item.name for item in shelf.items()]


def test_the_longest_unused_go_first_and_states_with_their_image(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    shelved("kernel-x", 100_000, now - 1e6)
    for age in range(4):
        shelved(f"root-{age}", 100_000, now - 1000 * age - 10)
    digest = {item.name: item.digest for item in shelf.items()}
    shelved("template-new", 100_000, now - 5, root=digest["root-3"])
    shelved("template-old", 100_000, now - 5000, root=digest["root-0"])
    everything = [item.name for item in shelf.items()]
    assert len(everything) == 7
    assert tidied() == everything  # within bounds: a control
    monkeypatch.setattr(shelf, "MOST_BYTES", 650_000)
    assert tidied() == [name for name in everything if name != "template-old"]
    monkeypatch.setattr(shelf, "ROOTS", 3)
    # The newest state goes with the image that it was saved with.
    assert tidied() == ["kernel-x", "root-0", "root-1", "root-2"]
    monkeypatch.setattr(shelf, "MOST_BYTES", 1)
    assert tidied() == ["kernel-x", "root-0"]
    assert names(images) == ["kernel-x", "kernel-x.json", "root-0", "root-0.json"]


def test_what_nobody_vouches_for_is_cleared(images: Path) -> None:
    now = time.time()
    shelved("root-1", 10, now)
    shelved("template-1", 10, now)
    shelved("template-2", 10, now)
    (images / "template-2.memory").unlink()
    (images / "root-2").write_text("no record")
    (images / "template-3.state.json").write_text("{}")
    (images / "acceleration.known").write_text("{}")
    assert tidied() == ["root-1", "template-1"]
    assert len(names(images)) == 7
    assert "acceleration.known" in names(images)


def test_show_and_prune(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    shelved("kernel-x", 4096, now - 400 * 86_400)
    shelved("root-old", 4096, now - 40 * 86_400)
    shelved("root-new", 4096, now - 20 * 86_400)
    assert command.main(["show", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {i["name"]: i["age"] // 86_400 for i in said["images"]} == {
        "kernel-x": 400, "root-old": 40, "root-new": 20,
    }  # fmt: skip
    assert said["on_disk"] == sum(item["on_disk"] for item in said["images"]) == 3 * 4096
    assert command.main(["prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["root-old"]
    assert command.main(["prune", "--days", "0"]) == 0
    assert "1 removed" in capsys.readouterr().out
    assert [item.name for item in shelf.items()] == ["kernel-x"]
    policy = ["--policy", "authority.toml"]
    for wrong in (
        ["prune", "--force"], ["show", "--days", "1"], ["prune", "--days", "-1"],
        ["build", *policy], ["show", *policy, "--", "true"],
    ):  # fmt: skip
        with pytest.raises(Usage):
            command.main(wrong)


def test_what_is_built_with_a_policy_is_what_a_run_under_it_takes(
    machines: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = machines.lab.file("built.toml", OPEN + '[limits]\nmemory = "256MB"\n')
    monkeypatch.chdir(machines.lab.work)
    state = ["--state", str(machines.lab.directory.root)]
    words = ["build", "--policy", str(policy), *state, "--", PYTHON, "-c", "print('boots')"]
    there = {item.name for item in shelf.items()}
    assert command.main(words) == 0
    made = capsys.readouterr()
    before = {item.name for item in shelf.items()}
    for kind, text in (("root", "building the image of"), ("template", "saving its state")):
        new = any(name.startswith(kind) for name in before - there)
        assert (text in made.err) == new, made.err
    ran = machines.run("print('boots')", policy)
    assert ran.out == "boots\n"
    assert {item.name for item in shelf.items()} == before
    saved = machines.lab.log(kind="run.start")[-1]["protection"]["machine"]["saved_state"]
    assert saved in {item.digest for item in shelf.items()}
    assert saved[:16] in made.out


@pytest.mark.parametrize("way", ["", "quiet", "json"])
def test_what_a_first_start_waits_for_is_said(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follower = Follower(StateDir(tmp_path), quiet=way == "quiet", as_json=way == "json")
    for what in ("image", "\x1b[2Jnew"):
        event = {"event": "preparing", "what": what}
        assert follower._event(event) is None
        assert follower._event({**event, "child": "helper"}) is None
    said = capsys.readouterr()
    assert said.out == ""
    assert (
        said.err.splitlines()
        == {
            "": [
                "authority: building the image of the program's files, once",
                r"authority: preparing: \u001b[2Jnew",
            ],
            "quiet": [],
            "json": [
                '{"event": "preparing", "what": "image"}',
                r'{"event": "preparing", "what": "\u001b[2Jnew"}',
            ],
        }[way]
    )


def test_doctor_says_what_there_is(
    built: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = condition.of(probe())
    assert said["kernel"]["digest"] == built.kernel.digest
    assert said["hypervisor"]["version"][0].isdigit()
    image, *_ = [one for one in said["images"] if one["digest"] == built.root.digest]
    assert image["on_disk"] > 1 << 20
    assert built.template is not None
    (state,) = [
        one for one in said["saved_states"] if one["digest"] == built.template.memory.digest
    ]
    assert state["boot_ms"] > state["continue_ms"] > 0
    assert "emulation" in state["hardware"]
    assert said["acceleration"]["works"] or said["acceleration"]["problem"]
    doctor.main(["--json"])
    shown = json.loads(capsys.readouterr().out)
    found = {check["part"]: check["found"] for check in shown["checks"]}
    assert found["hypervisor"].endswith(said["hypervisor"]["version"])
    assert found["machine image"].startswith(f"Linux {said['kernel']['version']}; ")
    assert "boot " in found["saved states"]
    assert shown["machine"].keys() == said.keys()
    monkeypatch.setattr(hypervisor, "FOLDER", "/nowhere")
    doctor.main(["--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [c["fix"] for c in checks if c["part"] == "hypervisor"] == [
        "apt-get install -y qemu-system-x86"
    ]
    said = condition.of(probe())
    assert said["hypervisor"] is None
    assert "is not installed" in said["problem"]
    assert said["fix"] == "apt-get install -y qemu-system-x86"
