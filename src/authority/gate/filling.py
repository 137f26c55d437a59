"""The values of handles, put into a request: each looked up once, within bounds.

Rules
- What a request costs the gate is bounded, whatever is behind its handles: the values that it names
  are decoded once each, together at most `DECODED` bytes; a text that is read as JSON is read once;
  holding values to types takes at most `kernel.value_types.STEPS` steps; and what is put in all places
  together is at most `kernel.handles.BOUND` bytes.
- What goes beyond is `Unfit`, like a value that is not there: how much there is, is nobody's to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from authority.gate.vault import Vault
from authority.kernel.handles import BOUND
from authority.kernel.pointers import Unfit
from authority.kernel.policy import Policy
from authority.kernel.state import State
from authority.kernel.value_types import Effort
from authority.kernel.values import Ref, resolve

DECODED: Final = 4 * BOUND
_encode: Final = msgspec.msgpack.Encoder().encode


async def found(
    vault: Vault, state: State, policy: Policy | None, run: str, refs: Iterable[Ref]
) -> dict[str, Any]:
    """What each reference (by its `at`) stands for, or the `Unfit` that it is."""
    values: dict[tuple[bool, str], Any] = {}
    effort = Effort()
    decoded = placed = 0
    out: dict[str, Any] = {}
    for ref in refs:
        where = vault
        try:
            where = vault.of(state, policy, run, ref)
            key = where is vault, ref.handle
            if key not in values:
                decoded += where.size(run, ref.handle)
                if decoded > DECODED:
                    raise Unfit("the request names more than is put together at once")
                values[key] = await where.get(run, ref.handle)
            value = resolve(ref, values[key], effort)
            placed += len(value) if isinstance(value, str | bytes) else len(_encode(value))
            if placed > BOUND:
                raise Unfit("it is more than an argument may hold")
            out[ref.at] = value
        except Unfit as no:
            out[ref.at] = no if where is vault else Unfit("it is not recorded")
    return out


async def one(vault: Vault, state: State, policy: Policy | None, run: str, ref: Ref) -> Any:
    """What a single reference stands for, which is read and put nowhere. Raises `Unfit`."""
    where = vault.of(state, policy, run, ref)
    try:
        return resolve(ref, await where.get(run, ref.handle))
    except Unfit as no:
        raise no if where is vault else Unfit("it is not recorded") from None
