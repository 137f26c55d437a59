"""One house for each tier, and the images that all tests boot.

Machines are emulated here: a start takes seconds, on a busy computer many. So deadlines are long, the
tests are few, and the interpreter is the plain one, whose image is small.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from authority.gate.client import GateError, ensure
from authority.isolation import Host, IsolationRefused, Plan, SandboxSpec, plan, probe
from authority.vm import Images, architectures, cache, furnish, kernel, shelf
from gate import lab as gate_lab
from gate.lab import OPEN, Lab, Ran, lab_at

from .guest import SPEC
from .world import gone_after, trusted_folder

SECONDS = 150.0
DEADLINE = 400
PYTHON = os.path.realpath(sys.executable)
TIERS = ("namespace", "vm")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gate_lab, "SECONDS", SECONDS)

    def late(*_: object) -> None:
        raise TimeoutError(f"the test took longer than {DEADLINE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session", autouse=True)
def _own_images() -> Iterator[None]:
    """What tests build lies apart from what a person keeps; the kernel is a copy of theirs. What no
    test has used for an hour goes."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    theirs, ours = base / "authority" / "vm", base / "authority-tests"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(ours))
        architecture = architectures.of(probe().architecture)
        if kernel.find(architecture) is None and (theirs / "lock").exists():
            with cache.building() as folder:
                for path in (*theirs.glob("kernel-*"), *theirs.glob("initramfs-*")):
                    shutil.copy2(path, folder)
        yield
        shelf.prune(unused=3600)


@pytest.fixture(scope="session")
def built() -> Images:
    """Images and a saved state for a plain Python; what is missing to build them skips what needs a
    machine."""
    try:
        made = asyncio.run(furnish(SPEC, probe(), emulate=True))
    except IsolationRefused as error:
        pytest.skip(f"no machine here: {error}")
    assert made.template is not None, made.no_template
    return made


@dataclass
class House:
    """A lab whose runs live in one tier."""

    tier: str
    lab: Lab

    def start(self, program: str | Sequence[str], policy: str | Path = OPEN, **more: Any) -> Ran:
        ensure(self.lab.directory)
        # Without `site`, whose import takes an emulated machine as long as what most tests do there.
        argv = [PYTHON, "-S", "-c", program] if isinstance(program, str) else list(program)
        body = self.lab.body(argv, policy)
        body |= {"isolation": self.tier, "emulate": self.tier == "vm", **more}
        return Ran(self.lab, "/v1/runs", body)

    def run(self, program: str | Sequence[str], policy: str | Path = OPEN, **more: Any) -> Ran:
        """Without standard input, to its end."""
        ran = self.start(program, policy, **more).started()
        try:
            self.lab.input(ran, b"", eof=True)
        except GateError:
            assert ran.events[-1]["event"] == "end"  # it had ended by itself
        return ran.end()


@pytest.fixture(scope="module", params=TIERS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    if request.param == "vm":
        request.getfixturevalue("built")
    with lab_at() as lab:
        yield House(request.param, lab)


@pytest.fixture(scope="module")
def machines(built: Images) -> Iterator[House]:
    """Machines alone."""
    with lab_at() as lab:
        yield House("vm", lab)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for images, and nothing held in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_held", {})
    return cache.folder()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder as programs lie in."""
    made = trusted_folder()
    yield made
    gone_after(made)


@pytest.fixture
def small(place: Path, built: Images) -> tuple[Plan, Host]:
    """A plan that shows one small program."""
    shutil.copy("/bin/true", place / "true")
    (place / "true").chmod(0o755)
    host = probe()
    return plan(SandboxSpec((str(place / "true"),), str(place)), host), host
