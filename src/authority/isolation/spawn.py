"""Starting bubblewrap with exactly the descriptors that the launcher expects, and nothing else.

Rules
- The launcher's code is compiled once and kept in a sealed memory file; the interpreter inside is
  this one, so its byte code fits. The configuration goes through the control socket.
- Descriptors are put in place by `posix_spawn` itself: 0 and 1 are /dev/null, 2 is a memory file
  for what bubblewrap complains about, 3 the code, 4 the control socket, then the run's own, then the
  control groups' entrances. What this process itself was handed by whoever started it is closed
  there: a folder of the host among them would lead out of every mount name space. The launcher
  closes everything above its own once more, before anything else.
- bubblewrap gets an empty environment, a session of its own, and default signal handling.
- A host id is taken by binding an abstract socket of that name: it is free again when this process
  ends, however that happens, and no file is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import marshal
import os
import random
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Final

from authority.isolation import processes
from authority.isolation.launcher import CODE_FD, CONTROL_FD, FIRST_FD
from authority.isolation.plan import HOST_IDS
from authority.isolation.refusal import IsolationRefused

_ABOVE: Final = 64
"""Descriptors are moved up here first, so that none of them stands where another has to go."""

_DIAGNOSTICS_BYTES: Final = 4096
_ID_TRIES: Final = 64
_LAUNCHER: Final = ("calls", "confine", "interior", "program", "launcher")
_SUPERVISOR: Final = ("buffers", "clients", "services", "mounts", "supervisor")
"""Each after those that it imports; the last one is called."""
_choice: Final = random.SystemRandom()


def _compile(path: Path) -> CodeType:
    return compile(path.read_text("utf-8"), f"<{path.stem}>", "exec", dont_inherit=True, optimize=2)


def _modules(room: str, names: tuple[str, ...]) -> list[tuple[str, CodeType]]:
    folder = Path(__file__).resolve().parents[1] / room
    return [(f"authority.{room}.{name}", _compile(folder / f"{name}.py")) for name in names]


@functools.cache
def launcher_code() -> tuple[int, int]:
    """(descriptor, size) of the memory file with the launcher's and the supervisor's byte code."""
    supervisor = marshal.dumps(_modules("agent", _SUPERVISOR))
    code = marshal.dumps((_modules("isolation", _LAUNCHER), supervisor))
    return sealed("authority-launcher", code), len(code)


def sealed(name: str, content: bytes) -> int:
    """A memory file that nobody changes any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def bootstrap(size: int) -> str:
    """What `python -c` is given: read the code, put the launcher's modules where their imports look
    for them, and hand the supervisor's to the last."""
    return (
        "import marshal,posix,sys\n"
        f"a,b=marshal.loads(posix.pread({CODE_FD},{size},0))\n"
        "p=sys.modules['authority.isolation']=type(sys)('isolation')\n"
        "for n,c in a:\n"
        " m=sys.modules[n]=type(sys)(n);exec(c,m.__dict__);setattr(p,n.rpartition('.')[2],m)\n"
        "m.main(b)"
    )


def take_host_id() -> tuple[int, socket.socket]:
    """An id that no other run on this machine has now; it is held until the socket is closed."""
    for _ in range(_ID_TRIES):
        number = _choice.choice(HOST_IDS)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0authority/host-id/{number}")
        except OSError:
            claim.close()
        else:
            return number, claim
    raise IsolationRefused("no free host id was found", "is something squatting on them?")


def diagnostics_file() -> int:
    """A memory file that takes what bubblewrap and the launcher print."""
    return os.memfd_create("authority-diagnostics", os.MFD_CLOEXEC)


def diagnostics(fd: int) -> bytes:
    """The first bytes that were printed."""
    return os.pread(fd, _DIAGNOSTICS_BYTES, 0)


def spawn(
    command: Sequence[str],
    diagnostics_fd: int,
    control: int,
    own: Sequence[int],
    entrances: Sequence[int],
) -> int:
    """Starts bubblewrap; its pid. `own` go to `FIRST_FD` and on, `entrances` behind them."""
    code, size = launcher_code()
    given = {2: diagnostics_fd, CODE_FD: code, CONTROL_FD: control}
    given.update(enumerate((*own, *entrances), FIRST_FD))
    return detached([*command, bootstrap(size)], given)


def detached(argv: Sequence[str], given: Mapping[int, int]) -> int:
    """Starts a program with a session and an empty environment of its own; its pid. `given` has our
    descriptor for each of its own. It reads and prints nothing, and has every signal as by default."""
    moved: list[int] = []
    try:
        for fd in given.values():  # away from where any of them goes
            moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited()),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
        actions += [
            (os.POSIX_SPAWN_DUP2, fd, target) for fd, target in zip(moved, given, strict=True)
        ]
        return os.posix_spawn(
            argv[0],
            list(argv),
            {},
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[
                number
                for number in signal.valid_signals()
                if number not in (signal.SIGKILL, signal.SIGSTOP)
            ],
        )
    finally:
        for fd in moved:
            os.close(fd)


def _inherited() -> list[int]:
    """What an executed program would inherit. Python opens nothing so by itself: these were handed in
    when this process was started."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own, or closed by another thread
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def end_and_reap(pid: int) -> None:
    """Kills a bubblewrap that is no use any more, and everything below it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def end(outer: int) -> None:
    """Kills a bubblewrap of ours with all that descends from it. While its child waits for its user map
    it would die alone, and the child wait for ever. So it stands still first, and has no more children
    than are found."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(outer, signal.SIGSTOP)
        _, status = os.waitpid(outer, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return
        for pid in reversed(processes.tree(outer)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
