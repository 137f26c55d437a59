"""A person at a terminal: a real pseudo-terminal with `authority run` on it, typed to and read from."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .lab import CLI, SECONDS, Lab


class Person:
    """What they see is in `seen` (bytes as they came); their terminal's modes are in `modes()`. `out`:
    where standard output goes instead."""

    def __init__(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], out: int | None = None
    ) -> None:
        self.ours, theirs = os.openpty()
        self.resize(30, 100)
        self.first = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            cwd=cwd,
            env={**env},
            stdin=theirs,
            stdout=theirs if out is None else out,
            stderr=theirs,
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> Person:
        os.write(self.ours, text.encode() if isinstance(text, str) else text)
        return self

    def read(self, seconds: float = 0.05) -> bytes:
        """What came in this time."""
        deadline = time.monotonic() + seconds
        got = b""
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self.ours], [], [], left)[0]:
                break
            try:
                data = os.read(self.ours, 65536)
            except OSError:
                break
            if not data:
                break
            got += data
        self.seen += got
        return got

    def sees(self, text: str | bytes, *, after: int = 0) -> Person:
        """Wait until `text` is on the terminal, behind the first `after` bytes."""
        wanted = text.encode() if isinstance(text, str) else text
        deadline = time.monotonic() + SECONDS
        while wanted not in self.seen[after:]:
            assert time.monotonic() < deadline, self.seen[-2000:]
            assert self.process.poll() is None or self.read() or wanted in self.seen[after:], (
                self.seen[-2000:]
            )
            self.read()
        return self

    def modes(self) -> list[object]:
        return termios.tcgetattr(self._theirs)

    def raw(self) -> bool:
        local = self.modes()[3]
        assert isinstance(local, int)
        return not local & termios.ICANON

    def leaves(self) -> int:
        """Wait for the end; the exit code. Everything that was still to be seen is read."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            self.read()
            assert time.monotonic() < deadline, self.seen[-2000:]
        self.read(0.2)
        return self.process.returncode

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@contextmanager
def person(
    lab: Lab,
    program: Sequence[str],
    policy: str | Path,
    *options: str,
    term: str = "xterm",
    out: int | None = None,
) -> Iterator[Person]:
    """`authority run` on a terminal, gone afterwards."""
    path = policy if isinstance(policy, Path) else lab.policy(policy)
    found = Person(
        [str(CLI), "run", *lab.words, "--policy", str(path), *options, "--", *program],
        cwd=lab.work,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(lab.root),
            "TERM": term,
            "LANG": "C.UTF-8",
            "AUTHORITY_STATE": str(lab.directory.root),
        },
        out=out,
    )
    try:
        yield found
    finally:
        found.close()
