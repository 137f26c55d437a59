"""The whole gate, a real process, beside the raw disk: requests that need one commit.

Rules
- The clients are attached and speak the channel's protocol from one event loop in this process; each
  keeps one frame in flight (closed loop), of one request or of sixteen. A request is `fs.stat` with a
  capability: it is parsed, judged, performed, recorded in two entries and answered when durable.
- The raw probe is one thread that writes 512 bytes into a zeroed file and syncs, right before and
  right after; the median of the rounds' ratios counts, and only while a raw sync is under 200 us.
- Processor time is the gate's own (/proc/PID/stat), beside that of a bare socket echo server.
- Memory is the gate's resident set after 5,000 requests, and after many more.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

from authority import protocol, tokens
from authority.audit import query
from authority.audit.store import ContentStore
from authority.gate import opening, snapshots
from authority.gate.client import client
from authority.gate.policyfile import start_request
from benchmarks.bench_log import SLOW_US, raw_rate

TARGETS = {(1, 1): 0.5, (16, 1): 2.5, (64, 1): 2.5, (64, 16): 8.0}
_POLICY = """version = 1
[filesystem]
read = ["./data/**"]
[budgets]
wall_time = "30m"
"""
_ECHO = """
import asyncio, sys, uvloop
class Echo(asyncio.Protocol):
    def connection_made(self, t): self.t = t
    def data_received(self, d): self.t.write(d)
async def main():
    s = await asyncio.get_running_loop().create_unix_server(Echo, sys.argv[1])
    print("ready", flush=True)
    await s.serve_forever()
uvloop.run(main())
"""


class _Client(asyncio.Protocol):
    """One closed-loop client: the next frame goes out when the last one is answered."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._decoder = protocol.FrameDecoder()
        self._n = 0
        self._missing = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        hello = protocol.encode_hello("bench", self._load.token)
        transport.write(protocol.encode_frame(1, hello))

    def data_received(self, data: bytes) -> None:
        for _, payload in self._decoder.feed(data):
            message = protocol.decode_server_message(payload)
            if isinstance(message, list):
                if any(reply.status for reply in message):
                    raise RuntimeError(f"refused: {message[0].body}")
                self._missing -= len(message)
            elif isinstance(message, protocol.Fatal):
                raise RuntimeError(message.sentence)
            if self._missing == 0:
                self._next()

    def _next(self) -> None:
        load = self._load
        if load.left <= 0:
            load.ended(self._transport)
            return
        load.left -= load.per_frame
        self._missing = load.per_frame
        requests = []
        for _ in range(load.per_frame):
            self._n += 1
            requests.append(
                protocol.Request(self._n, "fs.stat", "data/a.txt", load.arguments, load.token, 0)
            )
        self._transport.write(protocol.encode_frame(1, protocol.encode_requests(requests)))


class _Load:
    """`clients` at once until `total` requests are answered."""

    def __init__(self, path: str, token: bytes, clients: int, per_frame: int, total: int) -> None:
        self.token, self.per_frame, self.left = token, per_frame, total
        self.arguments = protocol.encode_arguments({})
        self._path, self._clients, self._total = path, clients, total
        self._open = clients

    def ended(self, transport: Any) -> None:
        transport.close()
        self._open -= 1
        if not self._open:
            self._done.set_result(None)

    async def _run(self) -> float:
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        begin = time.perf_counter()
        for _ in range(self._clients):
            await loop.create_unix_connection(lambda: _Client(self), self._path)
        await asyncio.wait_for(self._done, 300)
        return self._total / (time.perf_counter() - begin)

    def rate(self) -> float:
        """Answered requests a second."""
        return uvloop.run(self._run())


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Gate:
    """A real gate on a temporary directory, with one attached run."""

    def __init__(self, root: Path) -> None:
        work = root / "work"
        (work / "data").mkdir(parents=True)
        (work / "data" / "a.txt").write_text("hello")
        (work / "p.toml").write_text(_POLICY)
        self.directory, _ = opening.initialise(root / "state")
        body = start_request(work / "p.toml", [], str(work))
        events = client(self.directory).stream("POST", "/v1/attach", body)
        self.token = tokens.from_text(next(events)["capability"])
        threading.Thread(target=lambda: list(events), daemon=True).start()
        starts = [e for e in query.read(self.directory.log) if e["kind"] == "gate.start"]
        self.pid = int(starts[-1]["identity"]["pid"])

    def load(self, clients: int, per_frame: int, total: int) -> float:
        path = str(self.directory.attach_socket)
        return _Load(path, self.token, clients, per_frame, total).rate()

    def stop(self) -> None:
        client(self.directory).call("POST", "/v1/stop", {"force": True})


