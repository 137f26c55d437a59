"""One gate and one world, with runs attached to them.

Rules
- The gate is a real process on a state directory of its own, as `authority attach` would find it; each
  pair gets a run of its own, with its own policy, capability and log entries.
- The world is a process of another interpreter (AgentDojo's own environment). It and the gate share
  one socket, the stage another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from authority.agent import Denied, Gate, connect
from authority.matrix.live import Live, live

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INTERPRETER = ROOT / ".venv-agentdojo" / "bin" / "python"
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
STOP_SECONDS = 20.0


class World:
    """The world's process, from the benchmark's side."""

    def __init__(self, folder: Path) -> None:
        self.tools = str(folder / "tools.sock")
        stage = str(folder / "stage.sock")
        command = [str(INTERPRETER), str(HERE / "world.py"), self.tools, stage]
        self.process, said = started(command)
        self.model = f"http://127.0.0.1:{said.split()[1]}/v1"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(stage)
        self._file = self._socket.makefile("rwb")

    def ask(self, what: str, **more: Any) -> Any:
        """One question; its answer."""
        self._file.write(json.dumps({"what": what, **more}).encode() + b"\n")
        self._file.flush()
        line = self._file.readline()
        if not line:
            raise RuntimeError(f"the world ended at {what!r}")
        return json.loads(line)

    def close(self) -> None:
        self._file.close()
        self._socket.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def started(command: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """A process that has said that it is ready, and what it said."""
    readable, writable = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(
        [*command, "--ready", str(writable)],
        env=CLEAN | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        pass_fds=(writable,),
        start_new_session=True,
    )
    os.close(writable)
    with open(readable, encoding="utf-8") as ready:
        said = ready.read().strip()
    if not said.startswith("ready"):
        process.kill()
        raise RuntimeError(f"{command[1]} did not start: {said}")
    return process, said


class Stage:
    """A gate and a world."""

    def __init__(self, made: Live, world: World) -> None:
        self.live = made
        self.world = world

    @contextmanager
    def run(self, policy: str) -> Iterator[Gate]:
        """A run for an agent under this policy; its end of the channel."""
        with self.live.attached(policy) as attached:
            path = str(self.live.directory.attach_socket)
            with connect(path, attached.token, attach=True) as gate:
                yield gate


@contextmanager
def stage() -> Iterator[Stage]:
    """A gate and a world, gone at the end."""
    with live() as made:
        world = World(made.root)
        state = str(made.directory.root)
        gate, _ = started([sys.executable, str(HERE / "room.py"), state])
        try:
            yield Stage(made, world)
        finally:
            made.stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                gate.wait(STOP_SECONDS)
            gate.kill()
            gate.wait()
            world.close()


__all__ = ["Denied", "Stage", "stage"]
