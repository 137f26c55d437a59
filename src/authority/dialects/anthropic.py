"""Requests of the Anthropic Messages API, measured.

Pure. Thinking counts as output and falls under `max_tokens`, unless a beta lets it pass that limit:
betas that are not listed here are extras. Tools that the vendor defines and the program runs
(`bash_…`, `text_editor_…`) cost tokens by their name alone, so they are counted. Tools that the
vendor runs, containers, MCP servers and files by id are extras. Writing to the prompt cache costs
more than plain input, so it is noted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from authority.dialects.demand import (
    COUNT,
    MESSAGES,
    DemandError,
    Prepared,
    Tally,
    flag,
    items,
    model_name,
    number,
    table,
)

_KEYS: Final = frozenset(
    [
        "model",
        "messages",
        "system",
        "max_tokens",
        "metadata",
        "stop_sequences",
        "stream",
        "temperature",
        "top_k",
        "top_p",
        "tools",
        "tool_choice",
        "thinking",
        "service_tier",
    ]
)
_BLOCKS: Final = frozenset(["text", "tool_use", "thinking", "redacted_thinking"])
_CLIENT_TOOLS: Final = ("bash_", "text_editor_", "computer_", "memory_")
_TIERS: Final = frozenset({None, "auto", "standard_only"})
_BETAS: Final = frozenset(
    [
        "prompt-caching-2024-07-31",
        "token-counting-2024-11-01",
        "output-128k-2025-02-19",
        "token-efficient-tools-2025-02-19",
        "fine-grained-tool-streaming-2025-05-14",
        "claude-code-20250219",
        "extended-cache-ttl-2025-04-11",
        "context-1m-2025-08-07",
        "computer-use-2024-10-22",
        "computer-use-2025-01-24",
    ]
)


def messages(tree: dict[str, Any], betas: Iterable[str] = ()) -> Prepared:
    """A message. `betas` are the features that a header switches on."""
    return _read(tree, betas, counting=False)


def count(tree: dict[str, Any], betas: Iterable[str] = ()) -> Prepared:
    """A question how many tokens a message would have. It costs nothing."""
    return _read(tree, betas, counting=True)


def _read(tree: dict[str, Any], betas: Iterable[str], *, counting: bool) -> Prepared:
    tally = Tally()
    tally.keys(tree, _KEYS | {"cache_control"})
    for beta in betas:
        if beta not in _BETAS:
            tally.note("beta", beta)
    tier = tree.get("service_tier")
    if not (tier is None or isinstance(tier, str)) or tier not in _TIERS:
        tally.note("service_tier", tier)
    tally.cache = tree.get("cache_control") is not None
    _blocks(tree.get("system"), tally)
    for message in items(tree.get("messages"), "messages"):
        one = table(message, "A message")
        tally.keys(one, ("role", "content"), "part")
        _blocks(one.get("content"), tally)
    for tool in items(tree.get("tools") or [], "tools"):
        _tool(table(tool, "A tool"), tally)
    stream = flag(tree, "stream")
    asked = number(tree, "max_tokens")
    if asked == 0 and not counting and tree.get("max_tokens") is not None:
        raise DemandError("max_tokens must be more than zero.")

    def limit(body: dict[str, Any], most: int, _field: str) -> None:
        if not counting:
            body["max_tokens"] = min(most, asked or most)

    return Prepared(
        COUNT if counting else MESSAGES,
        model_name(tree),
        tree,
        tally,
        max_output=asked,
        choices=1,
        stream=stream and not counting,
        limit=limit,
    )


def _blocks(content: object, tally: Tally) -> None:
    if content is None or isinstance(content, str):
        return
    for part in items(content, "content"):
        one = table(part, "A block of a message")
        kind = one.get("type")
        if one.get("cache_control") is not None:
            tally.cache = True
        if kind == "tool_result":
            _blocks(one.get("content"), tally)
        elif kind == "image":
            _source(one.get("source"), tally, tally.image)
        elif kind == "document":
            source = one.get("source")
            if isinstance(source, dict) and source.get("type") == "content":
                _blocks(source.get("content"), tally)
            elif not (isinstance(source, dict) and source.get("type") == "text"):
                _source(source, tally, tally.document)
        elif kind == "search_result":
            _blocks(one.get("content"), tally)
        elif kind not in _BLOCKS:
            tally.note("part", kind)


def _source(source: object, tally: Tally, note: Any) -> None:
    found = source if isinstance(source, dict) else {}
    if found.get("type") == "file":
        tally.note("stored", "file_id")
    note(found.get("data"), found.get("url"))


def _tool(tool: dict[str, Any], tally: Tally) -> None:
    kind = tool.get("type")
    if tool.get("cache_control") is not None:
        tally.cache = True
    if kind in (None, "custom"):
        return
    if isinstance(kind, str) and kind.startswith(_CLIENT_TOOLS):
        tally.tools += 1
    else:
        tally.note("hosted", kind)
