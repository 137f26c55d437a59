"""What every effect is: it performs what was admitted, and says what it used.

Rules
- By the time `perform` runs, capability, policy, budget and labels have said yes and, for a side
  effect, the intent is durable. An effect judges none of that again; it refuses only what could not
  be seen earlier (a link on the path, a device, a private address) with `EffectRefused`.
- `perform` never uses more than `Call.reserved`; what it used goes into `Performed.spent`. Failing
  is not free: `EffectFailed.spent` says what was used up to then.
- An effect holds no key and no log. It gets directory handles and clients from its constructor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from authority.kernel.codes import Code
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource


class Call(msgspec.Struct, frozen=True):
    """One admitted request, as an effect sees it.

    `arguments` is the effect's argument Struct of `kernel.requests`; `target` the second resource
    (the new name in a rename); `reserved` the most that may be used, by dimension; `run` the run's
    id; `seq` the entry that admitted it; `looked_up` what was found before the decision;
    `capability` the token that was presented, for what hands authority on (spawning); `given` the
    label of handles among the arguments, beside the run's own.
    """

    run: str
    seq: int
    effect: str
    resource: Resource
    arguments: Any
    policy: Policy
    reserved: Mapping[str, int]
    target: Resource | None = None
    looked_up: Mapping[str, Any] = {}
    capability: bytes = b""
    given: Label = CLEAN


class Performed(msgspec.Struct, frozen=True):
    """What came of it: the answer's value (MessagePack types), what was used, facts for the log.

    `carried` is the label that came with the value, where it has one of its own (a message).
    """

    value: Any
    spent: Mapping[str, int] = {}
    facts: Mapping[str, Any] = {}
    carried: Label | None = None


class EffectFailed(Exception):
    """It was tried and it failed. `sentence` goes to the agent: printable, without host secrets.

    `carried` is the label of what was looked at on the way, where it has one of its own."""

    def __init__(
        self,
        sentence: str,
        *,
        spent: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
        carried: Label | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.spent = dict(spent or {})
        self.facts = dict(facts or {})
        self.carried = carried


class EffectRefused(Exception):
    """Seen at the last moment: this may not be touched. Nothing was performed."""

    def __init__(
        self, code: Code, sentence: str, *, facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.facts = dict(facts or {})
