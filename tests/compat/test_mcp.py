"""MCP in real runs: the SDK's client inside a run, `gate.tool`, and `authority mcp` from outside."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from typing import Any

import pytest
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client

from authority.agent import Denied
from authority.gate.starting import PolicyFileError
from gate.lab import CLI, OPEN, Lab, code_of

from .mcp_lab import POLICY, approve, client, prepare, server, waiting


@pytest.fixture
def files(lab: Lab) -> Lab:
    prepare(lab)
    lab.file("docs/a.txt", "inside")
    lab.file("secret.txt", "outside")
    return lab


def refusal(call: Any) -> Denied:
    with pytest.raises(Denied) as caught:
        call()
    return caught.value


def approved(lab: Lab) -> str:
    """A policy whose server's tools were approved by a person."""
    path = str(lab.policy(POLICY))
    with lab.attached(lab.work / path) as run:
        first = code_of(lambda: run.gate().tool("files/add", {"a": 1, "b": 2}))
        known = any(e["tool"] == "add" for e in lab.log(kind="mcp.definition", action="approved"))
        assert first == ("" if known else "E_APPROVAL_REQUIRED")
    approve(lab)
    return path


def test_the_sdks_client_inside_a_run(files: Lab) -> None:
    path = files.work / approved(files)
    ran = files.run(client(
        """
out["tools"] = [t.name for t in (await client.list_tools()).tools]
out["version"] = client.session.protocol_version
r = await client.call_tool("files__add", {"a": 1, "b": 2})
out["add"] = [r.structured_content, r.is_error]
r = await client.call_tool("files__secret", {})
out["secret"] = [r.content[0].text, r.is_error]
r = await client.call_tool("files__read", {"path": "../secret.txt"})
out["read"] = [r.content[0].text, r.is_error]
r = await client.call_tool("files__add", {"a": "x", "b": 2})
out["schema"] = [r.content[0].text, r.is_error]
out["resources"] = [str(r.uri) for r in (await client.list_resources()).resources]
out["memo"] = (await client.read_resource("memo://today")).contents[0].text
try: await client.read_resource("memo://private")
except Exception as e: out["private"] = str(e)
out["prompts"] = [p.name for p in (await client.list_prompts()).prompts]
"""
    ), path)  # fmt: skip
    assert ran.summary["code"] == 0, ran.err
    out = json.loads(ran.out)
    assert out["version"] == "2026-07-28"
    assert sorted(out["tools"]) == ["files__add", "files__look", "files__read"]
    assert out["add"] == [{"result": 3}, False]
    assert json.loads(out["secret"][0])["refused"] == "E_POLICY_DENY"
    assert out["secret"][1] is True
    assert json.loads(out["read"][0])["refused"] == "E_POLICY_DENY"
    assert "schema" in out["schema"][0]
    assert out["resources"] == ["memo://today"]
    assert out["memo"] == "buy milk"
    assert "E_POLICY_DENY" in out["private"]
    assert out["prompts"] == ["files__review"]
    denied = {e["resource"] for e in files.denials(run=ran.run)}
    assert denied == {"tool:files.secret", "tool:files.read", "mcp:files/resources/memo://private"}
    assert ran.summary["label"]["sources"] == ["mcp:files"]


def test_a_client_of_the_handshake_era(files: Lab) -> None:
    path = files.work / approved(files)
    ran = files.run(client(
        """
out["version"] = client.session.protocol_version
r = await client.call_tool("files__add", {"a": 1, "b": 2})
out["add"] = r.structured_content
""", "legacy"), path)  # fmt: skip
    assert json.loads(ran.out) == {"version": "2025-11-25", "add": {"result": 3}}, ran.err


def test_a_tool_through_the_gate_in_a_run(files: Lab) -> None:
    path = files.work / approved(files)
    ran = files.run(
        "from authority.agent import connect, Denied\n"
        "g = connect()\n"
        "print(g.tool('files/add', {'a': 2, 'b': 3})['structuredContent'])\n"
        "print(g.tool('files.read', {'path': 'docs/a.txt'})['content'][0]['text'])\n"
        "try: g.tool('files/secret', {})\n"
        "except Denied as e: print(e.code)\n",
        path,
    )
    assert ran.out.split("\n")[:3] == ["{'result': 5}", "FileNotFoundError", "E_POLICY_DENY"]
    starts = files.log(kind="run.start", parent=ran.run)
    assert [s["agent"] for s in starts] == ["mcp:files"]
    assert files.log(kind="run.end", run=starts[0]["run"])


