"""What a matrix that was killed left behind is cleared by the next.

Rules
- A matrix holds a lock in its folder for as long as it lives, so the folder of a living one is never
  touched; nor is one without such a lock, or one that belongs to somebody else.
- A gate that still runs on such a folder is killed, and its machines with it; then the folder goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from authority.audit import query
from authority.audit.files import is_locked
from authority.audit.writer import LOCK

PREFIX: Final = "authority-matrix-"
_HELD: Final = "held"


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of this matrix, gone afterwards; what dead ones left goes first."""
    clear(Path(tempfile.gettempdir()))
    made = Path(os.path.realpath(tempfile.mkdtemp(prefix=PREFIX)))
    try:
        with (made / "new").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            (made / "new").rename(made / _HELD)  # nobody sees it without its lock
            made.chmod(0o755)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def clear(place: Path) -> None:
    """Remove what no living matrix holds."""
    for left in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it goes by itself meanwhile, or is not ours to open
            _clear(left)


def _clear(left: Path) -> None:
    if left.is_symlink() or left.stat().st_uid != os.geteuid():
        return
    descriptor = os.open(left / _HELD, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log = left / "state" / "log"
        if is_locked(str(log / LOCK)):
            starts = [e for e in query.read(log) if e["kind"] == "gate.start"]
            os.kill(int(starts[-1]["identity"]["pid"]), signal.SIGKILL)
        shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(descriptor)
