"""Extending and spawning: whatever the files say, neither allows what the base or parent denies."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.canonical import decode
from authority.kernel.policy import (
    Policy,
    PolicyError,
    Source,
    explain,
    for_agent,
    from_canonical,
    load,
    narrow,
)
from authority.kernel.policy_change import widened
from authority.kernel.resources import parse

BASE = "/b"


def chain(*texts: str, base: str = BASE) -> Policy:
    """The first text; `extends = "1"` and so on name the others."""

    def parent(_base: str, name: str) -> Source:
        return Source(texts[int(name)], "toml", base, f"file{name}.toml")

    return load(
        "version = 1\n" + texts[0] if "version" not in texts[0] else texts[0],
        format="toml",
        base=base,
        name="file0.toml",
        read_parent=parent,
    )


def ask(policy: Policy, effect: str, raw: str, verb: str = "") -> bool:
    return policy.judge(effect, parse(effect, raw, cwd=BASE), verb).allowed


BROAD = """version = 1
explain = "agent"
[filesystem]
read = ["/b/**"]
write = ["/b/out/**"]
deny = ["**/.env"]
[network]
http = ["GET,POST https://h.example/**"]
private = ["i.example:80", "j.example:80"]
[process]
exec = ["git", "make"]
pass_env = ["LANG", "TZ"]
env = { A = "1" }
[limits]
memory = "1GB"
[tools.t]
command = ["/bin/t"]
content = ["x", "y"]
reads = "trusted"
timeout = "10s"
[tools.u]
command = ["u"]
[agents.c]
command = ["c"]
policy = "1"
budgets = { runs = 5 }
[credentials.k]
from_env = "K"
hosts = ["h.example", "i.example"]
[budgets]
tool_calls = 10
[labels]
trusted = ["user", "fs:/b/p/**"]
secrets = { s = ["fs:/b/s/**"] }
release = { s = ["output"] }
[approvals]
require = ["tool:t"]
"""


def test_what_is_left_out_is_the_bases() -> None:
    child = chain('version = 1\nextends = "1"', BROAD)
    base = chain(BROAD)
    for name in ("tools", "agents", "credentials", "budgets", "limits", "process", "explain"):
        assert getattr(child, name) == getattr(base, name), name
    assert ask(child, "fs.read", "x")
    assert not ask(child, "fs.read", ".env")
    assert child.trusts_user
    assert child.names_private("i.example", 80)
    assert child.releases("s", "output", parse("output", "output:stdout"))
    assert child.approval("tool.call", parse("tool.call", "tool:t"))
    assert child.parents == ("file1.toml",)
    assert child.filesystem.read == ("/b/**",)
    assert child.digest != base.digest


def test_what_is_given_tightens() -> None:
    child = chain(
        """version = 1
