"""The agent's side: what its import costs over msgspec's own, and what one call costs.

Imports are timed inside fresh interpreters, which say how long the statement took, in turns; of
each the least counts, since noise only adds. A call is a round trip over a unix socket to an echo in
another process, beside bytes that are sent and received with nothing around them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET_MS = 8.0
SOURCE = str(Path(__file__).resolve().parents[1] / "src")
IMPORT = (
    "import sys, time; sys.path.insert(0, sys.argv[1]); import os; a = time.perf_counter_ns();"
    "{}; print(time.perf_counter_ns() - a)"
)
SERVER = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from authority import protocol
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen()
print("ready", flush=True)
raw, _ = listener.accept()
while data := raw.recv(65536):
    raw.sendall(data)
gate, _ = listener.accept()
decoder = protocol.FrameDecoder()
while data := gate.recv(65536):
    for stream, payload in decoder.feed(data):
        said = protocol.decode_client_message(payload)
        if isinstance(said, protocol.Hello):
            gate.sendall(protocol.encode_frame(1, protocol.encode_welcome("r", "/", 256)))
            continue
        answers = [protocol.Reply(r.n, 0, r.n, bytes(32), {"size": 1}) for r in said]
        gate.sendall(b"".join(protocol.reply_frames(1, answers)))
"""


def imports(rounds: int) -> tuple[float, float]:
    """Milliseconds of `import msgspec` and of `import authority.agent`, the least of each."""
    found: dict[str, list[float]] = {"msgspec": [], "authority.agent": []}
    with tempfile.TemporaryDirectory() as compiled:
        # Compiled as installed code is, whatever the caller's environment says about that.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(rounds + 1):
            for module, took in found.items():
                out = subprocess.run(
                    [sys.executable, "-c", IMPORT.format(f"import {module}"), SOURCE],
                    capture_output=True,
                    check=True,
                    text=True,
                    env=environment,
                )
                if turn:  # the first fills the caches
                    took.append(int(out.stdout) / 1e6)
    return min(found["msgspec"]), min(found["authority.agent"])


def calls(rounds: int) -> tuple[float, float, float]:
    """Microseconds of a bare round trip, of a call, and of a call in a batch of 16."""
    from authority.agent import connect

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, SOURCE, path], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path)
                bare = [_each(50, lambda: (raw.sendall(b"x" * 40), raw.recv(4096)))]
                bare += [
                    _each(50, lambda: (raw.sendall(b"x" * 40), raw.recv(4096)))
                    for _ in range(rounds)
                ]
            with connect(path) as gate:
                single, grouped = [], []
                for _ in range(rounds):
                    single.append(_each(50, lambda: gate.call("fs.stat", "a")))
                    grouped.append(_each(5, lambda: _batch(gate)) / 16)
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    return min(bare[1:]), min(single), min(grouped)


def _batch(gate: Any) -> None:
    with gate.batch() as batch:
        for _ in range(16):
            batch.call("fs.stat", "a")


def _each(times: int, call: Any) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def run(quick: bool) -> list[dict[str, Any]]:
    """Import: msgspec's own and 8 ms at most. Calls: figures without a target."""
    bare_import, whole = imports(7 if quick else 21)
    raw, single, grouped = calls(10 if quick else 40)
    more = whole - bare_import
    return [
        {
            "name": "import of authority.agent, more than msgspec's own",
            "value": round(more, 2),
            "unit": "ms",
            "target": f"<= {TARGET_MS:g}",
            "ok": more <= TARGET_MS,
            "detail": f"{whole:.1f} ms beside {bare_import:.1f} ms",
        },
        _row(
            "one call, beside a bare round trip", single / raw, "x", f"{single:.0f} us, {raw:.0f}"
        ),
        _row("a call in a batch of 16", grouped / raw, "x", f"{grouped:.1f} us"),
    ]


def _row(name: str, value: float, unit: str, detail: str) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": unit,
        "target": "",
        "ok": None,
        "detail": detail,
    }
