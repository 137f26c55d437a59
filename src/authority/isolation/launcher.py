"""The first process of a run: closes every door behind itself, then starts the program.

bubblewrap starts it as process 1 of the new name spaces, with `python -I -S -B` and its own code
handed over on a descriptor, so nothing is compiled or looked up. In this order:

1. It joins the run's control groups, writes the small files of `/etc`, makes `/proc/sys` read-only,
   covers what tells about the host, takes execution from the writable folders, makes the root
   read-only, and mounts the gate's files (`interior`). Nothing of the program's has run yet; until
   here it may be root.
2. It gives up its ids and capabilities. Started by root: no groups, then real, effective and saved
   ids of an unprivileged *host* user, then a user name space of that user's own. It checks that
   nothing is left, and refuses the start if something is.
3. no_new_privs, resource limits, Landlock, seccomp: for *itself*, so the supervisor that it
   becomes holds no right that the program lacks.
4. It forks. The child is the program; the parent lets exactly this one execve through (see `bpf`),
   closes the listener, tells the gate, and becomes the supervisor, or a plain reaper for tools.

Where files are mediated call by call the listener goes to the gate instead, with the folders, and
nothing of either stays here.

Where there are mounts it becomes the supervisor before step 4: entering the working folder and
executing a program below a mount are questions that the gate answers through it.

Any failure on the way is written to the gate and ends the run: nothing is started half confined.

It imports built-in modules and the two beside it (`calls`, `interior`), which `spawn` hands over.
The configuration that it reads was written by the gate (`sandbox.start`), never by the program.
"""

import _signal  # type: ignore[import-not-found]
import marshal
import posix
import sys

from authority.isolation import calls, interior
from authority.isolation.calls import LaunchError, address, buffer, call, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CODE_FD, CONTROL_FD, FIRST_FD = 3, 4, 5
"""This code; the socket to the gate; the channel and, if there is one, the controlling end of the
program's terminal, or the program's three standard streams."""

FAILED_TO_START = 125

_MS_REMOUNT, _MS_BIND = 32, 4096
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = (
    38,
    39,
    47,
    4,
)
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, "little") + bytes(4)
_CLONE_NEWUSER = 0x10000000
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE = 32
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTIFICATION_BYTES, _RESPONSE_BYTES = 80, 24
_EINVAL = 22
_TIOCSCTTY = 0x540E


# --- 1. what the gate says ---


def read_exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = posix.read(fd, size)
        if not part:
            raise LaunchError("the gate went away")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_configuration() -> "dict[str, Any]":
    size = int.from_bytes(read_exactly(CONTROL_FD, 4), "big")
    configuration: dict[str, Any] = marshal.loads(read_exactly(CONTROL_FD, size))  # noqa: S302
    return configuration


# --- 2. ids and capabilities ---


def empty_bounding_set() -> None:
    """It takes a capability, so it comes before the others go."""
    capability = 0
    while True:
        try:
            call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as error:
            if error.errno != _EINVAL:
                raise
            break
        capability += 1


def drop_capabilities() -> None:
    """Every set."""
    empty_bounding_set()
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("capset", _CAPABILITY_HEADER, bytes(24))


