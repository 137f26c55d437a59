"""Ctrl-C on the command line: the run is stopped, its end is shown, and the log says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from authority.audit import query
from authority.gate import opening
from authority.gate.client import client

POLICY = "version = 1\n"


def test_an_interrupt_stops_the_run_and_shows_its_end(tmp_path: Path) -> None:
    directory, _ = opening.initialise(tmp_path / "state")
    (tmp_path / "p.toml").write_text(POLICY)
    (tmp_path / "x.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "authority.cli.main", "run", "--json",
            "--state", str(directory.root), "--policy", "p.toml", "--", sys.executable, "x.py",
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ},
        text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        deadline = time.monotonic() + 20
        while "up" not in process.stderr.readline():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        end = json.loads(out)
        assert (end["reason"], end["code"], process.returncode) == ("stopped", 137, 137)
        ends = [e for e in query.read(directory.log) if e["kind"] == "run.end"]
        assert [e["reason"] for e in ends] == ["stopped"]
    finally:
        process.kill()
        client(directory).call("POST", "/v1/stop", {"force": True})
