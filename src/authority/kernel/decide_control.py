"""The decision on an action on the gate itself: `decide_control`, a pure function like `decide`."""

from __future__ import annotations

from authority.kernel.capabilities import Refusal, Token, scope
from authority.kernel.codes import Code
from authority.kernel.decide import GATE
from authority.kernel.labels import CLEAN
from authority.kernel.resources import named
from authority.kernel.state import State


def decide_control(
    state: State, token: Token | None, mac_ok: bool, action: str, time: int
) -> Refusal | None:
    """Whether a capability covers an action on the gate itself (`gate:ACTION`).

    Such capabilities are bound to the name `gate` in place of a run. None allows.
    """
    now = state.now(time)
    if token is None:
        return Refusal(Code.CAP_MISSING, "no capability was presented")
    key = state.keys.get(token.kid)
    if key is None or not mac_ok or (key.until and now > key.until):
        return Refusal(Code.CAP_INVALID, "unknown or retired key, or wrong MAC")
    if any(cap in state.revoked for cap in token.ids):
        return Refusal(Code.CAP_REVOKED, "the capability was revoked")
    if token.run != GATE or token.ids[0] not in state.caps:
        return Refusal(Code.CAP_INVALID, "not a capability for the gate")
    return scope(
        token,
        effect=f"gate.{action}",
        resource=named("gate", action),
        verb="",
        run=GATE,
        now=now,
        numbers={},
        label=CLEAN,
    )
