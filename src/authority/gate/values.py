"""Reading a handle, and computing on what is behind some: `value.reveal` and `value.compute`.

Rules
- A reveal answers with the value, or with why there is none; both carry the handle's label, which the
  run has from then on. Of a recorded field (`kernel.shapes`) they carry no more than what it hinges on,
  and nothing is said about why there is none.
- A computation runs in a sandbox of its own like a tool: no channel, no network, nothing of the run's
  files, nothing kept. Its answer carries the label of everything that went in (`gate.hidden`).
"""

from __future__ import annotations

from authority.effects.base import Call, EffectFailed, Performed
from authority.gate import filling
from authority.gate.pipeline import Performer
from authority.gate.vault import Vault
from authority.kernel import shapes, values
from authority.kernel.labels import Label
from authority.kernel.pointers import Malformed, Unfit
from authority.kernel.state import State


class Values:
    """Performs what is done with handles."""

    vault: Vault  # set by the gate

    def __init__(self, rooms: Performer, state: State) -> None:
        self._rooms = rooms
        self._state = state

    async def perform(self, call: Call) -> Performed:
        if call.effect == "value.compute":
            return await self._rooms.perform(call)
        asked = call.arguments
        ref = {values.HANDLE: call.resource.name, "path": asked.path, "within": asked.within}
        if asked.schema is not None:
            ref["schema"] = asked.schema
        try:
            wanted = values.ref_of(ref, "", whole=True)
        except Malformed as error:
            raise EffectFailed(f"There is no such value: {error}.") from None
        label = self._label(call, wanted)
        try:
            found = await filling.one(self.vault, self._state, call.policy, call.run, wanted)
        except Unfit as error:
            raise EffectFailed(f"There is no such value: {error}.", carried=label) from None
        return Performed(found, carried=label)

    def _label(self, call: Call, wanted: values.Ref) -> Label:
        run = self._state.runs.get(call.run)
        held = run.handles.get(wanted.handle) if run is not None else None
        if run is None or held is None:
            raise EffectFailed("There is no such handle.")
        typed = wanted.schema is not None
        if shapes.recorded(call.policy, held, wanted.path, typed=typed):
            return shapes.hinge(self._state, call.policy, run, held)
        return held.label
