"""Opening the log as the gate does: with everything that was ever vouched for held against it.

Rules
- Every stored checkpoint is verified with the log's own key, and every witness is asked what it
  remembers, before the log may be cut or written to. A state directory that was restored from a copy
  is shorter than what a witness remembers, and is refused.
- Stored checkpoints that do not verify refuse the start; they are not passed over.
- From an `anchor` only what lies above it is held against the log before it is opened, and that must
  include every witness. The rest is for `everything`, which whoever opened the log has to ask for at
  once when `recovery.unread` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from authority.audit import anchor as anchors
from authority.audit import checkpoints
from authority.audit.anchor import Anchor
from authority.audit.checkpoints import Checkpoint, Checkpointer
from authority.audit.errors import AnchorUnfit, CheckpointInvalid, LogTampered
from authority.audit.files import FileLayer, OsLayer
from authority.audit.notes import SigningKey, VerifyKey
from authority.audit.prefixes import Floor
from authority.audit.segments import DEFAULT_BYTES
from authority.audit.witness import DirectoryWitness
from authority.audit.writer import Log


def open_log(
    directory: str | os.PathLike[str],
    key: SigningKey,
    *,
    layer: FileLayer | None = None,
    segment_bytes: int = DEFAULT_BYTES,
    witnesses: Sequence[DirectoryWitness] = (),
) -> tuple[Log, Checkpointer]:
    """Recover the log and make its checkpointer. Blocks.

    Witnesses that are not independent are fed by the checkpointer; independent ones feed themselves.
    Raises what `Log.open` raises, and `LogTampered` when a stored checkpoint does not verify.
    """
    layer = OsLayer() if layer is None else layer
    notes = checkpoints.load(directory, layer=layer)
    log, last = _opened(directory, notes, key.public, witnesses, layer, segment_bytes)
    try:
        checkpointer = Checkpointer(
            log,
            key,
            directory,
            layer=layer,
            witnesses=[witness for witness in witnesses if not witness.independent],
            last_size=last,
        )
    except BaseException:
        log.close()
        raise
    return log, checkpointer


def everything(
    directory: str | os.PathLike[str],
    key: VerifyKey,
    witnesses: Sequence[DirectoryWitness],
    last: int,
) -> Iterator[list[bytes]]:
    """All lines through entry `last`, checked: the chain, every checkpoint, every witness.

    Raises `LogCorrupt`, `LogTampered`, `LogError`, `OSError`.
    """
    floors = _floors(checkpoints.load(directory), key, witnesses)
    return anchors.through(directory, floors, last)


def _opened(
    directory: str | os.PathLike[str],
    notes: Sequence[str],
    key: VerifyKey,
    witnesses: Sequence[DirectoryWitness],
    layer: FileLayer,
    segment_bytes: int,
) -> tuple[Log, int]:
    """The log, from its anchor where that serves, and the size of its last checkpoint."""
    anchor = anchors.load(os.fspath(directory), layer)
    if anchor is not None:
        try:
            return _opened_from(anchor, directory, notes, key, witnesses, layer, segment_bytes)
        except AnchorUnfit:
            pass  # everything is read then, and whatever is wrong is found and named
    floors = _floors(notes, key, witnesses)
    last = max((floor.size for floor in floors[: len(notes)]), default=0)
    return Log.open(directory, layer=layer, segment_bytes=segment_bytes, floors=floors), last


def _opened_from(
    anchor: Anchor,
    directory: str | os.PathLike[str],
    notes: Sequence[str],
    key: VerifyKey,
    witnesses: Sequence[DirectoryWitness],
    layer: FileLayer,
    segment_bytes: int,
) -> tuple[Log, int]:
    above = [note for note in notes if Checkpoint.size_of(note) > anchor.entries]
    floors = _floors(above, key, witnesses)
    if not above or any(floor.size <= anchor.entries for floor in floors):
        raise AnchorUnfit("a witness remembers less, or no checkpoint lies above it")
    last = max(floor.size for floor in floors[: len(above)])
    log = Log.open(
        directory, layer=layer, segment_bytes=segment_bytes, floors=floors, anchor=anchor
    )
    return log, last


def _floors(
    notes: Sequence[str], key: VerifyKey, witnesses: Sequence[DirectoryWitness]
) -> list[Floor]:
    """What these checkpoints, in their order, and all witnesses say. Raises `LogTampered`."""
    floors: list[Floor] = []
    try:
        for note in notes:
            checkpoint = Checkpoint.parse(note, key)
            floors.append(checkpoint.floor(f"the checkpoint of {checkpoint.size} entries"))
        for witness in witnesses:
            remembered = witness.remembered(key)
            if remembered is not None:
                floors.append(remembered.floor(witness.source))
    except CheckpointInvalid as error:
        raise LogTampered(0, error.message) from error
    return floors
