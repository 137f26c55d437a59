"""What a `Gate` does with handles: composed of calls, so that nothing is read on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from authority.agent.calling import Calling
from authority.agent.handles import Handle, is_handle, question


class Planned(Calling):
    """The half of `Gate` that composes calls on handles."""

    def reveal(self, handle: Handle) -> Any:
        """Read what is behind a handle. From now on the run has read it, and says nothing else.

        Raises Denied (`E_EFFECT_FAILED`) where there is no value; that is read, too.
        """
        ref = dict(handle._ref)
        name = ref.pop("$handle")
        return self.call("value.reveal", f"handle:{name}", ref)

    def map(self, handle: Handle, limit: int, call: Callable[[Handle], Any]) -> list[Any]:
        """`call` with each of the first `limit` items of a list, whether they are there or not.

        So nobody learns how many there are. What came of an item that is not there is a handle to an
        error; `some` leaves those out.
        """
        return [call(handle[number]) for number in range(limit)]

    def extract(
        self,
        handle: Any,
        schema: Mapping[str, Any],
        text: str,
        *,
        model: str,
        api: str = "openai.chat",
        **options: Any,
    ) -> Handle:
        """Let a model without tools read for us: a handle to its answer, held to the type `schema`.

        `handle` may be `some([...])` too: several documents, as far as they are there; or a `join`.
        Its words are as untrusted as what it read. A value of another type is no value.
        """
        messages: Sequence[Mapping[str, Any]] = question(text, schema, handle)
        key = "input" if api == "openai.responses" else "messages"
        request = {"model": model, key: list(messages), **options}
        if api == "anthropic.messages":
            request["system"] = messages[0]["content"]
            request[key] = list(messages[1:])
        answer = self.call(
            "model.chat", f"model:{model}", {"api": api, "request": request}, handle=True
        )
        return is_handle(answer)["/text"].typed(schema)

    def compute(self, program: str, *handles: Any) -> Handle:
        """Run a Python program on values in a room without authority; a handle to its answer.

        The program finds the list `values` and calls `answer(value)` once.
        """
        body = {"program": program, "values": list(handles)}
        return is_handle(self.call("value.compute", "room:python", body, handle=True))