extends = ["1"]
explain = "operator"
[filesystem]
read = ["/b/docs/**", "/etc/**"]
deny = ["./docs/x"]
[network]
http = ["POST https://h.example/a/**", "GET https://other.example/**"]
private = ["i.example:80", "k.example:80"]
[process]
exec = ["git", "sh"]
pass_env = []
env = { B = "2" }
[limits]
memory = "2GB"
cpus = 2
[tools.t]
content = ["x", "z"]
timeout = "1m"
[budgets]
tool_calls = 20
requests = 5
[labels]
trusted = []
[approvals]
require = ["tool:u"]
""",
        BROAD,
    )
    assert ask(child, "fs.read", "docs/a")
    assert not ask(child, "fs.read", "docs/x")
    assert not ask(child, "fs.read", "docs/.env")
    assert not ask(child, "fs.read", "/etc/passwd")
    assert not ask(child, "fs.read", "other")
    assert ask(child, "fs.write", "out/a")
    assert ask(child, "http.request", "https://h.example/a/b", "POST")
    assert not ask(child, "http.request", "https://h.example/a/b", "GET")
    assert not ask(child, "http.request", "https://other.example/", "GET")
    assert child.names_private("i.example", 80)
    assert not child.names_private("j.example", 80)
    assert not child.names_private("k.example", 80)
    assert child.process.exec == ("git",)
    assert child.process.pass_env == ()
    assert child.process.env == {"A": "1", "B": "2"}
    assert (child.limits.memory, child.limits.cpus) == (10**9, 2000)
    assert list(child.tools) == ["t"]
    assert not ask(child, "tool.call", "tool:u")
    assert child.tools["t"].content == ("x",)
    assert child.tools["t"].timeout == 10_000_000
    assert child.budgets["tool_calls"] == 10
    assert child.budgets["requests"] == 5
    assert not child.trusts_user
    assert not child.trusted(parse("fs.read", "/b/p/x"))
    assert child.approval("tool.call", parse("tool.call", "tool:t"))
    assert child.approval("tool.call", parse("tool.call", "tool:u"))
    assert child.explain == "operator"
    denied = parse("fs.read", "/etc/passwd")
    judgement = child.judge("fs.read", denied)
    assert "file1.toml" in judgement.reason
    assert "file1.toml" in explain(child, "fs.read", denied, "", judgement).missing
    assert child.judge("fs.read", parse("fs.read", "/b/docs/.env")).rule.endswith("in file1.toml")
    assert from_canonical(child.canonical).digest == child.digest


def test_a_denial_of_the_base_holds_for_the_network_too() -> None:
    base = BROAD.replace("[network]", '[network]\ndeny = ["https://h.example/admin", "*.internal"]')
    own = (
        'version = 1\n{}[network]\nhttp = ["GET https://h.example/**", "GET https://x.internal/**"]'
    )
    for policy in (
        chain(own.format('extends = "1"\n'), base),
        narrow(chain(base), chain(own.format(""))),
    ):
        assert ask(policy, "http.request", "https://h.example/a", "GET")
        denied = policy.judge(
            "http.request", parse("http.request", "https://h.example/admin/x"), "GET"
        )
        assert not denied.allowed
        assert denied.rule.startswith("network.deny[0]")
        inside = policy.judge("http.request", parse("http.request", "https://x.internal/"), "GET")
        assert inside.rule.startswith("network.deny[1]")


def test_an_empty_list_is_an_opinion() -> None:
    child = chain('version = 1\nextends = "1"\n[filesystem]\nread = []\n[tools]', BROAD)
    assert not ask(child, "fs.read", "x")
    assert not child.tools


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[tools.new]\ncommand = ["x"]', "only tighten"),
        ('[tools.t]\ncommand = ["/bin/other"]', "differs"),
        ('[tools.t]\nenv = { A = "b" }', "differs"),
        ('[agents.new]\ncommand = ["x"]', "only tighten"),
        ('[agents.c]\npolicy = "other.toml"', "differs"),
        ('[credentials.k]\nfrom_env = "OTHER"', "differs"),
        ('[credentials.k]\nheader = "X-Key"', "differs"),
        ('[credentials.new]\nfrom_env = "X"\nhosts = ["h.example"]', "only tighten"),
        ('[process]\nenv = { A = "2" }', "another value"),
    ],
)
def test_extending_with_something_wider_is_an_error(text: str, word: str) -> None:
    with pytest.raises(PolicyError, match=word) as caught:
        chain('version = 1\nextends = "1"\n' + text, BROAD)
    assert caught.value.file == "file0.toml"
    assert caught.value.line


def test_a_circle_ends() -> None:
    with pytest.raises(PolicyError, match="too many"):
        chain('version = 1\nextends = "0"')
    with pytest.raises(PolicyError, match="too many"):
        chain('version = 1\nextends = ["1", "1"]', 'version = 1\nextends = ["0", "0"]')


def test_a_child_has_what_both_allow() -> None:
    parent = chain(BROAD).protect(["/b/state"])
    own = chain(
        """version = 1
