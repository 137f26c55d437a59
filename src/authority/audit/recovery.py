"""Opening a log again: what a crash may have left, what it may not, and the copy after doubt.

Rules
- A batch is written only after the one before it is durable. So whatever crashed, at most the last
  batch is torn, and it lies in the last segment that holds entries. Only inside it is anything cut;
  its intact first lines stay. The cut bytes go to `kept/cut-SEQ-SHA256.bin`, synced first.
- A damaged line is *corruption*, and nothing is cut, when any of these holds:
  an intact line of a later batch stands behind it (a line tells the `seq` its batch began with);
  a checkpoint covers it; the log was closed cleanly; another segment with entries follows; or the
  damage is not of the shape that a crash makes. A crash leaves each sector of a zeroed file either
  written or zero, or stops after some byte. It never changes a byte to another, and never takes a
  whole line out: a complete line that does not fit, with no zero byte in it, is corruption.
- A log that is shorter than a checkpoint, or whose tree is not the checkpoint's, is tampering.
- `clean` (count and head, written by an orderly close) is removed before the first new entry. No
  such file means that a process died or a sync failed, and then nobody knows which pages of the
  last segment reached the disk: after a failed sync the kernel may call a page clean that is not.
  So the last segment is copied to a new file, synced, read back from the disk and compared, and put
  in place by a rename. This does not rest on a mark that a dying process could still make. Earlier
  segments were synced with success before the next was begun; they are not copied.
- `poisoned` (written if possible when a sync failed) adds: earlier segments are read past the cache
  too, and the old file stays in `kept/` even when nothing was cut.
- After an orderly close reading may begin at an `Anchor`. What does not fit it raises `AnchorUnfit`:
  the caller reads everything then.
- Not told apart from a crash without a witness: a last batch above all checkpoints, removed at a
  line's end or in the shape of a tear, after an unclean stop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from authority.audit.anchor import Anchor
from authority.audit.chain import START, BadLine, State, follow, head_of, plain
from authority.audit.errors import AnchorUnfit, LogCorrupt, LogError, LogTampered
from authority.audit.files import SECTOR, FileLayer, without_zeros, write_all, write_new
from authority.audit.merkle import Frontier
from authority.audit.prefixes import Floor, Prefixes
from authority.audit.segments import index_of, name_of, segment_names
from authority.kernel.canonical import CanonicalError, decode, digest, encode, printable

CLEAN = "clean"
POISONED = "poisoned"
KEPT = "kept"
_BEYOND = re.compile(rb',"hash":"[0-9a-f]{64}"}.')
_CUT = re.compile(r"cut-([0-9]+)-([0-9a-f]{64})\.bin")


@dataclass(frozen=True)
class Cut:
    """Bytes removed from the end: where (first `seq` lost), how many, their SHA-256, the file."""

    seq: int
    size: int
    digest: str
    file: str


@dataclass
class Recovery:
    """What opening found and did. The gate writes it as a `repair` entry when `cuts` is not empty.

    `cuts` includes those of earlier starts that were never acknowledged with
    `Log.acknowledge_repair`. `read_back` is how the copy was read from the disk: `direct` (past the
    page cache), `uncached` (the cache was asked to drop it), or empty when nothing was copied.
    """

    entries: int = 0
    head: str = ""
    clean: bool = True
    poisoned: str = ""
    cuts: tuple[Cut, ...] = ()
    copied: str = ""
    read_back: str = ""
    kept: str = ""
    unread: int = 0
    """Entries before the anchor: vouched for by a checkpoint, and not read yet."""
    borders: tuple[Anchor, ...] = ()
    """The border before each segment with entries, as far as they were read."""


@dataclass
class Recovered:
    """Where writing goes on. `index` is 0 when there is no segment yet."""

    state: State = START
    tree: Frontier = field(default_factory=Frontier)
    index: int = 0
    used: int = 0
    report: Recovery = field(default_factory=Recovery)


def recover(
    directory: str, layer: FileLayer, floors: Iterable[Floor] = (), anchor: Anchor | None = None
) -> Recovered:
    """Check the log in `directory`, the whole of it or what follows `anchor`, and make its end
    writable. The caller holds the lock.

    Raises `LogCorrupt`, `LogTampered`, `LogError` (the copy does not read back) and `OSError`; with
    an anchor, before anything was changed, `AnchorUnfit` instead of the first two.
    """
    names = layer.listdir(directory)
    if anchor is not None and (CLEAN not in names or POISONED in names):
        raise AnchorUnfit("the log was not closed in order")
    for name in names:
        if name.endswith(".tmp"):  # made by a process that died before it was worth a name
            layer.unlink(os.path.join(directory, name))
    clean = _mark(layer, directory, CLEAN, names)
    poisoned = _mark(layer, directory, POISONED, names)

    def read(path: str) -> bytes:
        return layer.read(path) if poisoned is None else layer.read_back(path)[0]

    walk = _Walker(directory, read, floors, anchor, clean=clean is not None)
    try:
        walk.walk(segment_names(names))
        _check_floors(walk.out.state, walk.prefixes)
        _check_clean(walk.out.state, clean)
    except LogCorrupt as error:
        if anchor is None:
            raise
        raise AnchorUnfit(error.message) from error
    if anchor is not None and walk.prefixes.agreed <= anchor.entries:
        raise AnchorUnfit("no checkpoint above it was reached")
    out = walk.out
    out.tree = walk.prefixes.tree
    report = out.report
    report.unread = anchor.entries if anchor is not None else 0
    report.borders = tuple(walk.borders)
    report.clean = clean is not None or not out.index
    report.poisoned = printable(str((poisoned or {}).get("error", "")), 500)
    report.entries = out.state.next_seq
    report.head = out.state.hash.hex()
    kept = os.path.join(directory, KEPT)
    layer.mkdir(kept)
    if walk.cut:
        cut = f"cut-{out.state.next_seq}-{digest(walk.cut)}.bin"
        write_new(layer, os.path.join(kept, cut), walk.cut)
    if clean is None and out.index:
        _copy_last(directory, layer, walk, keep=poisoned is not None)
    layer.sync_directory(directory)
    report.cuts = _cuts(layer, kept)
    return out


def forget_marks(directory: str, layer: FileLayer) -> None:
    """Remove `clean` and `poisoned`, durably, before anything is written."""
    found = [name for name in (CLEAN, POISONED) if layer.exists(os.path.join(directory, name))]
    for name in found:
        layer.unlink(os.path.join(directory, name))
    if found:
        layer.sync_directory(directory)


def mark_clean(directory: str, layer: FileLayer, state: State) -> None:
    """Say that everything up to `state` is durable and the writer has gone."""
    data = encode({"entries": state.next_seq, "head": state.hash.hex()})
    write_new(layer, os.path.join(directory, CLEAN), data)


def mark_poisoned(directory: str, layer: FileLayer, error: BaseException) -> None:
    """Say that a sync failed. May itself fail with `OSError`; recovery does not depend on it."""
    data = encode({"error": printable(repr(error), 500)})
    write_new(layer, os.path.join(directory, POISONED), data)


def acknowledge_cuts(directory: str, layer: FileLayer) -> None:
    """Rename side files whose digests now stand in a durable entry, so they aren't reported again.

    Raises `OSError`.
    """
    kept = os.path.join(directory, KEPT)
    for cut in _cuts(layer, kept):
        path = os.path.join(kept, cut.file)
        layer.rename(path, os.path.join(kept, "recorded-" + cut.file))
    layer.sync_directory(kept)


def _cuts(layer: FileLayer, kept: str) -> tuple[Cut, ...]:
    found = []
    for name in sorted(layer.listdir(kept)):
        if match := _CUT.fullmatch(name):
            size = len(layer.read(os.path.join(kept, name)))
            found.append(Cut(int(match[1]), size, match[2], name))
    return tuple(found)


def _mark(
    layer: FileLayer, directory: str, name: str, names: list[str]
) -> dict[str, object] | None:
    if name not in names:
        return None
    try:
        value = decode(layer.read(os.path.join(directory, name)))
    except CanonicalError:
        value = None
    if not isinstance(value, dict):
        raise LogCorrupt(0, f"the file '{name}' beside the log is not as Authority writes it")
    return value


class _Walker:
    """Reads the segments in order and finds where the log ends, refusing what no crash explains."""

    def __init__(
        self,
        directory: str,
        read: Callable[[str], bytes],
        floors: Iterable[Floor],
        anchor: Anchor | None,
        *,
        clean: bool,
    ) -> None:
        self._directory = directory
        self._read = read
        self._clean = clean
        self.out = Recovered()
        self._first = 1
        self.borders: list[Anchor] = []
        if anchor is None:
            self.prefixes = Prefixes(floors)
        else:
            self.prefixes = Prefixes(floors, anchor.tree())
            self.out.state, self._first = anchor.state, anchor.segment
        self.data = b""
        """What the last segment with entries holds now, zeros and damage included."""
        self.cut = b""
        """What has to go from its end."""

    def walk(self, names: list[str]) -> None:
        for position, name in enumerate(names):
            if index_of(name) != position + 1:
                raise LogTampered(
                    self.out.state.next_seq,
                    f"segment {name_of(position + 1)} is missing from the log",
                )
            if index_of(name) < self._first:
                continue
            raw = self._read(os.path.join(self._directory, name))
            content = without_zeros(raw)
            if content:
                self._segment(name, raw, content)
            elif not self.out.index:
                self.out.index, self.data = index_of(name), raw

    def _segment(self, name: str, raw: bytes, content: bytes) -> None:
        out = self.out
        expected = out.state.next_seq
        if self.cut:
            raise LogCorrupt(expected, f"entry {expected} is damaged and {name} follows it")
        if out.used and (len(self.data) != out.used or index_of(name) != out.index + 1):
            raise LogCorrupt(expected, f"{name_of(out.index)} was not sealed but {name} follows it")
        if not out.used and index_of(name) != self._first:
            raise LogCorrupt(expected, f"{name} holds entries but the segment before it none")
        lines, rest = _complete_lines(content)
        head = head_of(lines[0]) if lines else None
        if head is not None and head.seq == expected and head.batch != expected:
            raise LogCorrupt(expected, f"{name} begins inside a batch")
        self.borders.append(
            Anchor(index_of(name), expected, out.state.hash, self.prefixes.tree.edge)
        )
        reason = ""
        try:
            state = follow(lines, out.state)
        except BadLine as error:
            state, reason = error.state, error.reason
            lines = lines[: error.index]
        self.prefixes.add_lines(lines)
        out.state = state
        out.index, self.data = index_of(name), raw
        out.used = sum(map(len, lines)) + len(lines)
        if reason or rest:
            reason = reason or f"entry {state.next_seq} is damaged: its line is not whole"
            self.cut = content[out.used :]
            self._must_be_torn(reason)

    def _must_be_torn(self, reason: str) -> None:
        """Raise `LogCorrupt` unless `cut` is what a crash can leave."""
        state, rest = self.out.state, self.cut
        expected = state.next_seq
        if expected < self.prefixes.highest:
            raise LogCorrupt(expected, f"{reason}; a checkpoint covers this entry")
        if self._clean:
            raise LogCorrupt(expected, f"{reason}; the log was closed in order: this is no crash")
        lines = rest.split(b"\n")
        for line in lines[:-1]:
            head = head_of(line)
            if head is None:
                continue
            if head.batch > expected:
                raise LogCorrupt(
                    expected, f"{reason}; entry {head.seq} of a later batch behind it is intact"
                )
            if head.seq < expected or head.batch not in {expected, state.batch}:
                raise LogCorrupt(expected, f"{reason}; entry {head.seq} stands behind it")
        if problem := _not_a_tear(rest, self.out.used):
            raise LogCorrupt(expected, f"{reason}; {problem}")


def _not_a_tear(rest: bytes, offset: int) -> str:
    """Why no crash leaves `rest` at `offset` of a zeroed file, or nothing if one can."""
    first, newline, _ = rest.partition(b"\n")
    if newline and b"\0" not in first:
        return "a crash leaves zeros, not a whole line of other bytes"
    if not plain(rest):
        return "bytes that no entry holds stand there"
    last = rest.rpartition(b"\n")[2]
    if _BEYOND.search(last):
        return "bytes follow the end of a line"
    if b"\0" not in rest:
        return ""  # one line without its end: writing stopped in it
    start = offset
    while start < offset + len(rest):
        end = min((start // SECTOR + 1) * SECTOR, offset + len(rest))
        piece = rest[start - offset : end - offset]
        if b"\0" in piece and piece.strip(b"\0"):
            return "zeros begin or end inside a sector, which no crash leaves"
        start = end
    return ""


def _complete_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines up to the first with a byte that no entry holds, and what follows them."""
    lines = content.split(b"\n")
    if not plain(content):
        for index, line in enumerate(lines):
            if not plain(line):
                return lines[:index], b"\n".join(lines[index:])
    return lines[:-1], lines[-1]


