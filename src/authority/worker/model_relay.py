"""From an upstream's answer to the program: committed piece by piece, metered, without the key.

Rules
- The first commit holds the answer's status and headers too, so nothing is seen before an entry.
- A stream is passed on event by event. Events that arrive while a commit is under way are committed
  and sent together; while too much waits, the upstream is not read.
- The event that holds nothing but usage is asked for always, and passed on if the program did ask.
- Where the key comes back in an answer, a word stands in its place.
- Bounds: an answer in one piece `MAX_WHOLE` bytes, a stream `MAX_STREAM`; beyond, it is cut.
- `finish` is called once for each call, whatever happened, and by then the gate has the usage.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Final

from authority.dialects import json_text, openai, refusal
from authority.dialects.demand import CHAT, Prepared
from authority.dialects.events import EventTooLong, Splitter, data_of
from authority.dialects.usage import Meter
from authority.worker import model_http as http
from authority.worker.model_gate import CHUNK, Gate, Grant

MAX_WHOLE: Final = 32 * 1024 * 1024
MAX_STREAM: Final = 256 * 1024 * 1024
WAITING: Final = 1024 * 1024
"""Bytes of a stream that may wait for their commit."""
_PASSED: Final = ("content-type", "retry-after", "request-id", "x-request-id")
_RATES: Final = ("anthropic-ratelimit-", "x-ratelimit-")
_PLACEHOLDER: Final = b"[key]"


class Cut(Exception):
    """The answer is more than is taken."""


class Relay:
    """One call's answer on its way."""

    def __init__(self, gate: Gate, grant: Grant, request: Prepared, reply: http.Reply) -> None:
        self._gate = gate
        self._grant = grant
        self._request = request
        self._reply = reply
        self._meter = Meter(request.api)
        self._status = 0
        self._finished = False
        self._head = b""
        self._secrets = _forms(grant.secret)
        self._silent = request.api == CHAT and not openai.wants_usage(request.tree)

    async def pass_on(self, answer: http.Answer) -> None:
        """Pass an answer on to its end. Raises `Broken`, `Cut`, `CallError`."""
        self._status = answer.status
        if not 200 <= answer.status < 600 or 300 <= answer.status < 400:
            raise http.Broken("The model's server sends its clients elsewhere.")
        headers = [(name, self._text(value)) for name, value in _headers(answer.headers)]
        lines = [f"HTTP {answer.status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        self._head = b"" if self._grant.native else "\r\n".join(lines).encode()
        kind = next((value for name, value in headers if name == "content-type"), "")
        if kind.startswith("text/event-stream") and answer.status < 300:
            await self._stream(answer, headers)
        else:
            await self._whole(answer, headers)

    async def finish(self, status: str) -> None:
        """Settle, once."""
        if self._finished:
            return
        self._finished = True
        await self._gate.finish(self._grant.flow, status, self._meter.usage(), self._status)

    async def broken(self, anthropic: bool, sentence: str, code: str = "") -> None:
        """Tell the program that the answer ends here."""
        try:
            if self._reply.begun:
                await self._reply.piece(refusal.event(anthropic, sentence, code))
                await self._reply.end()
            else:
                text = refusal.body(anthropic, 502, sentence, code=code)
                await self._reply.whole(502, [("content-type", "application/json")], text)
        except (OSError, TimeoutError):
            return  # it has gone

    async def _whole(self, answer: http.Answer, headers: http.Headers) -> None:
        parts, size = [], 0
        async for piece in answer.pieces:
            size += len(piece)
            if size > MAX_WHOLE:
                raise Cut("The model's answer is longer than is taken.")
            parts.append(piece)
        body = self._clean(b"".join(parts))
        if answer.status < 300:
            try:
                self._meter.whole(json_text.decode(body))
            except json_text.JsonError:
                raise http.Broken("The model's server did not answer with JSON.") from None
        await self._gate.chunk(self._grant.flow, "in", self._head + body)
        await self.finish("done")
        await self._reply.whole(answer.status, headers, body)

    async def _stream(self, answer: http.Answer, headers: http.Headers) -> None:
        waiting = _Waiting()
        reading = asyncio.create_task(self._read(answer.pieces, waiting))
        try:
            while (data := await waiting.take()) is not None:
                await self._gate.chunk(self._grant.flow, "in", self._head + data)
                self._head = b""
                if not self._reply.begun:
                    await self._reply.begin(answer.status, headers)
                await self._reply.piece(data)
            await reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if not self._meter.usage().complete and not self._reply.begun:
            raise http.Broken
        await self.finish("done" if self._meter.usage().complete else "failed")
        await self._reply.end()

    async def _read(self, pieces: AsyncIterator[bytes], waiting: _Waiting) -> None:
        splitter, size = Splitter(), 0
        try:
            async for piece in pieces:
                size += len(piece)
                if size > MAX_STREAM:
                    raise Cut("The model's answer is longer than is taken.")
                events = splitter.feed(piece)
                await waiting.put(b"".join(self._event(one) for one in events))
            if rest := splitter.rest().strip():
                await waiting.put(self._event(rest + b"\n\n"))
        except EventTooLong:
            raise Cut("The model's answer is longer than is taken.") from None
        finally:
            waiting.close()

    def _event(self, event: bytes) -> bytes:
        """What is passed on of one event, which is metered."""
        text = data_of(event)
        if text and text != b"[DONE]":
            try:
                value = json_text.decode(text)
            except json_text.JsonError:
                raise http.Broken("The model's server sent an event that is not JSON.") from None
            self._meter.event(value)
            alone = isinstance(value, dict) and value.get("choices") == [] and "usage" in value
            if self._silent and alone:
                return b""
        return self._clean(event)

    def _text(self, value: str) -> str:
        return self._clean(value.encode()).decode()

    def _clean(self, data: bytes) -> bytes:
        for form in self._secrets:
            data = data.replace(form, _PLACEHOLDER)
        return data


class _Waiting:
    """Bytes between the upstream's reader and the commits, bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._over = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, data: bytes) -> None:
        self._buffer += data
        self._news.set()
        while len(self._buffer) > WAITING:
            self._room.clear()
            await self._room.wait()

    async def take(self) -> bytes | None:
        """What waits, at most one commit's worth; None at the end."""
        while not self._buffer:
            if self._over:
                return None
            self._news.clear()
            await self._news.wait()
        data = bytes(self._buffer[:CHUNK])
        del self._buffer[:CHUNK]
        self._room.set()
        return data

    def close(self) -> None:
        self._over = True
        self._news.set()


def _headers(given: http.Headers) -> list[tuple[str, str]]:
    kept = [(n, v) for n, v in given if n in _PASSED or n.startswith(_RATES)]
    return list(dict(kept).items())[:32]


def _forms(secret: str) -> tuple[bytes, ...]:
    if len(secret) < 8:
        return ()
    plain = secret.encode()
    escaped = json.dumps(secret)[1:-1].encode()
    return tuple(dict.fromkeys((plain, escaped, escaped.replace(b"/", b"\\/"))))
