"""Snapshots: the state at one entry, so that starting does not depend on how long the log is.

Rules
- A snapshot is the state's canonical bytes in the content store. It is used only when its digest stands
  in a `snapshot` entry that lies under a checkpoint or witness which recovery has checked.
- Using one is a shortcut, never a second truth: the whole fold runs in the background after the start
  and must reach the same state, or everything is halted.
- A snapshot that is gone or damaged is passed over: the fold from the beginning needs none. Nothing
  that was not checked is folded: where only the log's end was, the rest is before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from authority.audit import query
from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.store import ContentStore
from authority.gate.ledger import Ledger
from authority.kernel import entries
from authority.kernel.fold import apply
from authority.kernel.state import State, digest, dump, load

EVERY = 50_000
"""Entries after which a new snapshot is taken."""
_MARK = b'"kind":"snapshot"'
Folder = str | os.PathLike[str]


class Place(NamedTuple):
    """Where reading begins: a segment, and the entries before it."""

    segment: int
    entries: int


BEGINNING = Place(1, 0)


class Folded(NamedTuple):
    """A state, and the entry from whose snapshot it was reached (-1: from the beginning)."""

    state: State
    start: int


def take(ledger: Ledger, store: ContentStore) -> int:
    """Store the state and append the entry that names it; the entry's number. Blocks on the disk.

    The state is that of the last entry before the `snapshot` entry. Raises `OSError`.
    """
    at = ledger.state.seq
    data = dump(ledger.state)
    if not store.takes(len(data)):
        raise OSError(errno.ENOSPC, "the disk has only its rest left")
    name = store.put(data)
    return ledger.step([entries.Snapshot(at=at, digest=name, size=len(data))]).seq


def fold(
    directory: Folder,
    store: ContentStore,
    vouched: int,
    place: Place,
    everything: Callable[[], Iterable[list[bytes]]],
) -> Folded:
    """The state of the log, from the newest usable snapshot among the first `vouched` entries. It is
    looked for from `place` on, where the log was opened; if there is none, and something lies before,
    `everything` gives all lines, checked.

    Raises `FoldError`, `EntryError`, `LogCorrupt`.
    """
    found = _newest(directory, vouched, place)
    if found is not None:
        try:
            state = load(store.get(found.digest))
        except (BodyMissing, LogCorrupt):
            found = None
        else:
            return Folded(_apply(state, directory, found.at + 1, place), found.at)
    if place != BEGINNING:
        return Folded(_whole(everything()), -1)
    return Folded(_apply(State(), directory, 0, BEGINNING), -1)


def whole_digest(pieces: Iterable[list[bytes]]) -> str:
    """The digest of the fold of all these lines, from the log's first on."""
    return digest(_whole(pieces))


def _whole(pieces: Iterable[list[bytes]]) -> State:
    state = State()
    for lines in pieces:
        for line in lines:
            apply(state, entries.decode(line))
    return state


def _newest(directory: Folder, vouched: int, place: Place) -> entries.Snapshot | None:
    newest: bytes = b""
    for seq, line in enumerate(query.lines(directory, place.segment), place.entries):
        if seq >= vouched:
            break
        # Inside a string the quotes would be escaped, so only a member can look like this.
        if _MARK in line:
            newest = line
    entry = entries.decode(newest) if newest else None
    if not isinstance(entry, entries.Snapshot) or entry.at + 1 < place.entries:
        return None  # what follows it does not all lie where reading began
    return entry


def _apply(state: State, directory: Folder, start: int, place: Place) -> State:
    for seq, line in enumerate(query.lines(directory, place.segment), place.entries):
        if seq >= start:
            apply(state, entries.decode(line))
    return state
