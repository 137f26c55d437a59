"""INV-4, the log is whole: bits flipped, entries removed, rewritten, cut off.

The log is that of a live gate, with a contained run in it; the gate is stopped, its log copied, and
each attack changes a copy. Finding a change is not enough: the entry must be named. The auditor has
the log's public key and the witness's memory, nothing else.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from authority.audit import checkpoints, query
from authority.audit.checkpoints import Checkpointer
from authority.audit.notes import VerifyKey
from authority.audit.verification import Report, verify
from authority.audit.witness import DirectoryWitness
from authority.audit.writer import Log
from authority.gate.client import GateError, ensure
from authority.gate.statedir import StateDir
from authority.kernel import entries
from authority.matrix.live import POLICY, Live
from authority.matrix.verdict import Attempt, Result, Row
from authority.matrix.wire import Ask

FLIP = Row("INV-4", "log bit flip", "every changed bit is found and its entry named")
DELETION = Row("INV-4", "entry deletion", "what was removed is noticed and named")

SEGMENT_BYTES = 8192
MARK = b',"hash":"'
GENESIS = bytes(32)


class Evidence:
    """A log that a gate wrote, as an auditor has it: segment bytes, key, witness."""

    def __init__(self, live: Live, scratch: Path) -> None:
        self.live = live
        self.log = scratch / "log"
        self.key: VerifyKey = checkpoints.load_key(live.directory.signing_key).public
        self.witness = DirectoryWitness(live.directory.witness)
        shutil.copytree(live.directory.log, self.log)
        self.segment = next(iter(sorted(self.log.glob("*.jsonl"))))
        self.lines = list(query.lines(self.log))
        self.whole = b"".join(line + b"\n" for line in self.lines)
        self.segment.write_bytes(self.whole)

    def report(self, content: bytes | None = None) -> Report:
        """What the auditor finds when the log has this content."""
        if content is not None:
            self.segment.write_bytes(content)
        try:
            return verify(self.log, key=self.key, witnesses=[self.witness])
        finally:
            if content is not None:
                self.segment.write_bytes(self.whole)

    def start(self, seq: int) -> int:
        """The offset of an entry."""
        return sum(len(line) + 1 for line in self.lines[:seq])


def prepare(live: Live) -> None:
    """Something to read later: a contained run and requests of an attached one, then no gate."""
    live.run_argv([sys.executable, "-c", "for i in range(5): print('line', i, flush=True)"], POLICY)
    with live.attached() as run:
        wire = run.wire()
        for path in ("data/a.txt", "data/b.txt", "/etc/hostname"):
            wire.ask(Ask("fs.read", path, capability=run.token), Ask("fs.stat", path))
        wire.ask(Ask("fs.write", "out/x", {"data": b"x" * 100}, run.token))
    live.stop()


def found(name: str, report: Report, seq: int, *, exactly: bool = True) -> Attempt:
    """An attempt that works when the change goes unseen, or another entry is blamed.

    Not `exactly`: the chain was made whole again, so only checkpoints tell, and they tell up to
    which entry the log is the old one; that some entry is named is all that can be asked.
    """
    bad = report.first_bad
    right = bad is not None and (bad == seq or not exactly)
    if report.ok:
        return Attempt(f"{name} {seq}", True, "not noticed")
    detail = "found and named" if right else f"entry {bad} was named: {report.problem}"
    return Attempt(f"{name} {seq}", not right, detail)


def refuses(live: Live, scratch: Path, name: str, change: Callable[[Path], None]) -> Attempt:
    """A gate on a changed copy of the state directory: an attempt that works when it opens."""
    copy = StateDir(scratch / f"state-{secrets.token_hex(4)}")
    shutil.copytree(live.directory.root, copy.root, ignore=shutil.ignore_patterns("*.sock"))
    change(next(iter(sorted(copy.log.glob("*.jsonl")))))
    other = Live.on(copy, live)
    try:
        ensure(copy)
    except GateError:
        return Attempt(name, False, "the gate refused to open it")
    other.stop()
    return Attempt(name, True, "the gate opened it")


def bit_flip(live: Live, scratch: Path) -> Result:
    """Test 11."""
    seed = secrets.randbits(32)
    dice = random.Random(seed)  # noqa: S311
    log = Evidence(live, scratch)
    clean = log.report()
    attempts: list[Attempt] = []
    readable = 0
    chosen = len(log.lines) // 2
    places = [(chosen, at) for at in range(len(log.lines[chosen]) + 1)]
    places += [(seq, dice.randrange(len(line) + 1)) for seq, line in enumerate(log.lines)]
    for seq, at in places:
        changed = bytearray(log.whole)
        changed[log.start(seq) + at] ^= 1 << dice.randrange(8)
        readable += parses(bytes(changed))
        attempts.append(found("flip in entry", log.report(bytes(changed)), seq))

    def flip(segment: Path) -> None:
        content = bytearray(segment.read_bytes())
        content[log.start(chosen) + 30] ^= 1
        segment.write_bytes(content)

    attempts.append(refuses(live, scratch, "a gate on it", flip))
    untouched = refuses(live, scratch, "", lambda _: None)
    controls = [
        Attempt("the untouched log verifies", clean.ok, f"{clean.entries} entries"),
        Attempt("the untouched log opens", untouched.worked, untouched.detail),
        Attempt("a reader without hashes sees nothing", readable > 0, f"{readable} flips"),
    ]
    return FLIP.judge(
        attempts,
        controls,
        at_least=len(places),
        evidence=f"each of {len(log.lines[chosen]) + 1} bytes of entry {chosen}, one bit of each of "
        f"{len(log.lines)} entries, seed {seed}",
    )


def parses(content: bytes) -> bool:
    """Whether every line is still an entry for somebody who does not look at the hashes."""
    try:
        for line in content.splitlines():
            entries.decode(line)
    except entries.EntryError:
        return False
    return True


def rehashed(lines: Sequence[bytes]) -> bytes:
    """The chain made whole again over these entries, with new numbers: what somebody can do who may
    write the file and does not have the signing key."""
    previous, out = GENESIS, []
    for seq, line in enumerate(lines):
        entry = entries.decode(line)
        entry.seq = seq
        entry.batch = min(entry.batch, seq)
        body = entries.encode(entry)[:-1]
        previous = hashlib.sha256(previous + body).digest()
        out.append(body + MARK + previous.hex().encode() + b'"}\n')
    return b"".join(out)


def removals(log: Evidence) -> Iterator[tuple[str, int, bytes, bool]]:
    """Name, entry, content, whether exactly this entry must be named."""
    lines = log.lines
    count = len(lines)

    def joined(kept: Sequence[bytes]) -> bytes:
        return b"".join(line + b"\n" for line in kept)

    for seq in range(count):
        yield "delete entry", seq, joined(lines[:seq] + lines[seq + 1 :]), True
        if seq:
            yield "rehash without entry", seq, rehashed(lines[:seq] + lines[seq + 1 :]), False
        yield "cut off from entry", seq, joined(lines[:seq]), True
    for seq in range(1, count - 1, 5):
        swapped = [*lines[:seq], lines[seq + 1], lines[seq], *lines[seq + 2 :]]
        yield "swap entry", seq, joined(swapped), True
        yield "repeat entry", seq + 1, joined([*lines[: seq + 1], *lines[seq:]]), True
        yield "replace by another", seq, joined([*lines[:seq], lines[0], *lines[seq + 1 :]]), True
        yield "zero entry", seq, log.whole.replace(lines[seq], bytes(len(lines[seq]))), True
    yield "remove half a line of entry", count - 1, log.whole[: -len(lines[-1]) // 2], True
    yield "cut the newline of entry", count - 1, log.whole[:-1], True


def deletion(live: Live, scratch: Path) -> Result:
    """Test 12."""
    log = Evidence(live, scratch)
    clean = log.report()
    attempts = [
        found(name, log.report(content), seq, exactly=exactly)
        for name, seq, content, exactly in removals(log)
    ]
    last = len(log.lines) - 1
    log.segment.unlink()
    attempts.append(found("remove the whole log", log.report(), 0))
    log.segment.write_bytes(log.whole[: log.start(last)])
    shutil.rmtree(log.log / checkpoints.FOLDER)
    attempts.append(found("cut off, and the checkpoints too", log.report(), last))
    segments, controls = segment_removals(log, scratch)
    attempts += segments

    def cut(segment: Path) -> None:
        segment.write_bytes(log.whole[: log.start(last)])

    def rewrite(segment: Path) -> None:
        segment.write_bytes(rehashed(log.lines[:-2] + log.lines[-1:]))

    attempts += [
        refuses(live, scratch, "a gate without the last entry", cut),
        refuses(live, scratch, "a gate on a rewritten end", rewrite),
    ]
    rebuilt = rehashed(log.lines) == log.whole
    controls += [
        Attempt("the untouched log verifies", clean.ok, f"{clean.entries} entries"),
        Attempt("rehashing the untouched log gives it again", rebuilt),
    ]
    return DELETION.judge(
        attempts,
        controls,
        at_least=3 * len(log.lines),
        evidence=f"each of {len(log.lines)} entries, checkpoint at {clean.covered}",
    )


def segment_removals(log: Evidence, scratch: Path) -> tuple[list[Attempt], list[Attempt]]:
    """The same entries in a log of several small segments; each segment removed, and two swapped."""
    folder = scratch / "segments"
    signing = checkpoints.load_key(log.live.directory.signing_key)
    with_segments = Log.open(folder, segment_bytes=SEGMENT_BYTES)
    maker = Checkpointer(with_segments, signing, folder)
    for line in log.lines * 3:
        entry = entries.decode(line)
        entry.seq, entry.batch = with_segments.next_seq, with_segments.next_batch
        with_segments.append(entries.encode(entry))
        with_segments.flush()
    maker.force_now()
    maker.close()
    with_segments.close()
    clean = verify(folder, key=log.key)
    attempts = []
    segments = [s for s in sorted(folder.glob("*.jsonl")) if s.read_bytes()[:1] == b"{"]
    firsts = [entries.decode(s.read_bytes().split(b"\n", 1)[0]).seq for s in segments]
    for segment, first in zip(segments, firsts, strict=True):
        content = segment.read_bytes()
        segment.unlink()
        report = verify(folder, key=log.key)
        attempts.append(found("remove the segment that begins with entry", report, first))
        segment.write_bytes(content)
    first_two = [s.read_bytes() for s in segments[:2]]
    segments[0].write_bytes(first_two[1])
    attempts.append(found("a segment in another's place, entry", verify(folder, key=log.key), 0))
    return attempts, [
        Attempt("the log of segments verifies", clean.ok, f"{len(segments)} segments"),
        Attempt("it has several", len(segments) > 2, f"{len(segments)}"),
    ]
