"""What a service behind a run's endpoints may ask of the gate: nothing else reaches it.

A program that knows nothing of Authority reaches a listener, a name or a mount inside its run. Each
arrives here as a raw stream, and a service turns it into requests. The gate gives a service one
`Door`, which belongs to one run and uses that run's own capability; so a service can do no more than
the program could by asking itself.

Rules
- Every act is asked at the door: `ask` for one request and its answer, `open` for an effect that goes
  on (a tunnel, a streamed answer), `glance` for a look that is tallied.
- A refusal is `Refused`: it stands in the log already, durably. A service passes its sentence on in
  the program's own tongue and adds nothing to it.
- Before bytes of a `Flow` are sent or delivered, `commit` has returned.
- When a run is halted, ends, or loses its capability, its flows are stopped: `on_stop` callbacks run
  at once, and cut what they hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypedDict, Unpack

import msgspec

from authority.kernel.labels import Label
from authority.kernel.policy import Policy
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import Resource
from authority.protocol.packets import Peer


class Stream(Protocol):
    """One raw stream. Bytes for connections; whole messages for the resolver and mounts."""

    @property
    def number(self) -> int: ...
    @property
    def service(self) -> int: ...
    @property
    def detail(self) -> bytes: ...

    async def read(self) -> bytes:
        """What came next; empty at the end, for good."""
        ...

    async def write(self, data: bytes) -> None:
        """Send, waiting for room. Raises `ConnectionError` when the other side is gone."""
        ...

    def write_eof(self) -> None:
        """Nothing more is written."""
        ...

    def abort(self) -> None:
        """End both directions at once."""
        ...


class Refused(Exception):
    """A request was refused, and the entry that says so is durable."""

    def __init__(
        self, code: str, layer: str, sentence: str, number: int, rule: str | None, seq: int
    ) -> None:
        super().__init__(sentence)
        self.code, self.layer, self.sentence = code, layer, sentence
        self.number, self.rule, self.seq = number, rule, seq


class Failed(Exception):
    """An admitted request was tried and failed; the sentence may be shown to the program."""

    def __init__(self, sentence: str, seq: int = -1) -> None:
        super().__init__(sentence)
        self.sentence, self.seq = sentence, seq


class Ending(TypedDict, total=False):
    """How an effect that went on ended, beside its status.

    `spent` is what was used of the reservation; what is not named in it counts as used up.
    """

    code: str
    spent: Mapping[str, int]
    facts: Mapping[str, Any]
    body: bytes


class Stops:
    """What is called back when an effect that goes on is stopped from outside."""

    def __init__(self) -> None:
        self.stopped = False
        self._callbacks: list[Callable[[], None]] = []

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back once when it is stopped; at once if it was already."""
        if self.stopped:
            callback()
        else:
            self._callbacks.append(callback)

    def stop(self) -> None:
        """Stopped: tell whoever holds something."""
        self.stopped = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Flow(Protocol):
    """An admitted effect that goes on. Its intent is durable, halt and revocation asked again."""

    @property
    def seq(self) -> int: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def reserved(self) -> Mapping[str, int]:
        """What was reserved at the admission, by dimension."""
        ...

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call back once when the flow is stopped from outside; at once if it was already."""
        ...

    async def commit(
        self,
        way: str,
        data: bytes,
        *,
        charge: Mapping[str, int] | None = None,
        label: Label | None = None,
        keep: bool = True,
    ) -> None:
        """Commit a piece before it is sent (`way` "out") or delivered ("in"), durable on return.

        Its length is charged to the effect's dimension unless `charge` says otherwise. A piece that
        comes in carries the effect's own label unless `label` is given. `keep` puts what is longer
        than an entry holds into the content store, as far as the run's budget for that goes. Raises
        `Refused`; the flow is over then, and `finish` still has to be called.
        """
        ...

    async def keep(self, data: bytes) -> None:
        """Keep what was read as the outcome's result, as far as the run's budget for that goes."""
        ...

    async def finish(self, status: str, **ending: Unpack[Ending]) -> int:
        """Commit the outcome (`done`, `failed`, or `aborted`: nothing was performed); its entry."""
        ...

    def settle(self, status: str, **ending: Unpack[Ending]) -> int:
        """`finish` without waiting: the outcome is appended now and durable with the next batch. Only
        for what a look at the world can settle after a crash (a file)."""
        ...


class Door(Protocol):
    """The gate, as one run's services see it."""

    @property
    def run(self) -> str: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def cwd(self) -> str: ...
    async def ask(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct,
        verb: str = "",
    ) -> Any:
        """One request through the whole pipeline: the answer's value. Raises `Refused`, `Failed`."""
        ...

    async def open(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Flow:
        """Admit an effect that goes on. Raises `Refused`.

        `facts` is what the service looked up for the decision; it stands in the entry.
        """
        ...

    async def deny(
        self, effect: str, resource: str, reason: str, *, code: str = "", layer: str = ""
    ) -> Refused:
        """Record what a service itself had to refuse (a message that can't be read, a name that
        does not match); what to raise or pass on. The entry is durable on return."""
        ...

    def glance(
        self,
        effect: str,
        resource: Resource,
        verb: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Judgement:
        """Judge a look by the policy. It is tallied, and its label joins the run's with the run's
        next entry. `facts` is what was found there. A run that is halted or over sees nothing."""
        ...

    def label_at(self) -> int:
        """The entry that raised the run's label last. What goes on compares it, so that nothing is
        written under a decision that was made before the run read a secret."""
        ...

    async def worker(self) -> Peer:
        """The run's worker, started when first needed. Raises `Failed` when it can't be. One that ends
        before the run does is recorded as an incident."""
        ...

    def listen(self, address: int, port: int) -> None:
        """Accept connections at an address (IPv4 as a number) of the run's loopback."""
        ...

    def left(self, dimension: str) -> int | None:
        """What is left of a budget, the least above the run; None where it has no limit."""
        ...

    async def incident(self, what: str, detail: str) -> None:
        """Record that something was not as it must be. Durable on return."""
        ...

    def trouble(self, text: str) -> None:
        """A line for whoever watches the run."""
        ...


class Folder(msgspec.Struct, frozen=True):
    """A mounted folder: its path in the run, the folder outside that holds its files, whether files
    may be executed there, and whether it is the run's named home."""

    path: str
    source: str
    executable: bool = False
    home: bool = False


class Places(msgspec.Struct, frozen=True):
    """What is mounted in a run. The detail of a mount's stream is the number of its folder.

    `shown` are paths (folders with all below them) that the program is made of: they may be read
    whatever the rules say. `over` are paths on which something else is put before the program
    begins: they and what leads to them can be looked up. A file belongs to whoever asks, which the
    head of each message names.
    """

    folders: tuple[Folder, ...] = ()
    shown: tuple[str, ...] = ()
    over: tuple[str, ...] = ()


class Service(Protocol):
    """What one kind of raw stream leads to, for one run."""

    async def serve(self, stream: Stream) -> None:
        """Serve a stream to its end. May be called many times side by side."""
        ...


async def pump(stream: Stream, sock: Any) -> None:
    """Copy between a raw stream and a non-blocking socket until both directions have ended."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        while data := await stream.read():
            await loop.sock_sendall(sock, data)
        sock.shutdown(1)

    async def inward() -> None:
        while data := await loop.sock_recv(sock, 64 * 1024):
            await stream.write(data)
        stream.write_eof()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(outward())
            group.create_task(inward())
    except* OSError:
        stream.abort()
    finally:
        sock.close()
