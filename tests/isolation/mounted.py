"""Starts runs with mounts and answers for them, as a program of its own: JSON in, JSON out.

Each case is a SandboxSpec's fields; `mounts` are [path, executable, source], `binds` [path, writable,
executable], `files` path to text. Beside them: `landlock_abi`; `refuse`, a list of [operation, end of
path, errno]; `deaf`, [operation, end of path] that is never answered; `then`, what is done once that
was asked: "kill", "close" (the mount's stream) or "freeze"; `changes`, host files to be written
meanwhile is the program's own business.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from toyfs import Folder

from authority.isolation import IsolationRefused, Sandbox, SandboxSpec, plan, probe, start
from authority.isolation.places import Bind, Mount

CLOSE, OUTPUT, EXIT, INPUT_EOF, OUTPUT_ACK, TROUBLE, CONNECT = 2, 3, 4, 6, 9, 10, 11


class Gate:
    """The other end of the channel: answers for mounts, takes output."""

    def __init__(self, sock: socket.socket, folders: list[Folder]) -> None:
        self.sock, self.folders = sock, folders
        self.streams: dict[int, Folder] = {}
        self.output = {1: b"", 2: b""}
        self.troubles: list[str] = []
        self.closed: list[int] = []
        self.asked = asyncio.Event()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        data = bytearray()
        self.send(0, bytes((INPUT_EOF,)))
        while part := await self.receive(loop):
            data += part
            while len(data) >= 8 and len(data) >= (size := 4 + int.from_bytes(data[:4], "big")):
                frame = bytes(data[4:size])
                del data[:size]
                self.take(int.from_bytes(frame[:4], "big"), frame[4:])
        self.sock.close()

    async def receive(self, loop: Any) -> bytes:
        try:
            got: bytes = await loop.sock_recv(self.sock, 1 << 20)
        except (ConnectionResetError, OSError):
            return b""
        return got

    def send(self, stream: int, payload: bytes) -> None:
        frame = (4 + len(payload)).to_bytes(4, "big") + stream.to_bytes(4, "big") + payload
        self.sock.setblocking(True)
        try:
            self.sock.sendall(frame)
        except OSError:
            return
        finally:
            self.sock.setblocking(False)

    def take(self, stream: int, payload: bytes) -> None:
        if stream:
            folder = self.streams[stream]
            reply = folder.answer(payload)
            if reply is not None:
                self.send(stream, reply)
            if folder.asked and folder.deaf(*folder.asked[-1]):
                self.asked.set()
            return
        opcode, body = payload[0], payload[1:]
        number = int.from_bytes(body[:4], "big")
        if opcode == CONNECT:
            self.streams[number] = self.folders[int.from_bytes(body[5:7], "big")]
        elif opcode == OUTPUT:
            self.output[body[0]] += body[1:]
            self.send(0, bytes((OUTPUT_ACK,)) + (len(body) - 1).to_bytes(4, "big"))
        elif opcode == TROUBLE:
            self.troubles.append(body.decode())
        elif opcode == CLOSE:
            self.closed.append(number)


async def one(case: dict[str, Any]) -> dict[str, Any]:
    abi = case.pop("landlock_abi", None)
    refused = case.pop("refuse", [])
    deaf = case.pop("deaf", None)
    then = case.pop("then", "")
    mounts = tuple(Mount(*fields) for fields in case.pop("mounts", []))
    binds = tuple(Bind(*fields) for fields in case.pop("binds", []))
    files = {path: text.encode() for path, text in case.pop("files", {}).items()}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}

    def refuse(operation: int, path: str) -> int:
        return next((n for o, end, n in refused if o == operation and path.endswith(end)), 0)

    def is_deaf(operation: int, path: str) -> bool:
        return deaf is not None and operation == deaf[0] and path.endswith(deaf[1])

    began = time.monotonic()
    try:
        spec = SandboxSpec(**fields, mounts=mounts, binds=binds, files=files)
        prepared = plan(spec, probe(), landlock_abi=abi)
        gate, run = socket.socketpair()
        gate.setblocking(False)
        folders = [Folder(mount.outside, refuse, is_deaf) for mount in prepared.mounts]
        end = Gate(gate, folders)
        serving = asyncio.create_task(end.serve())
        try:
            sandbox = await start(prepared, run)
        except IsolationRefused:
            gate.close()
            serving.cancel()
            raise
    except IsolationRefused as error:
        return {"refused": error.reason, "fix": error.fix}
    started = time.monotonic() - began
    extra = await intervene(then, end, sandbox) if then else {}
    status = await sandbox.wait()
    await asyncio.wait_for(serving, 10)
    return {
        "out": end.output[1].decode("utf-8", "replace"),
        "err": end.output[2].decode("utf-8", "replace"),
        "code": status.code,
        "signal": status.signal,
        "killed": status.killed,
        "reason": status.reason,
        "troubles": end.troubles,
        "asked": sorted({path for folder in folders for _, path in folder.asked}),
        "questions": sum(len(folder.asked) for folder in folders),
        "started": started,
        "protection": prepared.protection,
        "missing": prepared.missing,
        "shown": list(prepared.shown),
        "over": list(prepared.over),
        **extra,
    }


async def intervene(then: str, end: Gate, sandbox: Sandbox) -> dict[str, Any]:
    await asyncio.wait_for(end.asked.wait(), 20)
    began = time.monotonic()
    extra: dict[str, Any] = {}
    if then == "close":
        for stream in end.streams:
            end.send(0, bytes((CLOSE,)) + stream.to_bytes(4, "big"))
    else:
        if then == "freeze":
            extra["frozen"] = await sandbox.freeze()
        sandbox.kill()
        await sandbox.wait()
    return {**extra, "took": time.monotonic() - began}


async def main() -> None:
    cases = json.load(sys.stdin)
    print(json.dumps([await one(case) for case in cases]))


if __name__ == "__main__":
    asyncio.run(main())
