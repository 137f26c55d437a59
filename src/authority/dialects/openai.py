"""Requests of the OpenAI API (chat completions, responses, embeddings), measured.

Pure. What each key may cost stands in the sets below: those are bounded by the body's length and
the output limit. Hidden reasoning counts as output and falls under the limit. Predicted output,
audio, other service tiers, background work, stored conversations, files by id and tools that the
vendor runs do not, so they are extras. A cache of prompts only makes them cheaper here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from authority.dialects.demand import (
    CHAT,
    EMBEDDINGS,
    LONG_LIMIT,
    RESPONSES,
    SHORT_LIMIT,
    DemandError,
    Prepared,
    Tally,
    flag,
    items,
    model_name,
    number,
    table,
)

_SHARED: Final = frozenset(
    [
        "model",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "metadata",
        "user",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "top_logprobs",
    ]
)
_CHAT: Final = _SHARED | frozenset(
    [
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "stop",
        "response_format",
        "seed",
        "logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "reasoning_effort",
        "functions",
        "function_call",
        "modalities",
        "verbosity",
    ]
)
_RESPONSES: Final = _SHARED | frozenset(
    [
        "input",
        "instructions",
        "max_output_tokens",
        "text",
        "reasoning",
        "include",
        "truncation",
        "max_tool_calls",
    ]
)
_EMBEDDINGS: Final = frozenset(["model", "input", "dimensions", "encoding_format", "user"])
_LIMITS: Final = (SHORT_LIMIT, LONG_LIMIT)
_TIERS: Final = frozenset({None, "auto", "default", "flex"})
_MESSAGE: Final = frozenset(
    [
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "refusal",
        "reasoning_content",
    ]
)
_PLAIN_PARTS: Final = frozenset(
    {"text", "refusal", "input_text", "output_text", "summary_text", "reasoning_text"}
)
_PLAIN_ITEMS: Final = frozenset(
    [
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
    ]
)


def chat(tree: dict[str, Any]) -> Prepared:
    """A chat completion."""
    tally = Tally()
    tally.keys(tree, _CHAT)
    _shared(tree, tally)
    if tree.get("modalities") not in (None, ["text"]):
        tally.note("audio")
    for message in items(tree.get("messages"), "messages"):
        one = table(message, "A message")
        tally.keys(one, _MESSAGE, "part")
        _parts(one.get("content"), tally)
    asked = [number(tree, key) for key in _LIMITS]
    if all(asked):
        raise DemandError("max_tokens and max_completion_tokens exclude each other.")
    wants = _stream_options(tree)
    choices = number(tree, "n") or 1
    stream = flag(tree, "stream")

    def limit(body: dict[str, Any], most: int, field: str) -> None:
        name = next((key for key in _LIMITS if body.get(key)), field)
        body[name] = min(most, body.get(name) or most)
        if stream:
            body["stream_options"] = {**wants, "include_usage": True}

    return Prepared(
        CHAT,
        model_name(tree),
        tree,
        tally,
        max_output=max(asked),
        choices=choices,
        stream=stream,
        limit=limit,
    )


def responses(tree: dict[str, Any]) -> Prepared:
    """A response of the newer API."""
    tally = Tally()
    tally.keys(tree, _RESPONSES | {"background", "previous_response_id", "conversation", "prompt"})
    _shared(tree, tally)
    for key in ("previous_response_id", "conversation", "prompt"):
        if tree.get(key) is not None:
            tally.note("stored", key)
    if flag(tree, "background"):
        tally.note("background")
    _stream_options(tree)
    given = tree.get("input")
    if given is not None and not isinstance(given, str):
        for item in items(given, "input"):
            _item(table(item, "An item of input"), tally)
    asked = number(tree, "max_output_tokens")

    def limit(body: dict[str, Any], most: int, _field: str) -> None:
        body["max_output_tokens"] = min(most, asked or most)

    return Prepared(
        RESPONSES,
        model_name(tree),
        tree,
        tally,
        max_output=asked,
        choices=1,
        stream=flag(tree, "stream"),
        limit=limit,
    )


def embeddings(tree: dict[str, Any]) -> Prepared:
    """Vectors for texts, or for tokens that are given as numbers (each is more than a byte)."""
    tally = Tally()
    tally.keys(tree, _EMBEDDINGS)
    if not isinstance(tree.get("input"), str | list):
        raise DemandError("input must be text or an array.")
    return Prepared(
        EMBEDDINGS,
        model_name(tree),
        tree,
        tally,
        max_output=0,
        choices=1,
        stream=False,
        limit=lambda _body, _most, _field: None,
    )


def wants_usage(tree: Mapping[str, Any]) -> bool:
    """Whether a streaming chat asked for the last event, which holds nothing but the usage."""
    options = tree.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _shared(tree: dict[str, Any], tally: Tally) -> None:
    tier = tree.get("service_tier")
    if not (tier is None or isinstance(tier, str)) or tier not in _TIERS:
        tally.note("service_tier", tier)
    for tool in items(tree.get("tools") or [], "tools"):
        kind = table(tool, "A tool").get("type")
        if kind not in ("function", "custom"):
            tally.note("hosted", kind)


def _stream_options(tree: Mapping[str, Any]) -> dict[str, Any]:
    options = tree.get("stream_options")
    if options is None:
        return {}
    found = table(options, "stream_options")
    for key in found:
        if key not in ("include_usage", "include_obfuscation"):
            raise DemandError("stream_options holds an unknown key.")
        flag(found, key)
    return found


def _parts(content: object, tally: Tally) -> None:
    if content is None or isinstance(content, str):
        return
    for part in items(content, "content"):
        one = table(part, "A part of a message")
        kind = one.get("type")
        if kind in _PLAIN_PARTS:
            continue
        if kind == "image_url":
            image = one.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            tally.image(url, _address(url))
        elif kind == "input_image":
            if one.get("file_id") is not None:
                tally.note("stored", "file_id")
            tally.image(one.get("image_url"), _address(one.get("image_url")))
        elif kind in ("file", "input_file"):
            inner = one.get("file") if kind == "file" else one
            inner = inner if isinstance(inner, dict) else {}
            if inner.get("file_id") is not None:
                tally.note("stored", "file_id")
            tally.document(inner.get("file_data"), inner.get("file_url"))
        else:
            tally.note("part", kind)


def _item(item: dict[str, Any], tally: Tally) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _parts(item.get("content"), tally)
    elif kind == "item_reference":
        tally.note("stored", "item_reference")
    elif kind in ("function_call_output", "custom_tool_call_output"):
        _parts(item.get("output"), tally)
    elif kind not in _PLAIN_ITEMS:
        tally.note("part", kind)


def _address(url: object) -> object:
    """What is not inside the request, if it is that."""
    return None if isinstance(url, str) and url.startswith("data:") else url
