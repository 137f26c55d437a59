"""The effects on files as the gate has them, for each test anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from authority.effects.files import FileEffects


@pytest.fixture
def files() -> Iterator[FileEffects]:
    effects = FileEffects()
    yield effects
    effects.close()
