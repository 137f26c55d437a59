"""Process tools in a sandbox of their own: one start a call, nothing kept between calls.

Rules
- A tool gets standard input, output and error as pipes, its own environment and its files read-only.
  It has no channel: no capability of the run's reaches it, so it has no authority to lend or leak.
- It is killed at its time limit, when it writes too much, and when the call is cancelled (a halt).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping

from authority.effects.tools import Ran
from authority.isolation import Host, Sandbox, SandboxSpec, plan, start
from authority.kernel.policy import Policy

_CHUNK = 64 * 1024


class SandboxStarter:
    """Starts tools in namespace sandboxes with the limits of one policy.

    `path` is the caller's search path, in which a tool's program is looked for.
    """

    def __init__(self, host: Host, policy: Policy, path: str, forbidden: tuple[str, ...]) -> None:
        self._host = host
        self._policy = policy
        self._path = path
        self._forbidden = forbidden

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
        """Run one tool to its end. Raises `IsolationRefused`, `OSError`."""
        policy = self._policy
        planned = plan(
            SandboxSpec(
                argv=argv,
                cwd=base,
                env=dict(env),
                memory=policy.limits.memory,
                processes=policy.limits.processes,
                millicpus=policy.limits.cpus,
                tmp_bytes=policy.limits.tmp,
                search_path=self._path,
                channel=False,
                forbidden=self._forbidden,
            ),
            self._host,
        )
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        try:
            sandbox = await start(planned, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2])
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return await _attend(sandbox, ours, stdin, timeout_us, max_output)


async def _attend(
    sandbox: Sandbox, ours: list[int], stdin: bytes, timeout_us: int, max_output: int
) -> Ran:
    timed_out = False
    work = asyncio.gather(
        asyncio.to_thread(_write, ours[0], stdin),
        asyncio.to_thread(_read, ours[1], max_output, sandbox),
        asyncio.to_thread(_read, ours[2], max_output, sandbox),
    )
    try:
        async with asyncio.timeout(timeout_us / 1_000_000):
            _, out, err = await asyncio.shield(work)
            status = await sandbox.wait()
    except TimeoutError:
        timed_out = True
        sandbox.kill()
        _, out, err = await work
        status = await sandbox.wait()
    except asyncio.CancelledError:
        sandbox.kill()
        raise
    finally:
        sandbox.kill()
    code = 128 + status.signal if status.signal else status.code
    return Ran(code=code, stdout=out, stderr=err, timed_out=timed_out)


def _write(fd: int, data: bytes) -> None:
    """Write and close. A tool that does not read its input is no failure of ours."""
    view = memoryview(data)
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[os.write(fd, view) :]
    os.close(fd)


def _read(fd: int, limit: int, sandbox: Sandbox) -> bytes:
    """Read to the end, or until one byte more than `limit`: then the tool is killed."""
    pieces: list[bytes] = []
    size = 0
    while size <= limit and (piece := os.read(fd, _CHUNK)):
        pieces.append(piece)
        size += len(piece)
    if size > limit:
        sandbox.kill()
    os.close(fd)
    return b"".join(pieces)[: limit + 1]
