"""An ordinary user's runs, in name spaces and in a machine: its own private files, no root anywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from authority.vm import Images
from gate.lab import OPEN

from .conftest import TIERS
from .world import World, gone_after, trusted_folder

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

PROGRAM = """
import json, os
from authority.agent import Denied, connect
gate = connect()
def code(path):
    try:
        return gate.read_text(path)
    except Denied as denied:
        return denied.code
lines = [line.split(":\\t") for line in open("/proc/self/status").read().splitlines()]
status = {line[0]: line[1] for line in lines if len(line) == 2}
print(json.dumps({
    "ids": [os.getuid(), os.getgid()],
    "capabilities": [status[name] for name in ("CapEff", "CapPrm", "CapBnd")],
    "private": code("data/private"),
    "outside": code("/etc/hostname"),
    "home": os.path.isdir(os.environ["HOME"]),
    "written": gate.write("out/made", b"by the run") and None,
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev")][2:],
}))
"""
RUN = """
cd "$1" && export AUTHORITY_STATE="$1/state" PYTHON="$2" && shift 2
"$PYTHON" -m authority.cli.main init --no-policy >&2 || exit
"$PYTHON" -m authority.cli.main run --quiet --policy policy.toml "$@" -- "$PYTHON" private.py
code=$?
"$PYTHON" -m authority.cli.main audit query --kind run.start --json > entries
"$PYTHON" -m authority.cli.main gate stop >&2
exit $code
"""


@pytest.fixture
def home(built: Images) -> Iterator[Path]:
    """A user's own folder, closed to everybody else: a workspace, and a cache with a kernel in it."""
    made = trusted_folder()
    work, images = made / "work", made / "cache" / "authority" / "vm"
    for folder in (made / "cache", images.parent, images, work, work / "data", work / "out"):
        folder.mkdir(mode=0o700)
    for stored in (built.base.kernel, built.base.initramfs):
        for path in (stored.path, stored.path.with_name(stored.path.name + ".json")):
            shutil.copy2(path, images / path.name)
    (work / "policy.toml").write_text(OPEN)
    (work / "private.py").write_text(PROGRAM)
    (work / "data" / "private").write_text("mine")
    for path in (work / "private.py", work / "data" / "private"):
        path.chmod(0o600)
    for path in (made / "cache", *(made / "cache").rglob("*"), work, *work.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    yield made
    gone_after(made)


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **more}


@pytest.mark.parametrize("tier", TIERS)
def test_an_ordinary_users_run(tier: str, home: Path, readable_python: Path) -> None:
    world = World(home, kvm=None, user=NOBODY)
    arguments = ["--isolation", tier, *(["--emulate"] if tier == "vm" else [])]
    done = world.run(
        *("sh", "-c", RUN, "sh", str(home / "work"), str(readable_python), *arguments),
        env=environment(home),
    )
    assert done.returncode == 0, done
    said = json.loads(done.stdout)
    none = "0" * 16
    assert said["ids"] == [1000, 1000]
    assert said["capabilities"][:2] == [none, none]
    assert (said["private"], said["outside"]) == ("mine", "E_POLICY_DENY")
    assert said["home"] is True
    assert said["interfaces"] == ["lo"]
    made = home / "work" / "out" / "made"
    assert made.read_text() == "by the run"
    assert made.stat().st_uid == NOBODY
    (entry,) = [json.loads(line) for line in (home / "work" / "entries").read_text().splitlines()]
    assert entry["protection"]["isolation"] == tier
    if tier == "vm":
        assert "the caller's host user" in entry["protection"]["machine"]["hypervisor"]
        assert len(entry["protection"]["machine"]["saved_state"]) == 64
    foreign = [p for p in (home / "cache").rglob("*") if p.stat().st_uid != NOBODY]
    assert foreign == []


@pytest.mark.parametrize("tier", TIERS)
def test_without_user_name_spaces_it_is_refused(
    tier: str, home: Path, readable_python: Path
) -> None:
    world = World(home, kvm=None, user=NOBODY, no_namespaces=True)
    arguments = ["--isolation", tier, *(["--emulate"] if tier == "vm" else [])]
    done = world.run(
        *("sh", "-c", RUN, "sh", str(home / "work"), str(readable_python), *arguments),
        env=environment(home),
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "user.max_user_namespaces is 0" in done.stderr
    assert "sysctl" in done.stderr
    assert (home / "work" / "entries").read_text() == ""


def test_without_a_home_it_says_where_images_could_lie(home: Path, readable_python: Path) -> None:
    world = World(home, kvm=None, user=NOBODY)
    without = ["env", "-u", "XDG_CACHE_HOME"]
    done = world.run(
        *(*without, "sh", "-c", RUN, "sh", str(home / "work"), str(readable_python)),
        *("--isolation", "vm", "--emulate"),
        env=environment(home),
    )
    assert done.returncode == 125
    assert "the folder for images /nonexistent/.cache/authority/vm can't be made" in done.stderr
    assert "set XDG_CACHE_HOME to a folder that you may write to" in done.stderr
