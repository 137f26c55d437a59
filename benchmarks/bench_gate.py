"""The whole gate, a real process, beside the raw disk: requests that need one awaited commit.

Rules
- The gate is started as `authority attach` starts it, on a temporary state directory, and is stopped
  by its own API. The clients are attached ones on its socket (`gate_load`). A request is `fs.stat`
  or `fs.read` of a small file with a capability: parsed, judged, recorded, performed, recorded
  again, and answered when that is durable.
- Only ratios to the disk count, and only while a raw sync is under 200 us: each round measures the
  raw rate right before and right after, and the median of the rounds' ratios is reported.
- Processor time is the gate's own, all threads, beside that of a bare echo server which gets the
  same frames from as many clients.
- A sync is a batch: the log writes one batch with one `fdatasync`. Checkpoints are not counted.
- Memory is the gate's resident set after 5,000 requests, and after many more, in a gate of its own.
- Every wait is bounded; a gate that hangs is killed and the benchmark fails.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from authority.audit import query
from authority.audit.store import ContentStore
from authority.gate import snapshots
from authority.matrix.live import Live, live
from benchmarks.bench_log import SLOW_US, raw_rate
from benchmarks.gate_load import (
    EchoLoad,
    Load,
    LoadError,
    echo_server,
    processor_seconds,
    resident_kib,
)

TARGETS = {(1, 1): 0.5, (16, 1): 2.5, (64, 1): 2.5, (64, 16): 8.0}
"""(clients, requests a frame): times the raw sync rate."""
STRETCH = {(64, 1): 4.5}
READ_US = 400.0
WARM, MEMORY_PERCENT = 5_000, 10.0
REBUILD_SECONDS = 10.0
GATE_SECONDS = 420.0
_POLICY = """version = 1
[filesystem]
read = ["./data/**"]
[budgets]
wall_time = "30m"
requests = 1_000_000_000
file_bytes = "1TB"
"""


class _Gate:
    """A real gate with one attached run."""

    def __init__(self, made: Live, token: bytes) -> None:
        self.directory, self.root, self._token = made.directory, made.root, token
        starts = [e for e in made.entries() if e["kind"] == "gate.start"]
        self.pid = int(starts[-1]["identity"]["pid"])

    def load(self, clients: int, total: int, per_frame: int = 1, effect: str = "fs.stat") -> Load:
        """About `total` requests, not yet sent."""
        frames = max(1, total // clients // per_frame)
        path = str(self.directory.attach_socket)
        return Load(path, self._token, clients, frames, per_frame=per_frame, effect=effect)

    def why(self) -> str:
        """What the gate left behind when it should have gone on: its output, its last entries."""
        said = self.directory.gate_output.read_text("utf-8", "replace")[-2000:].strip()
        quiet = {"admit", "outcome", "checkpoint"}
        kinds = [e for e in query.read(self.directory.log) if e["kind"] not in quiet][-4:]
        lives = Path(f"/proc/{self.pid}").exists()
        return f"process {'lives' if lives else 'is gone'}; it said {said!r}; last entries {kinds}"


@contextmanager
def _gate() -> Iterator[_Gate]:
    """A gate, gone at the end; killed when that takes longer than `GATE_SECONDS`."""
    with live() as made, made.deadline(GATE_SECONDS), made.attached(_POLICY) as attached:
        gate = _Gate(made, attached.token)
        try:
            yield gate
        except LoadError as error:
            raise LoadError(f"{error}; {gate.why()}") from error


def _row(
    name: str, value: float, unit: str, target: Any, ok: bool | None, detail: Any
) -> dict[str, Any]:
    return {
        "name": f"gate, {name}", "value": value, "unit": unit, "target": target, "ok": ok,
        "detail": detail,
    }  # fmt: skip


def _ratios(gate: _Gate, folder: str, quick: bool) -> list[dict[str, Any]]:
    """Rates as ratios to the raw sync, and how many entries shared a sync."""
    rows = []
    rounds = 3 if quick else 5
    gate.load(16, 1000).rate()
    for (clients, per_frame), target in TARGETS.items():
        total = (400 if clients == 1 else 2500) * min(per_frame, 4) * (1 if quick else 3)
        ratios, raws, rates, spans = [], [], [], []
        for _ in range(rounds):
            before = raw_rate(folder, 300)
            load = gate.load(clients, total, per_frame)
            rate = load.rate()
            raw = (before + raw_rate(folder, 300)) / 2
            ratios.append(rate / raw)
            raws.append(raw)
            rates.append(rate)
            spans.append((load.first_seq, load.last_seq))
        value, sync_us = statistics.median(ratios), 1e6 / statistics.median(raws)
        judged = sync_us < SLOW_US
        count, batches = _batches(gate, spans)
        detail: dict[str, Any] = {
            "requests_per_s": round(statistics.median(rates)),
            "raw_sync_us": round(sync_us, 1),
            "judged": judged,
            "best": round(max(ratios), 2),
            "syncs_per_entry": round(batches / count, 3),
        }
        if (clients, per_frame) in STRETCH:
            detail["stretch"] = STRETCH[clients, per_frame]
        plural = "client" if clients == 1 else "clients"
        name = f"{clients} {plural}" + (f", {per_frame} requests a frame" * (per_frame > 1))
        ok = value >= target if judged else None
        rows.append(_row(f"{name}: times the raw fdatasync rate", round(value, 2), "x",
                         f">= {target}", ok, detail))  # fmt: skip
    return rows


def _batches(gate: _Gate, spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Entries between the first and the last receipt of each load, and the batches they lie in."""
    count, batches = 0, set()
    for entry in query.read(gate.directory.log):
        if any(first <= entry["seq"] <= last for first, last in spans):
            count += 1
            batches.add(entry["batch"])
    return count, len(batches)


