"""Kill -9 of a writing process, again and again: is everything that it acknowledged still there?

Rules
- The child appends from eight tasks and writes number and hash of each entry to a pipe once the log
  said that it is durable. It is killed at a random moment of its life, opening included.
- Afterwards every acknowledged pair must be in the log, and the whole log must verify.
- This shows that no acknowledgement comes before its write. It proves nothing about syncs: the page
  cache survives a kill. `tests/audit/test_power_loss.py` is for that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

WRITER = """
import asyncio, os, sys
from authority.audit import Log
from authority.kernel.canonical import encode

async def main():
    log = Log.open(sys.argv[1], segment_bytes=64 * 1024)
    os.write(1, b"open\\n")
    async def writer():
        while True:
            line = encode({"seq": log.next_seq, "batch": log.next_batch, "time": 1, "kind": "x",
                           "pad": "y" * 200})
            receipt = log.append(line)
            log.when_durable(receipt.seq, lambda e, r=receipt: e or
                os.write(1, b"%d %s\\n" % (r.seq, r.hash.hex().encode())))
            await log.durable(receipt.seq)
    await asyncio.gather(*[writer() for _ in range(8)])

asyncio.run(main())
"""
"""Says `open`, then number and hash of each entry that is durable."""


def cycles(count: int, seed: int = 0) -> dict[str, Any]:
    """Run `count` cycles; how many entries were acknowledged and how many of them are missing."""
    from authority.audit import Log, read, verify

    rng = random.Random(seed)
    acknowledged: dict[int, str] = {}
    killed_while_opening = 0
    with tempfile.TemporaryDirectory() as folder:
        directory = os.path.join(folder, "log")
        for _ in range(count):
            child = subprocess.Popen(
                [sys.executable, "-c", WRITER, directory], stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            if rng.random() < 0.2:
                time.sleep(rng.random() * 0.3)  # anywhere in start, recovery and first batches
            else:
                child.stdout.readline()
                time.sleep(rng.random() * 0.04)
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read().split(b"\n")
            child.wait()
            killed_while_opening += not any(b" " in line for line in said)
            for line in said[:-1]:
                number, _, digest = line.partition(b" ")
                if digest:
                    acknowledged[int(number)] = digest.decode()
        log = Log.open(directory)
        log.close()
        stored = {entry["seq"]: entry["hash"] for entry in read(directory)}
        lost = sum(stored.get(seq) != digest for seq, digest in acknowledged.items())
        report = verify(directory)
    return {
        "cycles": count,
        "acknowledged": len(acknowledged),
        "lost": lost,
        "killed_while_opening": killed_while_opening,
        "verifies": report.ok,
        "problem": report.problem,
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """One row: acknowledged entries that are missing after all kills. The target is none."""
    found = cycles(20 if quick else 1000)
    return [
        {
            "name": f"acknowledged entries lost in {found['cycles']} kills of the log's writer",
            "value": found["lost"],
            "unit": "entries",
            "target": 0,
            "ok": found["lost"] == 0 and found["verifies"] and found["acknowledged"] > 0,
            "detail": found,
        }
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = cycles(options.cycles, options.seed)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["lost"] == 0 and result["verifies"] else 1)
