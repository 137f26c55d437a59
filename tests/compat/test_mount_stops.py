"""Halt, revocation, the end: what is open is closed at once, and nothing goes through any more."""

from __future__ import annotations

import asyncio
import os

from authority.kernel import entries

from .seat import Seat, number, sit


def halted(seat: Seat) -> None:
    seat.gate.ledger.step([entries.Halt(run=seat.run.id, reason="tested", by="test")])
    seat.gate.runs.halt_started(seat.run.id, "halted")


def test_a_halt_closes_every_handle_in_the_same_step() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("a", "secret")
        node = (await kernel.walk("a")).node
        reading = await kernel.open(node)
        entry, writing = await kernel.create(1, "w")
        await kernel.write(entry.node, writing, b"before")
        handles = list(seat.mounts._handles._files.values())
        assert all(handle.fd >= 0 for handle in handles)
        halted(seat)
        assert all(handle.fd < 0 for handle in handles)
        for work in (
            kernel.read(node, reading),
            kernel.write(entry.node, writing, b"after", 6),
            kernel.getattr(node),
            kernel.lookup(1, "a"),
            kernel.open(node),
            kernel.create(1, "x"),
            kernel.unlink(1, "a"),
        ):
            assert await number(work) == "EIO"
        assert (seat.work / "w").read_bytes() == b"before"
        assert (seat.work / "a").exists()

    sit(body)


def test_a_revoked_capability_closes_them_too() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("a", "x")
        node = (await kernel.walk("a")).node
        fh = await kernel.open(node)
        cap = seat.info.capability
        seat.gate.ledger.step([entries.CapRevoke(run=seat.run.id, id=cap, by="test")])
        seat.gate._goings.stop_under(cap)
        assert await number(kernel.read(node, fh)) == "EIO"
        assert await number(kernel.open(node)) == "EIO"

    sit(body)


def test_what_is_admitted_while_a_halt_comes_is_not_performed() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        ledger = seat.gate.ledger
        real = ledger.durable

        async def held(seq: int) -> None:
            ledger.step([entries.Halt(run=seat.run.id, reason="tested", by="test")])
            ledger.durable = real  # type: ignore[method-assign]
            await real(seq)

        ledger.durable = held  # type: ignore[method-assign]
        assert await number(kernel.mkdir(1, "made")) in ("EIO", "EACCES")
        assert not (seat.work / "made").exists()
        (outcome,) = await seat.log(kind="outcome", status="aborted")
        assert outcome["code"] == "E_HALTED"

    sit(body)


def test_the_end_of_the_stream_closes_everything_and_the_log_says_so() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        entry, fh = await kernel.create(1, "w", os.O_RDWR)
        await kernel.write(entry.node, fh, b"x")
        handles = list(seat.mounts._handles._files.values())
        kernel.stop()
        async with asyncio.timeout(60):
            await asyncio.wait({seat.served})
        assert all(handle.fd < 0 for handle in handles)
        (mounted,) = await seat.log(kind="admit", effect="fs.mount")
        (over,) = await seat.log(kind="outcome", of=mounted["seq"])
        assert over["status"] == "done"

    sit(body)


def test_a_defect_ends_the_mount_and_is_raised() -> None:
    async def body(seat: Seat) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("a defect")

        seat.file("a", "x")
        node = (await seat.kernel.walk("a")).node
        seat.gate._tallies.look = broken  # type: ignore[assignment]
        assert await number(seat.kernel.open(node)) != ""
        await seat.kernel.ended.wait()
        await asyncio.wait({seat.served}, timeout=60)
        assert isinstance(seat.served.exception(), ZeroDivisionError)

    sit(body)
