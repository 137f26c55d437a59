"""A real gate whose process tools are played by one lasting process: the world.

    room.py STATE --ready FD        (the tools' environment names the world's socket)

A process tool is started anew for each call, in a sandbox that keeps nothing; a benchmark of some
thousand runs on environments that last needs its tools to last. `effects.tools` leaves how a tool is
started to a `Starter`; here the starter hands the same document to the world's socket and takes the
same document back. All else is the gate as it ships: capability, policy, budget, labels, log, and the
rooms in which programs compute, which are started as they always are.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping

from authority.effects.tools import Ran
from authority.gate import process, server
from authority.gate.toolbox import SandboxStarter

SOCKET, WORLD = "DOJO_SOCKET", "DOJO_WORLD"


class WorldStarter(SandboxStarter):
    """Plays a call in the world that the tool's environment names. See `effects.tools.Starter`."""

    async def run(
        self,
        argv: tuple[str, ...],
        stdin: bytes,
        *,
        base: str,
        env: Mapping[str, str],
        timeout_us: int,
        max_output: int,
    ) -> Ran:
        """Ask the world, and wait no longer than the tool's time limit."""
        if WORLD not in env:
            return await super().run(
                argv, stdin, base=base, env=env, timeout_us=timeout_us, max_output=max_output
            )
        asked = {"world": env[WORLD], "tool": argv[-1], **json.loads(stdin)}
        try:
            async with asyncio.timeout(timeout_us / 1_000_000):
                answer = await _ask(env[SOCKET], json.dumps(asked).encode() + b"\n", max_output)
        except TimeoutError:
            return Ran(code=0, stdout=b"", stderr=b"", timed_out=True)
        return Ran(code=0, stdout=answer, stderr=b"", timed_out=False)


async def _ask(path: str, line: bytes, limit: int) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path, limit=4 * limit)
    try:
        writer.write(line)
        await writer.drain()
        return (await reader.readline())[: limit + 1]
    finally:
        writer.close()


if __name__ == "__main__":
    server.SandboxStarter = WorldStarter  # type: ignore[misc]
    sys.exit(process.main())
