"""One real gate for each file, a fresh one where a test needs it."""

from __future__ import annotations

from tests.gate.conftest import lab, own  # noqa: F401
