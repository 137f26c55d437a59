"""Raw streams: what the run's own loopback brings, copied to the gate and back.

Rules
- Nothing here reads what it carries. A connection to a listener is a stream of its own (`CONNECT`,
  which says to what service), its bytes are frames, its half-closes are `EOF`, its end is `CLOSE`.
- At most `WINDOW` bytes of a stream are on their way in each direction. The gate grants more with
  `WINDOW`; we grant more when the program has taken what came. A gate that sends more is not
  understood, and ends the run.
- A program that vanishes takes its streams with it. After the program's end what was still in its
  sockets is forwarded for at most `DRAIN_SECONDS`.
- The resolver's socket is one stream: a frame is six bytes of the asker's address and one datagram.
  Datagrams are dropped when the trunk is full, as networks do.
- `LISTEN` accepts connections at an address of the loopback; they say at which (`DIRECT`).
- Above `MAX_STREAMS` a connection is closed at once, and `TROUBLE` says so.
"""

import _socket
import posix
import select
import time

from authority.agent.buffers import Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from authority.agent.supervisor import Supervisor

CLOSE, CONNECT, EOF, GRANT = 2, 11, 12, 13
NAMES, DIRECT = 4, 5

WINDOW = 256 << 10
CHUNK = 64 << 10
MAX_STREAMS = 1024
MAX_LISTENERS = 4096
MAX_DATAGRAM = 4096
DRAIN_SECONDS = 2.0
BACKLOG = 512

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class Connection:
    """One accepted connection. `credit` is what we may still send, `owed` what the gate may."""

    def __init__(self, services: "Services", number: int, sock: "_socket.socket") -> None:
        self.services = services
        self.core = services.core
        self.number = number
        self.sock = sock
        self.fd = sock.fileno()
        self.outbox = Outbox()
        self.credit = WINDOW
        self.owed = WINDOW
        self.read_ended = False
        self.write_ends = False
        self.write_ended = False

    def refresh(self, open_trunk: bool) -> None:
        reads = open_trunk and self.credit > 0 and not self.read_ended
        self.core.watch(self.fd, (_IN if reads else 0) | (_OUT if self.outbox.size else 0))

    def on_events(self, events: int) -> None:
        try:
            if events & _OUT:
                self.write()
            if events & _IN and not self.read_ended:
                self.read()
            elif events & _GONE:
                # It takes nothing any more; what it sent before is read when there is credit.
                self.outbox.clear()
                self.write_ended = True
                self.close_when_over()
        except BlockingIOError:
            return
        except OSError:
            self.services.close(self)

    def read(self) -> None:
        data = posix.read(self.fd, min(CHUNK, self.credit))
        if data:
            self.credit -= len(data)
            self.core.send_raw(self.number, data)
            return
        self.read_ended = True
        self.core.send(EOF, self.number.to_bytes(4, "big"))
        self.close_when_over()

    def write(self) -> None:
        taken = self.outbox.flush(self.fd)
        if taken:
            self.owed += taken
            self.core.send(GRANT, self.number.to_bytes(4, "big") + taken.to_bytes(4, "big"))
        if self.write_ends and not self.outbox.size and not self.write_ended:
            self.write_ended = True
            self.sock.shutdown(_socket.SHUT_WR)
            self.close_when_over()

    def close_when_over(self) -> None:
        if self.read_ended and (self.write_ended or self.core.childless):
            self.services.close(self)

    # --- from the gate ---

    def take(self, frame: bytearray) -> None:
        size = len(frame) - 8
        self.owed -= size
        if self.owed < 0 or self.write_ends:
            self.core.misunderstood("more on a raw stream than was granted")
        self.outbox.add(frame[8:])
        self.settle()

    def eof(self) -> None:
        self.write_ends = True
        self.settle()

    def settle(self) -> None:
        try:
            self.write()
        except BlockingIOError:
            return
        except OSError:
            self.services.close(self)

    def granted(self, count: int) -> None:
        self.credit += count
        if self.credit > WINDOW:
            self.core.misunderstood("more granted on a raw stream than was sent")

    def end(self) -> None:
        self.services.close(self, tell=False)


