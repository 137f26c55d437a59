"""A live gate for the attacks: a state directory of its own, real runs, attached clients, the log.

Rules
- Everything lies in a temporary directory that is removed at the end; the gate is a real process,
  started as `authority run` starts it, and stopped by its own API.
- An attack is a program that runs inside and prints one JSON object a line; what it says about
  itself is set against what the host saw.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authority.agent import Gate as AgentGate
from authority.agent import connect
from authority.audit import query
from authority.gate import opening
from authority.gate.client import Client, client
from authority.gate.policyfile import start_request
from authority.gate.statedir import StateDir

POLICY = """\
version = 1
[filesystem]
read = ["./data/**"]
write = ["./out/**"]
[budgets]
denials = 100_000
wall_time = "2m"
"""


@dataclass
class Ran:
    """A contained run: its end event, and the JSON lines that the program printed."""

    end: dict[str, Any]
    said: list[dict[str, Any]] = field(default_factory=list)
    started: dict[str, Any] = field(default_factory=dict)
    text: str = ""


class Live:
    """One gate on a temporary state directory, and a workspace for programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = root / "work"
        for name in ("data", "out"):
            (self.workspace / name).mkdir(parents=True)
        (self.workspace / "data" / "a.txt").write_text("hello")
        self.directory, _ = opening.initialise(root / "state")

    def request(self, program: list[str], policy: str, name: str = "p.toml") -> dict[str, Any]:
        """The body of a call that starts a run under `policy` (TOML text)."""
        path = self.workspace / name
        path.write_text(policy)
        return start_request(path, program, str(self.workspace))

    def run(
        self, script: str, *, policy: str = POLICY, watch: Callable[[str], None] | None = None
    ) -> Ran:
        """Run a Python script inside. `watch` is called with the run's id once it has started."""
        path = self.workspace / "attack.py"
        path.write_text(script)
        body = self.request([sys.executable, str(path)], policy)
        body["accept_any"] = True
        ran = Ran({})
        for event in self._events("/v1/runs", body):
            if event["event"] == "started":
                ran.started = event
                if watch:
                    threading.Thread(target=watch, args=(event["run"],), daemon=True).start()
            elif event["event"] == "output":
                ran.text += event["text"]
            elif event["event"] == "end":
                ran.end = event
        for line in ran.text.splitlines():
            if line.startswith("{"):
                ran.said.append(json.loads(line))
        return ran

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from client(self.directory).stream("POST", path, body)

    @contextmanager
    def attached(self, policy: str = POLICY) -> Iterator[Attached]:
        """A run for this process itself, which is not contained."""
        body = self.request([], policy)
        connection = client(self.directory)
        events = connection.stream("POST", "/v1/attach", body)
        started = next(events)
        drain = threading.Thread(target=lambda: list(events), daemon=True)
        drain.start()
        attached = Attached(self, started)
        try:
            yield attached
        finally:
            self.admin("POST", f"/v1/runs/{attached.run}/stop")
            drain.join(10)

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A control call with the admin capability."""
        return client(self.directory).call(method, path, body)

    def entries(self, run: str = "") -> list[dict[str, Any]]:
        """The log's entries (of one run)."""
        return [e for e in query.read(self.directory.log) if not run or e.get("run") == run]

    def stop(self) -> None:
        """End the gate."""
        self.admin("POST", "/v1/stop", {"force": True})


@dataclass
class Attached:
    """The attached run's name and capability."""

    live: Live
    started: dict[str, Any]

    @property
    def run(self) -> str:
        return str(self.started["run"])

    @property
    def token(self) -> str:
        return str(self.started["capability"])

    def connect(self) -> AgentGate:
        """A new channel of this run."""
        return connect(
            path=str(self.live.directory.attach_socket), capability=self.token, attach=True
        )


@contextmanager
def live() -> Iterator[Live]:
    """A live gate, gone at the end."""
    root = Path(tempfile.mkdtemp(prefix="authority-matrix-"))
    os.chmod(root, 0o755)
    made = None
    try:
        made = Live(root)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)


def outside(script: str, *, timeout: float = 60) -> list[dict[str, Any]]:
    """The control: the same script as an ordinary program of this user."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout, check=False
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


__all__ = ["POLICY", "Attached", "Client", "Live", "Ran", "StateDir", "live", "outside"]
