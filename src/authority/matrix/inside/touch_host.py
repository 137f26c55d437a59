"""Tries what else a sandbox should stop: files, processes, environment, descriptors, memory, forks.

`allowed` names what a useful sandbox must still let through; those are printed as attempts too, and
the matrix expects them to work.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from attempts import attempt, done, note  # type: ignore[import-not-found]
from calls import NothingGot  # type: ignore[import-not-found]
from children import in_child  # type: ignore[import-not-found]
from given import GIVEN  # type: ignore[import-not-found]

MEGABYTE = 1024 * 1024


def read(path: str) -> str:
    with open(path, encoding="utf-8") as f:
        text = f.read()
    if GIVEN["word"] not in text:
        raise NothingGot("another file")
    return "read"


def write(path: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write("written")


def environment() -> str:
    found = [name for name, value in os.environ.items() if GIVEN["environment"] in value]
    if not found:
        for process in ("self", str(os.getppid())):
            try:
                with open(f"/proc/{process}/environ", "rb") as f:
                    if GIVEN["environment"].encode() in f.read():
                        found.append(f"/proc/{process}/environ")
            except OSError:
                continue
    if not found:
        raise NothingGot("not there")
    return ",".join(found)


def descriptor() -> str:
    for name in os.listdir("/proc/self/fd"):
        try:
            text = os.pread(int(name), 4096, 0)
        except (OSError, ValueError):
            continue
        if GIVEN["word"].encode() in text:
            return f"descriptor {name}"
    raise NothingGot("not there")


def see_process() -> str:
    with open(f"/proc/{GIVEN['victim']}/cmdline", "rb") as f:
        line = f.read()
    if GIVEN["victim_word"].encode() not in line:
        raise NothingGot("another process")
    return "seen"


def signal_process() -> None:
    """By number alone: within a pid namespace this is another process, or none. The victim counts."""
    os.kill(GIVEN["victim"], signal.SIGUSR1)


def memory() -> str:
    """Takes memory and uses it, up to what was given."""
    wanted = GIVEN["memory"]
    kept = []
    for _ in range(wanted // (8 * MEGABYTE)):
        kept.append(bytearray(b"\1" * (8 * MEGABYTE)))
    return f"{len(kept) * 8} MB"


def forks() -> str:
    """Starts so many children at one time; they wait until all are there."""
    readable, writable = os.pipe()
    children = []
    try:
        for _ in range(GIVEN["processes"]):
            pid = os.fork()
            if pid == 0:
                os.close(writable)
                os.read(readable, 1)
                os._exit(0)
            children.append(pid)
    finally:
        os.close(readable)
        os.close(writable)
        for pid in children:
            os.waitpid(pid, 0)
    return f"{len(children)} children"


def through_gate() -> str:
    """The allowed file, for a program that has to ask for it."""
    from authority.agent import connect

    text: str = connect().read_text(GIVEN["allowed"])
    return "read" if GIVEN["allowed_word"] in text else "another file"


def read_allowed() -> str:
    if os.environ.get("AUTHORITY_CHANNEL"):
        return through_gate()
    with open(GIVEN["allowed"], encoding="utf-8") as f:
        if GIVEN["allowed_word"] not in f.read():
            raise NothingGot("another file")
    return "read"


def write_allowed() -> str:
    if os.environ.get("AUTHORITY_CHANNEL"):
        from authority.agent import connect

        connect().write(GIVEN["allowed_out"], "written")
        return "through the gate"
    write(GIVEN["allowed_out"])
    return ""


def main() -> None:
    attempt("allowed: the program runs", lambda: sys.version.split()[0])
    attempt("allowed: read its file", read_allowed)
    attempt("allowed: write its file", write_allowed)
    attempt("read a secret file", lambda: read(GIVEN["secret"]))
    attempt("write outside", lambda: write(GIVEN["outside"]))
    attempt("the environment's secret", environment)
    attempt("an open descriptor's secret", descriptor)
    attempt("see a host process", see_process)
    attempt("signal a host process", signal_process)
    attempt(f"use {GIVEN['memory'] // MEGABYTE} MB", lambda: in_child(memory))
    attempt(f"start {GIVEN['processes']} processes", forks)
    done()
    note(waiting=os.getpid())
    if GIVEN.get("wait"):
        time.sleep(GIVEN["wait"])


if __name__ == "__main__":
    main()
