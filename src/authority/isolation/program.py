"""The program's start: one fork, one execve, and the word that it was executed, or why not.

Rules
- Before the fork process 1 is made undumpable, so nothing in the run can look into it; the child
  undoes that for itself before it becomes the program.
- Where the filter hands execve to a listener, exactly one is let through: the child's first, which
  is this code's own. Then the listener is closed, and the kernel says ENOSYS to any other.
- The program gets three streams, no other descriptor, default signals, a session of its own. If it
  can't be executed the start fails with the kernel's words (`LaunchError`).
"""

import _signal  # type: ignore[import-not-found]
import posix

from authority.isolation.calls import LaunchError, buffer, call, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PR_SET_DUMPABLE = 4
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTIFICATION_BYTES, _RESPONSE_BYTES = 80, 24
_TIOCSCTTY = 0x540E


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


def start_program(
    configuration: "dict[str, Any]", listener: int, streams: "tuple[int, ...]"
) -> Start:
    """Fork; the child becomes the program, the parent gets its `Start`."""
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
