"""What a guest that was taken over can send, at a channel whose pipeline is looked at; through a whole
gate the matrix does it (`test_guest_root`)."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from authority.gate.channel import Channel
from authority.gate.run import Run, Start
from authority.kernel.policy import load
from authority.vm import Images
from gate.lab import OPEN

from .guest import booted, order


class Recording:
    """A pipeline that keeps what it is handed, and answers."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def submit(self, asked: Any, reply: Any) -> None:
        self.asked.append(asked)


def no_parent(_base: str, _name: str) -> Any:
    raise AssertionError("it extends nothing")


def a_run() -> tuple[Run, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    policy = load(OPEN, format="toml", base="/", name="test", read_parent=no_parent)
    spec = Start((), "/", policy)
    run = Run(lambda *_: None, "r", b"", spec, events.append)
    return run, events


async def hostile(found: Images, program: str, *, until: str) -> tuple[Run, Recording, int]:
    """After `program` ran as the guest's root: the run, what was recorded, the gate's growth in KiB."""
    machine, ours = await booted(found)
    run, _ = a_run()
    pipeline = Recording()
    channel = Channel(pipeline, None, run="r", owner=run)  # type: ignore[arg-type]
    run.channel = channel
    run.sandbox = machine
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
    try:
        channel.send_control(order(program))
        async with asyncio.timeout(150):
            await run.closed()
    finally:
        machine.kill()
        await machine.wait()
    assert until in (run.stop_reason or channel._reason), (run.stop_reason, channel._reason)
    return run, pipeline, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_a_flood_of_output_ends_the_run(built: Images) -> None:
    program = "while True: frame(0, b'\\x03\\x01' + bytes(32768))"
    _, _, grown = asyncio.run(hostile(built, program, until="more output"))
    assert grown < 200_000


def test_control_frames_that_are_in_order_are_taken(built: Images) -> None:
    program = "frame(0, b'\\x07'); frame(0, b'\\x03\\x01x'); frame(0, b'\\x04' + bytes(7) + b'\\0')"
    run, pipeline, _ = asyncio.run(hostile(built, program, until="closed"))
    assert pipeline.asked == []
    assert run.exit_code == (0, "exited")


def test_a_guest_that_panics_ends_its_run(built: Images) -> None:
    program = "open('/proc/sysrq-trigger', 'w').write('c')"
    run, pipeline, _ = asyncio.run(hostile(built, program, until="closed"))
    assert pipeline.asked == []
    assert run.exit_code == (137, "killed")
