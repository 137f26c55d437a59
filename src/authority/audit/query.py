"""Reading entries: all, filtered, or as they come. Needs no lock and changes nothing.

Rules
- Entries come as dictionaries, `hash` included, in log order. Reading does not verify; a line that
  is no entry raises `LogCorrupt`. Use `authority.audit.verify` first when it matters.
- A filter's parts are joined by *and*; within one part any of its values will do. Members are taken
  from the entry itself (`run`, `kind`, `effect`, `code`, `resource`). `time` is in microseconds.
- A resource glob is shell-like with `*` across `/`: it searches, it does not grant.
"""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from authority.audit.errors import LogCorrupt, LogError
from authority.audit.reading import Reader

Entry = dict[str, Any]

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True)
class Filter:
    """Which entries are wanted. Empty parts want everything; `until` is exclusive."""

    runs: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    effects: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    since: int = 0
    until: int | None = None
    resource: str = ""

    def compiled(self) -> Callable[[Entry], bool]:
        """A predicate over entries."""
        parts = [
            (name, wanted)
            for name, wanted in (
                ("run", self.runs),
                ("kind", self.kinds),
                ("effect", self.effects),
                ("code", self.codes),
            )
            if wanted
        ]
        glob = re.compile(fnmatch.translate(self.resource)) if self.resource else None

        def matches(entry: Entry) -> bool:
            if any(entry.get(name) not in wanted for name, wanted in parts):
                return False
            if entry["time"] < self.since:
                return False
            if self.until is not None and entry["time"] >= self.until:
                return False
            return glob is None or glob.match(str(entry.get("resource", ""))) is not None

        return matches


EVERYTHING = Filter()


def read(directory: str | os.PathLike[str], wanted: Filter = EVERYTHING) -> Iterator[Entry]:
    """The entries of a log that pass. Raises `LogCorrupt`, `LogTampered` (a missing segment)."""
    yield from _entries(Reader(directory), wanted)


def lines(directory: str | os.PathLike[str], segment: int = 1) -> Iterator[bytes]:
    """The stored lines from a segment on, without newlines, undecoded. Raises as `read`."""
    for block in Reader(directory, segment).blocks():
        yield from block.lines()


def tail(
    directory: str | os.PathLike[str],
    *,
    last: int = 10,
    follow: bool = False,
    pause_s: float = 0.2,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Entry]:
    """The `last` entries, then, with `follow`, new ones until `stop` says so.

    Entries of a live log may be seen before they are durable, as any reader of the file sees them.
    """
    reader = Reader(directory)
    kept: list[Entry] = []
    for entry in _entries(reader, EVERYTHING):
        kept.append(entry)
        if len(kept) > 2 * last + 1000:
            del kept[: len(kept) - last]
    yield from kept[len(kept) - last if len(kept) > last else 0 :] if last else []
    while follow and not stop():
        fresh = list(_entries(reader, EVERYTHING))
        yield from fresh
        if not fresh:
            time.sleep(pause_s)


def find(directory: str | os.PathLike[str], seq: int) -> tuple[Entry, bytes]:
    """Entry `seq` and its stored line without newline. Raises `LogCorrupt` when there is none."""
    count = 0
    for block in Reader(directory).blocks():
        size = block.data.count(b"\n")
        if seq < count + size:
            line = block.lines()[seq - count]
            entry = _decode_line(line)
            if entry["seq"] != seq:
                raise LogCorrupt(seq, f"entry {entry['seq']} stands where entry {seq} belongs")
            return entry, line
        count += size
    raise LogError(f"there is no entry {seq}: the log holds {count}", "the first one is 0")


def _entries(reader: Reader, wanted: Filter) -> Iterator[Entry]:
    matches = None if wanted == EVERYTHING else wanted.compiled()
    for block in reader.blocks():
        for line in block.lines():
            entry = _decode_line(line)
            if matches is None or matches(entry):
                yield entry


def _decode_line(line: bytes) -> Entry:
    try:
        entry = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LogCorrupt(-1, "a stored line is not an entry") from error
    if type(entry.get("seq")) is not int or type(entry.get("time")) is not int:
        raise LogCorrupt(-1, "a stored line is an object but not an entry")
    return entry
