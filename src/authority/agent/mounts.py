"""The kernel's questions about mounted files, copied to the gate, and the gate's answers back.

Rules
- Nothing here reads what it carries. Each mount is a raw stream that begins with the run (`CONNECT`,
  the detail is the mount's number); a frame is one message of the kernel or one answer to it.
- The kernel bounds what it asks: it has at most as many questions under way as the run has threads,
  and a question has at most `MAX_MESSAGE` bytes. So there is no window; while the trunk is full the
  kernel is not asked for more.
- An answer that the kernel does not want any more (the question was interrupted) is dropped. One that
  it does not understand is told (`TROUBLE`), and whoever asked goes on waiting: the gate's fault.
- When the gate ends the stream the device is closed, and the kernel ends the mount: everything that
  waits for it, and everything that comes later, fails. So it is when process 1 dies.
"""

import posix
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from authority.agent.supervisor import Supervisor

CLOSE, CONNECT = 2, 11
MOUNT = 6

MAX_MESSAGE = (1 << 20) + 4096
MESSAGES_A_TURN = 32

_IN = select.EPOLLIN
_ENOENT = 2


class Mount:
    """One mount's device."""

    def __init__(self, mounts: "Mounts", number: int, fd: int) -> None:
        self.mounts = mounts
        self.core = mounts.core
        self.number = number
        self.fd = fd

    def refresh(self, open_trunk: bool) -> None:
        self.core.watch(self.fd, _IN if open_trunk else 0)

    def on_events(self, _events: int) -> None:
        space = self.mounts.space
        for _ in range(MESSAGES_A_TURN):
            try:
                size = posix.readv(self.fd, (space,))
            except BlockingIOError:
                return
            except OSError as error:
                # The kernel ended the mount: nothing comes from it any more.
                self.core.trouble(f"a mount of files ended: {error.strerror}")
                self.mounts.close(self)
                return
            self.core.send_raw(self.number, bytes(space[:size]))

    # --- from the gate ---

    def take(self, frame: bytearray) -> None:
        try:
            posix.write(self.fd, memoryview(frame)[8:])
        except OSError as error:
            if error.errno != _ENOENT:
                self.core.trouble(f"the kernel refused an answer about files: {error.strerror}")

    def eof(self) -> None:
        self.core.misunderstood("half an end of a mount's stream")

    def granted(self, _count: int) -> None:
        self.core.misunderstood("room on a mount's stream")

    def end(self) -> None:
        self.mounts.close(self, tell=False)


class Mounts:
    """All mounts of one supervisor. `devices` are (the mount's number, descriptor)."""

    def __init__(self, core: "Supervisor", devices: "list[tuple[int, int]]") -> None:
        self.core = core
        self.streams: dict[int, Mount] = {}
        self.space = memoryview(bytearray(MAX_MESSAGE if devices else 0))
        for index, fd in devices:
            mount = Mount(self, core.new_number(), fd)
            self.streams[mount.number] = core.streams[mount.number] = mount
            core.handlers[fd] = mount.on_events
            detail = bytes((MOUNT,)) + index.to_bytes(2, "big")
            core.send(CONNECT, mount.number.to_bytes(4, "big") + detail)

    def refresh(self, open_trunk: bool) -> None:
        """What may be read now."""
        for mount in self.streams.values():
            mount.refresh(open_trunk)

    def close(self, mount: Mount, *, tell: bool = True) -> None:
        if self.streams.pop(mount.number, None) is None:
            return
        del self.core.streams[mount.number]
        self.core.forget(mount.fd)
        if tell:
            self.core.send(CLOSE, mount.number.to_bytes(4, "big"))
