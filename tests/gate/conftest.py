"""A lab for each file, a fresh one where a test harms its gate, and a deadline for everything."""

from __future__ import annotations

import signal
import socket
from collections.abc import Generator, Iterator

import pytest

from .lab import SECONDS, Lab, lab_at
from .model_lab import KEY
from .model_upstream import Upstream, upstream

DEADLINE = 300
TOLD = 10


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the program is not told of an effect that failed stands beside the test that failed."""
    report = yield
    for name, value in getattr(item, "funcargs", {}).items() if report.failed else ():
        if isinstance(value, Lab):
            failed = value.log(kind="outcome", code="E_EFFECT_FAILED")[-TOLD:]
            lines = [f"{entry['seq']} {entry.get('facts')}" for entry in failed]
            report.sections.append((f"the last effects that failed in {name}", "\n".join(lines)))
    return report


@pytest.fixture(autouse=True, scope="module")
def _no_socket_waits_for_ever() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    yield
    socket.setdefaulttimeout(before)


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"the test took longer than {DEADLINE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One for the file: the tests leave it alive."""
    with lab_at() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Lab]:
    """One for the test alone."""
    with lab_at() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """A provider of models for the file; its key is in the environment of gates that start."""
    with pytest.MonkeyPatch.context() as patch, upstream() as made:
        patch.setenv("UP_KEY", KEY)
        yield made
