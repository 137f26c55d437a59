"""What can go wrong beside the agent: a refusal, or a channel that can't be used.

`Denied` is an answer: the request was understood and refused, and the log has an entry about it.
`GateError` and what derives from it mean that there was no such answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from authority.errors import AuthorityError
from authority.protocol import plain


class Receipt(NamedTuple):
    """The entry of the log on which an answer rests: its number and its hash (hex)."""

    seq: int
    hash: str


class Denied(AuthorityError):
    """The gate refused. Programs branch on `code` (`E_…`); `sentence` is for people.

    `layer` says which stage refused, `number` counts the refusals of this run, `seq` is the entry
    (None if it has none of its own), `rule` is there only if the policy explains itself to agents.
    """

    def __init__(
        self,
        code: str,
        layer: str,
        seq: int | None,
        number: int,
        sentence: str,
        rule: str | None = None,
        receipt: Receipt | None = None,
    ) -> None:
        super().__init__(f"{plain(code)}: {plain(sentence, 1000)}")
        self.code = code
        self.layer = layer
        self.seq = seq
        self.number = number
        self.sentence = sentence
        self.rule = rule
        self.receipt = receipt

    def __reduce__(self) -> tuple[type[Denied], tuple[object, ...]]:
        told = (
            self.code,
            self.layer,
            self.seq,
            self.number,
            self.sentence,
            self.rule,
            self.receipt,
        )
        return type(self), told

    def __str__(self) -> str:
        where = "" if self.seq is None else f", entry {self.seq}"
        rule = f"; rule: {plain(self.rule)}" if self.rule else ""
        return f"{self.message} (refusal {self.number} by {plain(self.layer)}{where}{rule})"


Wait = bool | Callable[[Denied], None]
"""Whether a call waits where a person has to approve; or what is called first, with the refusal."""


class GateError(AuthorityError):
    """There is no answer."""


class NoChannel(GateError):
    """There is no gate where one was looked for."""


class GateGone(GateError):
    """The channel ended. A side effect that was under way may or may not have happened; the log
    says which.
    """


class BadReply(GateError):
    """The gate said something that this client does not understand."""


class BadRequest(GateError):
    """The call can't be sent: a value that does not fit into a request."""