def test_a_server_has_its_own_rights_and_no_more(files: Lab) -> None:
    path = files.work / approved(files)
    with socket.create_server(("127.0.0.1", 0)) as listening, files.attached(path) as run:
        port = listening.getsockname()[1]
        seen = run.gate().tool("files/look", {"port": port, "path": str(files.work / "secret.txt")})
        found = seen["structuredContent"]
        assert found["network"] != "did"
        assert found["file"] != "did"
        assert found["write"] != "did"
        assert "AUTHORITY_MCP_URL" not in found["environment"]
        with socket.create_connection(("127.0.0.1", port), 2):
            pass  # the control: from here it can be reached


def test_every_message_to_and_from_a_server_is_an_entry(files: Lab) -> None:
    path = files.work / approved(files)
    with files.attached(path) as run:
        run.gate().tool("files/add", {"a": 4, "b": 5})
        (start,) = files.log(kind="run.start", parent=run.ran.run)
        pieces = files.log(kind="chunk", run=start["run"])
        call = next(p for p in pieces if '"tools/call"' in p["body"].get("text", ""))
        after = [p for p in pieces if p["seq"] > call["seq"]]
        assert (call["way"], after[0]["way"]) == ("in", "out")
        (done,) = files.log(kind="outcome", run=run.ran.run)
        assert done["sources"] == ["mcp:files"]
        assert after[0]["seq"] < done["seq"]


def test_the_callers_label_reaches_the_server_and_comes_back(files: Lab) -> None:
    text = POLICY.replace('trusted = ["user", "fs:./**"]', 'trusted = ["user"]').replace(
        'allow = ["add"', 'reads = "trusted"\nallow = ["add"'
    )
    approved(files)
    with files.attached(text) as run:
        gate = run.gate()
        gate.tool("files/add", {"a": 1, "b": 2})
        (start,) = files.log(kind="run.start", parent=run.ran.run)
        assert not [e for e in files.log(kind="chunk", run=start["run"]) if e.get("sources")]
        gate.read_text("docs/a.txt")
        gate.tool("files/add", {"a": 1, "b": 2})
        source = f"fs:{files.work}/docs/a.txt"
        assert [source] in [e.get("sources") for e in files.log(kind="chunk", run=start["run"])]
        assert files.log(kind="outcome", run=run.ran.run)[-1]["sources"] == [source]


def test_the_budget_counts_calls(files: Lab) -> None:
    path = approved(files)
    text = (files.work / path).read_text().replace("[budgets]", "[budgets]\ntool_calls = 2")
    (files.work / path).write_text(text)
    with files.attached(files.work / path) as run:
        for _ in range(2):
            run.gate().tool("files/add", {"a": 1, "b": 2})
        assert refusal(lambda: run.gate().tool("files/add", {"a": 1, "b": 2})).code == (
            "E_BUDGET_EXCEEDED"
        )


def test_a_server_with_a_policy_of_its_own(files: Lab) -> None:
    files.file("files.toml", 'version = 1\n[process]\nenv = { MODE = "demo" }\n')
    text = POLICY.replace(
        'allow = ["add"', 'policy = "files.toml"\nenv = { A = "b" }\nallow = ["add"'
    )
    approved(files)
    with files.attached(text) as run:
        given = {"port": 1, "path": "/nowhere"}
        found = run.gate().tool("files/look", given)["structuredContent"]["environment"]
        assert {"MODE", "A"} <= set(found.split(","))
        (start,) = files.log(kind="run.start", parent=run.ran.run)
        assert start["policy_path"].endswith("files.toml")


def test_taking_the_first_sight(own: Lab) -> None:
    prepare(own)
    text = POLICY.replace('allow = ["add"', 'approve = "changes"\nallow = ["add"')
    with own.attached(text) as run:
        run.gate().tool("files/add", {"a": 1, "b": 2})
        said = [e["text"] for e in run.ran.events if e["event"] == "trouble"]
        assert any("first sight" in line for line in said)  # never silent
        taken = own.log(kind="mcp.definition", run=run.ran.run, by="policy")
        assert {e["tool"] for e in taken} == {"add", "read", "look"}


