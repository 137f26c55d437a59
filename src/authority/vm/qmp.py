"""Talking to the hypervisor: QEMU's machine protocol over a socket pair, one JSON object a line.

What QEMU answers is read as foreign: a guest that has taken it over writes here too. Lines are bounded,
events are passed over, and so is the answer to a command that nobody waits for any more; whatever is
no answer ends the connection. Between two lines, and two parts of one, everybody else in the gate has a
turn: who talks without end holds up his own run alone. What it says in words is escaped before anybody
sees it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from typing import Any, Final

from authority.isolation.refusal import shown

_MAX_LINE: Final = 1 << 20
_PART: Final = 65536
_MAX_WORDS: Final = 500


class QmpError(Exception):
    """The hypervisor refused a command, or is gone."""


class Qmp:
    """One connection. Commands are answered in order, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._turn = asyncio.Lock()
        self._asked = 0

    async def begin(self) -> None:
        """Reads the greeting and leaves the negotiation."""
        greeting = await self._line()
        if "QMP" not in greeting:
            raise QmpError("the hypervisor did not greet")
        await self.ask("qmp_capabilities")

    async def give(self, name: str, fd: int) -> None:
        """Hands over a descriptor under a name. Raises `QmpError`."""
        await self.ask("getfd", descriptor=fd, fdname=name)

    async def ask(self, command: str, *, descriptor: int = -1, **arguments: Any) -> Any:
        """What the command returns. Raises `QmpError`."""
        async with self._turn:
            self._asked += 1
            said: dict[str, Any] = {"execute": command, "id": self._asked}
            if arguments:
                said["arguments"] = arguments
            line = json.dumps(said).encode() + b"\n"
            try:
                if descriptor >= 0:
                    # One byte carries it; the rest follows like any other line.
                    socket.send_fds(self._sock, [line[:1]], [descriptor])
                    line = line[1:]
                await asyncio.get_running_loop().sock_sendall(self._sock, line)
            except OSError as error:
                raise QmpError("the hypervisor is gone") from error
            while True:
                answer = await self._line()
                if "error" not in answer and "return" not in answer:
                    continue
                if answer.get("id") != said["id"]:
                    continue
                if "return" in answer:
                    return answer["return"]
                error_ = answer["error"]
                text = error_.get("desc") if isinstance(error_, dict) else None
                raise QmpError(f"{command}: {shown(str(text)[:_MAX_WORDS])}")

    async def _line(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        # What is there already is read without waiting, so a turn for the others has to be given.
        await asyncio.sleep(0)
        while not self._lines:
            if len(self._rest) > _MAX_LINE:
                raise QmpError("the hypervisor sent a line without an end")
            try:
                part = await loop.sock_recv(self._sock, _PART)
            except OSError as error:
                raise QmpError("the hypervisor is gone") from error
            if not part:
                raise QmpError("the hypervisor is gone")
            *lines, self._rest = (self._rest + part).split(b"\n")
            self._lines.extend(lines)
            await asyncio.sleep(0)
        line = self._lines.popleft()
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QmpError("the hypervisor sent no JSON") from error
        if not isinstance(found, dict):
            raise QmpError("the hypervisor sent no object")
        return found

    def close(self) -> None:
        self._sock.close()
