"""Opening a state directory: recover the log, fold it, and refuse what does not hold.

Rules
- What checkpoints and witnesses vouch for is asked before anything is appended: a log that is shorter
  than its last checkpoint, or contradicts one, is not opened. That is written down beside the log
  (`incidents.txt`), because the log itself is no longer to be trusted with it.
- The state is the fold of every entry that was read. A snapshot only shortens the way, and only one
  whose digest stands in an entry under a checkpoint. A log that was opened from its anchor is read
  whole as soon as the gate serves; until then what lies before rests on the log's signed checkpoints,
  and so does the snapshot. Without one all of it is read first.
- The first entry that a gate appends says what it is; before it, a `repair` for what recovery cut.
- The first opening also mints the admin capability and the one that resumes after a halt.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from authority import __version__
from authority.audit import anchor as anchors
from authority.audit import checkpoints
from authority.audit.checkpoints import Checkpointer
from authority.audit.errors import LogError, LogTampered
from authority.audit.files import FileLayer, OsLayer
from authority.audit.notes import SigningKey
from authority.audit.opening import everything, open_log
from authority.audit.store import ContentStore
from authority.audit.witness import DirectoryWitness
from authority.audit.writer import Log
from authority.errors import AuthorityError
from authority.gate import build, clock, snapshots, statedir, statefiles
from authority.gate.ledger import Ledger
from authority.gate.snapshots import Place
from authority.gate.statedir import StateDir
from authority.kernel import capabilities, entries
from authority.kernel.canonical import printable
from authority.kernel.capabilities import MacKey, Restriction
from authority.kernel.decide import GATE
from authority.kernel.state import digest

ADMIN_METHODS = tuple(
    f"gate.{action}"
    for action in (
        "approve", "attach", "clock", "halt", "incident", "mint", "prove", "revoke", "rotate",
        "run", "status",
        "stop",
    )
)  # fmt: skip
RESUME_METHODS = ("gate.resume",)


@dataclass
class Opened:
    """An open state directory: what a gate works on."""

    directory: StateDir
    ledger: Ledger
    checkpointer: Checkpointer
    store: ContentStore
    keys: dict[str, MacKey]
    signing: SigningKey
    witnesses: list[DirectoryWitness]
    unconfirmed: tuple[int, str] | None = None
    """Last entry and digest of a state that came from a snapshot, or of a log that was opened from its
    anchor; reading everything must lead there."""

    @property
    def minting(self) -> MacKey:
        """The key that mints: the one that is not retired. Raises `StateDirError` without one."""
        for kid, info in self.ledger.state.keys.items():
            if not info.until and kid in self.keys:
                return self.keys[kid]
        raise statedir.StateDirError(
            "no key to mint with: its file is gone", "run 'authority key rotate' for a new one"
        )


class Refused(AuthorityError):
    """The state directory is not opened. The message says why."""


def open_state(directory: StateDir, *, layer: FileLayer | None = None) -> Opened:
    """Recover and fold. `layer` stands in for the disk below the log (fault injection).

    Raises `Refused`, `FoldError`, `LogError` (a lock held elsewhere among them), `OSError`.
    """
    try:
        return _opened(directory, layer)
    except LogTampered as error:
        _write_down(directory, error)
        raise Refused(
            f"the log was tampered with: {error.message}",
            "keep the state directory as it is: 'authority audit verify' says what is wrong",
        ) from error


def _opened(directory: StateDir, layer: FileLayer | None) -> Opened:
    signing = checkpoints.load_key(directory.signing_key)
    witnesses = [DirectoryWitness(directory.witness)]
    witnesses += [DirectoryWitness(path) for path in statefiles.witnesses(directory)]
    log, checkpointer = open_log(directory.log, signing, layer=layer, witnesses=witnesses)

    def all_checked() -> Iterator[list[bytes]]:
        return everything(directory.log, signing.public, witnesses, log.next_seq - 1)

    try:
        store = ContentStore(directory.store, keys=directory.keys / "sealed")
        folded = snapshots.fold(directory.log, store, checkpointer.size, _place(log), all_checked)
        keys = statefiles.mac_keys(directory)
        ledger = Ledger(log, folded.state)
        opened = Opened(directory, ledger, checkpointer, store, keys, signing, witnesses)
        if folded.start >= 0:
            opened.unconfirmed = (folded.state.seq, digest(folded.state))
        with contextlib.suppress(
            OSError
        ):  # without one the next opening reads more, and that is all
            anchors.keep(str(directory.log), layer or OsLayer(), log.recovery.borders, folded.start)
        _first_entries(opened)
        log.flush()  # no event loop runs yet
    except BaseException:
        log.close()
        raise
    return opened


def _place(log: Log) -> Place:
    """Where the log's opening began to read."""
    first = log.recovery.borders[:1]
    if not log.recovery.unread or not first:
        return snapshots.BEGINNING
    return Place(first[0].segment, first[0].entries)


