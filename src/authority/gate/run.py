"""One run while it lives: sandbox, channel, output, counts, and whoever listens to it.

Rules
- A program with a terminal writes pictures, a byte or a screen at a time. The first piece after a pause
  is committed at once; what follows is gathered until `FRAME_SECONDS` have passed since the last
  commit, or `FRAME_BYTES` are there, and is then one entry.
- Output goes on in the order in which it was printed, a piece only when its entry is durable; the
  supervisor gets room for more only then, and when whoever watches the run has taken it, so a program
  can't print faster than the log and its reader take it. A supervisor that prints beyond its room is
  none of ours: its channel ends. At the run's end what is left goes out without waiting.
- Lines for the operator are at most `TROUBLES`; then one says that more are not shown.
- The first reason to stop a run is the one that its last entry gives. A run that is stopped while it is
  being started is not waited for: its start is given up.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from authority import protocol
from authority.audit.sealed import Sealer
from authority.compat.base import Service
from authority.gate import clock
from authority.gate.answers import Answer
from authority.gate.channel import MALFORMED, Channel, Takes
from authority.gate.figures import Counts
from authority.gate.houses import NAMESPACES, House
from authority.gate.raw import RawStream
from authority.gate.screen import Screen
from authority.gate.terminal import Terminal
from authority.isolation import IsolationRefused, Sandbox
from authority.kernel.canonical import printable
from authority.kernel.capabilities import Restriction
from authority.kernel.labels import Label
from authority.kernel.policy import Policy
from authority.protocol.packets import LinkOver
from authority.vm import Machine

Living = TypeVar("Living")
Event = dict[str, Any]
Listener = Callable[[Event], None]
TROUBLES = 1000
SERVED = 2048
INPUT_WINDOW = 1024 * 1024
"""Bytes of standard input on their way into a run."""
FRAME_SECONDS = 0.016
FRAME_BYTES = 60 * 1024
END_SECONDS = 15.0
"""How long a sandbox may stay after it has told the program's end."""
AskOutput = Callable[["Run", int, bytes, int, Callable[[Answer], None]], None]


@dataclass(frozen=True)
class Start:
    """What somebody asked to be started. `environment` holds what the policy let through, `restriction`
    what its capability is narrowed to.

    `own`: a deputy that the policy names (an MCP server), with a capability of its own and no servers;
    its standard output goes to `printed`, which grants room for more. `serves`: the command of the
    server that an attached client wants to reach.
    """

    argv: tuple[str, ...]
    cwd: str
    policy: Policy
    environment: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    agent: str = ""
    budgets: Mapping[str, int] = field(default_factory=dict)
    capability: bytes = b""
    restriction: Restriction | None = None
    label: Label = field(default_factory=Label)
    policy_path: str = ""
    caller: Mapping[str, str] = field(default_factory=dict)
    dry: bool = False
    applies: bool = False
    terminal: tuple[int, int] | None = None
    own: bool = False
    printed: Callable[[bytes], None] | None = None
    room: asyncio.Event | None = None
    """Set while whoever watches the run takes what it is told."""
    serves: tuple[str, ...] = ()
    files: str = ""
    """How whoever started it wants its files to be reached; empty: as the policy says."""
    seed: str = ""
    continues: str = ""
    replayed: int = -1
    begin: Callable[[Run, Takes], Takes] | None = None
    """For a run that goes on with a recorded one: what its requests go to in the pipeline's place."""
    isolation: str = "auto"
    emulate: bool = False
    house: House = NAMESPACES
    """Where it will live: what was asked for, and what `houses` made of it before the start."""
    watch: bool = False
    """Somebody wants to know afterwards what was looked for and not found."""


