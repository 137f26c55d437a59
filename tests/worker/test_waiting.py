"""How long a client may take: an idle one goes quietly, one that stalls within a head is told."""

from __future__ import annotations

import asyncio

import pytest

from authority.worker import exchange
from authority.worker.lines import Line


class Slow(Line):
    """Gives its pieces, and then nothing."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__()
        self._pieces = list(pieces)

    async def _read(self, size: int) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        await asyncio.sleep(60)
        raise AssertionError("waited for ever")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "HEAD_SECONDS", 0.05)
    monkeypatch.setattr(exchange, "IDLE_SECONDS", 0.05)


@pytest.mark.parametrize("first", [True, False])
def test_an_idle_client_is_no_offence(first: bool) -> None:
    assert asyncio.run(exchange.next_head(Slow(), first=first)) is None


@pytest.mark.parametrize("first", [True, False])
def test_a_head_that_does_not_go_on_is_told(first: bool) -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(exchange.next_head(Slow(b"GET / HT", b"TP/1.1\r\n"), first=first))


def test_control_a_head_in_time() -> None:
    request = asyncio.run(exchange.next_head(Slow(b"GET / HTTP/1.1\r\n", b"\r\nrest"), first=True))
    assert request is not None
    assert request.target == "/"
