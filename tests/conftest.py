"""What every test starts from: no state of the person who runs it, no time limit that lies.

- `AUTHORITY_*` variables and the XDG state folder of the caller never reach a test: the first are
  removed, the second points into a temporary folder of this session.
- A file of tests leaves the process as it found it: umask, working folder, environment, signals,
  limits. Every later file starts from them, and which one that is hangs on how many processors run.
- Hypothesis has no deadline for one example: machines differ, and a slow disk is not a bug.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "authority",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("authority")


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AUTHORITY_")]:
            patch.delenv(name)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("xdg-state")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _as_it_was() -> Iterator[None]:
    before = process_facts()
    yield
    assert process_facts() == before


def process_facts() -> dict[str, object]:
    """What a process has one of, the umask read without a moment in which it is another one."""
    status = Path("/proc/self/status").read_text().splitlines()
    limits = [name for name in vars(resource) if name.startswith("RLIMIT_")]
    return {
        "umask": next(line for line in status if line.startswith("Umask:")),
        "folder": os.getcwd(),
        "environment": {name: os.environ[name] for name in os.environ if "PYTEST" not in name},
        "signals": {int(number): signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "path": list(sys.path),
        "switch": sys.getswitchinterval(),
    }


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds `pyproject.toml`."""
    return Path(__file__).resolve().parents[1]


SRC = Path(__file__).resolve().parents[1] / "src"
NOBODY = 65534


@pytest.fixture(scope="session")
def readable_python() -> Iterator[Path]:
    """An interpreter with this project in it that every user can run."""
    folder = Path(tempfile.mkdtemp(prefix="authority-python-"))
    folder.chmod(0o755)
    try:
        base = next(
            path
            for path in (os.path.realpath(sys.executable), "/usr/bin/python3")
            if runs_for_nobody(path)
        )
        subprocess.run([base, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        site = next((folder / "venv").glob("lib/python*/site-packages"))
        packages = sysconfig.get_path("purelib")
        (site / "project.pth").write_text(f"{SRC}\n{packages}\n")
        yield folder / "venv" / "bin" / "python"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def runs_for_nobody(path: str) -> bool:
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        done = subprocess.run(
            [path, "-I", "-c", version], user=NOBODY, group=NOBODY, extra_groups=[], check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
