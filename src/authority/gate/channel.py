"""One channel: frames in, requests to the pipeline, answers out.

Rules
- A channel belongs to one run. That of a sandboxed run is a socket pair whose other end the run's
  supervisor inherited: many streams, stream 0 its own. An attached program's channel has stream 1
  alone and says in its hello which capability, and so which run, it comes with.
- Bounded everywhere: a frame's size, requests in flight (reading stops above `PIPELINE`, and above
  `PIPELINE_BYTES` of what they were sent as), answers not yet taken (reading stops while the other
  side does not read), streams, and what is done at a stretch (`turns`).
- What is not a well-formed message is a denial in the log and the end of its stream. What is not a
  well-formed frame is the end of the channel, and of a sandboxed run with it. Of those who show no
  valid capability not each has an entry alone (`strangers`).
- An attached run may have many channels, one after the other or at a time. It ends when its caller
  hangs up, not with any of them; when it ends, it takes them all with it.
- Whoever is sent away is told why, and has `LAST_WORDS_SECONDS` to read it.
- Numbers rise strictly on a stream; the highest is kept here, because a stream lives no longer than
  its channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from authority import protocol
from authority.gate import clock
from authority.gate.answers import Answer, Reply
from authority.gate.raw import RawStream
from authority.gate.reader import Asked, Reader, short_body
from authority.gate.turns import Steps, Turns
from authority.kernel.codes import Code, Layer
from authority.kernel.facts import Facts, Problem, Request, request_digest

PIPELINE = 256
PIPELINE_BYTES = 32 * 1024 * 1024
RAW_BYTES = 32 * 1024 * 1024
"""Bytes of messages on raw streams that wait for their services."""
STREAMS = 2048
AT_A_TIME = 64
"""Requests of one frame that are read and submitted in one step."""
LAST_WORDS_SECONDS = 1.0
MALFORMED = "malformed frame"
"""How the reason begins for which the gate closes a sandbox's channel."""


class Owner(Protocol):
    """What a channel tells the run that it belongs to."""

    def on_output(self, fd: int, data: bytes) -> None: ...
    def on_exit(self, code: int, signal: int) -> None: ...
    def on_input_taken(self, count: int) -> None: ...
    def on_trouble(self, text: str) -> None: ...
    def on_started(self) -> None: ...
    def on_guest(self, state: int, text: str) -> None: ...
    def on_closed(self, reason: str) -> None: ...
    def on_connect(self, stream: RawStream) -> None: ...
    def on_client(self, client: Channel) -> None: ...
    def on_client_gone(self, client: Channel) -> None: ...


class Takes(Protocol):
    """What requests go to: the pipeline, or what stands for it in a replay."""

    def submit(self, asked: Asked, reply: Reply) -> None: ...
    def blind(self, run: str) -> bool: ...


class _Stream:
    __slots__ = ("greeted", "last_n")

    def __init__(self) -> None:
        self.greeted = False
        self.last_n = 0


