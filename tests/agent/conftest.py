"""A small gate in a thread, over a real unix socket, that speaks `authority.protocol`.

It answers each request with what `answer(request)` returns: a value, or a `Refuse`. Tests that need
a gate that misbehaves take the raw connection instead (`script`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from authority import protocol


class Refuse(NamedTuple):
    code: str
    layer: str
    sentence: str
    rule: str | None = None


class FakeGate:
    def __init__(self, path: str) -> None:
        self.path = path
        self.answer: Callable[[protocol.Request], Any] = lambda request: {}
        self.script: Callable[[socket.socket], None] | None = None
        self.pipeline = 64
        self.frame = protocol.MAX_FRAME
        self.hellos: list[protocol.Hello] = []
        self.batches: list[list[protocol.Request]] = []
        self.most_open = 0
        self.reverse = False
        self.errors: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def requests(self) -> list[protocol.Request]:
        return [request for batch in self.batches for request in batch]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                (self.script or self._talk)(connection)
        except OSError:
            return
        except BaseException as error:
            self.errors.append(error)

    def _talk(self, connection: socket.socket) -> None:
        decoder, last, number, seq = protocol.FrameDecoder(), 0, 0, 100
        while data := connection.recv(65536):
            for stream, payload in decoder.feed(data):
                assert stream == 1
                message = protocol.decode_client_message(payload)
                if isinstance(message, protocol.Hello):
                    self.hellos.append(message)
                    welcome = protocol.encode_welcome("run-1", "/work", self.pipeline, self.frame)
                    connection.sendall(protocol.encode_frame(1, welcome))
                    continue
                assert len(payload) + 4 <= self.frame
                self.batches.append(message)
                self.most_open = max(self.most_open, len(message))
                replies = []
                for request in message:
                    assert request.n > last
                    last = request.n
                    protocol.checked_arguments(request.arguments, floats=True)
                    seq += 1
                    found = self.answer(request)
                    if isinstance(found, Refuse):
                        number += 1
                        body: Any = [found.code, found.layer, found.sentence, number, found.rule]
                        status = protocol.REFUSED
                    else:
                        status, body = protocol.DONE, found
                    replies.append(
                        protocol.Reply(request.n, status, seq, seq.to_bytes(32, "big"), body)
                    )
                if self.reverse:
                    replies.reverse()
                for frame in protocol.reply_frames(1, replies, self.frame):
                    connection.sendall(frame)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
        assert not self.errors, self.errors


@pytest.fixture
def fake_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGate]:
    gate = FakeGate(str(tmp_path / "gate.sock"))
    monkeypatch.setenv("AUTHORITY_CHANNEL", gate.path)
    yield gate
    gate.close()


@pytest.fixture
def refuse() -> type[Refuse]:
    return Refuse


@pytest.fixture
def decoded() -> Callable[[protocol.Request], Any]:
    return lambda request: msgspec.msgpack.decode(bytes(request.arguments))
