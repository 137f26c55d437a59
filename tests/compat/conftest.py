"""A lab (a real gate) for each file that asks for one, and a deadline for everything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gate.conftest import _deadline, _no_socket_waits_for_ever  # noqa: F401
from gate.lab import Lab, lab_at


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Lab]:
    """One for the test alone."""
    with lab_at() as made:
        yield made
