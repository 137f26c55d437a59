"""How quickly a log is verified, beside the hashing that nobody can avoid, in one run.

Rules
- Processor time, not wall time: other work on the machine is not ours. Files are in the page cache.
- *Hashing alone* hashes the same bytes in the same order, from lines already split in memory.
- Chain: reading, splitting, form, numbers and hash of every line, against one SHA-256 a line.
- Whole: what `verify` does, the Merkle tree included, against three SHA-256 a line (chain, leaf, node).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any


def build(directory: str, count: int) -> None:
    """A log of `count` entries of about 400 bytes."""
    from authority.audit import Log
    from authority.kernel.canonical import encode

    log = Log.open(directory)
    for _ in range(count):
        entry = {
            "batch": log.next_batch,
            "effect": "fs.read",
            "kind": "decision",
            "pad": "p" * 200,
            "resource": "fs:/workspace/docs/a.txt",
            "run": "r1",
            "seq": log.next_seq,
            "time": 1_763_925_000_000_000,
        }
        log.append(encode(entry))
        if log.next_seq % 500 == 0:
            log.flush()
    log.close()


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the quickest round."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def run(quick: bool) -> list[dict[str, Any]]:
    """Two rows: the chain alone and the whole verification, each against its hashing."""
    from authority.audit import verify
    from authority.audit.chain import START, follow
    from authority.audit.reading import Reader

    count = 20_000 if quick else 100_000
    rounds = 3 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        directory = os.path.join(folder, "log")
        build(directory, count)
        lines = [line for block in Reader(directory).blocks() for line in block.lines()]
        bodies = [line[:-75] for line in lines]

        def hashing() -> None:
            previous = bytes(32)
            for body in bodies:
                previous = sha256(previous + body).digest()

        def tree_hashing() -> None:
            hashing()
            node = bytes(32)
            for line in lines:
                leaf = sha256(b"\0" + line).digest()
                node = sha256(b"\1" + node + leaf).digest()

        def chain() -> None:
            state = START
            for block in Reader(directory).blocks():
                state = follow(block.lines(), state)
            assert state.next_seq == count

        def whole() -> None:
            assert verify(directory).entries == count

        rows = []
        for name, work, alone in (
            ("chain verification", chain, hashing),
            ("whole verification with the Merkle tree", whole, tree_hashing),
        ):
            spent, least = best(work, rounds), best(alone, rounds)
            ratio = least / spent
            rows.append(
                {
                    "name": f"{name}: share of hashing alone",
                    "value": round(ratio, 2),
                    "unit": "x",
                    "target": 0.45,
                    "ok": ratio >= 0.45,
                    "detail": {
                        "entries": count,
                        "entries_per_s": round(count / spent),
                        "hashing_per_s": round(count / least),
                    },
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """JSON first, then a table for people."""
    print(json.dumps(rows, indent=1))
    for row in rows:
        mark = "ok" if row["ok"] else "MISSED"
        print(f"{row['name']:<60} {row['value']:>10} {row['unit']:<4} {row['target']!s:>6}  {mark}")


if __name__ == "__main__":
    show(run("--quick" in sys.argv))