def _check_floors(state: State, prefixes: Prefixes) -> None:
    wrong = prefixes.contradicted
    if wrong is not None:
        raise LogTampered(
            prefixes.agreed,
            f"an entry from {prefixes.agreed} to {wrong.size - 1} is not the one that "
            f"{wrong.source} vouches for",
        )
    if prefixes.unreached:
        floor = prefixes.unreached[-1]
        raise LogTampered(
            state.next_seq,
            f"the log ends before entry {state.next_seq}, but {floor.source} vouches for "
            f"{floor.size}: entries {state.next_seq} to {floor.size - 1} are gone",
        )


def _check_clean(state: State, clean: dict[str, object] | None) -> None:
    if clean is None or clean == {"entries": state.next_seq, "head": state.hash.hex()}:
        return
    raise LogTampered(
        state.next_seq,
        f"the log was closed in order with {printable(str(clean.get('entries')), 40)} entries, "
        f"and now holds {state.next_seq} or ends in another hash",
    )


def _copy_last(directory: str, layer: FileLayer, walk: _Walker, *, keep: bool) -> None:
    """Put a fresh, verified copy of the last segment in place of one whose pages are in doubt."""
    out = walk.out
    name = name_of(out.index)
    path = os.path.join(directory, name)
    good = walk.data[: out.used] + bytes(len(walk.data) - out.used)
    temporary = path + ".tmp"
    fd = layer.open(temporary, create=True)
    try:
        write_all(layer, fd, good, 0)
        layer.fsync(fd)
    finally:
        layer.close(fd)
    # The copy must have a name on the disk before it is read back as what the disk holds.
    layer.sync_directory(directory)
    stored, how = layer.read_back(temporary)
    if stored != good:
        raise LogError(
            f"the copy of {name} does not read back from the disk as it was written",
            "the disk is failing: copy the state directory to another one before anything else",
        )
    kept = _free_name(layer, os.path.join(directory, KEPT), name)
    if keep:
        layer.link(path, kept)
        layer.sync_directory(os.path.join(directory, KEPT))
        out.report.kept = os.path.basename(kept)
    layer.rename(temporary, path)  # `recover` syncs the folder
    out.report.copied = name
    out.report.read_back = how


def _free_name(layer: FileLayer, folder: str, name: str) -> str:
    number = 1
    while layer.exists(os.path.join(folder, f"{name}.{number}")):
        number += 1
    return os.path.join(folder, f"{name}.{number}")
