"""The programs that speak the protocol: their connections, shared out over the trunk in turns.

Rules
- A client connects to the run's socket and writes stream 1; the trunk sees a number that is never
  given twice (`OPEN`, `CLOSE`). A frame of another stream, or longer than `MAX_FRAME`, closes that
  client and nobody else.
- Frames above `SMALL_FRAME` wait for room in one pool, and who holds room without making progress
  for `STALL_SECONDS` is closed.
- A client that does not read its answers is closed when they exceed its queue; the others go on.
- Clients are served in turns, one read of at most `READ_BYTES` each.
"""

import _socket
import posix
import select
import time

from authority.agent.buffers import Inbox, Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from authority.agent.supervisor import Supervisor

OPEN, CLOSE = 1, 2

MAX_FRAME = 16 << 20
SMALL_FRAME = 64 << 10
LARGE_POOL = 64 << 20
MAX_CLIENTS = 256
READ_BYTES = 64 << 10
CLIENT_QUEUE = 32 << 20
CLIENT_QUEUES = 64 << 20
STALL_SECONDS = 30.0

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_GONE = select.EPOLLHUP | select.EPOLLERR


class Client:
    """One local connection: `reserved` bytes of the pool are its own, or it waits for them."""

    def __init__(self, clients: "Clients", number: int, fd: int) -> None:
        self.clients = clients
        self.number = number
        self.fd = fd
        self.inbox = Inbox()
        self.outbox = Outbox()
        self.reserved = 0
        self.waiting = False
        self.progress = 0.0
        self.closing = False

    def take(self, frame: bytearray) -> None:
        """A frame from the gate."""
        self.clients.deliver(self, frame)

    def end(self) -> None:
        """The gate ended the stream: what it sent before is still delivered."""
        self.closing = True
        if not self.outbox.size:
            self.clients.close(self, tell=False)


class Clients:
    """All clients of one supervisor, and the socket that they come in by."""

    def __init__(self, core: "Supervisor", accepting: int) -> None:
        self.core = core
        self.accepting = accepting
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, accepting)
        self.known: dict[int, Client] = {}
        self.pool = 0
        self.queued = 0
        self.accepts = True
        posix.set_blocking(accepting, False)
        core.handlers[accepting] = self.on_accept

    def refresh(self, open_trunk: bool) -> None:
        """What may be read and written now."""
        watch = self.core.watch
        watch(self.accepting, _IN if self.accepts and len(self.known) < MAX_CLIENTS else 0)
        for client in self.known.values():
            reads = open_trunk and not client.waiting and not client.closing
            watch(client.fd, (_IN if reads else 0) | (_OUT if client.outbox.size else 0))

    def finished(self) -> bool:
        """Nobody is left to connect, and nothing of theirs is left to forward."""
        if self.accepts and len(self.known) < MAX_CLIENTS:
            self.on_accept(0)
        return not self.accepts and not self.known

    def on_accept(self, _events: int) -> None:
        while len(self.known) < MAX_CLIENTS:
            try:
                fd, _ = self.listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                if self.core.childless:
                    self.accepts = False
                return
            except OSError as error:
                self.core.trouble(f"a client could not be accepted: {error.strerror}")
                return
            posix.set_blocking(fd, False)
            client = Client(self, self.core.new_number(), fd)
            self.known[client.number] = self.core.streams[client.number] = client
            self.core.handlers[fd] = lambda events, client=client: self.on_client(client, events)  # type: ignore[misc]
            self.core.send(OPEN, client.number.to_bytes(4, "big"))

    def on_client(self, client: Client, events: int) -> None:
        try:
            if events & _OUT:
                self.queued -= client.outbox.flush(client.fd)
                if client.closing and not client.outbox.size:
                    self.close(client, tell=False)
                    return
            if events & _IN:
                data = posix.read(client.fd, READ_BYTES)
                if not data:
                    self.close(client)
                    return
                client.inbox.add(data)
                client.progress = time.monotonic()
                self.forward(client)
            elif events & _GONE:
                # Nobody reads its answers any more; what it sent before is read when there is room.
                self.queued -= client.outbox.size
                client.outbox.clear()
                if client.closing:
                    self.close(client, tell=False)
        except BlockingIOError:
            return
        except OSError:
            self.close(client)

    def forward(self, client: Client) -> None:
        """Whole frames go to the trunk under the client's own number."""
        while frame := client.inbox.next():
            self.release(client)
            if int.from_bytes(frame[4:8], "big") != 1 or len(frame) < 8:
                self.refuse(client, "a client wrote to a stream that is not its own")
                return
            frame[4:8] = client.number.to_bytes(4, "big")
            self.core.out.add(frame)
        announced = client.inbox.announced
        if announced > MAX_FRAME:
            self.refuse(client, "a client announced a frame that is too large")
        elif announced > SMALL_FRAME and not client.reserved:
            self.reserve(client, announced)

    def reserve(self, client: Client, size: int) -> None:
        client.waiting = self.pool + size > LARGE_POOL
        if not client.waiting:
            client.reserved = size
            self.pool += size
            client.progress = time.monotonic()

    def release(self, client: Client) -> None:
        if client.reserved:
            self.pool -= client.reserved
            client.reserved = 0
            for other in self.known.values():
                if other.waiting:
                    self.reserve(other, other.inbox.announced)

    def close_stalled(self, open_trunk: bool) -> None:
        """Room in the pool is for those who use it; a paused trunk is nobody's fault."""
        now = time.monotonic()
        for client in list(self.known.values()):
            if not open_trunk:
                client.progress = now
            elif client.reserved and now - client.progress > STALL_SECONDS:
                self.refuse(client, "a client announced a large frame and did not send it")

    def refuse(self, client: Client, reason: str) -> None:
        self.core.trouble(reason)
        self.close(client)

    def close(self, client: Client, *, tell: bool = True) -> None:
        if self.known.pop(client.number, None) is None:
            return
        del self.core.streams[client.number]
        self.core.forget(client.fd)
        self.queued -= client.outbox.size
        client.waiting = False
        self.release(client)
        if tell:
            self.core.send(CLOSE, client.number.to_bytes(4, "big"))

    def deliver(self, client: Client, frame: bytearray) -> None:
        """An answer for a client."""
        if client.closing:
            return
        frame[4:8] = (1).to_bytes(4, "big")
        client.outbox.add(frame)
        self.queued += len(frame)
        if client.outbox.size > CLIENT_QUEUE or self.queued > CLIENT_QUEUES:
            slowest = max(self.known.values(), key=lambda one: one.outbox.size)
            self.refuse(slowest, "a client did not read its answers")
