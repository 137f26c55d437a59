"""A gate to attack: its own state directory, a real gate process, runs, attached clients, the log.

Rules
- Every wait has a deadline: a gate that does not answer fails the test, it never hangs it.
- Only processes of this lab are killed: the gate's pid stands in its own `gate.start` entry.
- The workspace can be entered by every user: started by root, the sandbox gives up root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from authority import protocol, tokens
from authority.agent import Denied, connect
from authority.agent.client import Gate as AgentGate
from authority.audit import query
from authority.audit.files import is_locked
from authority.audit.writer import LOCK
from authority.gate import opening
from authority.gate.client import Client, GateError, alive, ensure, token_of
from authority.gate.policyfile import start_request
from authority.gate.statedir import StateDir

SECONDS = 60.0
CLI = Path(sys.executable).with_name("authority")
OPEN = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
[labels]
trusted = ["user", "fs:./**"]
[budgets]
denials = 100_000
runs = 1000
"""
"""A policy for tests that are about something else: the workspace is readable and trusted."""


class Ran:
    """A run that was started on a connection of its own; its events arrive in a thread."""

    def __init__(self, lab: Lab, path: str, body: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.error: GateError | OSError | None = None
        self._client = Client(lab.directory, token_of(lab.directory.admin_token))
        self._lab = lab
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._follow, args=(path, body), daemon=True)
        self._thread.start()

    def _follow(self, path: str, body: dict[str, Any]) -> None:
        try:
            for event in self._client.stream("POST", path, body):
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except (GateError, OSError, ValueError) as error:
            self.error = error if isinstance(error, (GateError, OSError)) else GateError(str(error))
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event that is wanted. Raises AssertionError when it does not come."""

        def found() -> dict[str, Any] | None:
            return next((e for e in self.events if wanted(e)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._over, SECONDS)
            event = found()
        assert event is not None, f"did not come: {self.events[-3:]} {self.error}"
        return event

    @property
    def first(self) -> dict[str, Any] | None:
        """The event that says that there is a run, or none; before it a machine may be made."""
        return next((e for e in self.events if e["event"] != "preparing"), None)

    def started(self) -> Ran:
        """Wait for the run's first entry. Raises GateError when it was refused."""
        with self._changed:
            self._changed.wait_for(lambda: self.first or self._over, SECONDS)
        if self.error is not None:
            raise self.error
        assert self.first, "the run did not start in time"
        if self.first["event"] == "refused":
            raise GateError(str(self.first["error"]), "", self.first)
        return self

    def said(self, text: str) -> Ran:
        """Wait until the program printed `text`."""
        self.until(lambda e: e["event"] == "output" and text in self.out)
        return self

    def end(self) -> Ran:
        """Wait for the end."""
        self.until(lambda e: e["event"] == "end" and "child" not in e)
        self._thread.join(SECONDS)
        return self

    def hang_up(self) -> None:
        """The caller goes away."""
        if self._client._socket is not None:
            with contextlib.suppress(OSError):
                self._client._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(SECONDS)

    @property
    def run(self) -> str:
        assert self.first is not None
        return str(self.first["run"])

    @property
    def summary(self) -> dict[str, Any]:
        return next(e for e in self.events if e["event"] == "end" and "child" not in e)

    def text(self, fd: int) -> str:
        return "".join(e["text"] for e in self.events if e["event"] == "output" and e["fd"] == fd)

    @property
    def out(self) -> str:
        return self.text(1)

    @property
    def err(self) -> str:
        return self.text(2)


