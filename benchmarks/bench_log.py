"""Durable appends beside the raw disk and SQLite, in one run.

Rules
- Only ratios count: a machine's sync takes 100 us in one minute and 4 ms in the next. Each round
  measures the raw rate right before and right after the log, and the median of the rounds' ratios is
  reported. A ratio is judged only while the raw sync is under 200 us.
- Raw: one thread, `pwrite` of 512 bytes into a zeroed file and `fdatasync`, one after the other.
- Ours: N clients in one event loop, each appends an entry of 512 bytes and, told that it is durable,
  the next; with hash chain, Merkle tree and all checks. Lines are formatted beforehand but for
  their numbers. The first quarter is not timed: the first segments are small.
- SQLite: `synchronous=FULL`, WAL, N threads with a connection each, one insert a transaction.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

TARGETS = {1: 0.7, 16: 8.0, 64: 20.0}
SLOW_US = 200.0


def raw_rate(folder: str, count: int) -> float:
    """Syncs a second of 512-byte writes into a zeroed file."""
    path = os.path.join(folder, "raw")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, bytes(512 * count), 0)
        os.fsync(fd)
        block = b"x" * 511 + b"\n"
        begin = time.perf_counter()
        for number in range(count):
            os.pwrite(fd, block, number * 512)
            os.fdatasync(fd)
        return count / (time.perf_counter() - begin)
    finally:
        os.close(fd)
        os.unlink(path)


async def _appends(directory: str, writers: int, each: int) -> float:
    from authority.audit import Log

    log = Log.open(directory)
    rest = b',"kind":"decision","pad":"' + b"p" * 340 + b'","run":"r1"'
    warm = writers * each // 3
    left = writers * each + warm
    waiting = writers
    begin = 0.0
    finished = asyncio.get_running_loop().create_future()

    def go(error: BaseException | None) -> None:
        nonlocal left, waiting, begin
        if error is not None:
            raise error
        if left > 0:
            if left == writers * each:
                begin = time.perf_counter()
            left -= 1
            line = b'{"batch":%d%b,"seq":%d,"time":1763925000000000}'
            receipt = log.append(line % (log.next_batch, rest, log.next_seq))
            log.when_durable(receipt.seq, go)
        else:
            waiting -= 1
            if not waiting:
                finished.set_result(None)

    for _ in range(writers):
        go(None)
    await finished
    rate = writers * each / (time.perf_counter() - begin)
    log.close()
    return rate


def log_rate(folder: str, writers: int, each: int) -> float:
    """Durable entries a second with that many concurrent writers."""
    import uvloop

    with tempfile.TemporaryDirectory(dir=folder) as place:
        return float(uvloop.run(_appends(os.path.join(place, "log"), writers, each)))


def sqlite_rate(folder: str, writers: int, each: int) -> float:
    """Durable inserts a second with that many threads."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = os.path.join(place, "db")
        with sqlite3.connect(path) as first:
            first.execute("PRAGMA journal_mode=WAL")
            first.execute("CREATE TABLE log (seq INTEGER PRIMARY KEY, line BLOB)")
        first.close()
        line = b"p" * 512

        def work() -> None:
            connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            connection.execute("PRAGMA synchronous=FULL")
            for _ in range(each):
                connection.execute("INSERT INTO log (line) VALUES (?)", (line,))
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(writers)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return writers * each / (time.perf_counter() - begin)


def append_us(folder: str, count: int) -> float:
    """Microseconds of one `append`, the disk left out."""
    from authority.audit import Log

    with tempfile.TemporaryDirectory(dir=folder) as place:
        log = Log.open(os.path.join(place, "log"))
        pad = b"p" * 400
        best = float("inf")
        for _ in range(5):
            lines = [
                b'{"batch":%d,"kind":"x","pad":"%b","seq":%d,"time":1}'
                % (log.next_seq, pad, log.next_seq + number)
                for number in range(count)
            ]
            log.batch_bytes = 1 << 30
            begin = time.perf_counter()
            for line in lines:
                log.append(line)
            best = min(best, (time.perf_counter() - begin) / count * 1e6)
            log.flush()
        log.close()
        return best


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows for one, 16 and 64 writers, SQLite beside them, and the cost of `append`."""
    rounds = 3 if quick else 7
    probe = 200 if quick else 500
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        raw_rate(folder, 50)
        for writers, target in TARGETS.items():
            each = 400 if quick else 1200
            ratios, raws, ours = [], [], []
            for _ in range(rounds):
                before = raw_rate(folder, probe)
                rate = log_rate(folder, writers, each)
                raw = (before + raw_rate(folder, probe)) / 2
                ratios.append(rate / raw)
                raws.append(raw)
                ours.append(rate)
            peer = sqlite_rate(folder, writers, max(5, 200 // writers)) / raw_rate(folder, probe)
            sync_us = 1e6 / statistics.median(raws)
            value = statistics.median(ratios)
            rows.append(
                {
                    "name": f"log, {writers} writers: times the raw fdatasync rate",
                    "value": round(value, 2),
                    "unit": "x",
                    "target": target,
                    "ok": value >= target or sync_us > SLOW_US,
                    "detail": {
                        "entries_per_s": round(statistics.median(ours)),
                        "raw_sync_us": round(sync_us, 1),
                        "judged": sync_us <= SLOW_US,
                        "best": round(max(ratios), 2),
                        "sqlite_full": round(peer, 2),
                    },
                }
            )
        cost = append_us(folder, 2000)
        rows.append(
            {
                "name": "log: one append, the disk left out",
                "value": round(cost, 2),
                "unit": "us",
                "target": None,
                "ok": True,
                "detail": {},
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
