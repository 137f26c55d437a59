"""What was typed or piped into the run, given again when the program has come as far as it had then."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable

from authority import protocol
from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.sealed import Sealer
from authority.audit.store import ContentStore
from authority.gate.channel import Channel
from authority.kernel import entries
from authority.recorded.errors import Divergence


class Typed:
    """One replay's input. `over`: nothing more is to be given."""

    def __init__(
        self,
        inputs: list[entries.Input],
        store: ContentStore | None,
        diverged: Callable[[Divergence], None],
        *,
        terminal: bool,
    ) -> None:
        self.over = False
        self._waiting = deque(inputs)
        self._store = store
        self._diverged = diverged
        self._terminal = terminal
        self._keys: dict[str, Sealer] = {}

    def give(self, reached: int, channel: Channel) -> None:
        """Give what was typed before entry `reached`."""
        while self._waiting and self._waiting[0].seq < reached:
            each = self._waiting.popleft()
            try:
                channel.send_control(protocol.Input(self._opened(each)))
            except (BodyMissing, LogCorrupt, binascii.Error) as error:
                then = f"{each.body.size} bytes"
                self._diverged(Divergence(each.seq, "input that is not kept", then, str(error)))
                return
        if not self._waiting:
            self.over = True
            if not self._terminal:
                channel.send_control(protocol.InputEof())

    def _opened(self, each: entries.Input) -> bytes:
        if not each.key:
            raise BodyMissing("more was piped in than is kept")
        if self._store is None:
            raise BodyMissing("there is no content store")
        if each.key not in self._keys:
            self._keys[each.key] = self._store.opener(each.key)
        return self._keys[each.key].open(base64.b64decode(each.body.text, validate=True))
