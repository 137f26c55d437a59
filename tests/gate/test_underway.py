"""What is under way: stages taken together, tasks for what waits, and cancelling either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from authority.gate.underway import AT_ONCE, UnderWay, stage

EFFECT = "fs.read"


class Seen:
    """Work that says what became of it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fatal: list[BaseException] = []
        self.way = UnderWay(self.fatal.append)
        self.gate = asyncio.Event()

    async def quick(self, name: str) -> None:
        self.steps.append(f"{name} performs")
        await stage(EFFECT)
        self.steps.append(f"{name} records")

    async def slow(self, name: str) -> None:
        self.steps.append(f"{name} waits")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.steps.append(f"{name} is cancelled")
            raise
        await stage(EFFECT)
        self.steps.append(f"{name} records")


def see(body: Callable[[Seen], Coroutine[Any, Any, None]]) -> Seen:
    async def main() -> Seen:
        seen = Seen()
        await body(seen)
        return seen

    return asyncio.run(asyncio.wait_for(main(), 60))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_each_stage_of_all_comes_before_the_next_of_any() -> None:
    assert EFFECT in AT_ONCE

    async def body(seen: Seen) -> None:
        for name in "ab":
            seen.way.begin("run", seen.quick(name), EFFECT)
        assert seen.steps == []
        await asyncio.sleep(0)
        assert seen.steps == ["a performs", "b performs", "a records", "b records"]
        assert await seen.way.stop("run", 20) == 0  # nothing is left of it

    assert not see(body).fatal


def test_what_waits_goes_on_from_there_and_holds_up_nobody() -> None:
    async def body(seen: Seen) -> None:
        seen.way.begin("run", seen.slow("a"), EFFECT)
        seen.way.begin("run", seen.quick("b"), EFFECT)
        await turns()
        assert seen.steps == ["a waits", "b performs", "b records"]
        seen.gate.set()
        await turns()
        assert seen.steps[3:] == ["a records"]

    assert not see(body).fatal


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("by", ["run", "capability", "nothing"])
def test_work_is_cancelled_with_its_run_and_its_capability(started: bool, by: str) -> None:
    async def body(seen: Seen) -> None:
        seen.way.begin("run", seen.slow("a"), EFFECT, 7, ["cap"])
        seen.way.begin("other", seen.slow("b"), EFFECT, 8, ["another"])
        if started:
            await turns()
        if by == "run":
            assert await seen.way.stop("run", 20) == 0
        elif by == "capability":
            assert await seen.way.stop_under("cap") == []
        seen.gate.set()
        await turns()
        assert "b records" in seen.steps
        assert ("a records" in seen.steps) == (by == "nothing")
        assert ("a is cancelled" in seen.steps) == (started and by != "nothing")

    assert not see(body).fatal


@pytest.mark.parametrize("waits", [False, True])
def test_a_defect_takes_the_gate_down(waits: bool) -> None:
    async def defect() -> None:
        if waits:
            await asyncio.sleep(0.001)
        raise ValueError("a defect")

    async def body(seen: Seen) -> None:
        seen.way.begin("run", defect(), EFFECT)
        seen.way.begin("run", seen.quick("b"), EFFECT)
        while not seen.fatal:
            await asyncio.sleep(0.001)
        assert seen.steps == ["b performs", "b records"]

    assert [str(error) for error in see(body).fatal] == ["a defect"]


def test_work_that_is_cancelled_by_what_it_asks_holds_up_nobody() -> None:
    """What somebody else cancelled is no defect; whoever stands behind it goes on, now and later."""

    async def body(seen: Seen) -> None:
        cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        cancelled.cancel()

        async def asks() -> None:
            seen.steps.append("a asks")
            await cancelled

        seen.way.begin("run", seen.quick("before"), EFFECT)
        seen.way.begin("run", asks(), EFFECT)
        seen.way.begin("run", seen.quick("behind"), EFFECT)
        await turns()
        seen.way.begin("run", seen.quick("later"), EFFECT)
        await turns()
        assert seen.steps[1] == "a asks"
        for name in ("before", "behind", "later"):
            assert f"{name} records" in seen.steps

    assert not see(body).fatal


def test_work_that_is_dropped_between_two_stages_is_no_defect() -> None:
    async def body(seen: Seen) -> None:
        async def stops() -> None:
            seen.way._drop(lambda begun: begun.run == "run")

        seen.way.begin("run", seen.quick("a"), EFFECT)
        seen.way.begin("other", stops(), EFFECT)
        seen.way.begin("other", seen.quick("b"), EFFECT)
        await turns()
        assert seen.steps == ["a performs", "b performs", "b records"]

    assert not see(body).fatal
