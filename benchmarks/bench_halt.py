"""How soon everything stands still: from what opened an incident to the last effect, 64 clients busy.

Rules
- 64 attached clients write small files without pause, each request an intent, an effect and an
  outcome. Then an incident about everything is reported through the control API.
- Told offline from the log alone: no `admit` stands after the halt entry; the time from the incident's
  entry to the last outcome `done` is the time to the last effect performed.
- Told by the clients: the time from the incident's entry to the last byte that any of them received.
  Both use the wall clock, as entries do.
- A target is missed, and said, when the machine is busy with other work.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from typing import Any

from authority import protocol
from authority.audit import query
from authority.gate.client import client
from authority.matrix.live import live

CLIENTS = 64
BUSY_SECONDS = 1.0
LIMIT_SECONDS = 30.0
TARGET_MS = 100.0
GATE_SECONDS = 120.0
_POLICY = """version = 1
[filesystem]
write = ["./out/**"]
[budgets]
denials = 100_000
"""


class _Busy(threading.Thread):
    """One client that writes without pause until its channel ends."""

    def __init__(self, path: str, token: bytes, name: str) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_SECONDS)
        self._socket.connect(path)
        self._token, self._name = token, name
        self.done = 0
        self.last = 0

    def run(self) -> None:
        self._socket.sendall(protocol.encode_frame(1, protocol.encode_hello("bench", self._token)))
        arguments = protocol.encode_arguments({"data": b"x" * 64})
        with contextlib.suppress(OSError, protocol.ProtocolError):
            self._receive()
            for n in range(1, 1 << 30):
                request = protocol.Request(n, "fs.write", self._name, arguments, self._token, 0)
                self._socket.sendall(protocol.encode_frame(1, protocol.encode_requests([request])))
                self._receive()
                self.done += 1
        self._socket.close()

    def _receive(self) -> None:
        if not self._socket.recv(1 << 16):
            raise ConnectionResetError
        self.last = time.time_ns() // 1000


def _once() -> dict[str, float]:
    with live() as gate, gate.deadline(GATE_SECONDS), gate.attached(_POLICY) as run:
        path = str(gate.directory.attach_socket)
        clients = [_Busy(path, run.token, f"out/{n}.txt") for n in range(CLIENTS)]
        for each in clients:
            each.start()
        time.sleep(BUSY_SECONDS)
        client(gate.directory).call("POST", "/v1/incidents", {"what": "bench"})
        for each in clients:
            each.join(LIMIT_SECONDS)
        log = list(query.read(gate.directory.log))
        busy = sum(each.done for each in clients)
    opened = next(e for e in log if e["kind"] == "incident")
    halt = next(e for e in log if e["kind"] == "halt" and e["seq"] > opened["seq"])
    late = [e for e in log if e["kind"] == "admit" and e["seq"] > halt["seq"]]
    done = [e["time"] for e in log if e["kind"] == "outcome" and e["status"] == "done"]
    return {
        "busy": busy,
        "late": len(late),
        "effect": max(0, max(done, default=0) - opened["time"]) / 1000,
        "byte": max(0, max(each.last for each in clients) - opened["time"]) / 1000,
    }


def run(quick: bool) -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    rounds = [_once() for _ in range(1 if quick else 5)]
    busy = statistics.median(r["busy"] for r in rounds)
    if busy < CLIENTS:
        raise RuntimeError(f"the clients were not busy: {busy} requests")

    def row(name: str, key: str, detail: str) -> dict[str, Any]:
        value = max(r[key] for r in rounds)
        return {
            "name": f"halt: {name}",
            "value": round(value, 2),
            "unit": "ms",
            "target": f"<= {TARGET_MS:.0f}",
            "ok": value <= TARGET_MS,
            "detail": detail,
        }

    late = sum(r["late"] for r in rounds)
    return [
        row("last effect", "effect", f"{CLIENTS} clients writing, the longest of {len(rounds)}"),
        row("last byte", "byte", "the last byte that any of them received"),
        {
            "name": "halt: admissions after the halt entry",
            "value": late,
            "unit": "",
            "target": "0",
            "ok": late == 0,
            "detail": "read from the log",
        },
    ]