def test_the_list_of_approvals_shows_the_text_and_then_what_changed(own: Lab) -> None:
    prepare(own)
    with own.attached(OPEN + server("s", "servers/scripted.py", 'allow = ["t"]')) as run:
        refusal(lambda: run.gate().tool("s/t", {"a": 1}))
        shown = own.cli("approvals").stdout
        assert "was seen for the first time" in shown
        assert '"description": "does it"' in shown
        (each,) = waiting(own)
        done = own.cli("approvals", "approve", each["id"])
        assert "until the definition changes" in done.stdout
        assert own.cli("approvals", "approve", each["id"]).returncode == 125
        run.gate().tool("s/t", {"a": 1})


def run_client(
    lab: Lab, policy: str, command: list[str], body: Any, *more: str, hear: Any = None
) -> Any:
    """The SDK's client, with `authority mcp` where a server would stand in its configuration."""
    parameters = StdioServerParameters(
        command=str(CLI),
        args=["mcp", "--policy", policy, "--state", str(lab.directory.root), *more, "--", *command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(lab.root)},
        cwd=str(lab.work),
    )

    async def go() -> Any:
        errors = (lab.root / "mcp.err").open("w+")
        async with (
            stdio_client(parameters, errlog=errors) as streams,
            ClientSession(*streams, message_handler=hear) as session,
        ):
            await session.initialize()
            return await body(session)

    logging.disable(logging.CRITICAL)
    try:
        return asyncio.run(asyncio.wait_for(go(), 60))
    finally:
        logging.disable(logging.NOTSET)


def test_between_a_client_and_a_server(own: Lab) -> None:
    prepare(own)
    policy = str(own.policy('version = 1\n[mcp.server]\nallow = ["add"]\n'))
    command = [sys.executable, "servers/files.py"]

    async def first(session: ClientSession) -> Any:
        tools = (await session.list_tools()).tools
        return [t.name for t in tools], await session.call_tool("add", {"a": 1, "b": 2})

    tools, got = run_client(own, policy, command, first)
    assert tools == []
    assert json.loads(got.content[0].text)["refused"] == "E_APPROVAL_REQUIRED"
    assert approve(own) == ["add"]

    async def second(session: ClientSession) -> Any:
        tools = (await session.list_tools()).tools
        return (
            [(t.name, t.description) for t in tools],
            await session.call_tool("add", {"a": 1, "b": 2}),
            await session.call_tool("secret", {}),
        )

    tools, got, refused = run_client(own, policy, command, second)
    assert tools == [("add", "Add two numbers.")]
    assert got.structured_content == {"result": 3}
    assert json.loads(refused.content[0].text)["refused"] == "E_POLICY_DENY"
    assert "hello from the server" in (own.root / "mcp.err").read_text()
    attached = own.log(kind="run.start", attached=True)
    assert [s["program"] for s in attached] == [command, command]
    assert all(s["protection"]["contained"] is False for s in attached)
    inside = own.log(kind="run.start", agent="mcp:server")
    assert all(s["protection"]["contained"] for s in inside)
    assert len(own.log(kind="run.end")) == 4


def test_a_policy_without_a_section_is_refused(own: Lab) -> None:
    done = own.cli("mcp", "--policy", str(own.policy("version = 1")), "--", "true")
    assert done.returncode == 125
    assert "[mcp.server]" in done.stderr
    assert done.stdout == ""


def test_a_policy_that_names_what_is_not_there(own: Lab) -> None:
    with own.attached(OPEN + server("gone", "servers/none.py", 'allow = ["t"]')) as run:
        assert refusal(lambda: run.gate().tool("gone/t", {})).code == "E_POLICY_DENY"
    with pytest.raises(PolicyFileError):
        own.start("1", OPEN + server("g", more='policy = "none.toml"')).started()


def test_a_client_hears_of_an_approval(own: Lab) -> None:
    prepare(own)
    policy = str(own.policy('version = 1\n[mcp.server]\nallow = ["add"]\n'))

    async def body(session: ClientSession) -> Any:
        before = [t.name for t in (await session.list_tools()).tools]
        await asyncio.to_thread(approve, own)
        for _ in range(1000):
            await asyncio.sleep(0.05)
            if heard:
                break
        return before, [t.name for t in (await session.list_tools()).tools]

    heard: list[Any] = []

    async def hear(message: Any) -> None:
        heard.append(message)

    command = [sys.executable, "servers/files.py"]
    assert run_client(own, policy, command, body, hear=hear) == ([], ["add"])
    assert type(heard[0]).__name__ == "ToolListChangedNotification"
