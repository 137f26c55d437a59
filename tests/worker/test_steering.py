"""What steers a server is refused by both who write requests, though their rooms share no code."""

from __future__ import annotations

from authority.effects import http_rules
from authority.worker import asking


def test_the_gate_and_the_worker_refuse_the_same_fields() -> None:
    assert asking.STEERING == http_rules.STEERING
    assert "x-http-method-override" in asking.STEERING
