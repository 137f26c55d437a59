"""What an answer says that it used, and what its text proves.

Pure. Rules
- Usage is what the vendor reports, in whole non-negative numbers; anything else counts as not said.
  A price that the vendor reports is never read: tokens are priced with the policy's list.
- `Meter` takes a whole answer, or the events of a stream one by one. `text` counts the bytes of text
  that the model wrote (words, thinking, arguments of tools): `kernel.models.settle` holds how
  many tokens those prove at least against the report, so that one of next to nothing is seen.
- A stream is complete when the event came that ends it; until then the output is not known.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from authority.dialects.demand import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES

_MOST: Final = 2**53 - 1
_WRITTEN: Final = frozenset(
    [
        "content",
        "text",
        "partial_json",
        "thinking",
        "arguments",
        "refusal",
        "input",
        "reasoning_content",
    ]
)


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens; -1 is not said. `input` includes what was `cached` or `written` to a cache."""

    input: int = -1
    output: int = -1
    cached: int = 0
    written: int = 0
    text: int = 0
    complete: bool = False


class Meter:
    """Reads usage out of one answer."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._input = self._output = -1
        self._cached = self._written = self._text = 0
        self._complete = False

    def usage(self) -> Usage:
        return Usage(
            self._input, self._output, self._cached, self._written, self._text, self._complete
        )

    def whole(self, value: object) -> None:
        """An answer that came in one piece."""
        if not isinstance(value, dict):
            return
        if self._api == COUNT:
            self._input, self._output = _count(value.get("input_tokens")), 0
            self._complete = self._input >= 0
            return
        self._reported(value.get("usage"))
        self._text += written(value.get("choices" if self._api == CHAT else "output"))
        if self._api == MESSAGES:
            self._text += written(value.get("content"))
        self._complete = self._output >= 0 or (self._api == EMBEDDINGS and self._input >= 0)

    def event(self, value: object) -> None:
        """One event of a stream."""
        if not isinstance(value, dict):
            return
        kind = value.get("type")
        if self._api == CHAT:
            self._text += written(value.get("choices"))
            if isinstance(value.get("usage"), dict):
                self._reported(value["usage"])
                self._complete = self._output >= 0
        elif self._api == RESPONSES:
            if isinstance(kind, str) and kind.endswith(".delta"):
                self._text += len(_bytes(value.get("delta")))
            elif kind in ("response.completed", "response.incomplete", "response.failed"):
                inner = value.get("response")
                self._reported(inner.get("usage") if isinstance(inner, dict) else None)
                self._complete = self._output >= 0
        elif kind == "message_start":
            message = value.get("message")
            self._reported(message.get("usage") if isinstance(message, dict) else None)
        elif kind == "content_block_delta":
            self._text += written(value.get("delta"))
        elif kind == "message_delta":
            self._reported(value.get("usage"))
        elif kind == "message_stop":
            self._complete = self._output >= 0

    def _reported(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        if self._api == MESSAGES:
            self._anthropic(usage)
            return
        chat = self._api in (CHAT, EMBEDDINGS)
        given = _count(usage.get("prompt_tokens" if chat else "input_tokens"))
        wrote = _count(usage.get("completion_tokens" if chat else "output_tokens"))
        details = usage.get("prompt_tokens_details" if chat else "input_tokens_details")
        self._input = max(self._input, given)
        self._output = max(self._output, wrote)
        if isinstance(details, dict):
            self._cached = max(self._cached, _count(details.get("cached_tokens")), 0)

    def _anthropic(self, usage: dict[str, Any]) -> None:
        plain = _count(usage.get("input_tokens"))
        cached = max(0, _count(usage.get("cache_read_input_tokens")))
        wrote = max(0, _count(usage.get("cache_creation_input_tokens")))
        self._cached = max(self._cached, cached)
        self._written = max(self._written, wrote)
        if plain >= 0:
            self._input = max(self._input, min(plain + self._cached + self._written, _MOST))
        self._output = max(self._output, _count(usage.get("output_tokens")))


def written(value: object) -> int:
    """Bytes of the text that a model wrote somewhere in a value."""
    total, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            for key, inner in one.items():
                if isinstance(inner, str):
                    total += len(_bytes(inner)) if key in _WRITTEN else 0
                else:
                    waiting.append(inner)
    return total


def _bytes(value: object) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else b""


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _MOST else -1
