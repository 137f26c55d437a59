"""A matrix that is killed leaves nothing for longer than until the next."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from authority.matrix import leftovers
from gate.lab import is_gate, wait_for

HANGS = """
import sys, time
from authority.matrix.live import live
with live() as gate:
    gate.run_argv([gate.house.python, "-c", "pass"], "version = 1")
    print(gate.root, gate.pid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a gate's sockets below it, whoever runs the tests."""
    with tempfile.TemporaryDirectory(prefix="a-") as made:
        yield Path(made)


def test_a_killed_matrix_is_cleared_by_the_next_and_a_living_one_is_not(short: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(short)}
    with subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        root, pid = child.stdout.readline().split()
        leftovers.clear(short)
        assert Path(root).is_dir()  # the control: its matrix lives
        assert is_gate(int(pid))
        child.send_signal(signal.SIGKILL)
    assert Path(root).is_dir()
    wait_for(lambda: leftovers.clear(short) or not Path(root).exists())
    wait_for(lambda: not is_gate(int(pid)))


def test_what_is_no_matrixs_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "authority-matrix-without").mkdir()
    held = tmp_path / "authority-matrix-held"
    held.mkdir()
    real = tmp_path / "real"
    real.mkdir()
    (real / "held").touch()
    (tmp_path / "authority-matrix-link").symlink_to(real)
    with (held / "held").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        leftovers.clear(tmp_path)
        assert held.is_dir()
    leftovers.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "authority-matrix-link",
        "authority-matrix-without",
        "real",
    ]
    assert (real / "held").exists()