class Run:
    """A running run: its sandbox (none when attached), channel, counts and listener."""

    def __init__(self, ask: AskOutput, id_: str, token: bytes, spec: Start, listener: Listener):
        self.id = id_
        self.token = token
        self.spec = spec
        self.log_limit = spec.policy.limits.log
        self.counts = Counts()
        self.channel: Channel | None = None
        self.clients: set[Channel] = set()
        self.sandbox: Sandbox | Machine | None = None
        self.started = clock.boot()
        self.ended = asyncio.Event()
        self.on_line = asyncio.Event()
        self.code = 0
        self.reason = ""
        self.protection: dict[str, Any] = {}
        self._ask = ask
        self._listener = listener
        self._exit: tuple[int, int] | None = None
        screen = Terminal() if spec.terminal is None else Screen()
        self._terminals: dict[int, Terminal | Screen] = {1: screen, 2: Terminal()}
        self._output: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._ahead: deque[tuple[int, bytes] | None] = deque()
        self._output_waits = 0
        self._unacknowledged = 0
        self._troubles = 0
        self._frame = 0.0
        self._output_n = 0
        self._closed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._began = asyncio.Event()
        self._not_begun = ""
        self._closed_by = ""
        self._input_waiting = 0
        self._input_room = asyncio.Event()
        self.typing = asyncio.Lock()
        self.sealer: Sealer | None = None
        self.seed = ""
        self.piped = 0
        self.stop_reason = ""
        self.mailbox: deque[tuple[str, bytes, Label]] = deque()
        self.mail = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.services: Mapping[int, Service] = {}
        self.persistent: Callable[[], Mapping[str, str]] = dict
        self.noted: Callable[[], None] | None = None
        """Told of every entry of the run, by whoever has to know when its label rises."""
        self.over = False
        self._on_end: list[Callable[[], object]] = []

    def emit(self, event: Event) -> None:
        """Tell whoever started the run."""
        self._listener(event)

    def on_output(self, fd: int, data: bytes) -> None:
        self._unacknowledged += len(data)
        if self._unacknowledged > protocol.OUTPUT_WINDOW:
            raise protocol.ProtocolError(protocol.INVALID, "more output than was granted")
        if fd == 1 and self.spec.printed is not None:
            self.spec.printed(data)
            return
        self._output_waits += len(data)
        self._output.put_nowait((fd, data))

    def acknowledge(self, count: int) -> None:
        """So much of the output was passed on; the supervisor may send as much more."""
        self._unacknowledged -= count
        if self.channel is not None:
            self.channel.send_control(protocol.OutputAck(count))

    async def taken(self) -> None:
        """Wait until whoever watches takes more, no longer than the run goes on."""
        if self.spec.room is not None and not self.spec.room.is_set():
            await self._unless_closed(self.spec.room)

    def on_exit(self, code: int, signal: int) -> None:
        if self._exit is not None:
            return
        self._exit = (code, signal)
        # Nothing comes after it; a sandbox that stays all the same is ended.
        asyncio.get_running_loop().call_later(END_SECONDS, self._must_end)

    def _must_end(self) -> None:
        if self.sandbox is not None and not self._closed.is_set():
            self.sandbox.kill()

    def on_started(self) -> None:
        self._began.set()

    def on_guest(self, state: int, text: str) -> None:
        """A machine's first program speaks: before the start it may say why there is none."""
        if state != protocol.GuestState.FAILED:
            return
        if self._began.is_set():
            self.on_trouble(text)
        else:
            self._not_begun = printable(text, 2048) or "it did not say why"
            self._began.set()

    def send_control(self, message: protocol.Control) -> None:
        if self.channel is not None:
            self.channel.send_control(message)

    async def begun(self) -> None:
        """Until a machine says that the program runs. Raises `IsolationRefused`."""
        await self._unless_closed(self._began)
        if self._not_begun:
            raise IsolationRefused(self._not_begun)
        if not self._began.is_set():
            raise IsolationRefused("the machine ended before the program began")

    def on_input_taken(self, count: int) -> None:
        self._input_waiting = max(0, self._input_waiting - count)
        self._input_room.set()

    async def connected(self) -> bool:
        """Wait until the supervisor is connected; False when the run ended before that."""
        await self._unless_closed(self.on_line)
        return self.on_line.is_set()

    async def _unless_closed(self, event: asyncio.Event) -> None:
        """Wait for `event`, no longer than the channel is open."""
        waits = [asyncio.ensure_future(e.wait()) for e in (event, self._closed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()

    async def give_input(self, data: bytes) -> None:
        """Pass standard input on, never more than `INPUT_WINDOW` bytes ahead of the program."""
        while self._input_waiting + len(data) > INPUT_WINDOW and not self._closed.is_set():
            self._input_room.clear()
            await self._unless_closed(self._input_room)
        self._input_waiting += len(data)
        if self.channel is not None:
            self.channel.send_control(protocol.Input(data))

    def on_trouble(self, text: str) -> None:
        self._troubles += 1
        if self._troubles == TROUBLES:
            text = "more such lines are not shown"
        if self._troubles <= TROUBLES:
            self.emit({"event": "trouble", "text": printable(text, 1024)})

    def on_closed(self, reason: str) -> None:
        self._closed_by = self._closed_by or reason
        self._output.put_nowait(None)
        self._closed.set()

    def on_connect(self, stream: RawStream) -> None:
        """Something in the run reached a service; one that the run has not is closed at once, and so is
        one beyond `SERVED`: what its end leaves to be done counts until it is done."""
        service = self.services.get(stream.service)
        if service is None or self.over or len(self.tasks) >= SERVED:
            stream.abort()
            return
        self.keep(self._serve(service, stream))

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the run, no longer than it lives."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, service: Service, stream: RawStream) -> None:
        try:
            await service.serve(stream)
        except (OSError, LinkOver) as error:
            self.on_trouble(f"a connection ended: {error}")
        except Exception as error:  # a defect in one service: its stream ends, the others go on
            traceback.print_exception(error, file=sys.stderr)
            self.on_trouble(f"a service failed: {type(error).__name__}")
        finally:
            stream.abort()

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call back when the run is over; at once if it is already."""
        if self.over:
            callback()
        else:
            self._on_end.append(callback)

    def end_services(self) -> None:
        """The run is over: nothing behind its endpoints goes on."""
        self.over = True
        callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback()
        for task in self.tasks - {asyncio.current_task()}:
            task.cancel()

    def on_client(self, client: Channel) -> None:
        self.clients.add(client)

    def on_client_gone(self, client: Channel) -> None:
        self.clients.discard(client)

    async def unless_stopped(self, work: Coroutine[Any, Any, Living]) -> Living | None:
        """What `work` comes to; None, and the work is cancelled, when the run is stopped before."""
        if self._stopped.is_set():
            work.close()
            return None
        working = asyncio.get_running_loop().create_task(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            working.cancel()
        await asyncio.wait((working,))
        return None if working.cancelled() else working.result()

    def stop(self, reason: str) -> None:
        """Kill the sandbox, or give up its start; the run's end follows."""
        self.stop_reason = self.stop_reason or reason
        self._stopped.set()
        if self.sandbox is not None:
            self.sandbox.kill()
        if self.channel is not None:
            self.channel.close(reason)
        for client in list(self.clients):
            client.close(reason)
        self._closed.set()

    @property
    def exit_code(self) -> tuple[int, str]:
        """The program's code, as a shell would give it, and why the run ended."""
        if self.stop_reason:
            return 137, self.stop_reason
        if self._exit is None:
            return 137, "killed"
        code, signal = self._exit
        return (128 + signal, "killed") if signal else (code, "exited")

    @property
    def untold(self) -> str:
        """Why it ended, where neither the program's end was told nor anybody stopped it."""
        if self._exit is not None or self.stop_reason:
            return ""
        if self._closed_by.startswith(MALFORMED):
            return self._closed_by
        return "it ended without telling the program's end"

    @property
    def signal(self) -> int:
        """The signal that ended the program; 0 when none did, or nothing is known."""
        return self._exit[1] if self._exit is not None else 0

    async def carry_output(self) -> None:
        """Commit what the program prints, chunk by chunk in order, and hand it on."""
        while (item := await self._next_output()) is not None:
            fd, data = item
            self._output_n += 1
            gone: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._ask(self, fd, data, self._output_n, gone.set_result)
            answer = await gone
            if answer.refused:
                self.emit({"event": "withheld", "seq": answer.seq, "code": answer.body[0]})
            elif text := self._terminals[fd].feed(data):
                self.emit({"event": "output", "fd": fd, "text": text, "seq": answer.seq})
            await self.taken()
            self.acknowledge(len(data))
        for fd, terminal in self._terminals.items():
            if text := terminal.flush():
                self.emit({"event": "output", "fd": fd, "text": text, "seq": -1})

    async def _next_output(self) -> tuple[int, bytes] | None:
        """The next piece; of a terminal's all that makes one picture."""
        item = self._ahead.popleft() if self._ahead else await self._output.get()
        if item is None or self.spec.terminal is None:
            return item
        fd, data = item
        self._output_waits -= len(data)
        loop = asyncio.get_running_loop()
        pause = self._frame + FRAME_SECONDS - loop.time()
        if pause > 0 and len(data) + self._output_waits < FRAME_BYTES:
            await asyncio.sleep(pause)
        picture = bytearray(data)
        while not self._output.empty():
            more = self._output.get_nowait()
            if more is None or more[0] != fd or len(picture) + len(more[1]) > FRAME_BYTES:
                self._ahead.append(more)
                break
            picture += more[1]
            self._output_waits -= len(more[1])
        self._frame = loop.time()
        return fd, bytes(picture)

    async def until_over(self) -> None:
        """Wait until the channel is closed, or stop the run when its time is up."""
        limit = self.spec.budgets.get("wall_time")
        try:
            async with asyncio.timeout(limit / 1_000_000 if limit else None):
                await self.closed()
        except TimeoutError:
            self.stop("wall_time")

    async def closed(self) -> None:
        await self._closed.wait()
