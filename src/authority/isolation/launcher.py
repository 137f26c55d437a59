"""The first process of a run: closes every door behind itself, then starts the program.

bubblewrap starts it as process 1 of the new name spaces, with `python -I -S -B` and its own code
handed over on a descriptor, so nothing is compiled or looked up. In this order:

1. It joins the run's control groups, writes the small files of `/etc`, makes `/proc/sys` read-only,
   covers what tells about the host, takes execution from the writable folders, and makes the root
   read-only. Nothing of the program's has run yet; until here it may be root.
2. It gives up its ids and capabilities. Started by root: no groups, then real, effective and saved
   ids of an unprivileged *host* user, then a user name space of that user's own. It checks that
   nothing is left, and refuses the start if something is.
3. no_new_privs, resource limits, Landlock, seccomp: for *itself*, so the supervisor that it
   becomes holds no right that the program lacks.
4. It forks. The child is the program; the parent lets exactly this one execve through (see `bpf`),
   closes the listener, tells the gate, and becomes the supervisor, or a plain reaper for tools.

Any failure on the way is written to the gate and ends the run: nothing is started half confined.

It imports built-in modules and `_ctypes` alone (`ctypes` would cost more than all of the rest):
numbers go to the kernel as C longs and structures as bytes, through libc's `syscall`. The
configuration that it reads was written by the gate (`sandbox.start`), never by the program.
"""

import _ctypes
import _signal  # type: ignore[import-not-found]
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

CODE_FD, CONTROL_FD, FIRST_FD = 3, 4, 5
"""This code; the socket to the gate; the channel, or the program's three standard streams."""

FAILED_TO_START = 125

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = (
    38,
    39,
    47,
    4,
)
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, "little") + bytes(4)
_CLONE_NEWUSER = 0x10000000
_AF_UNIX, _AF_INET, _SOCK_STREAM, _SOCK_DGRAM, _SOCK_CLOEXEC = 1, 2, 1, 2, 0o2000000
_LOOPBACK, _BACKLOG = bytes((127, 0, 0, 1)), 512
_LANDLOCK_RULE_PATH_BENEATH = 1
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTIFICATION_BYTES, _RESPONSE_BYTES = 80, 24
_POLLIN, _POLLFD_BYTES = 1, 8
_ENOENT, _EINVAL, _EINTR = 2, 22, 4


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "B"


_syscall = _Function(_ctypes.dlsym(_ctypes.dlopen(None, 2), "syscall"))  # type: ignore[arg-type]
_numbers: "dict[str, int]" = {}


class LaunchError(Exception):
    """The run can't be confined as planned, so it is not started."""


def call(name: str, *arguments: "Any") -> int:
    """A system call by name: integers as longs, bytes and buffers as pointers, None as NULL."""
    result: int = _syscall(
        _Long(_numbers[name]),
        *[_Long(one) if isinstance(one, int) else one for one in arguments],
    )
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, f"{name}: {posix.strerror(number)}")
    return result


def buffer(size: int) -> "Any":
    """Zeroed memory that the kernel may write to; `bytes(buffer)` is its content."""
    kind = type("Buffer", (_ctypes.Array,), {"_type_": _Byte, "_length_": size})
    return kind()


def address(data: bytes) -> int:
    """Where the bytes of a bytes object lie: behind its header, before its final NUL."""
    return id(data) + bytes.__basicsize__ - 1


# --- 1. the name spaces' insides ---


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


def mount(source: "bytes | None", target: bytes, flags: int) -> None:
    call("mount", source, target, None, flags, None)


def shape_file_system(configuration: "dict[str, Any]") -> None:
    for fd in configuration["cgroups"]:
        posix.write(fd, b"0")
        posix.close(fd)
    for path, content in configuration["files"]:
        fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o644)
        posix.write(fd, content)
        posix.close(fd)
    if configuration["no_more_namespaces"]:
        # Counts in the run's own user name space: this process was put into it by bubblewrap.
        fd = posix.open("/proc/sys/user/max_user_namespaces", posix.O_WRONLY)
        posix.write(fd, b"0")
        posix.close(fd)
    for path in configuration["read_only"]:
        try:
            mount(path, path, _MS_BIND | _MS_REC)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
        else:
            mount(None, path, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | configuration["proc_flags"])
    for path in configuration["masked"]:
        try:
            mount(b"/dev/null", path, _MS_BIND)
        except OSError as error:
            if error.errno != _ENOENT:
                raise
    for path, flags in configuration["remounts"]:
        mount(None, path, _MS_REMOUNT | _MS_BIND | flags)
    for path, uid, gid in configuration["owners"]:
        posix.chown(path, uid, gid)


