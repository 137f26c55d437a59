"""Opening the log as the gate does: with everything that was ever vouched for held against it.

Rules
- Every stored checkpoint is verified with the log's own key, and every witness is asked what it
  remembers, before the log may be cut or written to. A state directory that was restored from a copy
  is shorter than what a witness remembers, and is refused.
- Stored checkpoints that do not verify refuse the start; they are not passed over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from authority.audit import checkpoints
from authority.audit.checkpoints import Checkpoint, Checkpointer
from authority.audit.errors import CheckpointInvalid, LogTampered
from authority.audit.files import FileLayer, OsLayer
from authority.audit.notes import SigningKey
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
    floors: list[Floor] = []
    try:
        for note in checkpoints.load(directory, layer=layer):
            checkpoint = Checkpoint.parse(note, key.public)
            floors.append(checkpoint.floor(f"the checkpoint of {checkpoint.size} entries"))
        last = max((floor.size for floor in floors), default=0)
        for witness in witnesses:
            remembered = witness.remembered(key.public)
            if remembered is not None:
                floors.append(remembered.floor(witness.source))
    except CheckpointInvalid as error:
        raise LogTampered(0, error.message) from error
    log = Log.open(directory, layer=layer, segment_bytes=segment_bytes, floors=floors)
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
