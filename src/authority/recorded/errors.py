"""What can stand in the way of a replay."""

from __future__ import annotations

import msgspec

from authority.errors import AuthorityError


class ReplayRefused(AuthorityError):
    """The run can't be played again at all. The message says why."""


class Divergence(msgspec.Struct, frozen=True):
    """The first thing that was otherwise than recorded: at which entry, `then` and `now` in a line
    each, and a diff of both for reading. `what` says what kind of thing it is."""

    entry: int
    what: str
    then: str
    now: str
    diff: tuple[str, ...] = ()


class Diverged(Exception):
    """The replay is over: see `divergence`."""

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence.what)
        self.divergence = divergence
