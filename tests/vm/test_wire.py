"""The gate's parser against what a guest may send, however it is cut: one judgement, one denial."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from authority import protocol
from authority.gate.channel import Channel
from authority.gate.raw import RawStream

numbers = st.integers(0, 2**32 - 1)
small = st.integers(0, 12)
controls = st.one_of(
    st.builds(protocol.Open, small),
    st.builds(protocol.Close, small),
    st.builds(protocol.Output, st.sampled_from([1, 2]), st.binary(min_size=1, max_size=50)),
    st.builds(protocol.Exit, st.integers(-5, 300), small),
    st.builds(protocol.Trouble, st.text(max_size=20)),
    st.builds(protocol.Connect, small, st.integers(0, 255), st.binary(max_size=64)),
    st.builds(protocol.Window, small, numbers),
    st.builds(protocol.Eof, small),
    st.builds(protocol.InputAck, numbers),
    st.just(protocol.Started()),
    st.builds(protocol.Guest, st.integers(0, 2), st.text(max_size=20)),
    st.builds(protocol.Input, st.binary(max_size=9)),
    st.builds(protocol.Configure, st.binary(max_size=9)),
).map(lambda control: protocol.encode_frame(0, protocol.encode_control(control)))
framed = st.builds(
    protocol.encode_frame, st.one_of(small, numbers), st.binary(min_size=1, max_size=60)
)
headers = st.builds(lambda size, stream: struct.pack(">II", size, stream), numbers, small)
sent = st.lists(
    st.one_of(controls, controls, controls, framed, headers, st.binary(max_size=40)), max_size=12
)


class Transport:
    """What asyncio would give the channel."""

    def __init__(self) -> None:
        self.over = False

    def write(self, data: bytes) -> None:
        assert not self.over or not data

    def abort(self) -> None:
        self.over = True

    close = abort

    def is_closing(self) -> bool:
        return self.over

    def pause_reading(self) -> None:
        """Nothing is read from a socket here."""

    resume_reading = pause_reading


class Owner:
    """A run that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.told.append(
            (
                name,
                *(
                    (one.service, one.detail) if isinstance(one, RawStream) else one
                    for one in given
                ),
            )
        )


class Pipeline:
    def __init__(self) -> None:
        self.denied: list[str] = []

    def submit(self, asked: Any, reply: Any) -> None:
        assert asked.facts.problem is not None
        self.denied.append(str(asked.facts.problem.code))

    def blind(self, _run: str) -> bool:
        return False


def judged(data: bytes, cuts: list[int]) -> tuple[list[Any], list[str], bool]:
    async def act() -> tuple[list[Any], list[str], bool]:
        owner, pipeline, transport = Owner(), Pipeline(), Transport()
        channel = Channel(pipeline, None, run="r", owner=owner)  # type: ignore[arg-type]
        channel.connection_made(transport)  # type: ignore[arg-type]
        at = 0
        for cut in [*cuts, len(data)]:
            if cut > at and not transport.over:
                channel.data_received(data[at:cut])
                at = cut
                while channel._turns.behind:  # its turn was over before all of that was handled
                    await asyncio.sleep(0)
        return owner.told, pipeline.denied, transport.over

    return asyncio.run(act())


@settings(max_examples=300, deadline=None)
@given(sent, st.data())
def test_however_it_is_cut_it_is_judged_alike(pieces: list[bytes], draw: st.DataObject) -> None:
    data = b"".join(pieces)
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=20)))
    whole = judged(data, [])
    assert judged(data, cuts) == whole
    assert judged(data, list(range(len(data)))) == whole
    _, denied, over = whole
    assert not over or denied
    assert set(denied) <= {"E_FRAME_TOO_LARGE", "E_SCHEMA_INVALID"}


@given(controls)
def test_control_what_is_in_order_is_no_denial(frame: bytes) -> None:
    if frame[8] in (0x05, 0x10):
        assert judged(frame, [])[1:] == (["E_SCHEMA_INVALID"], True)
    elif frame[8] in (1, 11) and not int.from_bytes(frame[9:13], "big"):
        assert judged(frame, [])[2]  # stream 0 is not to be opened
    else:
        assert judged(frame, [])[1:] == ([], False)
