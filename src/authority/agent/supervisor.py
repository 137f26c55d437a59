"""Process 1 of a run once the program has started: it owns the channel and shares it out.

Rules
- It is confined exactly as the program is, holds no key, and understands no message: it copies
  frames and writes the stream number. Whoever takes it over has won what the program had anyway.
- Four things use the trunk: clients that speak the protocol (`clients`), raw streams of the run's
  own loopback (`services`), the kernel's questions about mounted files (`mounts`), and the program's
  standard streams, here.
- Where there are mounts it serves before the program has begun (`turn`): the program's start itself
  looks into them.
- Memory is bounded whatever clients and program do. While `TRUNK_HIGH` bytes wait for the gate,
  neither clients nor connections nor output are read.
- At most `WINDOW` bytes of output are on their way without an `OUTPUT_ACK`. `INPUT_ACK` tells the
  gate how much of its input the program took; a gate that sends more than `INPUT_QUEUE` ahead loses
  the rest, and a `TROUBLE` says so.
- A program that has a terminal has it in place of the three pipes: what it writes there is output 1,
  typed input is written to it as it comes, and `RESIZE` sets the window's size. Its other end is held
  open here until the program ends, so that a program may close it and come back.
- When the program ends, everything else in the run is killed, what was still in pipes and sockets
  is forwarded, then `EXIT` is sent and our half of the channel ended. When the gate has ended its
  half, process 1 ends, and with it the pid name space.
- End of file on the channel, or on the gate's control socket, ends the run at once. So does
  anything from the gate that is not understood.

The launcher runs this file's code in its own process, where there is no package to import from: it
puts the modules beside it in place itself, and the rest are built-in and extension modules. Frames
and opcodes: `docs/protocol.md`.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import fcntl
import posix
import select
import time

from authority.agent.buffers import Inbox, Outbox
from authority.agent.clients import Clients
from authority.agent.mounts import Mounts
from authority.agent.services import Services

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Protocol

    class Stream(Protocol):
        """What a stream number leads to: a client or a raw stream."""

        def take(self, frame: bytearray) -> None: ...
        def end(self) -> None: ...


OUTPUT, EXIT, INPUT, INPUT_EOF, STARTED, INPUT_ACK, OUTPUT_ACK, TROUBLE = range(3, 11)
CLOSE, EOF, GRANT, LISTEN, RESIZE = 2, 12, 13, 14, 15

MAX_FRAME = 16 << 20
TRUNK_READ_BYTES = 256 << 10
TRUNK_HIGH = 1 << 20
OUTPUT_CHUNK = 32 << 10
WINDOW = 256 << 10
INPUT_QUEUE = 16 << 20
LINGER_SECONDS = 5.0
MAX_TROUBLES = 100
TIOCSWINSZ = 0x5414
END_OF_INPUT = b"\x04"
"""What a person types to say that no more input comes."""

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR
_RAW = (EOF, GRANT)


class GateProtocolError(Exception):
    """The gate sent something that is not in the protocol."""


class Supervisor:
    """The loop and everything that it serves: `run` until the program has ended, then `linger`."""

    def __init__(
        self,
        trunk: int,
        accepting: int,
        control: int,
        streams: "tuple[int, int, int]",
        listeners: "list[tuple[int, int]]",
        devices: "list[tuple[int, int]]",
        terminal: int = -1,
    ) -> None:
        """`terminal` is the program's end of its terminal; `streams` then is the other, twice."""
        self.trunk, self.control, self.child, self.terminal = trunk, control, 0, terminal
        self.stdin, stdout, stderr = streams
        self.epoll = select.epoll()
        self.interest: dict[int, int] = {}
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.out = Outbox()
        self.inbox = Inbox()
        self.streams: dict[int, Stream] = {}
        self.last_number = 0
        self.outputs = {fd: name for fd, name in ((stdout, 1), (stderr, 2)) if fd >= 0}
        self.unacknowledged = 0
        self.input = Outbox()
        self.input_ends = False
        self.status: tuple[int, int] | None = None
        self.childless = False
        self.troubles = 0
        self.wake, wake_write = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        _signal.signal(_signal.SIGCHLD, lambda _number, _frame: None)
        _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for fd in (trunk, self.stdin, *self.outputs):
            posix.set_blocking(fd, False)
        self.handlers[trunk] = self.on_trunk
        self.handlers[control] = self.on_control
        self.handlers[self.wake] = self.on_wake
        self.handlers[self.stdin] = self.on_stdin
        for fd in self.outputs:
            self.handlers[fd] = lambda _events, fd=fd: self.on_output(fd)  # type: ignore[misc]
        self.clients = Clients(self, accepting)
        self.services = Services(self, listeners)
        self.mounts = Mounts(self, devices)
        self.watch(self.wake, _IN)
        self.watch(control, _IN)

    def begin(self, child: int) -> None:
        """The program was forked; what ended before was not it."""
        self.child = child
        self.childless = False

    def run(self) -> "tuple[int, int]":
        """Serves the run; the program's (exit code, signal), the code -1 for a signal."""
        self.send(STARTED, b"")
        self.on_wake(0)
        while not self.finished():
            self.turn()
        code, signal = self.status or (-1, 0)
        self.send(
            EXIT, code.to_bytes(4, "big", signed=True) + signal.to_bytes(4, "big", signed=True)
        )
        while self.out.size:
            self.turn()
        return code, signal

    def turn(self) -> None:
        """Waits for something to happen, and serves what did."""
        self.refresh()
        timed = self.clients.pool > 0 or self.status is not None
        for fd, events in self.epoll.poll(0.5 if timed else -1):
            handler = self.handlers.get(fd)
            if handler is not None:
                handler(events)
        if self.out.size:
            # Most of the time the trunk has room, and need not be waited for.
            self.out.flush(self.trunk)
        if timed:
            self.clients.close_stalled(self.out.size < TRUNK_HIGH)

    def serve(self, fd: int, handler: "Callable[[int], None]") -> None:
        """Serves one more descriptor, until it is released."""
        self.handlers[fd] = handler
        self.watch(fd, _IN)

    # --- what is watched ---

    def watch(self, fd: int, mask: int) -> None:
        """A descriptor without interest is taken out, or its hang-up would wake us for ever."""
        before = self.interest.get(fd, 0)
        if mask == before:
            return
        if not mask:
            self.epoll.unregister(fd)
            del self.interest[fd]
            return
        if before:
            self.epoll.modify(fd, mask)
        else:
            self.epoll.register(fd, mask)
        self.interest[fd] = mask

    def refresh(self) -> None:
        """Interest as a function of the state: what may be read and written now."""
        open_trunk = self.out.size < TRUNK_HIGH
        self.watch(self.trunk, _IN | (_OUT if self.out.size else 0))
        self.clients.refresh(open_trunk)
        self.services.refresh(open_trunk)
        self.mounts.refresh(open_trunk)
        reads_output = open_trunk and self.unacknowledged < WINDOW
        for fd in self.outputs:
            self.watch(fd, _IN if reads_output else 0)
        if self.stdin >= 0:
            self.watch(self.stdin, _OUT if self.input.size else 0)

    def release(self, fd: int) -> None:
        self.watch(fd, 0)
        self.handlers.pop(fd, None)

    def forget(self, fd: int) -> None:
        self.release(fd)
        posix.close(fd)

    def new_number(self) -> int:
        self.last_number += 1
        return self.last_number

    # --- the trunk ---

    def send(self, opcode: int, body: bytes) -> None:
        head = (5 + len(body)).to_bytes(4, "big") + bytes(4)
        self.out.add(head + bytes((opcode,)) + body)

    def send_raw(self, number: int, data: bytes) -> None:
        self.out.add((4 + len(data)).to_bytes(4, "big") + number.to_bytes(4, "big") + data)

    def misunderstood(self, text: str) -> "NoReturn":
        raise GateProtocolError(f"the gate sent {text}")

    def trouble(self, text: str) -> None:
        self.troubles += 1
        if self.troubles <= MAX_TROUBLES:
            self.send(TROUBLE, text.encode("utf-8", "backslashreplace"))

    def on_trunk(self, events: int) -> None:
        try:
            if events & _OUT:
                self.out.flush(self.trunk)
            if not events & (_IN | _GONE):
                return
            data = posix.read(self.trunk, TRUNK_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise GateProtocolError("the gate closed the channel")
        self.inbox.add(data)
        while frame := self.inbox.next():
            number = int.from_bytes(frame[4:8], "big")
            if not number:
                self.obey(frame)
            elif number in self.streams:
                self.streams[number].take(frame)
        if self.inbox.announced > MAX_FRAME:
            raise GateProtocolError("the gate announced a frame that is too large")

    def obey(self, frame: bytearray) -> None:
        opcode, body = (frame[8], bytes(frame[9:])) if len(frame) > 8 else (0, b"")
        if opcode == OUTPUT_ACK and len(body) == 4:
            self.unacknowledged -= int.from_bytes(body, "big")
            if self.unacknowledged < 0:
                raise GateProtocolError("the gate acknowledged output that it never got")
        elif opcode == CLOSE and len(body) == 4:
            stream = self.streams.get(int.from_bytes(body, "big"))
            if stream is not None:
                stream.end()
        elif opcode in _RAW and len(body) == (4 if opcode == EOF else 8):
            self.obey_raw(opcode, body)
        elif opcode == LISTEN and len(body) == 6:
            self.services.listen_at(body)
        elif opcode == INPUT:
            self.take_input(body)
        elif opcode == INPUT_EOF and not body:
            self.end_input()
        elif opcode == RESIZE and len(body) == 4:
            self.resize(body)
        else:
            raise GateProtocolError(f"the gate sent the unknown opcode {opcode}")

    def obey_raw(self, opcode: int, body: bytes) -> None:
        """For a raw stream; one for a stream that has gone meanwhile means nothing."""
        number = int.from_bytes(body[:4], "big")
        stream = self.services.streams.get(number) or self.mounts.streams.get(number)
        if stream is None:
            return
        if opcode == EOF:
            stream.eof()
        else:
            stream.granted(int.from_bytes(body[4:], "big"))

    def on_control(self, _events: int) -> None:
        raise GateProtocolError("the gate is gone")

    # --- the program's streams ---

    def on_output(self, fd: int) -> None:
        room = min(OUTPUT_CHUNK, WINDOW - self.unacknowledged)
        if room <= 0:
            return
        try:
            data = posix.read(fd, room)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: nobody has the terminal any more
        if not data:
            del self.outputs[fd]
            self.forget(fd)
            return
        self.unacknowledged += len(data)
        self.send(OUTPUT, bytes((self.outputs[fd],)) + data)

    def take_input(self, data: bytes) -> None:
        if self.stdin < 0 or self.input_ends:
            return
        if self.input.size + len(data) > INPUT_QUEUE:
            self.trouble("the program does not read its input; what follows was not delivered")
            self.input_ends = True
        else:
            self.input.add(data)
        self.write_input()

    def end_input(self) -> None:
        if self.terminal < 0:
            self.input_ends = True
        else:
            self.take_input(END_OF_INPUT)
        self.write_input()

    def resize(self, body: bytes) -> None:
        """The kernel tells the program; without a terminal, or after its end, it means nothing."""
        if self.terminal >= 0:
            size = [body[at : at + 2][::-1] for at in (0, 2)]
            fcntl.ioctl(self.terminal, TIOCSWINSZ, b"".join(size) + bytes(4))

    def on_stdin(self, events: int) -> None:
        if events & _GONE:
            self.close_input()
        else:
            self.write_input()

    def write_input(self) -> None:
        if self.stdin < 0:
            return
        try:
            written = self.input.flush(self.stdin)
        except OSError:
            # The program closed its input. That is its right, and no trouble.
            self.close_input()
            return
        if written:
            self.send(INPUT_ACK, written.to_bytes(4, "big"))
        if self.input_ends and not self.input.size:
            self.close_input()

    def close_input(self) -> None:
        self.input.clear()
        fd, self.stdin = self.stdin, -1
        if fd >= 0:
            self.forget(fd)

    # --- the end ---

    def on_wake(self, _events: int) -> None:
        """Some child ended: reap all; with the program's end, end everything."""
        self.empty_wake_pipe()
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if not pid:
                return
            if pid == self.child:
                killed = posix.WIFSIGNALED(status)
                self.status = (
                    (-1, posix.WTERMSIG(status)) if killed else (posix.WEXITSTATUS(status), 0)
                )
                self.close_input()
                self.kill_the_rest()
                if self.terminal >= 0:
                    posix.close(self.terminal)
                    self.terminal = -1

    def empty_wake_pipe(self) -> None:
        try:
            posix.read(self.wake, 4096)
        except BlockingIOError:
            return

    def kill_the_rest(self) -> None:
        """Everything in the pid name space but this process; `ESRCH` says that nothing is left."""
        try:
            posix.kill(-1, _signal.SIGKILL)
        except ProcessLookupError:
            return

    def finished(self) -> bool:
        """The program and all else have ended and nothing of theirs is left to forward."""
        if self.status is None or not self.childless:
            return False
        return self.clients.finished() and self.services.finished() and not self.outputs

    def linger(self) -> None:
        """Ends our half of the channel and waits for the gate's: were we to vanish while the gate
        still writes an answer, its end would break before it has read our last words."""
        try:
            # Kept in a name: it closes the channel when it is collected.
            channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, self.trunk)
            channel.shutdown(_socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_SECONDS
            posix.set_blocking(self.trunk, True)
            waiting = select.poll()
            waiting.register(self.trunk, select.POLLIN)
            waiting.register(self.control, select.POLLIN)
            while (left := deadline - time.monotonic()) > 0:
                ready = dict(waiting.poll(left * 1000))
                if self.control in ready:
                    return
                if self.trunk in ready and not posix.read(self.trunk, TRUNK_READ_BYTES):
                    return
        except OSError:
            return