def make_socket(path: bytes) -> int:
    """The supervisor's socket: bound while the root may be written, listened to later."""
    listener = call("socket", _AF_UNIX, _SOCK_STREAM | _SOCK_CLOEXEC, 0)
    name = _AF_UNIX.to_bytes(2, "little") + path + b"\0"
    call("bind", listener, name, len(name))
    posix.chmod(path, 0o666)
    return listener


def make_listeners(addresses: "list[tuple[int, bool, int]]") -> "list[tuple[int, int]]":
    """(service, descriptor) for each (service, datagrams, port), on the run's own loopback. Done
    with rights, so that a port below 1024 can be taken; the run may take such ports too."""
    if addresses:
        fd = posix.open("/proc/sys/net/ipv4/ip_unprivileged_port_start", posix.O_WRONLY)
        posix.write(fd, b"0")
        posix.close(fd)
    listeners = []
    for service, datagrams, port in addresses:
        kind = _SOCK_DGRAM if datagrams else _SOCK_STREAM
        fd = call("socket", _AF_INET, kind | _SOCK_CLOEXEC, 0)
        name = _AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + _LOOPBACK + bytes(8)
        call("bind", fd, name, len(name))
        if not datagrams:
            call("listen", fd, _BACKLOG)
        listeners.append((service, fd))
    return listeners


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


