"""What goes on and is stopped from outside: whoever holds something is told once, whenever they ask."""

from __future__ import annotations

from authority.compat.base import Stops


def test_a_stop_calls_back_once() -> None:
    calls: list[str] = []
    flow = Stops()
    flow.on_stop(lambda: calls.append("before"))
    assert not calls
    flow.stop()
    flow.stop()
    assert calls == ["before"]


def test_who_asks_after_the_stop_is_told_at_once() -> None:
    calls: list[str] = []
    flow = Stops()
    flow.stop()
    flow.on_stop(lambda: calls.append("after"))
    assert calls == ["after"]
