"""The order of a real gate's system calls, watched with strace.

Every answer carries its entry's hash (32 bytes); the line in the log carries it in hex. So for each
answer three calls can be found: the write of the entry, the first sync of that file that began after
it, and the write to the client. The last must come after the sync has returned.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from authority.gate.client import GateError, alive
from authority.matrix.live import Live
from authority.matrix.verdict import Attempt
from authority.matrix.wire import Ask, Said

CALLS = "pwrite64,pwritev,write,writev,sendto,sendmsg,fdatasync,fsync"
START_SECONDS = 30.0
ROUNDS = 6

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)", re.DOTALL)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Call:
    """One system call: when it began and ended (line numbers of the trace; -1: never ended)."""

    name: str
    fd: str
    began: int
    ended: int
    data: bytes
    result: str


def parse(lines: Sequence[str]) -> list[Call]:
    """The calls of a trace, in the order in which they began."""
    calls: list[Call] = []
    unfinished: dict[tuple[str, str], Call] = {}
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        pid, resumed, name, rest = match.groups()
        data = b"".join(bytes.fromhex(t.replace("\\x", "")) for t in _TEXT.findall(rest))
        result = rest.rpartition("= ")[2].strip() if "= " in rest else ""
        if resumed:
            call = unfinished.pop((pid, resumed), None)
            if call is not None:
                call.ended, call.result = number, result
                call.data += data
            continue
        open_end = "<unfinished" in rest
        fd = re.match(r"\d*", rest)
        call = Call(name, fd[0] if fd else "", number, -1 if open_end else number, data, result)
        calls.append(call)
        if open_end:
            unfinished[(pid, name)] = call
    return calls


def early(calls: Sequence[Call], said: Sequence[Said]) -> list[Attempt]:
    """For each answer an attempt, which works when it left before its entry was synced."""
    attempts = []
    for answer in said:
        name = f"answer on entry {answer.seq}"
        hexed = answer.hash.hex().encode()
        entry = next((c for c in calls if hexed in c.data and "pwrite" in c.name), None)
        sent = next((c for c in calls if answer.hash in c.data), None)
        if entry is None or sent is None:
            attempts.append(Attempt(name, True, "its calls are not in the trace"))
            continue
        sync = next(
            (
                c
                for c in calls
                if c.name in {"fdatasync", "fsync"}
                and c.fd == entry.fd
                and c.began > entry.ended >= 0
                and c.result == "0"
            ),
            None,
        )
        late = sync is not None and 0 <= sync.ended < sent.began
        where = f"{sync.name} ended in line {sync.ended}, " if sync else "no sync, "
        detail = "after the sync" if late else f"{where}sent in line {sent.began}"
        attempts.append(Attempt(name, not late, detail))
    return attempts


def traced(live: Live, strace: str) -> tuple[list[Call], list[Said]]:
    """A gate under strace, asked for reads, refusals and writes. Raises `GateError`."""
    output = live.root / "trace"
    readable, writable = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(
        [
            strace, "-f", "-qq", "-xx", "-s", "65536", "-o", str(output), "-e", f"trace={CALLS}",
            sys.executable, "-I", "-m", "authority.gate",
            str(live.directory.root), "--ready", str(writable),
        ],
        cwd=live.directory.root,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(writable,),
        start_new_session=True,
    )  # fmt: skip
    os.close(writable)
    try:
        with open(readable, encoding="utf-8", errors="replace") as ready:
            said_ready = ready.readline().strip()  # strace keeps the other end open
        if said_ready != "ready" or not alive(live.directory):
            _, errors = process.communicate(timeout=START_SECONDS)
            lines = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise GateError(f"no gate under strace: {' '.join([said_ready, *lines])}".strip())
        said: list[Said] = []
        with live.attached() as run:
            wire = run.wire()
            for turn in range(ROUNDS):
                said += wire.ask(
                    Ask("fs.read", "data/a.txt", capability=run.token),
                    Ask("fs.read", "/etc/hostname", capability=run.token),
                )
                said.append(wire.one(Ask("fs.write", f"out/t{turn}", {"data": b"x"}, run.token)))
        live.stop()
        process.wait(START_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return parse(_read(output)), said


def _read(path: Path) -> list[str]:
    with open(path, encoding="ascii", errors="replace") as f:
        return f.read().splitlines()


def watch(live: Live) -> tuple[list[Attempt], list[Attempt], str]:
    """Attempts, controls and what to say of it. Without strace, or where it may not trace, nothing
    is claimed and the reason is said."""
    strace = shutil.which("strace")
    if strace is None:
        return [], [], "order of system calls not watched: strace is not installed"
    probe = subprocess.run(
        [strace, "-qq", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        why = (probe.stderr.strip().splitlines() or ["it failed"])[-1]
        return [], [], f"order of system calls not watched: strace: {why}"
    began = time.monotonic()
    calls, said = traced(live, strace)
    attempts = early(calls, said)
    unsynced = [c for c in calls if c.name not in {"fdatasync", "fsync"}]
    caught = sum(a.worked for a in early(unsynced, said))
    syncs = len(calls) - len(unsynced)
    controls = [
        Attempt("strace saw syncs", syncs >= ROUNDS, f"{syncs}"),
        Attempt("the trace without its syncs is refused", caught == len(said) > 0, f"{caught}"),
    ]
    took = int((time.monotonic() - began) * 1000)
    return attempts, controls, f"strace: {len(said)} answers, {len(calls)} calls, {took} ms"
