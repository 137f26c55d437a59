"""The state directory: where a gate keeps its log, keys and sockets, and who may read them.

Layout (everything 0700 or 0600, owned by the gate's user)
    log/            segments of the audit log, and checkpoints/ with the signed tree heads
    store/          bodies by digest; keys/sealed/ holds the keys of sealed ones
    witness/        the directory witness (not independent while the gate's own uid can write it)
    keys/           mac/KID, signing.key, admin.token, resume.token
    home/NAME       home folders of runs that outlive them (process.home); never executed from
    gate.sock       control API; attach.sock: channels of programs that the gate did not start
    gate.json       optional: budgets of the whole directory, witnesses of other owners

Rules
- A directory that others can write, or that belongs to somebody else, is refused: whoever can write
  it can rewrite the evidence.
- Every mode is named where a thing is made. The umask belongs to the whole process: changed and put
  back by two threads at once, it stays changed.
- Keys are written to a temporary name, synced and renamed, so a crash leaves a whole key or none.
- The signing key comes last of what `create` makes: with it the directory counts, and what it needs is
  there. Without it nothing was ever signed, so what an interrupted `create` left is made anew; a log
  beside a key that is gone is no such rest, and is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from authority.errors import AuthorityError
from authority.kernel.printing import printable


class StateDirError(AuthorityError):
    """The state directory can't be used as it is."""


class StateDir:
    """Paths below one state directory."""

    __slots__ = ("root",)

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def witness(self) -> Path:
        return self.root / "witness"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        return self.keys / "signing.key"

    @property
    def control_socket(self) -> Path:
        return self.root / "gate.sock"

    @property
    def attach_socket(self) -> Path:
        return self.root / "attach.sock"

    @property
    def admin_token(self) -> Path:
        return self.keys / "admin.token"

    @property
    def resume_token(self) -> Path:
        return self.keys / "resume.token"

    @property
    def gate_output(self) -> Path:
        return self.root / "gate.err"

    def home(self, name: str) -> str:
        """The folder of a named home, made when it is first used; nothing for no name."""
        if not name:
            return ""
        folder = self.root.resolve() / "home" / name
        _make_private(folder)
        check_private(folder)
        return str(folder)

    def initialised(self) -> bool:
        """Whether `init` made this directory."""
        return self.signing_key.exists()

    def complete(self) -> bool:
        """Whether `init` came to its end, too: the log's first entries come after the tokens. Where
        these are now is a person's affair, who may have given one to another."""
        try:
            with open(self.log / "00000001.jsonl", "rb") as first:
                return self.initialised() and first.read(1) == b"{"
        except FileNotFoundError:
            return False


def default_root() -> Path:
    """`$AUTHORITY_STATE`, else `authority` below the XDG state directory."""
    named = os.environ.get("AUTHORITY_STATE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return Path(base) / "authority"


def check_private(path: Path) -> None:
    """Raise `StateDirError` unless `path` is ours and nobody else can write or read it."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise StateDirError(
            f"{printable(str(path))} is not a directory", "name another one with --state"
        )
    if info.st_uid != os.geteuid():
        raise StateDirError(
            f"{printable(str(path))} belongs to uid {info.st_uid}, not to you ({os.geteuid()})",
            "run as its owner, or name another one with --state",
        )
    if info.st_mode & 0o077:
        raise StateDirError(
            f"{printable(str(path))} is open to other users (mode {info.st_mode & 0o777:o})",
            f"chmod 700 {printable(str(path))}",
        )


def write_private(path: Path, data: bytes) -> None:
    """Write a 0600 file so that a crash leaves all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create(root: Path) -> StateDir:
    """Make the directory and its signing key. Raises `StateDirError` when it is already in use."""
    # Here alone: commands that only look for the directory load neither asyncio nor cryptography.
    from authority.audit.checkpoints import create_key, origin_of
    from authority.audit.witness import DirectoryWitness

    state = StateDir(root)
    _make_private(root)
    check_private(root)
    with _alone(root):
        if state.initialised():
            raise StateDirError(f"{printable(str(root))} is already a state directory")
        for each in (state.log, state.store, state.witness, state.keys, state.keys / "mac"):
            each.mkdir(mode=0o700, exist_ok=True)
        _clear_interrupted(state)
        DirectoryWitness.create(state.witness, "local")
        aside = state.keys / f".signing.key.{os.urandom(4).hex()}"
        create_key(aside, origin_of(os.urandom(8).hex()))
        aside.rename(state.signing_key)
        _sync_directory(state.keys)
    return state


def _make_private(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for its owner alone."""
    if not folder.parent.exists():
        _make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Of two that make the same directory one comes after the other."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _clear_interrupted(state: StateDir) -> None:
    """Removes what a `create` left that did not get as far as the signing key."""
    _refuse_keyless(state)
    left = [*state.witness.glob("witness.*"), *state.keys.glob(".signing.key.*")]
    for each in left:
        each.unlink()


def _refuse_keyless(state: StateDir) -> None:
    """A log whose key is gone: a new key would make another log of it."""
    if not state.initialised() and state.log.is_dir() and any(state.log.iterdir()):
        raise StateDirError(
            f"{printable(str(state.root))} holds a log, but its signing key is gone",
            "put keys/signing.key back, or name another directory with --state",
        )


def open_existing(root: Path) -> StateDir:
    """An initialised directory, with its permissions checked."""
    state = StateDir(root)
    _refuse_keyless(state)
    if not root.exists() or not state.initialised():
        raise StateDirError(
            f"{printable(str(root))} is no state directory yet", "run 'authority init' first"
        )
    for each in (root, state.keys, state.log):
        check_private(each)
    return state
