"""What the host lays out for the attacks by an ordinary program's ways out, and what it finds after.

Rules
- Nothing here believes the program: a planted file is looked for on the host's disk, a connection is
  counted by whoever it reached, with the bytes that came.
- One host may be asked (`localhost` at `port`), everything else may not: an address of the same machine
  at another port, sockets of the person's session, a socket that was left open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from authority.matrix.verdict import Attempt

OTHER: Final = "elsewhere.example"
"""The name that is said to the allowed host in place of its own."""
MARK: Final = "planted by the matrix"
_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
_WAIT: Final = 0.5
_REPOSITORY: Final = {
    "HEAD": "ref: refs/heads/main\n",
    "config": "[core]\n\tbare = false\n",
    "hooks/pre-commit.sample": "#!/bin/sh\n",
}
SESSION: Final = ("ssh-agent", "docker", "bus")


class Lures:
    """Listeners with what came to each, a repository in the writable folder, a socket to inherit."""

    def __init__(self, root: Path, writable: Path, word: str) -> None:
        self.word, self.writable, self.outside = word, writable, root / "outside" / "by-link"
        self.came: dict[str, list[bytes]] = {}
        self._open: list[socket.socket] = []
        self.port = self._tcp("allowed")
        self.unlisted = self._tcp("unlisted")
        self.session: dict[str, str] = {}
        for name in SESSION:
            path = str(root / f"{name}.sock")
            made = socket.socket(socket.AF_UNIX)
            made.bind(path)
            os.chmod(path, 0o777)  # noqa: S103 - a sandbox that changes its user can reach it, too
            self.session[name] = path
            self._serve(made, name)
        self._mine, self._left = socket.socketpair()
        self._mine.setblocking(False)
        self._open += [self._mine, self._left]
        os.set_inheritable(self._left.fileno(), True)
        for folder in (".git", ".git/hooks", "second"):
            (writable / folder).mkdir()
            (writable / folder).chmod(0o777)
        for name, text in _REPOSITORY.items():
            (writable / ".git" / name).write_text(text, encoding="utf-8")
            (writable / ".git" / name).chmod(0o666)

    @property
    def left_open(self) -> int:
        return self._left.fileno()

    @property
    def environment(self) -> dict[str, str]:
        """How a person's session names its sockets."""
        return {
            "SSH_AUTH_SOCK": self.session["ssh-agent"],
            "DOCKER_HOST": f"unix://{self.session['docker']}",
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.session['bus']}",
        }

    @property
    def given(self) -> dict[str, Any]:
        """What the attacking program is told."""
        return {
            "port": self.port, "unlisted": self.unlisted, "other": OTHER, "mark_text": MARK,
            "session": list(self.session.values()), "writable": str(self.writable),
            "by_link": str(self.outside),
        }  # fmt: skip

    def _tcp(self, name: str) -> int:
        made = socket.create_server(("127.0.0.1", 0))
        self._serve(made, name)
        port: int = made.getsockname()[1]
        return port

    def _serve(self, made: socket.socket, name: str) -> None:
        made.listen(64)
        self.came[name] = []
        self._open.append(made)
        threading.Thread(target=self._accept, args=(made, name), daemon=True).start()

    def _accept(self, made: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = made.accept()
                with connection, contextlib.suppress(OSError):  # it went away
                    connection.settimeout(_WAIT)
                    self.came[name].append(b"")
                    self.came[name][-1] = connection.recv(4096)
                    connection.sendall(_ANSWER)

    def found(self) -> list[Attempt]:
        """What came of the attacks, as the host sees it."""
        hook = self.writable / ".git" / "hooks" / "post-checkout"
        renamed = self.writable / "second" / ".git" / "hooks" / "post-checkout"
        config = (self.writable / ".git" / "config").read_text("utf-8", "replace")
        to_other = [data for data in self.came["allowed"] if OTHER.encode() in data]
        agents = sum(len(self.came[name]) for name in SESSION)
        try:
            inherited = self.word.encode() in self._mine.recv(65536)
        except BlockingIOError:
            inherited = False
        unlisted = len(self.came["unlisted"])
        return [
            _on_disk("a hook on the disk", _executable(hook)),
            _on_disk("a hook by a renamed folder", _executable(renamed)),
            _on_disk("a program in git's config", MARK in config),
            _on_disk("a file written by a link", self.outside.exists()),
            Attempt("came by plain HTTP", unlisted > 0, f"the host counted {unlisted}"),
            Attempt("came under another name", bool(to_other), f"the host counted {len(to_other)}"),
            Attempt("came to the session", agents > 0, f"the host counted {agents}"),
            Attempt(
                "came by an inherited socket", inherited, "read" if inherited else "nothing came"
            ),
        ]

    def close(self) -> None:
        for made in self._open:
            with contextlib.suppress(OSError):  # not connected
                made.shutdown(socket.SHUT_RDWR)
            made.close()


def _on_disk(name: str, there: bool) -> Attempt:
    return Attempt(name, there, "the host found it" if there else "the host did not find it")


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK) and MARK in path.read_text("utf-8")


@contextmanager
def laid(root: Path, writable: Path, word: str) -> Iterator[Lures]:
    """Laid out until the end of the block."""
    made = Lures(root, writable, word)
    try:
        yield made
    finally:
        made.close()
