"""`[mcp.NAME]`: which tools, with which arguments; each refusal beside what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from authority.kernel import decide, entries, flows, fold, state
from authority.kernel.capabilities import MacKey, Restriction, mint
from authority.kernel.capabilities import parse as parse_token
from authority.kernel.codes import Code
from authority.kernel.facts import Facts, Request
from authority.kernel.labels import Label
from authority.kernel.mcp_rules import skeleton
from authority.kernel.patterns import PatternError, PatternSet
from authority.kernel.policy import Policy, PolicyError, Source, from_canonical, load, narrow
from authority.kernel.policy_change import widened
from authority.kernel.requests import ToolCall
from authority.kernel.resources import ResourceError, parse

BASE = "/home/u/project"
TEXT = """
version = 1
[mcp.files]
command = ["python3", "servers/files.py"]
allow = ["read_*", "search", "delete_*"]
deny = ["delete_all"]
resources = ["file:///docs/**", "memo://*"]
prompts = ["review"]
content = ["query"]

[mcp.files.tools.search.arguments]
path = "./docs/**"
limit = { min = 1, max = 50, optional = true }
mode = ["fast", "deep"]
query = { any = true }
also = { match = "./docs/*.md", each = true, optional = true }
site = { match = "https://docs.example/**", optional = true }
repo = { match = "team/*", optional = true }
force = { one_of = [false], optional = true }

