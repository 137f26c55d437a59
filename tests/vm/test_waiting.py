"""Who waits while another start makes images or a saved state is told for what, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from authority.cli import preparing
from authority.isolation import IsolationRefused, probe
from authority.vm import (
    architectures,
    cache,
    hypervisor,
    kernel,
    kernel_package,
    preparation,
    template,
    tools,
)
from authority.vm.steps import _FOR_OTHERS, Tell
from gate.lab import SECONDS, wait_for

from .guest import SPEC

Makes = Callable[[Tell], None]


class Worked:
    """A build that goes on when it is let, tells what it makes, and then fails."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.tells, self.ends = threading.Event(), threading.Event()

    def build(self, *_: object, tell: Tell) -> Any:
        self.entered.release()
        assert self.tells.wait(SECONDS)
        tell("kernel")
        assert self.ends.wait(SECONDS)
        raise IsolationRefused("as far as this")


def test_who_waits_for_the_images_of_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    worked = Worked()
    monkeypatch.setattr(kernel, "build", worked.build)
    monkeypatch.setattr(hypervisor, "find", lambda _: None)
    monkeypatch.setattr(preparation, "require", lambda _: None)
    first, early, late = (list[str]() for _ in range(3))

    def images(told: list[str]) -> None:
        with pytest.raises(IsolationRefused, match="as far as this"):
            preparation.images(SPEC, probe(), emulate=True, tell=told.append)

    with ThreadPoolExecutor(3) as threads:
        try:
            runs = [threads.submit(images, first)]
            assert worked.entered.acquire(timeout=SECONDS)
            runs.append(threads.submit(images, early))
            wait_for(lambda: len(preparation._line._waiting) == 1)
            assert early == []  # a control: perhaps the other finds everything
            worked.tells.set()
            wait_for(lambda: early)
            runs.append(threads.submit(images, late))
            wait_for(lambda: late)
            assert (first, early, late) == (["kernel"], ["waiting-kernel"], ["waiting-kernel"])
        finally:
            worked.tells.set()
            worked.ends.set()
        for run in runs:
            run.result(SECONDS)
    assert first == ["kernel"]
    for told in (early, late):
        assert told[-1] == "kernel"
        assert set(told[:-1]) == {"waiting-kernel"}
    alone: list[str] = []
    images(alone)
    assert alone == ["kernel"]


def test_who_waits_for_the_saved_state_of_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both() -> None:
        made, goes_on = asyncio.Event(), asyncio.Event()

        async def make(*_: object) -> object:
            made.set()
            await goes_on.wait()
            return state

        monkeypatch.setattr(template, "_make", make)
        first, second = list[str](), list[str]()
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
            one = tasks.create_task(template.ready(prepared, first.append))
            await made.wait()
            monkeypatch.setattr(template, "_find", lambda _: state)
            other = tasks.create_task(template.ready(prepared, second.append))
            while not second:
                await asyncio.sleep(0)
            goes_on.set()
        assert one.result() is other.result() is state
        assert (first, second) == (["state"], ["waiting-state"])
        third: list[str] = []
        assert await template.ready(prepared, third.append) is state
        assert third == []  # a control

    prepared: Any = object()
    state: Any = object()
    monkeypatch.setattr(template, "key", lambda _: "the same")
    monkeypatch.setattr(template, "_turns", {})
    monkeypatch.setattr(template, "_find", lambda _: None)
    monkeypatch.setattr(cache, "to_write", lambda: None)
    asyncio.run(both())


def test_who_waits_for_another_process_is_told(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object) -> Path:
        raise IsolationRefused("as far as this")

    def build() -> list[str]:
        told: list[str] = []
        all_told.append(told)
        with pytest.raises(IsolationRefused, match="as far as this"):
            kernel.build(architecture, tell=told.append)
        return told

    architecture = architectures.of(probe().architecture)
    monkeypatch.setattr(kernel_package, "fetch", fetch)
    monkeypatch.setattr(tools, "need_all", lambda _: {})
    all_told: list[list[str]] = []
    with ThreadPoolExecutor(1) as threads:
        with cache.building():  # a lock of another opening is as good as another process's
            waits = threads.submit(build)
            wait_for(lambda: all_told and len(all_told[0]) == 2)
        assert waits.result(SECONDS) == ["kernel", "waiting"]
    assert build() == ["kernel"]


def test_every_step_has_its_words() -> None:
    for step in {*_FOR_OTHERS, *_FOR_OTHERS.values()}:
        assert not preparing.text(step).startswith("preparing:")
    assert preparing.text("another") == "preparing: another"