def restrict_files(attribute: bytes, rules: "list[tuple[bytes, int]]") -> None:
    ruleset = call("landlock_create_ruleset", attribute, len(attribute), 0)
    for path, rights in rules:
        fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
        rule = rights.to_bytes(8, "little") + fd.to_bytes(4, "little")
        call("landlock_add_rule", ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        posix.close(fd)
    call("landlock_restrict_self", ruleset, 0)
    posix.close(ruleset)


def restrict_calls(code: bytes, *, listen: bool) -> int:
    """Loads the filter; with `listen` returns the listener that execve is handed to, else -1."""
    program = (len(code) // 8).to_bytes(8, "little") + address(code).to_bytes(8, "little")
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER if listen else 0
    result = call("seccomp", _SECCOMP_SET_MODE_FILTER, flags, program)
    return result if listen else -1


# --- 4. the program ---


def poll(*fds: int) -> "list[int]":
    """Blocks until one of `fds` can be read or was hung up on; which ones."""
    entries = buffer(_POLLFD_BYTES * len(fds))
    view = memoryview(entries).cast("B")
    for place, fd in enumerate(fds):
        start = place * _POLLFD_BYTES
        view[start : start + 6] = fd.to_bytes(4, "little", signed=True) + _POLLIN.to_bytes(
            2, "little"
        )
    while True:
        try:
            call("ppoll", entries, len(fds), None, None, 0)
            break
        except OSError as error:
            if error.errno != _EINTR:
                raise
    return [fd for place, fd in enumerate(fds) if any(view[place * 8 + 6 : place * 8 + 8])]


def become_program(
    configuration: "dict[str, Any]", streams: "tuple[int, ...]", ready: int
) -> "NoReturn":
    """In the child: the three streams, nothing else, default signals, the program."""
    try:
        for number, fd in enumerate(streams):
            posix.dup2(fd, number)
        posix.dup2(ready, 3, False)
        ready = 3
        call("close_range", 4, 0xFFFFFFFF, 0)
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT):
            _signal.signal(number, _signal.SIG_DFL)
        posix.setsid()
        posix.chdir(configuration["cwd"])
        posix.execve(configuration["program"], configuration["argv"], configuration["env"])
    except BaseException as error:
        posix.write(ready, str(error).encode("utf-8", "backslashreplace")[:4096])
    posix._exit(127)


def let_one_execve_through(listener: int, child: int, ready: int) -> None:
    """Continues the child's first execve and closes the listener: from then on the kernel says
    ENOSYS. The call that is continued is this launcher's own, in a process with one thread, so
    nobody can change its arguments meanwhile."""
    if listener not in poll(listener, ready):
        posix.close(listener)
        return
    notification = buffer(_NOTIFICATION_BYTES)
    call("ioctl", listener, _NOTIF_RECV, notification)
    seen = bytes(notification)
    if int.from_bytes(seen[8:12], "little") != child:
        raise LaunchError("another process tried to start a program first")
    response = buffer(_RESPONSE_BYTES)
    view = memoryview(response).cast("B")
    view[0:8] = seen[0:8]
    view[20:24] = _NOTIF_CONTINUE.to_bytes(4, "little")
    call("ioctl", listener, _NOTIF_SEND, response)
    posix.close(listener)


def wait_for_start(ready: int) -> None:
    """The other end closes when the program was executed; what is read before is the error."""
    message = b""
    while part := posix.read(ready, 4096):
        message += part
    posix.close(ready)
    if message:
        raise LaunchError("the program could not be started: " + message.decode("utf-8", "replace"))


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


def run(supervisor: bytes) -> "NoReturn":
    configuration = read_configuration()
    _numbers.update(configuration["numbers"])
    channel = configuration["socket"] is not None
    posix.umask(0o022)
    # Out of bubblewrap's process group: kill(0, …) reaches a group across pid name spaces.
    posix.setsid()
    call("close_range", configuration["first_unused_fd"], 0xFFFFFFFF, 0)
    posix.close(CODE_FD)
    listeners = make_listeners(configuration["listeners"])
    shape_file_system(configuration)
    accepting = make_socket(configuration["socket"]) if channel else -1
    for path, flags in configuration["last_remounts"]:
        mount(None, path, _MS_REMOUNT | _MS_BIND | flags)
    set_limits(configuration["limits"])
    if configuration["host_ids"] is not None:
        uid, gid = configuration["host_ids"]
        drop_ids(uid, gid, configuration["inside_id"], configuration["user_namespace"])
    if configuration["host_ids"] is None or configuration["user_namespace"]:
        drop_capabilities()
    # A change of ids clears the parent-death signal, so it is set again; the gate's end of the
    # control socket is watched as well, for the moment in between.
    call("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    check_nothing_left()
    if channel:
        call("listen", accepting, 256)
    restrict_files(configuration["landlock"], configuration["rules"])
    listener = restrict_calls(configuration["filter"], listen=configuration["exec_once"])
    if channel:
        input_read, input_write = posix.pipe2(posix.O_CLOEXEC)
        output_read, output_write = posix.pipe2(posix.O_CLOEXEC)
        error_read, error_write = posix.pipe2(posix.O_CLOEXEC)
        streams: tuple[int, ...] = (input_read, output_write, error_write)
    else:
        streams = (FIRST_FD, FIRST_FD + 1, FIRST_FD + 2)
    ready_read, ready_write = posix.pipe2(posix.O_CLOEXEC)
    child = posix.fork()
    if child == 0:
        become_program(configuration, streams, ready_write)
    posix.close(ready_write)
    for fd in streams:
        posix.close(fd)
    if listener >= 0:
        let_one_execve_through(listener, child, ready_read)
    wait_for_start(ready_read)
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    posix.write(CONTROL_FD, b"S")
    if not channel:
        reap_until_done(child)
    streams = (input_write, output_read, error_read)
    serving = load_supervisor(supervisor).Supervisor(
        FIRST_FD, accepting, CONTROL_FD, child, streams, listeners
    )
    report_exit(*serving.run())
    serving.linger()
    posix._exit(0)


def main(supervisor: bytes) -> "NoReturn":
    """Runs the above and reports what goes wrong; never returns."""
    try:
        run(supervisor)
    except BaseException as error:
        text = (
            f"{type(error).__name__}: {error}" if not isinstance(error, LaunchError) else str(error)
        )
        posix.write(CONTROL_FD, b"E" + text.encode("utf-8", "backslashreplace")[:4096])
        posix._exit(FAILED_TO_START)