[filesystem]
read = ["/b/docs/**", "/b/state2", "/etc/**"]
[tools.t]
command = ["/bin/t"]
[tools.u]
command = ["/bin/other"]
[tools.new]
command = ["x"]
[credentials.k]
from_env = "K"
hosts = ["h.example", "evil.example"]
[budgets]
tool_calls = 99
wall_time = "1m"
"""
    )
    child = narrow(parent, own)
    assert ask(child, "fs.read", "docs/a")
    assert not ask(child, "fs.read", "/etc/x")
    assert not ask(child, "fs.read", "/b/state/x")
    assert not ask(child, "fs.write", "out/x")  # a list that the child leaves out allows nothing
    assert list(child.tools) == ["t"]
    assert child.credentials["k"].hosts == ("h.example",)
    assert child.budgets["tool_calls"] == 10
    assert child.budgets["wall_time"] == 60_000_000
    assert child.process.env == {}
    assert from_canonical(child.canonical).digest == child.digest
    below = narrow(child, own)
    assert ask(below, "fs.read", "docs/a")


def test_the_policy_of_a_child_agent() -> None:
    parent = chain(BROAD)

    def read(base: str, name: str) -> Source:
        assert (base, name) == (BASE, "1")
        return Source('version = 1\n[filesystem]\nread = ["/**"]', "toml", BASE, "c.toml")

    child = for_agent(parent, "c", read)
    assert ask(child, "fs.read", "x")
    assert not ask(child, "fs.read", "/etc/passwd")
    with pytest.raises(PolicyError, match="not defined"):
        for_agent(parent, "nobody", read)


def test_children_do_not_nest_for_ever() -> None:
    policy = chain(BROAD)
    for _ in range(8):
        policy = narrow(policy, policy)
    with pytest.raises(PolicyError, match="too deep"):
        narrow(policy, policy)


paths = st.sampled_from(["/b/**", "./a/**", "a/x", "**/x", "/c/**", "*.x", "/b/a/*"])
urls = st.sampled_from(
    [
        "https://h.example/**",
        "GET https://h.example/a",
        "POST https://*.example/**",
        "https://i.example/*?*",
    ]
)
hosts = st.sampled_from(["*.example", "h.example", "i.example:443", "https://h.example/a"])
tools = st.dictionaries(st.sampled_from(["t", "u"]), st.just({"command": ["/bin/x"]}), max_size=2)
documents = st.fixed_dictionaries(
    {"version": st.just(1)},
    optional={
        "filesystem": st.fixed_dictionaries(
            {},
            optional={
                "read": st.lists(paths, max_size=3),
                "write": st.lists(paths, max_size=3),
                "deny": st.lists(paths, max_size=2),
            },
        ),
        "network": st.fixed_dictionaries(
            {}, optional={"http": st.lists(urls, max_size=3), "deny": st.lists(hosts, max_size=1)}
        ),
        "tools": tools,
        "budgets": st.dictionaries(st.sampled_from(["requests", "runs"]), st.integers(0, 9)),
        "labels": st.fixed_dictionaries(
            {}, optional={"trusted": st.lists(st.sampled_from(["user", "fs:/b/**", "fs:/b/a/**"]))}
        ),
        "approvals": st.fixed_dictionaries(
            {"require": st.lists(st.sampled_from(["tool:t", "fs:/b/a", "https://h.example/a"]))}
        ),
    },
)
REQUESTS = [
    *[(e, p, "") for e in ("fs.read", "fs.write", "fs.list", "fs.rename", "fs.delete")
      for p in ("/b", "/b/a", "/b/a/x", "/b/q.x", "/c/x", "/b/a/b/x", "/")],
    *[("http.request", u, v) for v in ("GET", "POST") for u in (
        "https://h.example/", "https://h.example/a", "https://i.example/b?q", "https://a.h.example/")],
    ("tool.call", "tool:t", ""),
    ("tool.call", "tool:u", ""),
]  # fmt: skip


def json(doc: dict[str, Any]) -> str:
    return msgspec.json.encode(doc).decode()


def contained(wide: Policy, tight: Policy) -> None:
    for effect, raw, verb in REQUESTS:
        resource = parse(effect, raw)
        if tight.judge(effect, resource, verb).allowed:
            assert wide.judge(effect, resource, verb).allowed, (effect, raw, verb)
        if wide.approval(effect, resource, verb):
            assert tight.approval(effect, resource, verb)
        if tight.trusted(resource, verb):
            assert wide.trusted(resource, verb)
    for name, limit in wide.budgets.items():
        assert tight.budgets[name] <= limit
    assert set(tight.tools) <= set(wide.tools)
    assert wide.trusts_user or not tight.trusts_user


KEEPS = 'version = 1\n[tools.mail]\ncommand = ["mail"]\nsecret = ["mail"]\n'
RELEASES = '[labels]\nrelease = { mail = ["output"] }\n'


@pytest.mark.parametrize("base", [KEEPS, KEEPS + RELEASES], ids=["kept", "released"])
def test_a_secret_that_a_tool_names_leaves_where_every_file_releases_it(base: str) -> None:
    out = parse("output", "output:stdout")
    extended = chain(f'version = 1\nextends = "1"\n{RELEASES}', base)
    silent = chain('version = 1\nextends = "1"\n', base)
    child = chain("version = 1\n[labels]\nsecrets = { mail = [] }\n" + RELEASES.partition("\n")[2])
    above = chain(base)
    released = "release" in base
    for policy in (above, extended, silent, narrow(above, child)):
        assert policy.releases("mail", "output", out) == released
    assert child.releases("mail", "output", out)
    assert not narrow(above, chain("version = 1\n")).releases("mail", "output", out)


@pytest.mark.parametrize("item", ["user", "tool:x"])
def test_a_user_who_is_trusted_again_is_shown(item: str) -> None:
    """Without a list the user is trusted; a list without them is narrower."""
    said = f'version = 1\n[labels]\ncompute = true\ntrusted = ["{item}"]\n'
    silent = "version = 1\n[labels]\ncompute = true\n"
    listed, left_out = (decode(chain(text).canonical)["tree"] for text in (said, silent))
    assert [line.rpartition(": ")[2] for line in widened(listed, left_out)] == (
        [] if item == "user" else ['also "user"']
    )
    assert [line.rpartition(": ")[2] for line in widened(left_out, listed)] == (
        [] if item == "user" else ['also "tool:x"']
    )


BASE_LISTS = """
version = 1
[network]
http = ["GET https://a.example/**"]
[labels]
compute = true
secrets = { deny = ["fs:/k"] }
release = { deny = ["https://a.example/**"] }
"""


@pytest.mark.parametrize("gone", ["http = []\n", 'trusted = ["user"]\n', "deny = []\n"])
def test_a_list_that_is_left_to_the_base_again_is_shown(gone: str) -> None:
    """What the base allows is allowed from then on; without a base nothing is."""
    head = 'version = 1\nextends = "1"\n'
    rest = (
        '[network]\ndeny = ["https://b.example/**"]\nhttp = []\n'
        '[labels]\ncompute = true\ntrusted = ["user"]\n[labels.release]\ndeny = []\n'
    )
    own, left = (
        decode(chain(head + text, BASE_LISTS).canonical)["tree"]
        for text in (rest, rest.replace(gone, "", 1))
    )
    name = gone.partition(" ")[0]
    assert [line.partition(": ")[0].rpartition(".")[2] for line in widened(own, left)] == [name]
    assert not any("not set" in line for line in widened(left, own))


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ('limits.log = "3GB"', 'limits.log = "5GB"', ['limits.log: "5GB" (was "3GB")']),
        ("", 'limits.log = "5GB"', ['limits.log: "5GB" (was not set, so "2GB")']),
        ("", 'limits.log = "2GB"', []),
        ('limits.log = "5GB"', 'limits.log = "3GB"', []),
        ('limits.log = "5GB"', "", ['limits.log: not set (was "5GB")']),
        ("", 'limits.tmp = "1GB"', ['limits.tmp: "1GB" (was not set, so "64MB")']),
        ("", "budgets.denials = 51", ["budgets.denials: 51 (was not set, so 50)"]),
        ("", 'budgets.wall_time = "1h"', []),
        ("", 'budgets.file_bytes = "1GB"', []),
    ],
)
def test_a_limit_is_compared_with_what_holds_where_none_is_given(
    before: str, after: str, lines: list[str]
) -> None:
    old, new = (
        decode(chain(f"version = 1\nlimits.cpus = 1\nbudgets.runs = 1\n{text}\n").canonical)["tree"]
        for text in (before, after)
    )
    assert widened(old, new) == lines


def test_a_childs_policy_under_its_parents_is_compared_part_by_part() -> None:
    text = 'version = 1\n[labels]\ntrusted = ["user"]\n[labels.secrets]\ns = [{}]\n'
    one, two = (
        decode(narrow(chain("version = 1\n"), chain(text.format(files))).canonical)["tree"]
        for files in ('"fs:/k", "fs:/l"', '"fs:/k"')
    )
    assert widened(one, two) == ['child: labels.secrets.s: no longer "fs:/l"']
    assert widened(two, one) == []


@pytest.mark.parametrize("name", ["deny", "secret", "require", "control", "s"])
def test_what_releases_a_secret_allows_whatever_its_name_is(name: str) -> None:
    text = f'version = 1\n[labels]\nsecrets = {{ {name} = ["fs:/k"] }}\n[labels.release]\n'
    one, two = (
        decode(chain(f"{text}{name} = {hosts}\n").canonical)["tree"]
        for hosts in (
            '["https://a.example/**"]',
            '["https://a.example/**", "https://b.example/**"]',
        )
    )
    assert widened(one, two) == [f'labels.release.{name}: also "https://b.example/**"']
    assert widened(two, one) == []


@given(documents, documents)
@settings(max_examples=150)
def test_neither_extending_nor_spawning_widens(base: dict[str, Any], own: dict[str, Any]) -> None:
    def none(_base: str, _name: str) -> Source:
        raise AssertionError

    def parent(_base: str, name: str) -> Source:
        assert name == "base"
        return Source(json(base), "json", BASE, "base.json")

    wide = load(json(base), format="json", base=BASE, name="base.json", read_parent=none)
    alone = load(json(own), format="json", base=BASE, name="own.json", read_parent=none)
    spawned = narrow(wide, alone)
    contained(wide, spawned)
    contained(alone, spawned)
    text = json({**own, "extends": "base"})
    try:
        extended = load(text, format="json", base=BASE, name="own.json", read_parent=parent)
    except PolicyError as error:
        assert "tighten" in error.message or "tighten" in error.hint  # noqa: PT017
        return
    contained(wide, extended)
    again = from_canonical(extended.canonical)
    for effect, raw, verb in REQUESTS:
        resource = parse(effect, raw)
        assert (
            again.judge(effect, resource, verb).allowed
            == extended.judge(effect, resource, verb).allowed
        )


TOOL = '[{0}]\ncommand = ["t"]\n' + 'fields = {{ "/x" = "trusted" }}\n'
SHAPED = TOOL + 'shape = "trusted"\n'


@pytest.mark.parametrize(
    ("base", "child", "shape"),
    [
        (SHAPED, "", "trusted"),
        (SHAPED, 'shape = "trusted"', "trusted"),
        (SHAPED, 'shape = "untrusted"', "untrusted"),
        (TOOL, 'shape = "trusted"', "untrusted"),
        (TOOL + 'shape = "untrusted"\n', 'shape = "trusted"', "untrusted"),
    ],
)
def test_a_shape_is_trusted_where_every_file_says_so(base: str, child: str, shape: str) -> None:
    made = chain(f'extends = "1"\n[tools.t]\n{child}', f"version = 1\n{base.format('tools.t')}")
    rules = made.tool_rules(parse("tool.call", "tool:t"))
    assert rules is not None
    assert rules.shape == shape


def test_a_shape_of_a_servers_tool_is_trusted_where_every_file_says_so() -> None:
    server = 'version = 1\n[mcp.s]\ncommand = ["s"]\nallow = ["*"]\n[mcp.s.tools.t]\n'
    tools = 'extends = "1"\n[mcp.s.tools.t]\n'
    for base, child, shape in [
        ('shape = "trusted"', 'shape = "trusted"', "trusted"),
        ("", 'shape = "trusted"', "untrusted"),
        ('shape = "trusted"', 'shape = "untrusted"', "untrusted"),
    ]:
        rules = chain(tools + child, server + base).tool_rules(parse("tool.call", "tool:s.t"))
        assert rules is not None
        assert rules.shape == shape


@pytest.mark.parametrize("shape", ['"yes"', "true", '""', "[]"])
def test_a_shape_is_trusted_or_not(shape: str) -> None:
    with pytest.raises(PolicyError):
        chain(f'version = 1\n[tools.t]\ncommand = ["t"]\nshape = {shape}')
    chain('version = 1\n[tools.t]\ncommand = ["t"]\nshape = "untrusted"')


def test_a_person_is_shown_that_a_shape_is_newly_trusted() -> None:
    strict = chain("version = 1\n" + TOOL.format("tools.t"))
    shaped = chain("version = 1\n" + SHAPED.format("tools.t"))
    old, new = (decode(policy.canonical)["tree"] for policy in (strict, shaped))
    assert any('shape: "trusted" (was not set)' in line for line in widened(old, new))
    assert widened(new, new) == []
