"""One real gate and one outside world for each file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gate.conftest import _deadline, _no_socket_waits_for_ever  # noqa: F401
from gate.lab import Lab, lab_at

from .site import Site, site_at


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        yield made


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    folder = lab.root / "outside"
    folder.mkdir()
    with site_at(folder) as made:
        yield made
