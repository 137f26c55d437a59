"""The first process of a run: closes every door behind itself, then starts the program.

bubblewrap starts it as process 1 of the new name spaces, with `python -I -S -B` and its own code
handed over on a descriptor, so nothing is compiled or looked up. In this order:

1. It joins the run's control groups, writes the small files of `/etc`, makes `/proc/sys` read-only,
   covers what tells about the host, takes execution from the writable folders, makes the root
   read-only, and mounts the gate's files (`interior`). Nothing of the program's has run yet; until
   here it may be root.
2. It gives up its ids and capabilities (`confine`). Started by root: no groups, then real,
   effective and saved ids of an unprivileged *host* user, then a user name space of that user's own.
   It checks that nothing is left, and refuses the start if something is.
3. no_new_privs, resource limits, Landlock, seccomp: for *itself*, so the supervisor that it
   becomes holds no right that the program lacks.
4. It forks. The child is the program; the parent lets exactly this one execve through (`program`,
   and see `bpf`), tells the gate, and becomes the supervisor, or a plain reaper for tools.

Where files are mediated call by call the listener goes to the gate instead, with the folders, and
nothing of either stays here.

Where there are mounts it becomes the supervisor before step 4: entering the working folder and
executing a program below a mount are questions that the gate answers through it.

Any failure on the way is written to the gate and ends the run: nothing is started half confined.

It imports built-in modules and those beside it that `spawn` hands over (`calls`, `interior`,
`confine`, `program`).
The configuration that it reads was written by the gate (`sandbox.start`), never by the program.
"""

import _signal  # type: ignore[import-not-found]
import marshal
import posix
import sys

from authority.isolation import calls, confine, interior
from authority.isolation.calls import LaunchError, call, poll
from authority.isolation.program import start_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CODE_FD, CONTROL_FD, FIRST_FD = 3, 4, 5
"""This code; the socket to the gate; the channel and, if there is one, the controlling end of the
program's terminal, or the program's three standard streams."""

FAILED_TO_START = 125

_MS_REMOUNT, _MS_BIND = 32, 4096
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def read_exactly(fd: int, size: int) -> bytes:
    """Raises `LaunchError` when the gate is gone before."""
    parts = []
    while size:
        part = posix.read(fd, size)
        if not part:
            raise LaunchError("the gate went away")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_configuration() -> "dict[str, Any]":
    """The plan's configuration and what differs from start to start (`sandbox`)."""
    size = int.from_bytes(read_exactly(CONTROL_FD, 4), "big")
    configuration: dict[str, Any] = marshal.loads(read_exactly(CONTROL_FD, size))  # noqa: S302
    return configuration


def wait_for_mover(moved: int, supervisor: "Any") -> None:
    """Serves the mounts until what lies on them is in place."""
    said: list[bytes] = []
    supervisor.serve(moved, lambda _events: said.append(posix.read(moved, 4096)))
    while not said or said[-1]:
        supervisor.turn()
    supervisor.forget(moved)
    if b"".join(said) != b".":
        raise LaunchError(b"".join(said).decode("utf-8", "replace") or "a mount was not prepared")


def status_of(status: int) -> "tuple[int, int]":
    """(exit code, signal): the code is -1 when a signal ended the program."""
    if posix.WIFSIGNALED(status):
        return -1, posix.WTERMSIG(status)
    return posix.WEXITSTATUS(status), 0


def report_exit(code: int, signal: int) -> None:
    """Tell the gate how the program ended: `X`, the exit code (-1 for a signal), the signal."""
    message = b"X" + code.to_bytes(4, "big", signed=True) + signal.to_bytes(4, "big", signed=True)
    posix.write(CONTROL_FD, message)


def reap_until_done(child: int) -> "NoReturn":
    """Process 1 of a tool: reaps, reports the tool's end, ends when the gate is gone."""
    wake_read, wake_write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
    _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, lambda _number, _frame: None)
    while True:
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                posix._exit(FAILED_TO_START)
            if not pid:
                break
            if pid == child:
                report_exit(*status_of(status))
                posix._exit(0)
        if CONTROL_FD in poll(wake_read, CONTROL_FD):
            posix._exit(FAILED_TO_START)
        posix.read(wake_read, 4096)


def load_supervisor(modules: bytes) -> "Any":
    """The supervisor's modules, put where its imports look for them; the last one is it."""
    for name, code in marshal.loads(modules):  # noqa: S302
        module = type(sys)(name)
        sys.modules[name] = module
        exec(code, module.__dict__)  # noqa: S102
    return module