def drop_ids(uid: int, gid: int, inside: int, user_namespace: bool) -> None:
    """From root to `uid`, which must be no user of the host; then a user name space of its own."""
    if 0 in (uid, gid):
        raise LaunchError("the run would stay root")
    posix.setgroups([])
    posix.setresgid(gid, gid, gid)
    if not user_namespace:
        # A new user name space brings a full set back, so there it is emptied afterwards.
        empty_bounding_set()
    posix.setresuid(uid, uid, uid)
    call("capset", _CAPABILITY_HEADER, bytes(24))
    if posix.getresuid() != (uid,) * 3 or posix.getresgid() != (gid,) * 3 or posix.getgroups():
        raise LaunchError("the ids could not be given up")
    if not user_namespace:
        return
    # The change of ids made /proc/self root's; the maps can be written only when it is ours.
    call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    call("unshare", _CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        fd = posix.open(f"/proc/self/{name}", posix.O_WRONLY)
        posix.write(fd, text.encode())
        posix.close(fd)
    if posix.getresuid() != (inside,) * 3:
        raise LaunchError("the user name space could not be set up")


def check_nothing_left() -> None:
    """Fails when a capability is left or a file could still grant one."""
    held = buffer(24)
    call("capget", _CAPABILITY_HEADER, held)
    if any(bytes(held)):
        raise LaunchError("capabilities are left")
    if call("prctl", _PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        raise LaunchError("no_new_privs is not in force")


# --- 3. limits, Landlock, seccomp ---


def set_limits(limits: "list[tuple[int, int]]") -> None:
    for resource, value in limits:
        both = value.to_bytes(8, "little") * 2
        call("prlimit64", 0, resource, both, None)


def restrict_files(ruleset: int) -> None:
    call("landlock_restrict_self", ruleset, 0)
    posix.close(ruleset)


def restrict_calls(code: bytes, *, listen: bool, patient: bool) -> int:
    """Loads the filter; with `listen` returns the listener that calls are handed to, else -1. With
    `patient` a call that was received there is interrupted by nothing that does not kill."""
    program = (len(code) // 8).to_bytes(8, "little") + address(code).to_bytes(8, "little")
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
    flags |= _SECCOMP_FILTER_FLAG_WAIT_KILLABLE if patient else 0
    result = call("seccomp", _SECCOMP_SET_MODE_FILTER, flags, program)
    return result if listen else -1


# --- 4. the program ---


def become_program(
    configuration: "dict[str, Any]", streams: "tuple[int, ...]", ready: int
) -> "NoReturn":
    """In the child: the three streams, nothing else, default signals, the program."""
    try:
        call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)  # this process is the run's own again
        for number, fd in enumerate(streams):
            posix.dup2(fd, number)
        posix.dup2(ready, 3, False)
        ready = 3
        call("close_range", 4, 0xFFFFFFFF, 0)
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT):
            _signal.signal(number, _signal.SIG_DFL)
        posix.setsid()
        if configuration["terminal"] is not None:
            call("ioctl", 0, _TIOCSCTTY, 0)
        for _index, path, *_ in configuration["mounts"]:
            # Until it was asked, the kernel takes a mount's root for nobody's, and refuses to write.
            posix.stat(path)
        posix.chdir(configuration["cwd"])
        posix.execve(configuration["program"], configuration["argv"], configuration["env"])
    except BaseException as error:
        posix.write(ready, str(error).encode("utf-8", "backslashreplace")[:4096])
    posix._exit(127)


class Start:
    """The program's start as its parent sees it: one execve to let through, then the word that it
    was executed, or why not.

    `listener` hands over the child's first execve, which is continued before the listener is
    closed: from then on the kernel says ENOSYS. The call that is continued is this launcher's own,
    in a process with one thread, so nobody can change its arguments meanwhile. `ready` closes when
    the program was executed; what is read before is the error.
    """

    def __init__(self, listener: int, child: int, ready: int) -> None:
        self.listener, self.child, self.ready = listener, child, ready
        self.message = b""
        self.done = False

    def let_through(self) -> None:
        """Without mounts nothing else has to be served before the program's execve."""
        if self.listener >= 0:
            if self.listener in poll(self.listener, self.ready):
                self.on_execve(0)
            posix.close(self.listener)
            self.listener = -1

    def wait(self) -> None:
        """Until the program was executed, without mounts."""
        self.let_through()
        while not self.done:
            self.on_ready(0)
        self.check()

    def serve(self, supervisor: "Any") -> None:
        """The same while the supervisor answers for the mounts."""
        handlers = {self.ready: self.on_ready}
        if self.listener >= 0:
            handlers[self.listener] = lambda _events: self.on_listener(supervisor)
        for fd, handler in handlers.items():
            supervisor.serve(fd, handler)
        while not self.done:
            supervisor.turn()
        for fd in (self.ready, self.listener):
            supervisor.release(fd)
        if self.listener >= 0:
            posix.close(self.listener)
        self.check()

    def on_listener(self, supervisor: "Any") -> None:
        supervisor.release(self.listener)
        self.on_execve(0)
        posix.close(self.listener)
        self.listener = -1

    def on_execve(self, _events: int) -> None:
        notification = buffer(_NOTIFICATION_BYTES)
        call("ioctl", self.listener, _NOTIF_RECV, notification)
        seen = bytes(notification)
        if int.from_bytes(seen[8:12], "little") != self.child:
            raise LaunchError("another process tried to start a program first")
        response = buffer(_RESPONSE_BYTES)
        view = memoryview(response).cast("B")
        view[0:8] = seen[0:8]
        view[20:24] = _NOTIF_CONTINUE.to_bytes(4, "little")
        call("ioctl", self.listener, _NOTIF_SEND, response)

    def on_ready(self, _events: int) -> None:
        part = posix.read(self.ready, 4096)
        self.message += part
        self.done = not part

    def check(self) -> None:
        posix.close(self.ready)
        if self.message:
            text = self.message.decode("utf-8", "replace")
            raise LaunchError("the program could not be started: " + text)


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
    set_limits(configuration["limits"])
    if ids is not None:
        drop_ids(uid, gid, inside, configuration["user_namespace"])
    if ids is None or configuration["user_namespace"]:
        drop_capabilities()
    # A change of ids clears the parent-death signal, so it is set again; the gate's end of the
    # control socket is watched as well, for the moment in between.
    call("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    check_nothing_left()
    if channel:
        call("listen", accepting, 256)
    terminal = open_terminal(configuration["terminal"])
    restrict_files(ruleset)
    listener = restrict_calls(
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


def start_program(
    configuration: "dict[str, Any]", listener: int, streams: "tuple[int, ...]"
) -> Start:
    ready_read, ready_write = posix.pipe2(posix.O_CLOEXEC)
    # Nothing in the run may look into this process: said before there is anybody who could.
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    child = posix.fork()
    if child == 0:
        become_program(configuration, streams, ready_write)
    posix.close(ready_write)
    for fd in streams:
        posix.close(fd)
    return Start(listener, child, ready_read)


def run_tool(configuration: "dict[str, Any]", listener: int) -> "NoReturn":
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
