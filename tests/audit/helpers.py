"""What the audit tests share: building small logs through the real writer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from authority.audit import Log
from authority.kernel.canonical import encode

MICROSECONDS = 1_763_925_000_000_000


def line_for(log: Log, **members: Any) -> bytes:
    """The next entry's canonical JSON."""
    entry = {
        "seq": log.next_seq,
        "batch": log.next_batch,
        "time": MICROSECONDS + log.next_seq,
        "kind": "test",
        **members,
    }
    return encode(entry)


def build(path: Path, batches: list[int], *, segment_bytes: int = 1 << 16, pad: int = 40) -> Path:
    """A cleanly closed log with that many entries in each batch."""
    log = Log.open(path, segment_bytes=segment_bytes)
    for count in batches:
        for _ in range(count):
            log.append(line_for(log, note="n" * pad, run="r1"))
        log.flush()
    log.close()
    return path


def content(path: Path) -> bytes:
    """All stored lines of a log's segments, zeros cut off."""
    return b"".join(p.read_bytes().rstrip(b"\0") for p in sorted(path.glob("*.jsonl")))


def crashed_copy(path: Path, to: Path) -> Path:
    """The log as if its process had died: nothing says that it was closed in order."""
    shutil.copytree(path, to)
    (to / "clean").unlink(missing_ok=True)
    return to


def rewrite(path: Path, data: bytes, index: int = 1) -> None:
    """Replace a segment's content, keeping the file's length where it is longer."""
    file = path / f"{index:08d}.jsonl"
    size = file.stat().st_size
    file.write_bytes(data + bytes(max(0, size - len(data))))


def forge(lines: list[bytes], start: int, change: Any) -> list[bytes]:
    """Rewrite entry `start` with `change(body)` and chain everything behind it again."""
    from authority.audit.chain import GENESIS, TAIL, seal, stored_hash

    out = list(lines[:start])
    previous = (stored_hash(out[-1]) or b"") if out else GENESIS
    for number, line in enumerate(lines[start:]):
        body = line[:-TAIL] + b"}"
        if number == 0:
            body = change(body)
        previous, sealed = seal(previous, body)
        out.append(sealed[:-1])
    return out