def _write_down(directory: StateDir, error: LogError) -> None:
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {printable(error.message)}\n"
    fd = os.open(
        directory.root / "incidents.txt",
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
        0o600,
    )
    try:
        os.write(fd, line.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def _first_entries(opened: Opened) -> None:
    ledger, log = opened.ledger, opened.ledger.log
    new: list[entries.AnyEntry] = [
        entries.Repair(cut=cut.size, digest=cut.digest, file=cut.file) for cut in log.recovery.cuts
    ]
    new.append(
        entries.GateStart(
            log=opened.signing.name.removeprefix("authority/"),
            rules=entries.RULES,
            version=__version__,
            boot=clock.boot_id(),
            boot_clock=clock.boot(),
            public_key=opened.signing.public.to_text(),
            identity={"uid": os.geteuid(), "gid": os.getegid(), "pid": os.getpid()},
            limits=statefiles.limits(opened.directory),
            build=build.digest(),
            two_people=statefiles.two_people(opened.directory),
        )
    )
    ledger.step(new)
    if log.recovery.cuts:
        log.acknowledge_repair()
    if not ledger.state.keys:
        ledger.step(_first_capabilities(opened))


def rotate(opened: Opened, until: int) -> str:
    """A fresh minting key; the one before verifies until `until` (us) and never mints again."""
    key = statefiles.new_mac_key(opened.directory)
    opened.keys[key.kid] = key
    retired: list[entries.AnyEntry] = [
        entries.Key(kid=kid, action="retire", until=max(until, 1))
        for kid, info in opened.ledger.state.keys.items()
        if not info.until
    ]
    opened.ledger.step([*retired, entries.Key(kid=key.kid, action="add")])
    return key.kid


def _first_capabilities(opened: Opened) -> list[entries.AnyEntry]:
    """The first key and the gate's own capabilities. Their files are durable before an entry says that
    there is a key: an opening that ends in between leaves none, and the next one begins again."""
    key = statefiles.new_mac_key(opened.directory)
    opened.keys[key.kid] = key
    own = [
        _own(key, opened.directory.admin_token, ADMIN_METHODS),
        _own(key, opened.directory.resume_token, RESUME_METHODS),
    ]
    return [entries.Key(kid=key.kid, action="add"), *own]


def _own(key: MacKey, path: os.PathLike[str], methods: tuple[str, ...]) -> entries.AnyEntry:
    """Writes a capability of the gate's own to its file; its entry."""
    restriction = Restriction(methods=methods)
    token = capabilities.mint(key, id=secrets.token_hex(16), run=GATE, restriction=restriction)
    parsed = capabilities.parse(token)
    statedir.write_private(Path(path), capabilities.to_text(token).encode() + b"\n")
    return entries.CapMint(
        run=GATE, id=parsed.ids[0], kid=parsed.kid, restriction=restriction.plain()
    )


def renew_own(opened: Opened) -> None:
    """New admin and resume capabilities, under the key that mints now."""
    for path, methods in (
        (opened.directory.admin_token, ADMIN_METHODS),
        (opened.directory.resume_token, RESUME_METHODS),
    ):
        opened.ledger.step([_own(opened.minting, path, methods)])


def initialise(root: Path) -> tuple[StateDir, str]:
    """What `authority init` does: make the directory and its first entries. Its key's fingerprint.
    One that was interrupted (a full disk, a crash) is taken up where it stopped.

    Raises `StateDirError`, `OSError`, and what `open_state` does.
    """
    begun = StateDir(root).initialised()
    directory = statedir.open_existing(root) if begun else statedir.create(root)
    if directory.complete():
        raise statedir.StateDirError(f"{printable(str(root))} is already a state directory")
    opened = open_state(directory)
    opened.ledger.step([entries.GateStop(reason="initialised")])
    opened.ledger.log.flush()
    opened.checkpointer.force_now()
    opened.checkpointer.close()
    opened.ledger.log.close()
    return directory, opened.signing.public.fingerprint