def run(modules: bytes) -> "NoReturn":
    """The steps of the module's docstring, in their order. Raises what goes wrong."""
    configuration = read_configuration()
    calls.numbers.update(configuration["numbers"])
    channel = configuration["socket"] is not None
    posix.umask(0o022)
    # Out of bubblewrap's process group: kill(0, …) reaches a group across pid name spaces.
    posix.setsid()
    call("close_range", configuration["first_unused_fd"], 0xFFFFFFFF, 0)
    posix.close(CODE_FD)
    listeners = interior.make_listeners(configuration["listeners"])
    interior.shape_file_system(configuration)
    accepting = interior.make_socket(configuration["socket"]) if channel else -1
    ids = configuration["host_ids"]
    inside = configuration["inside_id"]
    ruleset = interior.make_ruleset(configuration["landlock"], configuration["rules"])
    uid, gid = ids or (inside, inside)
    folders = interior.take_folders(configuration["calls"])
    for path, flags in configuration["last_remounts"]:
        interior.mount(None, path, _MS_REMOUNT | _MS_BIND | flags)
    devices, clones = interior.mount_files(configuration, uid, gid, ruleset)
    moved = interior.start_mover(clones, ids) if clones else -1
    confine.set_limits(configuration["limits"])
    if ids is not None:
        confine.drop_ids(uid, gid, inside, configuration["user_namespace"])
    if ids is None or configuration["user_namespace"]:
        confine.drop_capabilities()
    # A change of ids clears the parent-death signal, so it is set again; the gate's end of the
    # control socket is watched as well, for the moment in between.
    call("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    confine.check_nothing_left()
    if channel:
        call("listen", accepting, 256)
    terminal = open_terminal(configuration["terminal"])
    confine.restrict_files(ruleset)
    listener = confine.restrict_calls(
        configuration["filter"],
        listen=configuration["exec_once"] or bool(folders),
        patient=bool(folders),
    )
    if folders:
        interior.hand_over(CONTROL_FD, [listener, *folders])
        listener = -1
    if not channel:
        run_tool(configuration, listener)
    theirs, ours = make_streams(terminal)

    def supervise() -> "Any":
        kind = load_supervisor(modules).Supervisor
        return kind(FIRST_FD, accepting, CONTROL_FD, ours, listeners, devices, terminal)

    supervisor = supervise() if devices else None
    if moved >= 0:
        wait_for_mover(moved, supervisor)
    start = start_program(configuration, listener, theirs)
    if supervisor is None:
        start.let_through()
        supervisor = supervise()  # while the kernel executes the program
        start.wait()
        supervisor.begin(start.child)
    else:
        supervisor.begin(start.child)
        start.serve(supervisor)
    posix.write(CONTROL_FD, b"S")
    report_exit(*supervisor.run())
    supervisor.linger()
    posix._exit(0)


def open_terminal(path: "bytes | None") -> int:
    """The program's end of its terminal; -1 when it has none."""
    if path is None:
        return -1
    return posix.open(path, posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)


def make_streams(terminal: int) -> "tuple[tuple[int, ...], tuple[int, ...]]":
    """(the program's standard streams, the supervisor's ends of them): pipes, or the terminal."""
    if terminal >= 0:
        master = FIRST_FD + 1
        return tuple(posix.dup(terminal) for _ in range(3)), (master, posix.dup(master), -1)
    pipes = [posix.pipe2(posix.O_CLOEXEC) for _ in range(3)]
    return (
        (pipes[0][0], pipes[1][1], pipes[2][1]),
        (pipes[0][1], pipes[1][0], pipes[2][0]),
    )


def run_tool(configuration: "dict[str, Any]", listener: int) -> "NoReturn":
    """A program with three plain streams: no channel, no supervisor."""
    start = start_program(configuration, listener, (FIRST_FD, FIRST_FD + 1, FIRST_FD + 2))
    start.wait()
    posix.write(CONTROL_FD, b"S")
    reap_until_done(start.child)


def main(modules: bytes) -> "NoReturn":
    """Runs the above and reports what goes wrong; never returns."""
    try:
        run(modules)
    except BaseException as error:
        text = (
            f"{type(error).__name__}: {error}" if not isinstance(error, LaunchError) else str(error)
        )
        posix.write(CONTROL_FD, b"E" + text.encode("utf-8", "backslashreplace")[:4096])
        posix._exit(FAILED_TO_START)
