"""The obedient model's answers in the forms of both APIs, whole and as streams.

Pure. Identifiers are digests of the request, times are 0: equal requests have equal answers. Words
are streamed by words, arguments in one piece.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterator
from typing import Any, Final

from authority.dialects import json_text
from authority.dialects.demand import CHAT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, Prepared
from authority.worker.obedient import Answer, tokens, vector
from authority.worker.obedient_reading import reply

DIMENSIONS: Final = 64
MAX_DIMENSIONS: Final = 4096
MAX_INPUTS: Final = 2048


def answer(request: Prepared, limit: int) -> dict[str, Any]:
    """The whole answer to a request that does not stream."""
    if request.api == EMBEDDINGS:
        return _embeddings(request)
    if request.api == COUNT:
        return {"input_tokens": max(1, -(-request.demand.size // 4))}
    shapes = {CHAT: _chat, RESPONSES: _response, MESSAGES: _message}
    return shapes[request.api](request, reply(request, limit))


def events(request: Prepared, limit: int) -> Iterator[bytes]:
    """The events of a streaming answer."""
    shapes = {CHAT: _chat_events, RESPONSES: _response_events, MESSAGES: _message_events}
    for event in shapes[request.api](request, reply(request, limit)):
        kind = event.get("type") if request.api != CHAT else None
        head = f"event: {kind}\n".encode() if kind else b""
        yield head + b"data: " + json_text.encode(event) + b"\n\n"
    if request.api == CHAT:
        yield b"data: [DONE]\n\n"


def _id(request: Prepared, prefix: str, number: int = 0) -> str:
    digest = hashlib.sha256(json_text.encode(request.tree) + number.to_bytes(4, "big"))
    return prefix + digest.hexdigest()[:24]


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*", text) or ([text] if text else [])


def _arguments(given: dict[str, Any]) -> str:
    return json_text.encode(given).decode()


# Chat completions


def _chat_calls(request: Prepared, found: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": _id(request, "call_", number),
            "type": "function",
            "function": {"name": call.tool.name, "arguments": _arguments(call.arguments)},
        }
        for number, call in enumerate(found.calls, 1)
    ]


def _chat_end(found: Answer) -> str:
    return "length" if found.cut else "tool_calls" if found.calls else "stop"


def _chat_usage(found: Answer) -> dict[str, int]:
    return {
        "prompt_tokens": found.input_tokens,
        "completion_tokens": found.output_tokens,
        "total_tokens": found.input_tokens + found.output_tokens,
    }


def _chat(request: Prepared, found: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": found.text or None, "refusal": None}
    if found.calls:
        message["tool_calls"] = _chat_calls(request, found)
    choice = {"message": message, "finish_reason": _chat_end(found), "logprobs": None}
    return {
        "id": _id(request, "chatcmpl-"),
        "object": "chat.completion",
        "created": 0,
        "model": request.model,
        "choices": [
            {"index": number, **choice} for number in range(max(1, request.demand.choices))
        ],
        "usage": _chat_usage(found),
    }


def _chat_events(request: Prepared, found: Answer) -> Iterator[dict[str, Any]]:
    head = {
        "id": _id(request, "chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": 0,
        "model": request.model,
    }

    def chunk(delta: dict[str, Any], end: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}

    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(found.text):
        yield chunk({"content": piece})
    for index, call in enumerate(_chat_calls(request, found)):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    yield chunk({}, _chat_end(found))
    yield {**head, "choices": [], "usage": _chat_usage(found)}


# Responses


def _items(request: Prepared, found: Answer) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if found.text:
        part = {"type": "output_text", "text": found.text, "annotations": [], "logprobs": []}
        items.append(
            {
                "id": _id(request, "msg_"),
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    for number, call in enumerate(found.calls, 1):
        items.append(
            {
                "id": _id(request, "fc_", number),
                "type": "function_call",
                "status": "completed",
                "call_id": _id(request, "call_", number),
                "name": call.tool.name,
                "arguments": _arguments(call.arguments),
            }
        )
    return items


def _response(request: Prepared, found: Answer) -> dict[str, Any]:
    tree = request.tree
    return {
        "id": _id(request, "resp_"),
        "object": "response",
        "created_at": 0,
        "status": "incomplete" if found.cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if found.cut else None,
        "instructions": tree.get("instructions"),
        "metadata": tree.get("metadata") or {},
        "model": request.model,
        "output": _items(request, found),
        "parallel_tool_calls": tree.get("parallel_tool_calls", True),
        "temperature": tree.get("temperature", 1.0),
        "tool_choice": tree.get("tool_choice", "auto"),
        "tools": tree.get("tools") or [],
        "top_p": tree.get("top_p", 1.0),
        "usage": {
            "input_tokens": found.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": found.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": found.input_tokens + found.output_tokens,
        },
    }


def _response_events(request: Prepared, found: Answer) -> Iterator[dict[str, Any]]:
    number = -1

    def event(kind: str, **more: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number, **more}

    whole = _response(request, found)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(whole["output"]):
        where = {"output_index": index, "item_id": item["id"]}
        empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
        yield event(
            "response.output_item.added",
            output_index=index,
            item={**item, **empty, "status": "in_progress"},
        )
        if item["type"] == "message":
            (part,) = item["content"]
            where["content_index"] = 0
            yield event("response.content_part.added", **where, part={**part, "text": ""})
            for piece in _pieces(part["text"]):
                yield event("response.output_text.delta", **where, delta=piece, logprobs=[])
            yield event("response.output_text.done", **where, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **where, part=part)
        else:
            given = item["arguments"]
            yield event("response.function_call_arguments.delta", **where, delta=given)
            yield event(
                "response.function_call_arguments.done",
                **where,
                arguments=given,
                name=item["name"],
            )
        yield event("response.output_item.done", output_index=index, item=item)
    end = "response.incomplete" if found.cut else "response.completed"
    yield event(end, response=whole)


# Messages


def _blocks(request: Prepared, found: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if found.text:
        blocks.append({"type": "text", "text": found.text, "citations": None})
    for number, call in enumerate(found.calls, 1):
        blocks.append(
            {
                "type": "tool_use",
                "id": _id(request, "toolu_", number),
                "name": call.tool.name,
                "input": call.arguments,
            }
        )
    return blocks


def _message(request: Prepared, found: Answer) -> dict[str, Any]:
    return {
        "id": _id(request, "msg_"),
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": _blocks(request, found),
        "stop_reason": "max_tokens" if found.cut else "tool_use" if found.calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": found.input_tokens, "output_tokens": found.output_tokens},
    }


def _message_events(request: Prepared, found: Answer) -> Iterator[dict[str, Any]]:
    whole = _message(request, found)
    usage = whole["usage"]
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            yield {
                "type": "content_block_start",
                "index": index,
                "content_block": {"type": "text", "text": ""},
            }
            deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
        else:
            yield {
                "type": "content_block_start",
                "index": index,
                "content_block": {**block, "input": {}},
            }
            given = _arguments(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": given}]
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": usage}
    yield {"type": "message_stop"}


# Embeddings


def _embeddings(request: Prepared) -> dict[str, Any]:
    tree = request.tree
    given = tree["input"]
    alone = isinstance(given, str) or (given and all(type(one) is int for one in given))
    texts = [one if isinstance(one, str) else repr(one) for one in ([given] if alone else given)]
    wanted = tree.get("dimensions")
    size = min(wanted, MAX_DIMENSIONS) if type(wanted) is int and wanted > 0 else DIMENSIONS
    data = []
    for index, text in enumerate(texts[:MAX_INPUTS]):
        plain = vector(text, size)
        packed = base64.b64encode(struct.pack(f"<{size}f", *plain)).decode()
        shown: Any = packed if tree.get("encoding_format") == "base64" else plain
        data.append({"object": "embedding", "index": index, "embedding": shown})
    used = max(1, sum(map(tokens, texts)))
    return {
        "object": "list",
        "model": request.model,
        "data": data,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
