"""What a run asks for, and what of it makes no sense on any machine.

Rules
- A spec holds plain values and decides nothing: `plan` settles it against a host.
- What contradicts itself, is too small to start anything, or could not be handed to the kernel as it
  is written (a NUL, a working folder that is no plain absolute path) is refused before the host is
  looked at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from authority.isolation.places import Bind, Mount
from authority.isolation.refusal import IsolationRefused, shown

_MIN_MEMORY: Final = 32 << 20
_MIN_TMP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a run asks for.

    `argv` is the command, `cwd` the absolute working folder, `env` the whole environment of the
    program (nothing of the caller's comes along), `search_path` where the command is looked up
    (default: PATH in `env`). `exec_allowed` lists programs that the run may start besides; empty
    means that it can start none. `memory` and `tmp_bytes` are bytes, `millicpus` thousandths of a
    processor; 0 sets no limit (`tmp_bytes` must be set). `loopback` allows TCP inside the run's own
    network, which has the loopback device alone, and UDP when a listener takes datagrams;
    `listeners` are (service, datagrams, port) that the supervisor carries to the gate from there.
    `read_only` are extra files and folders to show; `forbidden` are paths that the run must not see
    whatever else was asked. `channel` chooses between a run with a supervisor and a tool with three
    plain streams; `terminal` (rows, columns) gives a run with a supervisor a terminal in place of its
    three pipes.

    `mounts` are folders whose files the gate answers for; with `calls` it does so call by call, without
    FUSE (`notify`). `binds` are files and folders that the run
    reaches without it (`places`); `files` are small files with their content that lie in the run
    read-only, also over ones that are shown. `certificates` (PEM) lies over every bundle of trusted
    certificates that the runtime brings along.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    search_path: str = ""
    exec_allowed: tuple[str, ...] = ()
    memory: int = 0
    processes: int = 0
    millicpus: int = 0
    tmp_bytes: int = 256 << 20
    loopback: bool = False
    listeners: tuple[tuple[int, bool, int], ...] = ()
    read_only: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    channel: bool = True
    mounts: tuple[Mount, ...] = ()
    calls: bool = False
    binds: tuple[Bind, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None
    certificates: bytes = b""

    @property
    def datagrams(self) -> bool:
        """Whether something listens for datagrams (the resolver); else there is no use for UDP."""
        return any(datagrams for _, datagrams, _ in self.listeners)


def check(spec: SandboxSpec) -> None:
    """Raises `IsolationRefused` for a spec that no host could meet."""
    if not os.path.isabs(spec.cwd) or os.path.normpath(spec.cwd) != spec.cwd:
        raise IsolationRefused(f"the working folder {shown(spec.cwd)} is no plain absolute path")
    if not os.path.isdir(spec.cwd):
        raise IsolationRefused(f"the working folder {shown(spec.cwd)} is not there")
    if spec.memory and spec.memory < _MIN_MEMORY:
        raise IsolationRefused(
            f"a memory limit of {spec.memory} bytes is too small to start anything",
            f"ask for {_MIN_MEMORY} or more",
        )
    if spec.tmp_bytes < _MIN_TMP:
        raise IsolationRefused("the size of /tmp is too small", f"ask for {_MIN_TMP} or more")
    if spec.listeners and not (spec.loopback and spec.channel):
        raise IsolationRefused("listeners need a loopback and a channel")
    if spec.mounts and not spec.channel:
        raise IsolationRefused("mounts need a channel")
    if spec.terminal and not spec.channel:
        raise IsolationRefused("a terminal needs a channel")
    if min(spec.processes, spec.millicpus) < 0:
        raise IsolationRefused("a limit is negative")
    words = [*spec.argv, *spec.env, *spec.env.values(), *spec.read_only, spec.cwd, *spec.files]
    if any("\0" in word for word in words) or any("=" in name or not name for name in spec.env):
        raise IsolationRefused("the command or the environment holds a NUL, or a bad name")