def _costs(gate: _Gate, quick: bool) -> list[dict[str, Any]]:
    """Processor time a request, and that of an echo."""
    rows = []
    for per_frame in (1, 16):
        total = 10_000 if quick else 30_000
        load = gate.load(64, total, per_frame)
        before = processor_seconds(gate.pid)
        load.rate()
        cost = (processor_seconds(gate.pid) - before) / load.total * 1e6
        path = gate.root / f"echo-{per_frame}"
        with echo_server(path) as pid:
            bare = EchoLoad(str(path), b"x" * 200, 64, load.total // 64 // per_frame,
                            per_frame=per_frame)  # fmt: skip
            before = processor_seconds(pid)
            bare.rate()
            echo = (processor_seconds(pid) - before) / bare.total * 1e6
        name = "one request" if per_frame == 1 else f"one request of {per_frame} in a frame"
        detail = {"echo_us": round(echo, 1), "clients": 64, "requests": load.total}
        rows.append(_row(f"processor time of {name}", round(cost, 1), "us", "reported", None,
                         detail))  # fmt: skip
    return rows


def _latency(gate: _Gate, folder: str, quick: bool) -> list[dict[str, Any]]:
    """A mediated read at one client, without the sync that it waits for."""
    count = 500 if quick else 1500
    before = _raw_median(folder, 300)
    load = gate.load(1, count, effect="fs.read")
    load.rate()
    raw = (before + _raw_median(folder, 300)) / 2 * 1e6
    whole = statistics.median(load.latencies) * 1e6
    value = whole - raw
    detail = {
        "whole_us": round(whole, 1),
        "raw_sync_us": round(raw, 1),
        "judged": raw < SLOW_US,
        "p99_us": round(statistics.quantiles(load.latencies, n=100)[98] * 1e6, 1),
    }
    ok = value <= READ_US if raw < SLOW_US else None
    return [_row("mediated read of a small file, median, the sync left out", round(value, 1), "us",
                 f"<= {READ_US:.0f}", ok, detail)]  # fmt: skip


def _raw_median(folder: str, count: int) -> float:
    """Median seconds of one 512-byte write and `fdatasync` into a zeroed file."""
    path = os.path.join(folder, "raw-median")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, bytes(512 * count), 0)
        os.fsync(fd)
        times = []
        for number in range(count):
            begin = time.perf_counter()
            os.pwrite(fd, b"x" * 512, number * 512)
            os.fdatasync(fd)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    finally:
        os.close(fd)
        os.unlink(path)


def _memory(gate: _Gate, quick: bool) -> list[dict[str, Any]]:
    more = 10_000 if quick else 100_000
    gate.load(64, WARM, 16).rate()
    before = resident_kib(gate.pid)
    points = [before]
    for _ in range(5):
        gate.load(64, more // 5, 16).rate()
        points.append(resident_kib(gate.pid))
    growth = (points[-1] / before - 1) * 100
    detail = {"mib": [round(point / 1024, 1) for point in points]}
    return [_row(f"memory, growth over {more:,} requests", round(growth, 1), "%",
                 f"<= {MEMORY_PERCENT:.0f}", growth <= MEMORY_PERCENT, detail)]  # fmt: skip


def _rebuild(gate: _Gate) -> list[dict[str, Any]]:
    """The fold of the log that `_memory` left, from the beginning and from a snapshot."""
    directory = gate.directory
    count = sum(1 for _ in query.lines(directory.log))
    store = ContentStore(directory.store, keys=directory.keys / "sealed")
    begin = time.perf_counter()
    snapshots.fold(directory.log, store, 0, snapshots.BEGINNING, lambda: iter(()))
    whole = time.perf_counter() - begin
    begin = time.perf_counter()
    short = snapshots.fold(directory.log, store, count, snapshots.BEGINNING, lambda: iter(()))
    seconds = time.perf_counter() - begin
    scaled = whole / count * 100_000
    detail = {
        "entries": count,
        "entries_per_s": round(count / whole),
        "with_snapshot_s": round(seconds, 2) if short.start >= 0 else None,
        "snapshot_at": short.start,
    }
    return [_row("state rebuilt, for 100,000 entries", round(scaled, 2), "s",
                 f"<= {REBUILD_SECONDS:.0f}", scaled <= REBUILD_SECONDS, detail)]  # fmt: skip


def run(quick: bool) -> list[dict[str, Any]]:
    """Rates, processor time, latency, memory, and the way back to the state."""
    with tempfile.TemporaryDirectory(prefix="authority-bench-") as folder:
        Path(folder).chmod(0o755)
        with _gate() as gate:
            raw_rate(folder, 50)
            rows = _ratios(gate, folder, quick)
            rows += _latency(gate, folder, quick)
            rows += _costs(gate, quick)
        with _gate() as gate:
            return rows + _memory(gate, quick) + _rebuild(gate)
