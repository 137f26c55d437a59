"""What a guest that was taken over can send: the gate refuses it, records it, and stays as it was."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("os.write(5, b'\\xff' * 64)", "frame"),
        ("os.write(5, struct.pack('>II', 1 << 31, 0))", "frame"),
        ("frame(0, b'\\x63nothing')", "frame"),
        ("frame(77, b'for nobody')", "frame"),
        ("frame(0, b'\\x10' + bytes(100))", "frame"),
        ("frame(0, b'\\x01\\0\\0\\0\\x05'); frame(0, b'\\x01\\0\\0\\0\\x05')", "frame"),
    ],
    ids=["garbage", "huge", "unknown opcode", "unknown stream", "an order", "a number twice"],
)
def test_malformed_frames_end_the_run_and_are_recorded(
    built: Images, program: str, sentence: str
) -> None:
    program += "\nimport time; time.sleep(600)"
    run, pipeline, _ = asyncio.run(hostile(built, program, until=sentence))
    (denied,) = pipeline.asked
    assert denied.facts.problem is not None
    assert run.sandbox is not None


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
