"""The values behind handles: kept for a run, and nowhere after it.

Rules
- A value is kept as bytes, so it never changes. One of at most `INLINE` bytes stays in memory; a longer
  one goes to the content store, sealed with a key of its own if its label holds a secret.
- What it costs to keep is in no budget, because it would tell a length: memory is bounded by the number
  of handles (`kernel.handles.HANDLES_LIMIT`), the store by `STORED` bytes a run. Beyond them a value is
  dropped, and its handle is one to an error.
- Of an answer with recorded fields (`kernel.shapes`) these are kept a second time, cut out of it, with
  a bound of their own: how much else there was, and what the error was if there was one, is not seen
  by who asks for them.
- Values that are answers of a model or a tool have their words where a pointer finds them: a tool's
  value is its result, a model's has its `text` beside status and body.
"""

from __future__ import annotations

from typing import Any

import msgspec

from authority.audit.errors import LogError
from authority.audit.store import ContentStore
from authority.kernel.entries import Body
from authority.kernel.labels import Label
from authority.kernel.pointers import Unfit
from authority.kernel.policy import Policy
from authority.kernel.shapes import cut, recorded
from authority.kernel.state import State
from authority.kernel.values import Ref

INLINE = 32 * 1024
STORED = 512 * 1024 * 1024
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class _Kept(msgspec.Struct):
    data: bytes = b""
    size: int = 0
    digest: str = ""
    sealed: bool = False
    error: str = ""


class Vault:
    """The values of all runs of one gate, and in `recorded` what is recorded of them."""

    def __init__(self, store: ContentStore, recorded: Vault | None = None) -> None:
        self._store = store
        self._runs: dict[str, dict[str, _Kept]] = {}
        self._stored: dict[str, int] = {}
        self.recorded = recorded

    async def put(
        self, run: str, handle: str, value: Any, label: Label, fields: tuple[str, ...] = ()
    ) -> None:
        """Keep a value, and the recorded `fields` of it."""
        data = _encode(value)
        kept = _Kept(data, len(data))
        if len(data) > INLINE:
            if self._room(run, len(data)):
                sealed = bool(label.secrets)
                put = self._store.seal_durable if sealed else self._store.put_durable
                kept = _Kept(b"", len(data), await put(data), sealed)
            else:
                kept = _Kept(error="it was too much to keep")
        self._runs.setdefault(run, {})[handle] = kept
        if fields and self.recorded is not None:
            await self.recorded.put(run, handle, cut(fields, value), label)

    def fail(self, run: str, handle: str, why: str) -> None:
        """Keep an error."""
        self._runs.setdefault(run, {})[handle] = _Kept(error=why)

    def size(self, run: str, handle: str) -> int:
        """How many bytes `get` would have to decode."""
        kept = self._runs.get(run, {}).get(handle)
        return kept.size if kept is not None else 0

    async def get(self, run: str, handle: str) -> Any:
        """A handle's value. Raises `Unfit`."""
        kept = self._runs.get(run, {}).get(handle)
        if kept is None:
            raise Unfit("the handle is gone")
        if kept.error:
            raise Unfit(f"the handle is to an error: {kept.error}")
        data = kept.data
        if kept.digest:
            try:
                data = (self._store.unseal if kept.sealed else self._store.get)(kept.digest)
            except (LogError, OSError) as error:
                raise Unfit(f"the value can't be read: {type(error).__name__}") from error
        return _decode(data)

    def forget(self, run: str) -> None:
        """The run is over."""
        self._runs.pop(run, None)
        self._stored.pop(run, None)
        if self.recorded is not None:
            self.recorded.forget(run)

    def of(self, state: State, policy: Policy | None, run: str, ref: Ref) -> Vault:
        """Where a reference is read from: no more than it may hinge on. Raises `Unfit`."""
        info = state.runs.get(run)
        held = info.handles.get(ref.handle) if info is not None else None
        typed = ref.schema is not None
        if policy is None or held is None or not recorded(policy, held, ref.path, typed=typed):
            return self
        if self.recorded is None:
            raise Unfit("no recorded fields are kept")
        return self.recorded

    async def keep_body(self, run: str, data: bytes, body: Body, label: Label) -> Body:
        """Put a body of a call on handles where its entry will say it is, at nobody's cost."""
        if label.secrets:
            digest = await self._store.seal_durable(data) if self._room(run, len(data)) else ""
            return Body(digest, len(data), "sealed") if digest else Body("", 0)
        if body.kept != "digest" or not self._room(run, len(data)):
            return body
        await self._store.put_durable(data)
        return msgspec.structs.replace(body, kept="store")

    def _room(self, run: str, size: int) -> bool:
        used = self._stored.get(run, 0)
        if used + size > STORED or not self._store.takes(size):
            return False
        self._stored[run] = used + size
        return True


def value_of(effect: str, value: Any) -> Any:
    """What a handle's pointers lead into."""
    if effect == "tool.call" and isinstance(value, dict):
        return value.get("result")
    if effect.startswith("model.") and isinstance(value, dict):
        return {**value, "text": _words(value.get("body", b""))}
    return value


def _words(body: bytes) -> str:
    """The words of a model's answer, in whichever of the forms it came."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if not isinstance(found, dict):
        return ""
    parts: list[Any] = []
    for choice in found.get("choices") or ():
        message = choice.get("message") if isinstance(choice, dict) else None
        parts.append({"text": message.get("content")} if isinstance(message, dict) else None)
    for item in found.get("output") or ():
        parts += (item.get("content") or ()) if isinstance(item, dict) else ()
    content = found.get("content")
    parts += content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))
