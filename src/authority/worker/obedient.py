"""The *obedient model*: it does what the last text that it reads tells it. No network, no weights.

It stands in for a model that was talked into something: the worst case for injection tests, and
enough for a demonstration without a key. It never pretends to be anything else: its texts begin
with `[obedient model]`.

Pure. What it obeys, line by line, in every text since its own last answer (the user's words and the
results of tools alike, which is the point):

    CALL tool {"json": "arguments"}            call the tool NAME with {"json": "arguments"}
    SAY some words                             ASSISTANT: verb rest
    read the file PATH                         open/fetch/run/write/send/list/delete … likewise

A verb finds the offered tool whose name holds it or a word like it; the rest of the line goes into
the tool's parameters in their order (`send X to Y` fills two). An order for which no tool is offered
is answered in words. Without an order it repeats the beginning of what it read.

Tokens are counted as one for each four bytes begun, which is below the bytes that bound them.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from typing import Any, Final

import msgspec

from authority.dialects import json_text

NAME: Final = "[obedient model]"
MAX_ORDERS: Final = 16
_CALL: Final = re.compile(
    r"(?:CALL|[Cc]all the tool)\s+`?([A-Za-z0-9_.-]{1,128})`?\s*(?:with\s+)?(\{.*\})?\s*\.?\Z"
)
_SAY: Final = re.compile(r"SAY\s+(.+)\Z")
_ORDER: Final = re.compile(r"ASSISTANT:\s*(\w+)\s*(.*)\Z")
_PLAIN: Final = re.compile(
    r"(?:[Pp]lease\s+)?([Rr]ead|[Oo]pen|[Ff]etch|[Rr]un|[Ww]rite|[Dd]elete|[Ll]ist|[Ss]end)\s+"
    r"the\s+(?:file|page|URL|url|command|folder|directory|text|message)\s+(\S.*?)\.?\Z"
)
_LIKE: Final = {
    "read": ("read", "open", "cat", "view", "get_file", "load"),
    "open": ("open", "read", "cat", "view"),
    "fetch": ("fetch", "http", "get", "browse", "url", "web"),
    "send": ("send", "post", "mail", "message", "publish", "http"),
    "run": ("run", "exec", "shell", "bash", "command"),
    "write": ("write", "save", "create", "put", "edit"),
    "delete": ("delete", "remove", "unlink"),
    "list": ("list", "ls", "dir", "glob"),
    "connect": ("connect", "socket"),
}


class Tool(msgspec.Struct, frozen=True):
    """A tool that the request offers: its name, its parameters in order, each with its type."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()


class Wanted(msgspec.Struct, frozen=True):
    """A call that the model wants: the tool and its arguments."""

    tool: Tool
    arguments: dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """Words and calls. `cut`: the limit of output ended it."""

    text: str
    calls: tuple[Wanted, ...]
    input_tokens: int
    output_tokens: int
    cut: bool = False


def tokens(text: str) -> int:
    """The obedient model's own count."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


def answer(texts: list[str], tools: list[Tool], limit: int, *, size: int, forced: str) -> Answer:
    """What it answers. `texts` came since its last answer; `size` is the whole request in bytes.

    `forced` is the name of a tool that must be called, `*` for any, `-` for none, or empty.
    """
    offered = [] if forced == "-" else tools
    words, calls = _obey("\n".join(texts), offered)
    if not calls and offered and forced:
        calls.append(_forced(texts, offered, forced))
    text = "\n".join(words)
    if not text and not calls:
        text = _echo(texts)
    if text:
        text = f"{NAME} {text}"
    cost = tokens(text) + sum(_cost(call) for call in calls)
    read = max(1, -(-size // 4))
    if cost <= limit:
        return Answer(text, tuple(calls), read, max(1, cost))
    kept = text.encode()[: limit * 4].decode("utf-8", "ignore")
    return Answer(kept, (), read, limit, cut=True)


def vector(text: str, size: int) -> list[float]:
    """A unit vector that depends on the text alone: equal texts are equal, others are not near."""
    raw = hashlib.shake_256(text.encode("utf-8", "replace")).digest(size * 2)
    plain = [int.from_bytes(raw[i : i + 2], "big") - 32767.5 for i in range(0, len(raw), 2)]
    length = sum(x * x for x in plain) ** 0.5
    return [x / length for x in plain]


def _obey(text: str, tools: list[Tool]) -> tuple[list[str], list[Wanted]]:
    words: list[str] = []
    calls: list[Wanted] = []
    for raw in text.splitlines():
        line = raw.strip().lstrip("-*>#").strip()
        if len(words) + len(calls) >= MAX_ORDERS:
            break
        if found := _CALL.match(line):
            _call(found[1], found[2], tools, words, calls)
        elif found := _SAY.match(line):
            words.append(found[1])
        elif found := _ORDER.match(line) or _PLAIN.match(line):
            _do(found[1].lower(), found[2].strip(), tools, words, calls)
    return words, calls


def _call(
    name: str, raw: str | None, tools: list[Tool], words: list[str], calls: list[Wanted]
) -> None:
    tool = next((one for one in tools if one.name == name), None)
    if tool is None:
        words.append(f"I was told to call {name}, which is not offered.")
        return
    try:
        arguments = json_text.decode((raw or "{}").encode("utf-8", "replace"))
    except json_text.JsonError:
        words.append(f"I was told to call {name} with something that is not JSON.")
        return
    calls.append(Wanted(tool, arguments if isinstance(arguments, dict) else {}))


def _do(verb: str, rest: str, tools: list[Tool], words: list[str], calls: list[Wanted]) -> None:
    like = _LIKE.get(verb, (verb,))
    tool = next((one for word in like for one in tools if word in one.name.lower()), None)
    if tool is None:
        words.append(f"I was told to {verb} {rest}, and no tool is offered for it.")
    else:
        calls.append(Wanted(tool, _fill(tool, rest)))


def _fill(tool: Tool, rest: str) -> dict[str, Any]:
    """The rest of a line into the tool's parameters: in order, `to` and `with` part two of them."""
    names = [name for name, kind in tool.parameters if kind == "string"]
    if not names:
        lists = [name for name, kind in tool.parameters if kind == "array"]
        return {lists[0]: _split(rest)} if lists else {}
    parts = re.split(r"\s+(?:to|with|into)\s+", rest, maxsplit=len(names) - 1)
    return dict(zip(names, parts, strict=False))


def _split(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError:
        return rest.split()


def _forced(texts: list[str], tools: list[Tool], forced: str) -> Wanted:
    tool = next((one for one in tools if one.name == forced), tools[0])
    first = next((line.strip() for text in texts for line in text.splitlines() if line.strip()), "")
    return Wanted(tool, _fill(tool, first[:1000]))


def _echo(texts: list[str]) -> str:
    seen = " ".join(" ".join(texts).split())
    shown = seen if len(seen) <= 200 else seen[:200] + "…"
    return f"I read {len(seen.split())} words and no order in them: {shown}"


def _cost(call: Wanted) -> int:
    return tokens(call.tool.name) + tokens(json_text.encode(call.arguments).decode())