def _ratios(gate: _Gate, folder: str, quick: bool) -> list[dict[str, Any]]:
    rows = []
    rounds = 2 if quick else 5
    for (clients, per_frame), target in TARGETS.items():
        total = {1: 600, 16: 3000, 64: 6000}[clients] * (1 if quick else 3) * min(per_frame, 4)
        found, slow, rates = [], [], []
        for _ in range(rounds):
            before = raw_rate(folder, 400)
            rate = gate.load(clients, per_frame, total)
            raw = (before + raw_rate(folder, 400)) / 2
            found.append(rate / raw)
            rates.append(rate)
            slow.append(1e6 / raw)
        value, sync = statistics.median(found), statistics.median(slow)
        judged = sync < SLOW_US
        name = f"gate, {clients} clients" + (f", {per_frame} a frame" if per_frame > 1 else "")
        rows.append(
            {
                "name": name,
                "value": round(value, 2),
                "unit": "x raw sync",
                "target": f">= {target}",
                "ok": value >= target if judged else None,
                "detail": f"{statistics.median(rates):,.0f} requests/s, raw sync {sync:.0f} us",
            }
        )
    return rows


def _echo_cost(root: Path, count: int) -> float:
    path = str(root / "echo.sock")
    with subprocess.Popen([sys.executable, "-c", _ECHO, path], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        import socket

        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            block = b"x" * 400
            before = _processor(server.pid)
            for _ in range(count):
                sock.sendall(block)
                sock.recv(4096)
            cost = (_processor(server.pid) - before) / count
        server.kill()
    return cost * 1e6


def _costs(gate: _Gate, root: Path, quick: bool) -> list[dict[str, Any]]:
    count = 4000 if quick else 20_000
    echo = _echo_cost(root, count)
    before = _processor(gate.pid)
    gate.load(64, 1, count)
    cost = (_processor(gate.pid) - before) / count * 1e6
    batches, entries = set(), 0
    for entry in query.read(gate.directory.log):
        batches.add(entry["batch"])
        entries += 1
    return [
        {
            "name": "gate, processor time a request", "value": round(cost, 1), "unit": "us",
            "target": "reported", "ok": None, "detail": f"bare echo {echo:.1f} us",
        },
        {
            "name": "gate, syncs an entry", "value": round(len(batches) / entries, 3), "unit": "",
            "target": "reported", "ok": None, "detail": f"{entries:,} entries",
        },
    ]  # fmt: skip


def _memory(gate: _Gate, quick: bool) -> list[dict[str, Any]]:
    more = 10_000 if quick else 100_000
    gate.load(64, 16, 5000)
    before = _status(gate.pid, "VmRSS")
    gate.load(64, 16, more)
    after = _status(gate.pid, "VmRSS")
    growth = after / before - 1
    return [
        {
            "name": f"gate, memory over {more:,} requests", "value": round(growth * 100, 1),
            "unit": "% growth", "target": "<= 10", "ok": growth <= 0.1,
            "detail": f"{before / 1024:.0f} to {after / 1024:.0f} MiB",
        }
    ]  # fmt: skip


def _rebuild(gate: _Gate) -> list[dict[str, Any]]:
    directory = gate.directory
    count = sum(1 for _ in query.lines(directory.log))
    store = ContentStore(directory.store, keys=directory.keys / "sealed")
    begin = time.perf_counter()
    snapshots.fold(directory.log, store, 0)
    whole = time.perf_counter() - begin
    begin = time.perf_counter()
    folded = snapshots.fold(directory.log, store, count)
    short = time.perf_counter() - begin
    how = f"from entry {folded.start}" if folded.start >= 0 else "no snapshot yet"
    return [
        {
            "name": f"state from a log of {count:,} entries", "value": round(whole, 2), "unit": "s",
            "target": "seconds", "ok": whole / count * 100_000 < 10,
            "detail": f"{count / whole:,.0f} entries/s; with a snapshot {short:.2f} s ({how})",
        }
    ]  # fmt: skip


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="authority-bench-") as name:
        root = Path(name)
        gate = _Gate(root)
        try:
            rows = _ratios(gate, name, quick) + _costs(gate, root, quick) + _memory(gate, quick)
            return rows + _rebuild(gate)
        finally:
            gate.stop()
