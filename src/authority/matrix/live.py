"""A live gate for the attacks: a state directory of its own, real runs, attached clients, the log.

Rules
- Everything lies in a temporary directory that is removed at the end; the gate is a real process,
  started as `authority run` starts it, and stopped by its own API.
- Each run has a policy file of its own, so that no run is compared with another's policy.
- The workspace may be read by everybody, whatever the caller's umask: started by root, the sandbox
  runs as another user. The state directory is the gate's alone.
- Waiting has a deadline; a gate that does not answer ends the test with an error, never with a pass.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authority.audit import query
from authority.audit.files import is_locked
from authority.audit.writer import LOCK
from authority.gate import opening
from authority.gate.client import GateError, alive, client
from authority.gate.policyfile import start_request
from authority.gate.statedir import StateDir
from authority.matrix import leftovers
from authority.matrix.wire import Wire
from authority.tokens import from_text

PROGRAMS = Path(__file__).parent / "inside"
STOP_SECONDS = 20.0
RUN_SECONDS = 45.0

POLICY = """\
version = 1
[filesystem]
files = "requests"
read = ["./data/**"]
write = ["./out/**"]
[budgets]
denials = 100_000
wall_time = "2m"
"""


@dataclass(frozen=True)
class House:
    """Where the attacked runs live. An emulated machine takes its time. `guest`: of machines in which
    everything was overcome, which (see `overcome`)."""

    isolation: str = "namespace"
    emulate: bool = False
    guest: str = ""

    @property
    def machine(self) -> bool:
        return self.isolation == "vm"

    @property
    def seconds(self) -> float:
        return RUN_SECONDS * (10 if self.emulate else 1)

    @property
    def python(self) -> str:
        """For a machine the plain one: its image is small."""
        return os.path.realpath(sys.executable) if self.machine else sys.executable


NAMESPACES = House()


@dataclass
class Ran:
    """A contained run: its end event, and the JSON lines that the program printed."""

    end: dict[str, Any] = field(default_factory=dict)
    started: dict[str, Any] = field(default_factory=dict)
    said: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    errors: str = ""

    @property
    def run(self) -> str:
        return str(self.started.get("run", ""))


class Live:
    """One gate on a temporary state directory, and a workspace for programs."""

    def __init__(self, root: Path, house: House = NAMESPACES) -> None:
        self.root = root
        self.house = house
        self.workspace = root / "work"
        self._policies = itertools.count(1)
        for name in ("data", "out"):
            make_folder(self.workspace / name)
        self.file("data/a.txt", "hello")
        self.programs = copy_programs(self.workspace)
        self.directory, _ = opening.initialise(root / "state")

    @classmethod
    def on(cls, directory: StateDir, other: Live) -> Live:
        """The same workspace with another state directory."""
        made = cls.__new__(cls)
        made.root, made.workspace, made.programs = other.root, other.workspace, other.programs
        made._policies = other._policies
        made.house = other.house
        made.directory = directory
        return made

    def file(self, name: str, text: str) -> Path:
        """A file in the workspace that every user can read."""
        path = self.workspace / name
        make_folder(path.parent)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        return path

    def request(self, program: Sequence[str], policy: str) -> dict[str, Any]:
        """The body of a call that starts a run under `policy` (TOML text)."""
        path = self.file(f"policy-{next(self._policies)}.toml", policy)
        asked = {"isolation": self.house.isolation, "emulate": self.house.emulate}
        return start_request(path, program, str(self.workspace)) | asked

    def run(
        self,
        program: str,
        given: Mapping[str, Any] | str,
        *,
        policy: str = POLICY,
        watch: Callable[[], None] | None = None,
    ) -> Ran:
        """Run one of the attacking programs inside, with a word or what is more than one. `watch` is
        called once while it runs, from another thread; when it returns, the program's standard input
        is closed."""
        path = self.programs / f"{program}.py"
        word = given if isinstance(given, str) else json.dumps(given)
        return self.run_argv([self.house.python, str(path), word], policy, watch)

    def run_argv(
        self, argv: Sequence[str], policy: str, watch: Callable[[], None] | None = None
    ) -> Ran:
        """Run any program inside."""
        ran = Ran()
        watcher: threading.Thread | None = None
        for event in client(self.directory).stream("POST", "/v1/runs", self.request(argv, policy)):
            kind = event["event"]
            if kind == "refused":
                raise GateError(str(event.get("error")), str(event.get("hint", "")), event)
            if kind == "started":
                ran.started = event
                watcher = threading.Thread(
                    target=self._watch, args=(str(event["run"]), watch), daemon=True
                )
                watcher.start()
            elif kind == "output" and event["fd"] == 1:
                ran.text += event["text"]
            elif kind == "output":
                ran.errors += event["text"]
            elif kind == "end":
                ran.end = event
        if watcher is not None:
            watcher.join(STOP_SECONDS)
        ran.said = json_lines(ran.text)
        return ran

    def _watch(self, run: str, watch: Callable[[], None] | None) -> None:
        if watch is not None:
            watch()
        with contextlib.suppress(GateError):  # the program may have ended by itself
            self.admin("POST", f"/v1/runs/{run}/input", {"eof": True})

    @contextmanager
    def attached(self, policy: str = POLICY) -> Iterator[Attached]:
        """A run for this process itself, which is not contained."""
        connection = client(self.directory)
        events = connection.stream("POST", "/v1/attach", self.request([], policy))
        started = next(events)
        if started["event"] != "started":
            raise GateError(str(started.get("error")), str(started.get("hint", "")), started)
        drain = threading.Thread(target=_drain, args=(events,), daemon=True)
        drain.start()
        attached = Attached(self, started)
        try:
            yield attached
        finally:
            attached.close()
            if alive(self.directory):
                with contextlib.suppress(GateError):  # it ended with its last channel
                    self.admin("POST", f"/v1/runs/{attached.run}/stop")
            drain.join(STOP_SECONDS)

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A control call with the admin capability. Raises `GateError`."""
        return client(self.directory).call(method, path, body)

    def entries(self, run: str = "") -> list[dict[str, Any]]:
        """The log's entries (of one run)."""
        return [e for e in query.read(self.directory.log) if not run or e.get("run") == run]

    def stop(self) -> None:
        """End the gate and wait until it has let go of the log. Raises `GateError` if it did not do
        so by itself; it is killed then."""
        deadline = time.monotonic() + STOP_SECONDS
        if alive(self.directory):
            with self.deadline(STOP_SECONDS):
                self.admin("POST", "/v1/stop", {"force": True})
        while is_locked(str(self.directory.log / LOCK)):
            if time.monotonic() > deadline:
                self.kill()
                raise GateError("the gate does not stop")
            time.sleep(0.02)

    def pid(self) -> int:
        """The gate's process; 0 when there was none yet."""
        starts = [e for e in self.entries() if e["kind"] == "gate.start"]
        return int(starts[-1]["identity"]["pid"]) if starts else 0

    def kill(self) -> None:
        """End a gate that no longer answers."""
        pid = self.pid()
        if pid and is_locked(str(self.directory.log / LOCK)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def deadline(self, seconds: float = 0.0) -> Iterator[None]:
        """Kill the gate if the block takes longer: whoever waits for it then gets an error."""
        timer = threading.Timer(seconds or self.house.seconds, self.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Attached:
    """The attached run's name, capability and channels."""

    def __init__(self, live: Live, started: dict[str, Any]) -> None:
        self.run = str(started["run"])
        self.seq = int(started["seq"])
        self.token = from_text(str(started["capability"]))
        self._path = str(live.directory.attach_socket)
        self._wires: list[Wire] = []

    def wire(self) -> Wire:
        """A new channel of this run."""
        wire = Wire(self._path, self.token)
        self._wires.append(wire)
        return wire

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


@contextmanager
def live(house: House = NAMESPACES) -> Iterator[Live]:
    """A live gate, gone at the end."""
    with leftovers.folder() as root, images_for(house, root):
        made: Live | None = None
        try:
            made = Live(root, house)
            yield made
        finally:
            if made is not None:
                made.stop()


def images_for(house: House, root: Path) -> contextlib.AbstractContextManager[None]:
    """The images that a gate finds which is started meanwhile."""
    if not house.guest:
        return contextlib.nullcontext()
    from authority.matrix.overcome import images_of

    return images_of(house.guest, root / "images")


def make_folder(path: Path) -> None:
    """A folder (with those above it) that every user can enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)


def copy_programs(folder: Path) -> Path:
    """The attacking programs as plain files in `folder`, readable by every user."""
    target = folder / "inside"
    make_folder(target)
    for source in PROGRAMS.glob("*.py"):
        copy = target / source.name
        copy.write_bytes(source.read_bytes())
        copy.chmod(0o644)
    return target


def outside(
    program: str, given: Mapping[str, Any], *, watch: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """The control: the same program as an ordinary process of this user."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, str(PROGRAMS / f"{program}.py"), json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if watch is not None:
            watch()
        text, _ = process.communicate(timeout=RUN_SECONDS)
    finally:
        process.kill()
        process.wait()
    return json_lines(text)


_START = (
    "import os, runpy, sys; sys.argv.pop(0); sys.path.insert(0, os.path.dirname(sys.argv[0])); "
    "sys.dont_write_bytecode = True; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def json_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines; what is no JSON is not the program's own."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def _drain(events: Iterator[dict[str, Any]]) -> None:
    with contextlib.suppress(GateError, OSError):  # the gate was stopped under it
        for _ in events:
            continue


__all__ = ["POLICY", "Attached", "Live", "Ran", "StateDir", "live", "outside"]
