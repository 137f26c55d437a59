"""The caller's side of the control API, and starting a gate when none is there.

Rules
- Only what our own server says is understood: HTTP/1.1, a length or chunks, JSON. Anything else ends
  the call with an error that says so.
- A gate is started with `python -I`, from the state directory, with a cleaned environment and its
  standard streams away from the terminal. Two callers who start one at the same time get one: the
  log's lock decides, and the loser's caller uses the winner.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time

from authority.errors import AuthorityError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    from authority.gate.statedir import StateDir

START_SECONDS = 30.0


class GateError(AuthorityError):
    """The gate refused a call, or there is none. `answer` is what it said."""

    def __init__(self, message: str, hint: str = "", answer: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.answer = answer or {}


class Client:
    """One connection to a gate's control socket."""

    def __init__(self, directory: StateDir, bearer: str) -> None:
        self._directory = directory
        self._bearer = bearer
        self._socket: socket.socket | None = None
        self._buffer = b""

    def close(self) -> None:
        """Hang up. A run that was started on this connection is stopped by that."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call, one answer. Raises `GateError`."""
        self._send(method, path, body)
        status, headers = self._head()
        raw = self._exactly(int(headers.get("content-length", "0")))
        value: dict[str, Any] = json.loads(raw or b"{}")
        self.close()
        if status != 200:
            raise GateError(str(value.get("error", status)), str(value.get("hint", "")), value)
        return value

    def stream(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """One call whose answer comes in lines. Raises `GateError`."""
        self._send(method, path, body)
        status, headers = self._head()
        if status != 200 or "content-length" in headers:
            value = json.loads(self._exactly(int(headers.get("content-length", "0"))) or b"{}")
            self.close()
            raise GateError(str(value.get("error", status)), str(value.get("hint", "")), value)
        pending = b""
        while chunk := self._chunk():
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                yield json.loads(line)
        self.close()

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        data = json.dumps(body or {}).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {self._bearer}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = b""
        try:
            self._socket.connect(str(self._directory.control_socket))
            self._socket.sendall(head.encode() + data)
        except OSError as error:
            self.close()
            raise GateError(f"the gate does not answer: {error.strerror}") from error

    def _more(self) -> None:
        if self._socket is None:
            raise GateError("the connection to the gate is closed")
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            hint = f"{self._directory.gate_output} may say why"
            raise GateError("the gate went away in the middle of an answer", hint)
        self._buffer += data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _head(self) -> tuple[int, dict[str, str]]:
        status = int(self._line().split()[1])
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("ascii").partition(":")
            headers[name.strip().lower()] = value.strip()
        return status, headers

    def _chunk(self) -> bytes:
        size = int(self._line(), 16)
        data = self._exactly(size)
        self._line()
        return data


def token_of(path: os.PathLike[str]) -> str:
    """A capability from its file. Raises `GateError`."""
    try:
        with open(path, encoding="ascii") as f:
            return f.read().strip()
    except OSError as error:
        raise GateError(
            f"no capability for the gate: {os.fspath(path)}: {error.strerror}",
            "only the owner of the state directory can do this",
        ) from error


def client(directory: StateDir, *, resume: bool = False) -> Client:
    """A client with the admin capability (or the one that resumes); starts a gate if needed."""
    ensure(directory)
    return Client(directory, token_of(directory.resume_token if resume else directory.admin_token))


def alive(directory: StateDir) -> bool:
    """Whether a gate answers on this directory's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(directory.control_socket))
        except OSError:
            return False
    return True


def ensure(directory: StateDir) -> None:
    """Start a gate unless one answers. Raises `GateError` with what it said when it can't start."""
    deadline = time.monotonic() + START_SECONDS
    while not alive(directory):
        said = _start(directory)
        if said == "ready":
            return
        if not said.startswith("locked ") or time.monotonic() > deadline:
            message = said.removeprefix("refused ").removeprefix("locked ") or "it said nothing"
            raise GateError(f"the gate does not start: {message}", f"see {directory.gate_output}")
        time.sleep(0.05)


def _output(directory: StateDir) -> BinaryIO:
    """Where a gate's own words go. Raises `GateError` where that is no plain file of its own."""
    path = directory.gate_output
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise GateError(f"{path}: {error.strerror}", "remove what stands there") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise GateError(f"{path} is no file", "remove what stands there")
    os.fchmod(fd, 0o600)
    return os.fdopen(fd, "ab")


def _start(directory: StateDir) -> str:
    import subprocess

    readable, writable = os.pipe2(os.O_CLOEXEC)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    # Where images for machines lie, as its caller sees it: a gate is given no home.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not cache.startswith("~"):  # there is no home, and the gate will find none either
        environment["XDG_CACHE_HOME"] = cache
    with _output(directory) as err:
        process = subprocess.Popen(
            [
                sys.executable, "-I", "-m", "authority.gate",
                str(directory.root), "--ready", str(writable),
            ],
            cwd=directory.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
            pass_fds=(writable,),
            start_new_session=True,
        )  # fmt: skip
    os.close(writable)
    with open(readable, encoding="utf-8", errors="replace") as ready:
        said = ready.read().strip()
    if said != "ready":
        process.wait()
    return said
