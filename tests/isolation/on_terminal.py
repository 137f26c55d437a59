"""Starts one run with a terminal and prints, as JSON, what it wrote there and how it ended."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from authority.isolation import SandboxSpec, plan, probe, start

SOURCE = """
import os, termios, tty
print([os.isatty(n) for n in (0, 1, 2)], os.ttyname(0), os.get_terminal_size())
before = termios.tcgetattr(0); tty.setraw(0); termios.tcsetattr(0, termios.TCSADRAIN, before)
os.write(os.open('/dev/pts/0', os.O_RDWR), b'reopened\\n')
os.write(os.open('/dev/tty', os.O_RDWR), b'by name\\n')
print(os.listdir('/dev/pts'))
"""


async def main() -> None:
    command = (sys.executable, "-I", "-c", SOURCE)
    prepared = plan(SandboxSpec(command, cwd=os.getcwd(), terminal=(24, 80)), probe())
    gate, run = socket.socketpair()
    sandbox = await start(prepared, run)
    data = b""
    while part := await asyncio.to_thread(gate.recv, 65536):
        data += part
    gate.close()
    status = await sandbox.wait()
    written = b""
    while len(data) >= 9:
        size = int.from_bytes(data[:4], "big")
        frame, data = data[4 : 4 + size], data[4 + size :]
        if frame[4] == 3:
            written += frame[6:]
    print(json.dumps({"written": written.decode(), "code": status.code, "uid": sandbox.uid}))


if __name__ == "__main__":
    asyncio.run(main())