[mcp.files.tools.read_secret]
content = []
"""


def make(text: str = TEXT, **parents: str) -> Policy:
    def parent(base: str, name: str) -> Source:
        return Source(parents[name.removesuffix(".toml")], "toml", base, name)

    return load(text, format="toml", base=BASE, name="p.toml", read_parent=parent)


policy = make()


def allowed(effect: str, raw: str, of: Policy = policy) -> bool:
    return of.judge(effect, parse(effect, raw)).allowed


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("files.search", True),
        ("files.read_a", True),
        ("files.read_", True),
        ("files.delete_one", True),
        ("files.delete_all", False),  # deny beats allow
        ("files.Search", False),
        ("files.searches", False),
        ("files.xsearch", False),
        ("other.search", False),
        ("search", False),
        ("files", False),
    ],
)
def test_tools_by_name(name: str, yes: bool) -> None:
    assert allowed("tool.call", f"tool:{name}") is yes


def test_lists_resources_and_prompts() -> None:
    assert allowed("mcp.list", "mcp:files/tools")
    assert allowed("mcp.list", "mcp:files/resources")
    assert allowed("mcp.read", "mcp:files/resources/file:///docs/a/b.txt")
    assert allowed("mcp.read", "mcp:files/resources/memo://today")
    assert allowed("mcp.prompt", "mcp:files/prompts/review")
    assert not allowed("mcp.read", "mcp:files/resources/file:///etc/passwd")
    assert not allowed("mcp.read", "mcp:files/resources/memo://a/b")
    assert not allowed("mcp.prompt", "mcp:files/prompts/other")
    assert not allowed("mcp.prompt", "mcp:files/resources/memo://today")
    assert not allowed("mcp.list", "mcp:other/tools")
    assert not allowed(
        "mcp.list", "mcp:files/resources", make('version=1\n[mcp.files]\nallow=["a"]')
    )


@pytest.mark.parametrize(
    "raw",
    [
        "mcp:files",
        "mcp:files/",
        "mcp:fi.les/tools",
        "mcp:a__b/tools",
        "mcp:files/other",
        "mcp:files/tools/x",
        "mcp:files/prompts/a b",
        "mcp:files/resources/file:///docs/../etc/passwd",
        "mcp:files/resources/file:///docs/%2e%2e/etc",
        "mcp:files/resources/file:///docs%2Fetc",
        "mcp:files/resources/file:///docs\\x",
        "mcp:files/resources/file:///do cs",
        "mcp:files/resources/file:///d\u00f6cs",
        "mcp:files/resources/file:///docs\n",
        "mcp:files/resources/nocolon",
        "mcp:files/resources/x:" + "a" * 3000,
    ],
)
def test_what_has_no_one_meaning_is_no_resource(raw: str) -> None:
    with pytest.raises(ResourceError):
        parse("mcp.read", raw)
    assert parse("mcp.read", "mcp:files/resources/file:///docs/a%20b").text


GOOD: dict[str, Any] = {"path": "docs/a.md", "mode": "fast", "query": "anything"}


@pytest.mark.parametrize(
    "given",
    [
        GOOD,
        GOOD | {"path": "./docs/x/y"},
        GOOD | {"path": f"{BASE}/docs/x"},
        GOOD | {"limit": 50, "also": ["docs/a.md", "docs/b.md"], "repo": "team/x"},
        GOOD | {"site": "https://docs.example/a/b", "force": False, "query": [1, {"a": None}]},
    ],
)
def test_arguments_that_pass(given: dict[str, Any]) -> None:
    assert policy.refuses_arguments("tool.call", parse("tool.call", "tool:files.search"),
                                    ToolCall(given)) == ""  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"path": "docs/../secret"},
        {"path": "secret/docs/a"},
        {"path": "/etc/passwd"},
        {"path": "docs/a\x00b"},
        {"path": "docs/a\nb"},
        {"path": "docs\\..\\secret"},
        {"path": "docs/%2e%2e/secret"},
        {"path": "docs/$HOME"},
        {"path": "~/docs/a"},
        {"path": "file:///home/u/project/docs/a"},
        {"path": "fs:/home/u/project/docs/a"},
        {"path": "docs/\uff0e\uff0e/secret"},
        {"path": "docs/a\u202eb"},
        {"path": ["docs/a.md"]},
        {"path": {"path": "docs/a.md"}},
        {"path": None},
        {"path": ""},
        {"path": "docs/" + "a/" * 3000},
        {"limit": 0},
        {"limit": 51},
        {"limit": True},
        {"limit": 5.0},
        {"limit": "5"},
        {"mode": "FAST"},
        {"mode": ["fast"]},
        {"force": 0},
        {"force": True},
        {"also": "docs/a.md"},
        {"also": ["docs/a.md", "secret"]},
        {"also": ["docs/a.md"] * 300},
        {"site": "https://docs.example@evil.example/"},
        {"site": "https://docs.example/../x"},
        {"site": "http://docs.example/a"},
        {"site": "https://docs.example/a?q=1"},
        {"repo": "team/a/b"},
        {"repo": "team/\u0430\u0308\u2028"},
        {"repo": "other/a"},
        {"paths": "docs/a.md"},
        {"Path": "/etc/passwd"},
        {"p\u0430th": "/etc/passwd"},
    ],
    ids=repr,
)
def test_arguments_that_evade(change: dict[str, Any]) -> None:
    resource = parse("tool.call", "tool:files.search")
    assert policy.refuses_arguments("tool.call", resource, ToolCall(GOOD | change))


@pytest.mark.parametrize("missing", ["path", "mode", "query"])
def test_a_servers_default_is_nobodys_decision(missing: str) -> None:
    given = {k: v for k, v in GOOD.items() if k != missing}
    resource = parse("tool.call", "tool:files.search")
    assert "must be given" in policy.refuses_arguments("tool.call", resource, ToolCall(given))


def test_a_tool_without_rules_takes_anything() -> None:
    resource = parse("tool.call", "tool:files.read_a")
    assert policy.refuses_arguments("tool.call", resource, ToolCall({"x": 1})) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[mcp."a.b"]\ncommand = ["x"]', "server's name"),
        ("[mcp.a__b]", "server's name"),
        ("[mcp.files]\n[mcp.f1les]\n[mcp.fiies]", "looks like"),
        ('[mcp.a]\nallow = ["x y"]', "no name of a tool"),
        ('[mcp.a]\nallow = ["x"]\n[mcp.a.tools.y]\npin = "0"', "64 hex"),
        (f'[mcp.a]\nallow = ["x"]\n[mcp.a.tools.y]\npin = "{"0" * 64}"', "no pattern of allow"),
        ('[mcp.a]\nresources = ["**"]', "too broad"),
        ('[mcp.a]\nallow = ["x"]\n[mcp.a.tools.x.arguments]\np = "**"', "cover everything"),
        (
            '[mcp.a]\nallow = ["x"]\n[mcp.a.tools.x.arguments]\np = { min = 1, any = true }',
            "one of",
        ),
        ('[mcp.a]\nallow = ["x"]\n[mcp.a.tools.x.arguments]\np = { least = 1 }', "not a key"),
        ('[mcp.a]\nallow = ["x"]\n[mcp.a.tools.x.arguments]\np = 1.5', "table"),
        ('[mcp.a]\n[tools."a.x"]\ncommand = ["y"]', "MCP server"),
        ('[mcp.a]\napprove = "never"', "one of all, changes"),
    ],
)
def test_a_policy_that_does_not_mean_what_it_seems(text: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make(f"version = 1\n{text}")
    assert says in str(caught.value) + caught.value.hint


def test_a_chain_only_tightens() -> None:
    child = make(
        'version = 1\nextends = "base.toml"\n[mcp.files]\nallow = ["search", "other"]\n'
        '[mcp.files.tools.search.arguments]\npath = "./docs/open/**"\nmode = ["fast"]\n'
        "query = { any = true }",
        base=TEXT,
    )
    search = parse("tool.call", "tool:files.search")
    assert allowed("tool.call", "tool:files.search", child)
    assert not allowed("tool.call", "tool:files.other", child)
    assert not allowed("tool.call", "tool:files.read_a", child)
    assert child.refuses_arguments("tool.call", search, ToolCall(GOOD))
    assert not child.refuses_arguments(
        "tool.call", search, ToolCall(GOOD | {"path": "docs/open/x"})
    )
    assert child.refuses_arguments("tool.call", search, ToolCall(GOOD | {"path": "docs/open/x",
                                                                         "limit": 3}))  # fmt: skip
    both = narrow(policy, make('version = 1\n[mcp.files]\ncommand = ["python3", "servers/files.py"]'
                               '\nallow = ["search"]'))  # fmt: skip
    assert allowed("tool.call", "tool:files.search", both)
    assert not allowed("tool.call", "tool:files.read_a", both)
    with pytest.raises(PolicyError):
        make('version = 1\nextends = "base.toml"\n[mcp.files]\ncommand = ["sh"]', base=TEXT)


def test_the_canonical_form_holds_it() -> None:
    again = from_canonical(policy.canonical)
    assert again.digest == policy.digest
    assert again.mcp == policy.mcp
    wider = make(TEXT.replace('deny = ["delete_all"]\n', ""))
    assert widened({"t": 1}, {"t": 1}) == []
    from authority.kernel.canonical import decode

    assert widened(decode(policy.canonical)["tree"], decode(wider.canonical)["tree"])


def test_approvals_and_labels_by_pattern() -> None:
    chosen = make(
        TEXT + '\n[approvals]\nrequire = ["tool:files.delete_*", "mcp:files/resources/**"]'
    )
    assert chosen.approval("tool.call", parse("tool.call", "tool:files.delete_one"))
    assert chosen.approval("mcp.read", parse("mcp.read", "mcp:files/resources/memo://a"))
    assert not chosen.approval("tool.call", parse("tool.call", "tool:files.search"))
    with pytest.raises(PatternError):
        PatternSet(["mcp:*/resources/x"])


def test_labels() -> None:
    search, secret = (parse("tool.call", f"tool:files.{n}") for n in ("search", "read_secret"))
    assert policy.content("tool.call", search) == {"query"}
    assert policy.content("tool.call", secret) == frozenset()
    label = flows.result_label(policy, "tool.call", search, "")
    assert label == Label(frozenset({"mcp:files"}))
    read = parse("mcp.read", "mcp:files/resources/memo://a")
    assert flows.result_label(policy, "mcp.read", read, "") == label
    assert flows.result_label(policy, "mcp.list", parse("mcp.list", "mcp:files/tools"), "").clean
    trusting = make(TEXT.replace('content = ["query"]\n', 'reads = "trusted"\n', 1))
    assert flows.result_label(trusting, "tool.call", search, "").clean
    assert trusting.content("tool.call", search) is None


def test_look_alikes() -> None:
    same = {skeleton(n) for n in ("read-file", "read_file", "Read.File", "read__fi1e")}
    assert len(same) == 1
    assert skeleton("read_file") != skeleton("write_file")


# --- approval of definitions, as decided and folded ---

KEY = MacKey("k", b"k" * 32)


def world() -> tuple[state.State, bytes]:
    token = mint(KEY, id="0" * 32, run="r", restriction=Restriction(methods=("tool.call",)))
    made = state.State()
    for number, entry in enumerate(
        [
            entries.GateStart(log="l", rules=1, version="", boot="", boot_clock=0, public_key=""),
            entries.Key(kid="k", action="add"),
            entries.RunStart(run="r", capability="0" * 32, policy=policy.digest),
            entries.CapMint(run="r", id="0" * 32, kid="k"),
        ]
    ):
        entry.seq, entry.time = number, 1
        fold.apply(made, entry)
    return made, token


def ask(made: state.State, token: bytes, digest: str | None, arguments: Any = None,
        of: Policy = policy) -> Any:  # fmt: skip
    resource = parse("tool.call", "tool:files.search")
    request = Request(
        "r", 1, 1, "tool.call", resource.text, "d" * 64, resource,
        arguments=ToolCall(GOOD if arguments is None else arguments), token=parse_token(token),
    )  # fmt: skip
    looked = {} if digest is None else {"definition": digest}
    return decide.decide(made, of, request, Facts(2, mac_ok=True, looked_up=looked))[-1]


def tell(made: state.State, digest: str, action: str, by: str = "uid 0") -> None:
    entry = entries.Definition(
        server="files", key=policy.mcp["files"].key("files"), tool="search", digest=digest,
        action=action, by=by,
    )  # fmt: skip
    entry.seq, entry.time = made.seq + 1, 3
    fold.apply(made, entry)


def test_a_tool_is_called_only_as_it_was_approved() -> None:
    made, token = world()
    one, two = "1" * 64, "2" * 64
    assert ask(made, token, None).code == Code.POLICY_DENY  # nobody looked: no
    assert ask(made, token, "").code == Code.POLICY_DENY
    assert ask(made, token, one).code == Code.APPROVAL_REQUIRED
    tell(made, one, "seen")
    assert ask(made, token, one).code == Code.APPROVAL_REQUIRED
    tell(made, one, "approved")
    assert isinstance(ask(made, token, one), entries.Admit)
    assert ask(made, token, two).code == Code.APPROVAL_REQUIRED  # it changed
    tell(made, two, "seen")
    assert isinstance(ask(made, token, one), entries.Admit)
    tell(made, two, "refused")
    assert ask(made, token, two).code == Code.APPROVAL_REQUIRED
    bad = ask(made, token, one, GOOD | {"path": "/etc/passwd"})
    assert (bad.code, "argument path" in bad.reason) == (Code.POLICY_DENY, True)


def test_an_answer_without_a_sighting_does_not_fold() -> None:
    made, _ = world()
    with pytest.raises(state.FoldError):
        tell(made, "1" * 64, "approved")
    tell(made, "1" * 64, "seen")
    with pytest.raises(state.FoldError):
        tell(made, "2" * 64, "approved")
    tell(made, "1" * 64, "approved")
    again = state.load(state.dump(made))
    assert state.digest(again) == state.digest(made)


def test_a_policy_can_hold_the_approval_itself() -> None:
    made, token = world()
    table = "[mcp.files.tools.search.arguments]"
    pin = f'[mcp.files.tools.search]\npin = "{"1" * 64}"\n'
    pinned = make(TEXT.replace(table, pin + table))
    made.runs["r"].policy = pinned.digest
    assert isinstance(ask(made, token, "1" * 64, of=pinned), entries.Admit)
    tell(made, "2" * 64, "seen")
    tell(made, "2" * 64, "approved")
    assert ask(made, token, "2" * 64, of=pinned).code == Code.APPROVAL_REQUIRED
