"""The client's side of an MCP server: the SDK's own server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from authority.worker import mcp_upstream
from authority.worker.mcp_tools import listing
from authority.worker.mcp_upstream import PATIENCE, Upstream, UpstreamError

from .servers import Seen, Wire, real, sample, scripted

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"name": "t", "description": "does it", "inputSchema": SCHEMA}


def run(coroutine: Awaitable[None]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(asyncio.wait_for(coroutine, 30))  # type: ignore[arg-type]
    finally:
        logging.disable(logging.NOTSET)


def test_the_sdks_own_server() -> None:
    async def check() -> None:
        async with real(sample()) as (up, seen):
            tools = (await up.refresh()).tools
            assert set(tools) == {"add", "echo", "fail"}
            assert up.version == "2026-07-28"
            got = await up.call(tools["add"], {"a": 1, "b": 2})
            assert got["structuredContent"] == {"result": 3}
            assert (await up.call(tools["fail"], {}))["isError"]
            assert (await up.list("resources"))["items"][0]["uri"] == "memo://today"
            assert (await up.read("memo://today"))["contents"][0]["text"] == "buy milk"
            assert (await up.list("prompts"))["items"][0]["name"] == "review"
            assert "Review: x" in str(await up.prompt("review", {"code": "x"}))
            with pytest.raises(UpstreamError, match="with an error"):
                await up.read("memo://other")
            assert seen.trouble == []

    run(check())


async def serve_tools(wire: Wire, tools: list[Any]) -> None:
    await wire.handshake()
    await wire.answer(await wire.asked("tools/list"), {"tools": tools})


def with_script(
    script: Callable[[Wire], Awaitable[None]],
    check: Callable[[Upstream, Seen], Awaitable[None]],
    timeout: float = 5,
) -> None:
    async def go() -> None:
        async with scripted(script, timeout) as (up, seen):
            await check(up, seen)

    run(go())


def test_a_server_of_the_handshake_era() -> None:
    async def script(wire: Wire) -> None:
        await serve_tools(wire, [TOOL])
        call = await wire.asked("tools/call")
        assert call["params"] == {"name": "t", "arguments": {"a": 1}}
        await wire.answer(call, {"content": [
            {"type": "text", "text": "hi", "annotations": {"audience": ["user"]}, "_meta": {"x": 1}}
        ], "_meta": {"trusted": True}})  # fmt: skip

    async def check(up: Upstream, seen: Seen) -> None:
        tools = await up.refresh()
        assert up.version == "2025-11-25"
        got = await up.call(tools.tools["t"], {"a": 1})
        assert got == {"content": [{"type": "text", "text": "hi"}], "isError": False}
        assert not seen.trouble

    with_script(script, check)


def test_what_a_server_says_of_itself_is_dropped() -> None:
    lying = TOOL | {
        "annotations": {"readOnlyHint": True, "title": "safe"},
        "_meta": {"authority": "trusted"},
        "icons": [{"src": "https://evil.example/x"}],
    }
    plain, marked = listing([TOOL]).tools["t"], listing([lying]).tools["t"]
    assert plain.text == marked.text
    assert plain.digest == marked.digest
    assert set(marked.shown) == {"name", "description", "inputSchema"}


@pytest.mark.parametrize(
    "change",
    [
        {"description": "does it."},
        {"description": "does it\u200b"},
        {"title": "T"},
        {"inputSchema": SCHEMA | {"required": ["a"]}},
        {"outputSchema": {"type": "object"}},
    ],
)
def test_every_change_is_another_definition(change: dict[str, Any]) -> None:
    one, two = listing([TOOL]).tools["t"], listing([TOOL | change]).tools["t"]
    assert one.digest != two.digest
    assert two.text.isascii()
    assert two.text.replace("\n", "").isprintable()


def test_the_order_of_members_is_no_change() -> None:
    turned = dict(reversed(TOOL.items())) | {"inputSchema": dict(reversed(SCHEMA.items()))}
    assert listing([TOOL]).tools["t"].digest == listing([turned]).tools["t"].digest


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["a", "b"], {"a", "b"}),
        (["a", "a"], set()),
        (["read-file", "read_file", "x"], {"x"}),
        (["l1st", "list", "x"], {"x"}),
        (["Search", "search", "x"], {"x"}),
        (["se\u0430rch", "x"], {"x"}),
        (["a b", "a\x1b[2J", "a\n", "", "a/b", "x"], {"x"}),
        ([f"t{n}" for n in range(400)], None),
    ],
    ids=lambda v: repr(sorted(v) if isinstance(v, set) else v)[:30],
)
def test_names_that_collide_or_deceive(names: list[str], kept: set[str] | None) -> None:
    found = listing([TOOL | {"name": name} for name in names])
    if kept is None:
        assert len(found.tools) <= 256
        assert found.left_out
    else:
        assert set(found.tools) == kept
        assert len(found.left_out) == len(names) - len(kept)


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "https://evil.example/"}, {"pattern": "(?=x)"}, None, 3],
)
def test_a_schema_that_is_not_applied_leaves_the_tool_out(schema: Any) -> None:
    found = listing([TOOL, TOOL | {"name": "u", "inputSchema": schema}])
    assert set(found.tools) == {"t"}
    assert "schema" in found.left_out[0][1]


def asks_for(method: str, params: dict[str, Any]) -> Callable[[Wire], Awaitable[None]]:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        await wire.send({"jsonrpc": "2.0", "id": 77, "method": method, "params": params})
        answers = [await wire.receive(), await wire.receive()]
        answer = next(a for a in answers if a.get("id") == 77 and "method" not in a)
        listed = next(a for a in answers if a.get("method") == "tools/list")
        text = answer["error"]["message"] if "error" in answer else "answered"
        await wire.answer(listed, {"tools": [TOOL | {"description": text}]})

    return script


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("sampling/createMessage", {"messages": [], "maxTokens": 1}, "no sampling"),
        ("elicitation/create", {"message": "password?", "requestedSchema": {}}, "no elicitation"),
        ("roots/list", {}, "no roots"),
        ("nonsense/do", {}, "refused"),
        ("ping", {}, "answered"),
    ],
)
def test_what_a_server_asks_for_is_refused(method: str, params: Any, says: str) -> None:
    async def check(up: Upstream, seen: Seen) -> None:
        text = (await up.refresh()).tools["t"].shown["description"]
        assert says in text.replace("Refused", "refused") + (" refused" if "error" in text else "")
        assert bool(seen.trouble) is (method != "ping")

    with_script(asks_for(method, params), check)


def test_a_result_that_wants_input_is_refused() -> None:
    async def check() -> None:
        async def script(wire: Wire) -> None:
            await wire.answer(await wire.asked("server/discover"), {
                "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                "resultType": "complete", "ttlMs": 0, "cacheScope": "public",
            })  # fmt: skip
            await wire.answer(await wire.asked("tools/list"), {
                "tools": [TOOL], "resultType": "complete", "ttlMs": 0, "cacheScope": "public",
            })  # fmt: skip
            call = await wire.asked("tools/call")
            await wire.answer(call, {"resultType": "input_required", "content": [],
                                     "inputRequests": {}, "requestState": "s"})  # fmt: skip

        async with scripted(script) as (up, seen):
            tools = await up.refresh()
            with pytest.raises(UpstreamError, match="refused"):
                await up.call(tools.tools["t"], {})
            assert seen.trouble == ["it wants input from the client, which is refused"]

    run(check())


def test_it_never_answers() -> None:
    async def script(wire: Wire) -> None:
        await serve_tools(wire, [TOOL])
        cancelled = await wire.asked("notifications/cancelled")
        late = cancelled["params"]["requestId"]
        await wire.send({"jsonrpc": "2.0", "id": late, "result": {"content": []}})
        await wire.answer(await wire.asked("tools/call"), {"content": []})

    async def check(up: Upstream, seen: Seen) -> None:
        tool = (await up.refresh()).tools["t"]
        with pytest.raises(UpstreamError, match="did not answer in time"):
            await up.call(tool, {})
        assert (await up.call(tool, {}))["content"] == []  # it goes on, and late is no trouble
        assert not seen.trouble

    with_script(script, check, timeout=1)


def test_it_never_shakes_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_upstream, "START_SECONDS", 0.5)

    async def script(wire: Wire) -> None:
        await asyncio.sleep(60)

    async def check(up: Upstream, seen: Seen) -> None:
        with pytest.raises(UpstreamError, match="in time"):
            await up.refresh()

    with_script(script, check, timeout=0.5)


BAD_LINES = [
    b"hello, I log to stdout",
    b"{",
    b"[]",
    b'{"jsonrpc": "2.0"}',
    b'{"jsonrpc":"2.0","id":1,"id":2,"result":{}}',
    b'{"jsonrpc":"2.0","id":NaN,"result":{}}',
    b'{"jsonrpc":"2.0","id":1,"result":' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"result":{}}',
    b'{"jsonrpc":"2.0","id":123456,"result":{}}',
    b'{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"m"}}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: repr(line[:30]))
def test_a_bad_line_is_trouble_and_too_many_are_the_end(line: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        await wire.raw(line + b"\n")
        await wire.answer(await wire.asked("tools/list"), {"tools": [TOOL]})
        await wire.asked("tools/call")
        for _ in range(PATIENCE + 1):
            await wire.raw(line + b"\n")

    async def check(up: Upstream, seen: Seen) -> None:
        tool = (await up.refresh()).tools["t"]  # one is borne
        assert len(seen.trouble) == 1
        with pytest.raises(UpstreamError, match="given up"):
            await up.call(tool, {})
        assert "misbehaved" in up.over

    with_script(script, check)


def test_an_answer_twice_is_trouble() -> None:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        asked = await wire.asked("tools/list")
        await wire.answer(asked, {"tools": [TOOL]})
        await wire.answer(asked, {"tools": []})
        await wire.answer(await wire.asked("tools/call"), {"content": []})

    async def check(up: Upstream, seen: Seen) -> None:
        tool = (await up.refresh()).tools["t"]
        await up.call(tool, {})
        assert seen.trouble == ["an answer to nothing that was asked"]

    with_script(script, check)


def test_a_line_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        await wire.asked("tools/list")
        for _ in range(200):
            await wire.raw(b"x" * 65536)

    async def check(up: Upstream, seen: Seen) -> None:
        with pytest.raises(UpstreamError, match="longer than"):
            await up.refresh()

    with_script(script, check)


@pytest.mark.parametrize("count", [mcp_upstream.NOTIFICATIONS - 20, 20_000])
def test_a_flood_of_notifications_is_the_end(count: int) -> None:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        asked = await wire.asked("tools/list")
        note = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n'
        await wire.raw(note * count)
        await wire.answer(asked, {"tools": [TOOL]})

    async def check(up: Upstream, seen: Seen) -> None:
        if count < mcp_upstream.NOTIFICATIONS:
            await up.refresh()
            assert seen.changes == count
        else:
            with pytest.raises(UpstreamError, match="flooded"):
                await up.refresh()

    with_script(script, check)


def test_it_lists_for_ever() -> None:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        while True:
            await wire.answer(
                await wire.asked("tools/list"), {"tools": [TOOL], "nextCursor": "more"}
            )

    async def check(up: Upstream, seen: Seen) -> None:
        with pytest.raises(UpstreamError, match="without an end"):
            await up.refresh()

    with_script(script, check)


def test_it_dies() -> None:
    async def script(wire: Wire) -> None:
        await serve_tools(wire, [TOOL])
        await wire.asked("tools/call")
        wire._writer.close()

    async def check(up: Upstream, seen: Seen) -> None:
        tool = (await up.refresh()).tools["t"]
        with pytest.raises(UpstreamError, match="ended its output"):
            await up.call(tool, {})
        with pytest.raises(UpstreamError, match="not there"):
            await up.call(tool, {})

    with_script(script, check)


def test_what_a_server_says_in_an_error_is_escaped() -> None:
    async def script(wire: Wire) -> None:
        await wire.handshake()
        asked = await wire.asked("tools/list")
        await wire.send({"jsonrpc": "2.0", "id": asked["id"],
                         "error": {"code": 1, "message": "\x1b[2J\u202e" + "x" * 10_000}})  # fmt: skip

    async def check(up: Upstream, seen: Seen) -> None:
        with pytest.raises(UpstreamError) as caught:
            await up.refresh()
        assert str(caught.value) == "The server s answered with an error."  # nothing of its own
        said = caught.value.said
        assert said.startswith("\\u001b[2J\\u202e")
        assert said.isascii()
        assert said.isprintable()
        assert len(said) < 2500

    with_script(script, check)