class Channel(asyncio.Protocol):
    """The gate's end. `identify` maps an attached client's capability to (run, cwd, owner). `alone` is
    asked, with the code, whether a denial of who has shown none is an entry."""

    def __init__(
        self,
        pipeline: Takes,
        reader: Reader,
        *,
        run: str = "",
        cwd: str = "/",
        owner: Owner | None = None,
        identify: Callable[[bytes], tuple[str, str, Owner] | None] | None = None,
        alone: Callable[[str], bool] = lambda _code: True,
    ) -> None:
        self.run = run
        self._cwd = cwd
        self._owner = owner
        self._identify = identify
        self._alone = alone
        self._pipeline = pipeline
        self._reader = reader
        self._turns = Turns(self._frame, self._may_take, self._malformed, self._flow)
        self._streams: dict[int, _Stream] = {}
        self._raw: dict[int, RawStream] = {}
        self._raw_bytes = 0
        self._last_stream = 0
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, list[Answer]] = {}
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._untaken: list[Answer] = []
        self._takes = asyncio.Event()
        self._takes.set()
        self._reading = True
        self._reason = "closed"
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self._closed:  # before it was open
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._taken()
        self._takes.set()
        self._turns.gone(lambda: self._over(exc))

    def _over(self, exc: Exception | None) -> None:
        for raw in self._raw.values():
            raw.closed()
        self._raw.clear()
        if self._owner is None:
            return
        if self._identify is not None:
            self._owner.on_client_gone(self)
        else:
            self._owner.on_closed(self._reason if exc is None else type(exc).__name__)

    def pause_writing(self) -> None:
        self._takes.clear()
        self._flow()

    def resume_writing(self) -> None:
        self._takes.set()
        self._taken()
        self._flow()

    def _flow(self) -> None:
        """Read only what may be taken, and nothing before what was read is handled."""
        if self._transport is None:
            return
        wanted = self._may_take()
        if wanted and self._turns.behind:
            self._turns.go_on()
            wanted = False
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _may_take(self) -> bool:
        """Only while few requests are in flight and the other side takes its answers."""
        return (
            self._takes.is_set()
            and self._in_flight < PIPELINE
            and self._bytes_in_flight < PIPELINE_BYTES
            and self._raw_bytes < RAW_BYTES
        )

    def close(self, reason: str) -> None:
        """End the channel. The supervisor, and the run with it, ends on that."""
        self._reason, self._closed = reason, True
        self._turns.drop()
        if self._transport is not None:
            self._transport.abort()

    def _send_away(self, stream: int, error: protocol.ProtocolError) -> None:
        """Say why and end the channel; who does not read that in time is cut off."""
        self._fatal(stream, error)
        transport, self._reason = self._transport, error.sentence
        self._turns.drop()
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, transport.abort)

    def send_control(self, message: protocol.Control) -> None:
        """A stream-0 message to the supervisor."""
        self._write(protocol.encode_frame(0, protocol.encode_control(message)))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._turns.came(data)

    def _malformed(self, error: protocol.ProtocolError) -> None:
        self._denied(0, error.code, Layer.FRAME, error.sentence)
        if self._identify is not None:
            self._send_away(1, error)
        else:
            self.close(f"{MALFORMED}: {error.sentence}")

    def _frame(self, stream: int, payload: bytes) -> Steps | None:
        if stream == 0:
            if self._identify is not None:
                raise protocol.ProtocolError(Code.SCHEMA_INVALID, "stream 0 is not a client's")
            self._control(payload)
            return None
        raw = self._raw.get(stream)
        if raw is not None:
            raw.received(payload)
            return None
        state = self._streams.get(stream)
        if state is None:
            if stream <= self._last_stream:
                return None  # on its way when the stream ended
            if self._identify is None or stream != 1:
                raise protocol.ProtocolError(Code.SCHEMA_INVALID, "a frame on an unknown stream")
            state = self._streams[1] = _Stream()
        try:
            message = protocol.decode_client_message(payload)
            if isinstance(message, protocol.Hello):
                self._hello(stream, state, message)
            elif not state.greeted:
                raise protocol.ProtocolError(Code.SCHEMA_INVALID, "requests before the hello")
            else:
                return self._requests(stream, state, message, len(payload) // len(message))
        except protocol.ProtocolError as error:
            self._denied(stream, error.code, Layer.SCHEMA, error.sentence, payload)
            if self._identify is not None:
                self._send_away(stream, error)
            else:
                self._fatal(stream, error)
                self._streams.pop(stream, None)
                self.send_control(protocol.Close(stream))
        return None

    def _control(self, payload: bytes) -> None:
        owner = self._owner
        if owner is None:
            raise protocol.ProtocolError(Code.SCHEMA_INVALID, "stream 0 has no supervisor")
        match protocol.decode_control(payload):
            case protocol.Open(stream=stream):
                if self._may_begin(stream):
                    self._streams[stream] = _Stream()
            case protocol.Connect(stream=stream, service=service, detail=detail):
                if self._may_begin(stream):
                    self._connected(owner, stream, service, detail)
            case protocol.Close(stream=stream):
                self._streams.pop(stream, None)
                if raw := self._raw.pop(stream, None):
                    raw.closed()
            case protocol.Eof(stream=stream):
                if raw := self._raw.get(stream):
                    raw.eof()
            case protocol.Window(stream=stream, count=count):
                if raw := self._raw.get(stream):
                    raw.granted(count)
            case protocol.Output(fd=fd, data=data):
                owner.on_output(fd, data)
            case protocol.Exit(code=code, signal=signal):
                owner.on_exit(code, signal)
            case protocol.Trouble(text=text):
                owner.on_trouble(text)
            case protocol.InputAck(count=count):
                owner.on_input_taken(count)
            case protocol.Started():
                owner.on_started()
            case protocol.Guest(state=state, text=text):
                owner.on_guest(state, text)
            case _:
                raise protocol.ProtocolError(Code.SCHEMA_INVALID, "an opcode for the other side")

    def _may_begin(self, stream: int) -> bool:
        """Whether a new stream may have this number. A number is never given twice."""
        if stream <= self._last_stream:
            raise protocol.ProtocolError(Code.SCHEMA_INVALID, "a stream number that does not rise")
        self._last_stream = stream
        if len(self._streams) + len(self._raw) < STREAMS:
            return True
        self.send_control(protocol.Close(stream))
        return False

    def _connected(self, owner: Owner, stream: int, service: int, detail: bytes) -> None:
        def control(message: protocol.Control) -> None:
            if isinstance(message, protocol.Close):
                self._raw.pop(stream, None)
            self.send_control(message)

        raw = RawStream(
            stream, service, detail, self._write, control, self._raw_waits, self._takes.wait
        )
        self._raw[stream] = raw
        owner.on_connect(raw)

    def _raw_waits(self, count: int) -> None:
        self._raw_bytes += count
        self._flow()

    def _hello(self, stream: int, state: _Stream, hello: protocol.Hello) -> None:
        if state.greeted:
            raise protocol.ProtocolError(Code.SCHEMA_INVALID, "a second hello")
        if hello.version != protocol.VERSION:
            raise protocol.ProtocolError(
                Code.SCHEMA_INVALID, f"this gate speaks {protocol.VERSION}"
            )
        if self._identify is not None:
            given = hello.options.capability
            found = self._identify(bytes(given)) if given else None
            if found is None:
                raise protocol.ProtocolError(
                    Code.CAP_INVALID, "an attached program needs a valid capability in its hello"
                )
            self.run, self._cwd, self._owner = found
            self._owner.on_client(self)
        state.greeted = True
        welcome = protocol.encode_welcome(
            run=self.run, frame=protocol.MAX_FRAME, cwd=self._cwd, pipeline=PIPELINE
        )
        self._write(protocol.encode_frame(stream, welcome))

    def _requests(
        self, stream: int, state: _Stream, requests: list[protocol.Request], share: int
    ) -> Steps:
        """`share` is each one's part of the bytes that they came in."""
        for at in range(0, len(requests), AT_A_TIME):
            self._submit(stream, state, requests[at : at + AT_A_TIME], share)
            yield

    def _submit(
        self, stream: int, state: _Stream, requests: Sequence[protocol.Request], share: int
    ) -> None:
        now = clock.wall()

        def reply(answer: Answer) -> None:
            self._bytes_in_flight -= share
            self._answer(stream, answer)

        read = []  # all of them first: code that stays in the processor's cache is quicker
        for wire in requests:
            read.append(self._reader.read(self.run, self._cwd, stream, wire, state.last_n, now))
            state.last_n = max(state.last_n, wire.n)
        self._in_flight += len(read)
        self._bytes_in_flight += share * len(read)
        for asked in read:
            self._pipeline.submit(asked, reply)

    def _answer(self, stream: int, answer: Answer) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send_answers)
        self._waiting.setdefault(stream, []).append(answer)

    def _send_answers(self) -> None:
        waiting, self._waiting = self._waiting, {}
        out = []
        for stream, answers in waiting.items():
            self._in_flight -= len(answers)
            self._untaken += [a for a in answers if a.taken is not None]
            if stream in self._streams:
                blind = self._pipeline.blind(self.run)
                out += protocol.reply_frames(stream, [_reply(a, blind) for a in answers])
        if out:
            self._write(b"".join(out))
        if self._takes.is_set():
            self._taken()
        self._flow()

    def _taken(self) -> None:
        """The other side has taken what it was sent, or is gone."""
        untaken, self._untaken = self._untaken, []
        for answer in untaken:
            if answer.taken is not None:
                answer.taken()

    def _fatal(self, stream: int, error: protocol.ProtocolError) -> None:
        if stream:
            payload = protocol.encode_fatal(error.code, error.sentence)
            self._write(protocol.encode_frame(stream, payload))

    def _denied(
        self, stream: int, code: str, layer: Layer, reason: str, payload: bytes = b""
    ) -> None:
        """A message that is no request still leaves its denial in the log."""
        if not self.run and not self._alone(code):
            return
        body = short_body(payload[:256])
        digest = request_digest("", f"frame:{reason}", "", b"")
        request = Request(self.run, stream, 0, "", "", digest)
        problem = Problem(Code(code), layer, reason)
        facts = Facts(clock.wall(), problem=problem, body=body)
        self._in_flight += 1
        self._pipeline.submit(Asked(request, facts, b""), self._ignore)

    def _ignore(self, _answer: Answer) -> None:
        self._in_flight -= 1
        self._flow()


def _reply(answer: Answer, blind: bool) -> protocol.Reply:
    """`blind`: whoever holds handles gets no receipts (`kernel.handles`)."""
    status = protocol.REFUSED if answer.refused else protocol.DONE
    if blind:
        return protocol.Reply(answer.n, status, None, b"", answer.body)
    return protocol.Reply(answer.n, status, answer.seq, answer.hash, answer.body)