class Resolver:
    """The socket that the run's names are asked at."""

    def __init__(self, services: "Services", number: int, fd: int) -> None:
        self.services = services
        self.core = services.core
        self.number = number
        self.fd = fd
        self.sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0, fd)

    def refresh(self, open_trunk: bool) -> None:
        self.core.watch(self.fd, _IN if open_trunk else 0)

    def on_events(self, _events: int) -> None:
        try:
            data, (host, port) = self.sock.recvfrom(MAX_DATAGRAM)
        except OSError:
            return
        self.core.send_raw(self.number, _socket.inet_aton(host) + port.to_bytes(2, "big") + data)

    def take(self, frame: bytearray) -> None:
        if len(frame) < 14:
            self.core.misunderstood("a datagram without an address")
        host, port = _socket.inet_ntoa(bytes(frame[8:12])), int.from_bytes(frame[12:14], "big")
        try:
            self.sock.sendto(frame[14:], (host, port))
        except OSError:
            return

    def eof(self) -> None:
        self.core.misunderstood("the end of the resolver's stream")

    def granted(self, _count: int) -> None:
        self.core.misunderstood("room on the resolver's stream")

    def end(self) -> None:
        """Nobody answers names in this run."""
        self.services.drop(self)
        self.sock.close()


class Services:
    """All raw streams of one supervisor. `listeners` are (service, descriptor) from the launcher."""

    def __init__(self, core: "Supervisor", listeners: "list[tuple[int, int]]") -> None:
        self.core = core
        self.streams: dict[int, Connection | Resolver] = {}
        self.listening: dict[int, _socket.socket] = {}
        self.connections = 0
        self.deadline = 0.0
        for service, fd in listeners:
            posix.set_blocking(fd, False)
            if service == NAMES:
                self.add(Resolver(self, core.new_number(), fd), NAMES, b"")
            else:
                self.listen(_socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd), service)

    def refresh(self, open_trunk: bool) -> None:
        """What may be read and written now."""
        for stream in self.streams.values():
            stream.refresh(open_trunk)

    def finished(self) -> bool:
        """After the program's end: nothing of its connections is left, or time is up."""
        if not self.connections:
            return True
        now = time.monotonic()
        self.deadline = self.deadline or now + DRAIN_SECONDS
        for stream in list(self.streams.values()):
            if isinstance(stream, Connection):
                stream.close_when_over()
        return not self.connections or now > self.deadline

    def add(self, stream: "Connection | Resolver", service: int, detail: bytes) -> None:
        self.streams[stream.number] = self.core.streams[stream.number] = stream
        self.core.handlers[stream.fd] = stream.on_events
        self.core.send(CONNECT, stream.number.to_bytes(4, "big") + bytes((service,)) + detail)

    def listen(self, sock: "_socket.socket", service: int) -> None:
        fd = sock.fileno()
        self.listening[fd] = sock
        self.core.handlers[fd] = lambda _events: self.on_accept(sock, service)
        self.core.watch(fd, _IN)

    def listen_at(self, body: bytes) -> None:
        """`LISTEN`: an address of the loopback that connections are accepted at from now on."""
        host, port = _socket.inet_ntoa(body[:4]), int.from_bytes(body[4:], "big")
        if body[0] != 127 or len(self.listening) >= MAX_LISTENERS:
            self.core.trouble(f"no listener at {host} port {port}")
            return
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            self.core.trouble(f"no listener at {host} port {port}: {error.strerror}")
        else:
            self.listen(sock, DIRECT)

    def on_accept(self, listener: "_socket.socket", service: int) -> None:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError as error:
            self.core.trouble(f"a connection could not be accepted: {error.strerror}")
            return
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)
        if self.connections >= MAX_STREAMS:
            sock.close()
            self.core.trouble(f"more than {MAX_STREAMS} connections at a time: one was closed")
            return
        posix.set_blocking(fd, False)
        # Frames of ours are whole writes of the other side: waiting for more would only delay them.
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        detail = b""
        if service == DIRECT:
            host, port = sock.getsockname()
            detail = _socket.inet_aton(host) + port.to_bytes(2, "big")
        self.connections += 1
        self.add(Connection(self, self.core.new_number(), sock), service, detail)

    def close(self, stream: Connection, *, tell: bool = True) -> None:
        if stream.number not in self.streams:
            return
        self.connections -= 1
        self.drop(stream)
        stream.sock.close()
        if tell:
            self.core.send(CLOSE, stream.number.to_bytes(4, "big"))

    def drop(self, stream: "Connection | Resolver") -> None:
        del self.streams[stream.number]
        del self.core.streams[stream.number]
        self.core.release(stream.fd)