class Attached:
    """An attached run: its capability, clients and raw channels."""

    def __init__(self, lab: Lab, ran: Ran) -> None:
        self._lab = lab
        self.ran = ran
        self.run = ran.run
        self.text = str(ran.events[0]["capability"])
        self.token = tokens.from_text(self.text)
        self._open: list[Any] = []

    def gate(self, capability: str | bytes | None = None) -> AgentGate:
        """A client; `capability` replaces the run's own in its requests, not in its hello."""
        gate = connect(str(self._lab.directory.attach_socket), self.token, attach=True)
        if capability is not None:
            gate._capability = (
                capability if isinstance(capability, bytes) else tokens.from_text(capability)
            )
        self._open.append(gate)
        return gate

    def wire(self, *, hello: bool = True) -> Wire:
        """A raw channel."""
        wire = Wire(self._lab.directory.attach_socket)
        self._open.append(wire)
        if hello:
            wire.hello(self.token)
        return wire

    def close(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.close()
        self.ran.hang_up()


class Wire:
    """Bytes to the gate, and what it says to them."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SECONDS)
        self.socket.connect(str(path))
        self._decoder = protocol.FrameDecoder()
        self._inbox: list[Any] = []
        self.n = 0

    def close(self) -> None:
        self.socket.close()

    def hello(self, token: bytes | None) -> Any:
        self.payload(protocol.encode_hello("test", token))
        return self.message()

    def payload(self, payload: bytes, stream: int = 1) -> None:
        self.socket.sendall(protocol.encode_frame(stream, payload))

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def message(self) -> Any:
        """The next message: a welcome, a list of replies, a fatal, or None at the end."""
        while not self._inbox:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            for _, payload in self._decoder.feed(data):
                self._inbox.append(protocol.decode_server_message(payload))
        return self._inbox.pop(0)

    def request(
        self,
        effect: str,
        resource: str,
        arguments: Mapping[str, Any] | bytes = b"\x80",
        *,
        token: bytes | None,
        n: int | None = None,
        flags: int = 0,
    ) -> protocol.Request:
        if n is None:
            self.n += 1
            n = self.n
        raw = (
            msgspec.Raw(arguments)
            if isinstance(arguments, bytes)
            else protocol.encode_arguments(dict(arguments))
        )
        return protocol.Request(n, effect, resource, raw, token, flags)

    def send(self, *requests: protocol.Request) -> None:
        self.payload(protocol.encode_requests(requests))

    def replies(self, count: int) -> list[protocol.Reply]:
        found: list[protocol.Reply] = []
        while len(found) < count:
            message = self.message()
            assert isinstance(message, list), f"after {len(found)} replies: {message!r}"
            found += message
        return found

    def ask(self, *args: Any, **more: Any) -> tuple[str, Any]:
        """One request: ('', value) or (code, body of the refusal)."""
        self.send(self.request(*args, **more))
        (reply,) = self.replies(1)
        if reply.status == protocol.DONE:
            return "", reply.body
        refused = protocol.decode_refused(reply.body)
        return refused.code, refused


class Lab:
    """One state directory, its gate, and a workspace. In a lab with `machines` its runs live in
    emulated virtual machines."""

    machines = False

    def __init__(self, root: Path, state: Path | None = None) -> None:
        self.root = root
        self.work = root / "work"
        for folder in (self.work, self.work / "out", self.work / "data"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (root, self.work, self.work / "data"):
            folder.chmod(0o755)
        (self.work / "out").chmod(0o777)
        self.file("data/a.txt", "hello")
        self.directory, self.fingerprint = opening.initialise(state or root / "state")
        self._policies = 0

    def file(self, name: str, data: str | bytes) -> Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(0o644)
        return path

    def policy(self, text: str) -> Path:
        """A policy file of its own, so that it is compared with no other."""
        self._policies += 1
        return self.file(f"policy-{self._policies}.toml", text)

    def body(self, argv: Sequence[str], policy: str | Path) -> dict[str, Any]:
        path = policy if isinstance(policy, Path) else self.policy(policy)
        body = start_request(path, argv, str(self.work))
        if self.machines and argv:
            body |= {"isolation": "vm", "emulate": True}
        return body

    def start(self, program: str | Sequence[str], policy: str | Path = OPEN) -> Ran:
        """Start a run: Python source, or an argument list."""
        ensure(self.directory)
        argv = [sys.executable, "-c", program] if isinstance(program, str) else list(program)
        return Ran(self, "/v1/runs", self.body(argv, policy))

    def run(self, program: str | Sequence[str], policy: str | Path = OPEN) -> Ran:
        """Start a run without standard input and wait for its end."""
        ran = self.start(program, policy).started()
        with contextlib.suppress(GateError):  # it may have ended by itself
            self.input(ran, b"", eof=True)
        return ran.end()

    def input(self, ran: Ran, data: bytes, *, eof: bool = False) -> None:
        import base64

        body = {"data": base64.b64encode(data).decode(), "eof": eof}
        self.admin("POST", f"/v1/runs/{ran.run}/input", body)

    @contextmanager
    def attached(self, policy: str | Path = OPEN) -> Iterator[Attached]:
        """An attached run, ended afterwards."""
        ensure(self.directory)
        ran = Ran(self, "/v1/attach", self.body([], policy)).started()
        found = Attached(self, ran)
        try:
            yield found
        finally:
            found.close()

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        ensure(self.directory)
        return Client(self.directory, token_of(self.directory.admin_token)).call(method, path, body)

    def with_bearer(self, bearer: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return Client(self.directory, bearer).call(method, path, body)

    def with_bearer_started(self, bearer: str, method: str, path: str) -> dict[str, Any]:
        """As `with_bearer`, after a gate was started if there was none."""
        ensure(self.directory)
        return self.with_bearer(bearer, method, path)

    def resume(self, reason: str = "tested") -> dict[str, Any]:
        return self.with_bearer(
            token_of(self.directory.resume_token), "POST", "/v1/resume", {"reason": reason}
        )

    def log(self, **wanted: Any) -> list[dict[str, Any]]:
        """The entries whose members are as `wanted`."""
        return [
            e
            for e in query.read(self.directory.log)
            if all(e.get(k) == v for k, v in wanted.items())
        ]

    def denials(self, **wanted: Any) -> list[dict[str, Any]]:
        return self.log(kind="denied", **wanted)

    def pid(self) -> int:
        """The gate that opened the log last."""
        return int(self.log(kind="gate.start")[-1]["identity"]["pid"])

    def kill(self) -> None:
        """kill -9 of the gate, until it is gone."""
        pid = self.pid()
        assert is_gate(pid)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_gate(pid) and not self.locked())

    def locked(self) -> bool:
        """Whether some process still holds the log."""
        return is_locked(str(self.directory.log / LOCK))

    def stop(self) -> None:
        if alive(self.directory):
            with contextlib.suppress(GateError, OSError):
                self.admin("POST", "/v1/stop", {"force": True})
        with contextlib.suppress(Exception):
            pid = self.pid()
            if alive(self.directory) and not _gone(pid, 0.5):
                os.kill(pid, signal.SIGTERM)
            if not _gone(pid, 10):
                os.kill(pid, signal.SIGKILL)
                _gone(pid, 10)

    @property
    def words(self) -> list[str]:
        """Options of `authority run` that say where this lab's runs live."""
        return ["--isolation", "vm", "--emulate"] if self.machines else []

    def cli(
        self,
        *arguments: str,
        stdin: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        state: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`authority ...` as a person calls it."""
        if arguments[:1] == ("run",):
            arguments = ("run", *self.words, *arguments[1:])
        return subprocess.run(
            [str(CLI), *arguments],
            cwd=cwd or self.work,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.root),
                "AUTHORITY_STATE": str(state or self.directory.root),
                **(env or {}),
            },
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SECONDS * 2,
            check=False,
        )


def is_gate(pid: int) -> bool:
    """Whether this process is a living gate (a dead one that nobody waited for is not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return b"authority.gate\0" in Path(f"/proc/{pid}/cmdline").read_bytes() and (
            stat.rsplit(")", 1)[1].split()[0] != "Z"
        )
    except OSError:
        return False


def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_gate(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for(wanted: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until something is true; what it was. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (value := wanted()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
    return value


def code_of(call: Callable[[], Any]) -> str:
    """The code of the denial, or '' when the call was allowed."""
    try:
        call()
    except Denied as denied:
        return denied.code
    return ""


def new_root() -> Path:
    root = Path(os.path.realpath(tempfile.mkdtemp(prefix="authority-gate-test-")))
    root.chmod(0o755)
    return root


@contextmanager
def lab_at(root: Path | None = None, state: Path | None = None) -> Iterator[Lab]:
    """A lab whose gate is gone afterwards, and its files with it."""
    root = root or new_root()
    made: Lab | None = None
    try:
        made = Lab(root, state)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)


__all__ = [
    "CLI",
    "OPEN",
    "SECONDS",
    "Attached",
    "Denied",
    "GateError",
    "Lab",
    "Ran",
    "StateDir",
    "Wire",
    "code_of",
    "is_gate",
    "lab_at",
    "new_root",
    "wait_for",
]
