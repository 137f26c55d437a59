"""A worker turned against the gate in requests that came through the channel, and no worker at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from authority.compat.base import Failed
from authority.compat.fetching import Fetches
from authority.effects import http
from authority.effects.base import EffectFailed, Performed
from authority.effects.http import HttpEffect
from authority.kernel import canonical
from authority.protocol.packets import CallError, LinkOver, Peer
from effects.support import RawServer, call, policy, run, served
from effects.test_http import resolver

Rogue = Callable[["Seat"], Awaitable[Any]]
LINES = b"\x1b]0;owned\x07\r\nby the server"
REQUEST_BYTES = 70_000
MAX_BYTES = 1000


class Seat:
    """Where a worker sits: a test says what it does with the one exchange that it is handed."""

    def __init__(self, rogue: Rogue) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer, self.far = Peer(ours), Peer(theirs)
        self.given: dict[str, Any] = {}
        self.upstream: socket.socket
        self._rogue = rogue
        self.far.on("serve", self._serve)

    async def worker(self) -> Peer:
        return self.peer

    async def _serve(self, params: Any, fds: list[int]) -> tuple[Any, list[int]]:
        self.given = params
        self.upstream = socket.socket(fileno=fds[0])
        self.upstream.setblocking(False)
        try:
            return await self._rogue(self), []
        except LinkOver:
            return None, []
        finally:
            self.upstream.close()

    async def say(self, what: str, **members: Any) -> Any:
        result, _ = await self.far.call(f"http.{what}", {"conn": self.given["conn"], **members})
        return result

    async def request(self) -> bytes:
        """All of the request."""
        whole, last = b"", False
        while not last:
            told = await self.say("more")
            whole, last = whole + told["data"], told["last"]
        return whole


def end(word: str = "done", received: int = 0, verify: int = 0) -> dict[str, Any]:
    return {"end": word, "verify": verify, "received": received}


async def asked(door: Any, server: RawServer, **options: Any) -> Performed:
    links = Fetches(door)
    effect = HttpEffect(
        lambda _run: links.linked(),
        secrets={},
        anchors=b"",
        resolver=resolver("127.0.0.1"),
        **options,
    )
    return await effect.perform(
        call(
            "http.request",
            f"http://api.test:{server.port}/",
            under=policy(f'[network]\nprivate = ["api.test:{server.port}"]\n'),
            method="POST",
            body=b"x" * REQUEST_BYTES,
            max_bytes=MAX_BYTES,
        )
    )


def with_rogue(rogue: Rogue, **options: Any) -> tuple[Performed | EffectFailed, Seat]:
    """What the program gets when its worker is a rogue."""

    async def main() -> tuple[Performed | EffectFailed, Seat]:
        async with served(b"") as server, asyncio.timeout(60):
            seat = Seat(rogue)
            try:
                return await asked(seat, server, **options), seat
            except EffectFailed as failed:
                canonical.encode(failed.facts)
                return failed, seat
            finally:
                seat.far.close()

    found: tuple[Performed | EffectFailed, Seat] = run(main())
    return found


def test_control_a_worker_that_keeps_the_rules() -> None:
    async def honest(seat: Seat) -> Any:
        request = await seat.request()
        assert request.startswith(b"POST / HTTP/1.1\r\n")
        assert len(request) > REQUEST_BYTES
        await seat.say("head", status=200, headers=[("X-A", "b")])
        await seat.say("piece", data=b"hel", last=False)
        await seat.say("piece", data=b"lo", last=True)
        return end(received=105)

    done, seat = with_rogue(honest)
    assert isinstance(done, Performed)
    assert done.value["body"] == b"hello"
    assert done.spent["network_bytes"] == 105 + done.facts["bytes_out"]
    assert not seat.peer.reason or seat.peer.reason == "the other side ended"


async def answered(seat: Seat) -> None:
    await seat.request()
    await seat.say("head", status=200, headers=[])


async def takes_more_than_the_request(seat: Seat) -> Any:
    await seat.request()
    return await seat.say("more")


async def answers_before_it_asked(seat: Seat) -> Any:
    return await seat.say("head", status=200, headers=[])


async def answers_twice(seat: Seat) -> Any:
    await answered(seat)
    return await seat.say("head", status=200, headers=[])


async def gives_a_body_without_a_head(seat: Seat) -> Any:
    await seat.request()
    return await seat.say("piece", data=b"x", last=True)


async def gives_more_than_max_bytes(seat: Seat) -> Any:
    await answered(seat)
    await seat.say("piece", data=b"x" * MAX_BYTES, last=False)
    return await seat.say("piece", data=b"x", last=True)


async def goes_on_after_the_end(seat: Seat) -> Any:
    await answered(seat)
    await seat.say("piece", data=b"x", last=True)
    return await seat.say("piece", data=b"", last=True)


async def is_done_before_the_end(seat: Seat) -> Any:
    await answered(seat)
    return end(received=500)


async def has_read_less_than_it_gave(seat: Seat) -> Any:
    await answered(seat)
    await seat.say("piece", data=b"x" * 100, last=True)
    return end(received=99)


async def has_read_more_than_it_might(seat: Seat) -> Any:
    await answered(seat)
    await seat.say("piece", data=b"x", last=True)
    return end(received=seat.given["total"] + 1)


async def ends_in_its_own_words(_seat: Seat) -> Any:
    return end(LINES.decode())


async def fails_in_its_own_words(_seat: Seat) -> Any:
    raise CallError(LINES.decode(), LINES.decode())


async def says_more_than_it_may(_seat: Seat) -> Any:
    return {**end("broke"), "sentence": LINES.decode()}


async def ends_without_a_word(_seat: Seat) -> Any:
    return None


async def gives_a_status_that_is_none(seat: Seat) -> Any:
    await seat.request()
    return await seat.say("head", status=101, headers=[])


async def gives_a_header_of_two_lines(seat: Seat) -> Any:
    await seat.request()
    return await seat.say("head", status=200, headers=[("X", "a\r\nSet-Cookie: b")])


async def gives_a_header_that_ends_a_line(seat: Seat) -> Any:
    await seat.request()
    return await seat.say("head", status=200, headers=[("X", "a\n")])


async def calls_what_is_not_there(seat: Seat) -> Any:
    return await seat.say("everything")


async def dies(seat: Seat) -> Any:
    seat.far.close()
    await asyncio.sleep(60)


ROGUES: list[Rogue] = [
    takes_more_than_the_request,
    answers_before_it_asked,
    answers_twice,
    gives_a_body_without_a_head,
    gives_more_than_max_bytes,
    goes_on_after_the_end,
    is_done_before_the_end,
    has_read_less_than_it_gave,
    has_read_more_than_it_might,
    ends_in_its_own_words,
    fails_in_its_own_words,
    says_more_than_it_may,
    ends_without_a_word,
    gives_a_status_that_is_none,
    gives_a_header_of_two_lines,
    gives_a_header_that_ends_a_line,
    calls_what_is_not_there,
    dies,
]


@pytest.mark.parametrize("rogue", ROGUES, ids=lambda r: str(r.__name__))
def test_a_worker_that_breaks_the_rules_is_ended_and_everything_is_spent(rogue: Rogue) -> None:
    failed, seat = with_rogue(rogue)
    assert isinstance(failed, EffectFailed)
    assert failed.sentence == "The connection broke."
    assert failed.spent == {"requests": 1}, "what is not named counts as used up"
    assert "bytes_in" not in failed.facts, "nobody knows it"
    assert failed.facts["worker"].isprintable()
    assert seat.peer.reason


def test_an_exchange_that_is_not_there_gives_nothing_and_takes_nothing() -> None:
    async def elsewhere(seat: Seat) -> Any:
        own = seat.given["conn"]
        for number in (own + 1, 0):
            seat.given["conn"] = number
            for what, members in (
                ("more", {}),
                ("anchors", {}),
                ("head", {"status": 200, "headers": []}),
                ("piece", {"data": b"x", "last": True}),
            ):
                with pytest.raises(CallError):
                    await seat.say(what, **members)
        return end("broke")

    failed, _ = with_rogue(elsewhere)
    assert isinstance(failed, EffectFailed)
    assert failed.spent == {"requests": 1, "network_bytes": 0}


def test_a_worker_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "GRACE_SECONDS", 0.2)
    cut: list[bytes] = []

    async def stays(seat: Seat) -> Any:
        await seat.request()
        cut.append(await asyncio.get_running_loop().sock_recv(seat.upstream, 1))
        await asyncio.sleep(60)

    failed, _ = with_rogue(stays, timeout_us=1_000_000)
    assert isinstance(failed, EffectFailed)
    assert failed.sentence == "The exchange took longer than 1 s."
    assert failed.spent == {"requests": 1}
    assert cut == [b""], "the connection was cut under it"


def test_without_a_worker_nothing_is_dialled() -> None:
    class Door:
        async def worker(self) -> Peer:
            raise Failed("The run's worker could not be started: no bubblewrap")

    async def main() -> None:
        async with served(b"") as server:
            with pytest.raises(EffectFailed) as failed:
                await asked(Door(), server)
            assert failed.value.sentence == "The request could not be made."
            assert failed.value.spent == {"requests": 1, "network_bytes": 0}
            assert "bubblewrap" in failed.value.facts["worker"]
            assert server.peers == 0

    run(main())
