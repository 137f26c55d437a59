"""What names suggest of tools, and what a check of a policy says about their descriptions."""

from __future__ import annotations

import pytest

from authority.kernel import tool_words
from authority.kernel.policy import Policy, Source, check_warnings, load
from authority.kernel.tool_rules import ToolRules


def make(text: str) -> Policy:
    def none(_base: str, name: str) -> Source:
        raise AssertionError(f"{name} was read")

    text = f"version = 1\n{text}"
    return load(text, format="toml", base="/home/u/project", name="p.toml", read_parent=none)


@pytest.mark.parametrize(
    ("name", "control", "content"),
    [
        ("to", True, False),
        ("recipientAddress", True, False),
        ("file_path", True, False),
        ("amount", True, False),
        ("body", False, True),
        ("messageText", False, True),
        ("body_url", True, False),  # what looks like both is control
        ("tomorrow", False, False),  # a word, not a beginning
        ("x", False, False),
    ],
)
def test_what_an_arguments_name_says(name: str, control: bool, content: bool) -> None:
    assert tool_words.looks_like_control(name) is control
    assert tool_words.looks_like_content(name) is content


@pytest.mark.parametrize(
    ("tool", "reads"),
    [("search_mail", True), ("office.getUser", True), ("send_mail", False), ("getaway", False)],
)
def test_what_a_tools_name_says(tool: str, reads: bool) -> None:
    assert tool_words.looks_like_reading(tool) is reads


def test_a_proposal_leaves_what_it_does_not_know_control() -> None:
    found = tool_words.proposal("office.send_mail", ["to", "body", "frobnication"])
    assert found == ToolRules(control=("to", "frobnication"), content=("body",), effect="write")
    assert tool_words.proposal("get_webpage", ["url"]).effect == "write"  # its server hears of it
    assert tool_words.proposal("get_page", ["id"]).effect == "read"
    assert tool_words.proposal("list_all", []) == ToolRules(effect="read")


TOOL = '[tools.t]\ncommand = ["python3", "t.py"]\n'
SERVER = '[mcp.office]\ncommand = ["python3", "s.py"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOOL, "tools.t: nobody described its arguments"),
        (TOOL + 'content = ["to", "body"]\n', 'tools.t.content: "to" looks like'),
        (SERVER + 'allow = ["pay"]\n', "mcp.office.tools.pay: nobody described"),
        (
            SERVER + 'allow = ["pay*"]\n[mcp.office.tools.pay]\ncontent = ["account"]\n',
            'mcp.office.tools.pay.content: "account" looks like',
        ),
    ],
)
def test_a_check_points_at_it(text: str, said: str) -> None:
    assert [line for line in check_warnings(make(text)) if line.startswith(said)]


@pytest.mark.parametrize(
    "text",
    [
        TOOL + 'content = ["body"]\n',
        TOOL + 'control = ["to"]\ncontent = ["body"]\n',
        TOOL + 'effect = "read"\n',
        SERVER + 'allow = ["pay"]\ncontent = ["note"]\n',
        SERVER + 'allow = ["pay"]\n[mcp.office.tools.pay]\ncontrol = ["to"]\n',
    ],
)
def test_a_check_says_nothing_of_a_description(text: str) -> None:
    assert check_warnings(make(text)) == []
