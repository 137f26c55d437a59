"""The program that runs machines: where it lies, whether it may be trusted, how old it is.

Rules
- It is the distribution's, at its own place, changeable by root alone.
- It is asked for its version once for each file that lies there. Older than `LEAST`, or without a
  version that can be read, it is not used: nobody has seen a machine come up with it.
"""

from __future__ import annotations

import functools
import os
import re
import select
import subprocess
from dataclasses import dataclass
from typing import Final

from authority.isolation import IsolationRefused
from authority.isolation.probe import trusted_program
from authority.isolation.refusal import shown
from authority.vm.architectures import Architecture

FOLDER: Final = "/usr/bin"
LEAST: Final = (7, 2)
"""The oldest QEMU that this was tried with."""

_SECONDS: Final = 20.0
_VERSION: Final = re.compile(rb"version (\d{1,4})\.(\d{1,4})[0-9.]{0,20}")


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """`identity` changes when another file lies at `path`."""

    path: str
    version: str
    identity: str


def find(architecture: Architecture) -> Hypervisor:
    """Raises `IsolationRefused` when it is missing, too old or not to be trusted."""
    path = f"{FOLDER}/{architecture.qemu}"
    install = f"apt-get install -y {architecture.qemu_package}"
    if not os.path.exists(path):
        raise IsolationRefused(f"{architecture.qemu} is not installed", install)
    problem = trusted_program(path)
    if problem:
        raise IsolationRefused(f"the hypervisor is not to be trusted: {shown(problem)}", install)
    found = os.stat(path)
    identity = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    version, numbers = _version(path, identity)
    if numbers < LEAST:
        least = ".".join(map(str, LEAST))
        raise IsolationRefused(
            f"the hypervisor is too old: {path} is {version}, and machines need {least} or later",
            f"install QEMU {least} or later; --isolation namespace does without",
        )
    return Hypervisor(path, version, identity)


@functools.lru_cache(maxsize=8)
def _version(path: str, _identity: str) -> tuple[str, tuple[int, int]]:
    said = _said(path)
    found = _VERSION.search(said)
    if found is None:
        words = shown(said[:100].strip()) or "nothing"
        raise IsolationRefused(
            f"the hypervisor {path} does not say its version; it said: {words}",
            "is this QEMU? use the distribution's",
        )
    text = found.group().removeprefix(b"version ").decode("ascii").rstrip(".")
    return text, (int(found[1]), int(found[2]))


def _said(path: str) -> bytes:
    """The first bytes of its answer; it gets a deadline and no more than that."""
    try:
        asked = subprocess.Popen(
            [path, "--version"],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            close_fds=True,
        )
    except OSError as error:
        raise IsolationRefused(
            f"the hypervisor {path} does not start: {shown(error.strerror or str(error))}"
        ) from error
    with asked:
        assert asked.stdout is not None
        try:
            ready, _, _ = select.select([asked.stdout], [], [], _SECONDS)
            return os.read(asked.stdout.fileno(), 4096) if ready else b""
        finally:
            asked.kill()
