"""Where an opening may begin to read: a segment's border that a signed checkpoint is reached through.

Rules
- An anchor says what stands before one segment: how many entries, the last one's hash, the tree's right
  edge. It is kept beside the log, is not signed, and nothing is taken on its word: the tree grows from
  that edge over the lines that follow, and its root at a checkpoint above must be the signed one. A
  wrong edge gives another root. A wrong hash or number does not fit the first line behind it, and that
  line is under the same root.
- So what is left unread is what the log's own key vouched for, and only its bytes can have changed
  since. Whoever opens from an anchor reads all of it afterwards (`through`), with every checkpoint
  and witness, and stops everything if it is not that.
- It serves only after an orderly close, below every witness's memory and below a checkpoint. Whatever
  does not fit is passed over: then everything is read first, and that reading decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from authority.audit.chain import START, BadLine, State, follow
from authority.audit.errors import LogCorrupt, LogTampered
from authority.audit.files import FileLayer, write_new
from authority.audit.merkle import Frontier
from authority.audit.prefixes import Floor, Prefixes
from authority.audit.reading import Reader
from authority.kernel.canonical import CanonicalError, decode, encode

NAME = "anchor"
MOST_BYTES = 16 * 1024
"""Of an anchor; the largest tree's edge has 53 nodes."""
_NO_BATCH = -1
"""No entry's batch goes on over a border, so the first line behind it begins its own."""


class Anchor(NamedTuple):
    """Before `segment` stand `entries`, the last with this `head`; `edge` is the tree's."""

    segment: int
    entries: int
    head: bytes
    edge: tuple[bytes, ...]

    @property
    def state(self) -> State:
        """The chain at the border."""
        return State(self.entries, _NO_BATCH, self.head)

    def tree(self) -> Frontier:
        """The tree at the border."""
        return Frontier.of(self.entries, self.edge)


def load(directory: str, layer: FileLayer) -> Anchor | None:
    """The anchor that is kept; None when there is none, or one of another form."""
    path = os.path.join(directory, NAME)
    if not layer.exists(path):
        return None
    try:
        if not 0 < _size(path, layer) <= MOST_BYTES:
            return None  # a pipe has none, and reading one would wait for ever
        value = decode(layer.read(path))
        found = Anchor(
            value["segment"],
            value["entries"],
            bytes.fromhex(value["head"]),
            tuple(bytes.fromhex(node) for node in value["edge"]),
        )
        if type(found.segment) is not int or type(found.entries) is not int or found.segment < 2:
            return None
        found.tree()
    except (CanonicalError, LookupError, TypeError, ValueError, OSError):
        return None
    return found if len(found.head) == 32 and found.entries > 0 else None


def _size(path: str, layer: FileLayer) -> int:
    fd = layer.open(path)
    try:
        return layer.size(fd)
    finally:
        layer.close(fd)


def keep(directory: str, layer: FileLayer, borders: Iterable[Anchor], most: int) -> None:
    """Keep the last of these borders with at most `most` entries before it. Raises `OSError`."""
    fit = [border for border in borders if 0 < border.entries <= most]
    if not fit or fit[-1] == load(directory, layer):
        return
    value = fit[-1]._asdict()
    value |= {"head": value["head"].hex(), "edge": [node.hex() for node in value["edge"]]}
    write_new(layer, os.path.join(directory, NAME), encode(value))


def through(
    directory: str | os.PathLike[str], floors: Iterable[Floor], last: int
) -> Iterator[list[bytes]]:
    """The lines from the first to entry `last`, each checked before it is handed out: the chain, and
    every floor up to there. Raises `LogCorrupt`, `LogTampered`."""
    state = START
    prefixes = Prefixes(floor for floor in floors if floor.size <= last + 1)
    for block in Reader(directory).blocks():
        lines = block.lines()[: last + 1 - state.next_seq]
        try:
            state = follow(lines, state)
        except BadLine as error:
            raise LogCorrupt(error.entry, error.reason) from error
        prefixes.add_lines(lines)
        if prefixes.contradicted is not None:
            wrong = prefixes.contradicted
            raise LogTampered(
                prefixes.agreed, f"the first {wrong.size} entries are not what {wrong.source} says"
            )
        yield lines
        if state.next_seq > last:
            return
    raise LogTampered(state.next_seq, f"entries {state.next_seq} to {last} are gone")
