"""Malformed messages: anything that a kernel would not send ends the mount, and never the gate."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.compat import fuse_abi as abi
from authority.compat.fuse_wire import MAX_FRAME, Request, WireError, parse

from .fuse_kernel import HEADER
from .seat import Seat, number, seat, sit

OPCODES = [value for name, value in vars(abi).items() if name.isupper() and type(value) is int]
KNOWN = sorted({op for op in OPCODES if 0 < op <= 51})
NO_REPLY = frozenset({abi.FORGET, abi.BATCH_FORGET, abi.INTERRUPT})
"""Requests that a kernel sends and waits for no answer to."""


def frame(opcode: int, body: bytes = b"", **changed: int) -> bytes:
    values = {"length": HEADER.size + len(body), "extensions": 0, "padding": 0} | changed
    head = HEADER.pack(
        values["length"], opcode, 2, 1, 0, 0, 0, values["extensions"], values["padding"]
    )
    return head + body


WHOLE = {
    abi.LOOKUP: b"name\0",
    abi.GETATTR: bytes(16),
    abi.SETATTR: bytes(88),
    abi.MKDIR: bytes(8) + b"name\0",
    abi.RENAME: bytes(8) + b"a\0b\0",
    abi.RENAME2: bytes(16) + b"a\0b\0",
    abi.SYMLINK: b"name\0text/../x\0",
    abi.LINK: bytes(8) + b"name\0",
    abi.OPEN: bytes(8),
    abi.CREATE: bytes(16) + b"name\0",
    abi.READ: bytes(40),
    abi.WRITE: struct.pack("<QQIIQII", 0, 0, 3, 0, 0, 0, 0) + b"abc",
    abi.SETXATTR: struct.pack("<II", 3, 0) + b"user.a\0abc",
    abi.GETXATTR: bytes(8) + b"user.a\0",
    abi.RELEASE: bytes(24),
    abi.FALLOCATE: bytes(32),
    abi.LSEEK: bytes(24),
    abi.COPY_FILE_RANGE: bytes(56),
    abi.FORGET: bytes(8),
    abi.BATCH_FORGET: struct.pack("<II", 2, 0) + bytes(32),
    abi.INIT: bytes(64),
    abi.STATFS: b"",
}


@pytest.mark.parametrize("opcode", sorted(WHOLE))
def test_a_whole_message_is_read_and_no_other(opcode: int) -> None:
    body = WHOLE[opcode]
    assert isinstance(parse(frame(opcode, body)), Request)
    for broken in (body + b"\0", body[:-1], body + b"x" * 8):
        if broken == body or (opcode == abi.INIT and len(broken) == 16):
            continue
        with pytest.raises(WireError):
            parse(frame(opcode, broken))


def test_lengths_extensions_and_sizes() -> None:
    good = frame(abi.LOOKUP, b"a\0")
    assert parse(good).names == (b"a",)
    for bad in (
        good[:-1],
        good + b"\0",
        frame(abi.LOOKUP, b"a\0", length=41),
        frame(abi.LOOKUP, b"a\0", extensions=1),
        frame(abi.LOOKUP, b"a\0", padding=1),
        b"",
        b"\0" * 39,
        frame(abi.LOOKUP, b"a" * MAX_FRAME + b"\0"),
        frame(abi.WRITE, struct.pack("<QQIIQII", 0, 0, 4, 0, 0, 0, 0) + b"abc"),
        frame(abi.BATCH_FORGET, struct.pack("<II", 2**31, 0) + bytes(32)),
    ):
        with pytest.raises(WireError):
            parse(bad)


@given(st.sampled_from(KNOWN), st.binary(max_size=200))
@settings(max_examples=15)
def test_any_bytes_are_a_request_or_an_error_of_form(opcode: int, body: bytes) -> None:
    with contextlib.suppress(WireError):
        request = parse(frame(opcode, body))
        for name in request.names[:1]:
            assert 0 < len(name) <= 255
            assert b"\0" not in name


@given(st.binary(max_size=120))
@settings(max_examples=300)
def test_any_bytes_at_all(data: bytes) -> None:
    with contextlib.suppress(WireError):
        parse(data)


def test_an_unknown_opcode_is_not_supported_and_the_mount_goes_on() -> None:
    async def body(seat: Seat) -> None:
        for opcode in (31, 32, 33, 37, 39, 40, 44, 50, 51, 4096, 99999):
            assert await number(seat.kernel.ask(opcode, 1, b"anything")) == "ENOSYS"
        await seat.kernel.put("still", b"works")

    sit(body)


def test_a_malformed_message_ends_the_mount_with_a_denial_and_closes_what_is_open() -> None:
    async def body(seat: Seat) -> None:
        entry, fh = await seat.kernel.create(1, "a")
        (handle,) = seat.mounts._handles._files.values()
        seat.kernel.stream.to_gate.put_nowait(b"not a message")
        await seat.kernel.ended.wait()
        assert handle.fd < 0
        (denied,) = await seat.log(kind="denied")
        assert denied["effect"] == "fs.mount"
        assert any("no kernel sends" in str(e.get("text")) for e in seat.events)
        assert (entry.node, fh) != (0, 0)

    sit(body)


def test_nothing_comes_before_init_and_init_comes_once() -> None:
    async def body(seat: Seat) -> None:
        kernel = await seat.mount(begin=False)
        kernel.send(abi.LOOKUP, 1, b"a\0").add_done_callback(lambda f: f.exception())
        await kernel.ended.wait()
        second = await seat.mount()
        second.send(abi.INIT, 0, bytes(64)).add_done_callback(lambda f: f.exception())
        await second.ended.wait()
        old = await seat.mount(begin=False)
        old.send(abi.INIT, 0, struct.pack("<IIII", 7, 26, 0, 0)).add_done_callback(
            lambda f: f.exception()
        )
        await old.ended.wait()
        assert any("7.31 is needed" in str(e.get("text")) for e in seat.events)

    sit(body, mount=False)


@given(
    st.lists(
        st.tuples(st.sampled_from(KNOWN), st.integers(0, 6), st.binary(max_size=96)), max_size=25
    )
)
@settings(max_examples=15)
def test_no_message_harms_the_gate(messages: list[tuple[int, int, bytes]]) -> None:
    """Well-formed heads with any rest: each is answered, or the mount ends; the gate's log stands."""

    async def work() -> None:
        async with asyncio.timeout(60), seat() as made:
            seat_file = made.file("a", "content")
            kernel = await made.mount()
            await kernel.walk("a")
            for opcode, node, rest in messages:
                if opcode in NO_REPLY:
                    kernel.tell(opcode, node, rest)
                    continue
                future = kernel.send(opcode, node, rest)
                over = asyncio.ensure_future(kernel.ended.wait())
                # The kernel's own goodbye (DESTROY) ends the mount without a word.
                done, _ = await asyncio.wait(
                    {future, over, made.served}, timeout=20, return_when=asyncio.FIRST_COMPLETED
                )
                over.cancel()
                assert done, f"no answer to {opcode}"
                if not future.done():
                    future.cancel()
                    break
                future.exception()
            assert made.gate.failure is None
            assert made.gate.ledger.failure is None
            assert not made.served.done() or made.served.exception() is None
            assert seat_file.exists()

    asyncio.run(work())
