"""Suggestions: they help, they are no wider than they say, and nothing forbidden is among them."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.gate.policyfile import shipped_prices
from authority.kernel import resources
from authority.kernel.policy import (
    Judgement,
    Policy,
    PolicyError,
    Source,
    explain,
    load,
    narrow,
)
from authority.kernel.policy_edit import EditError, with_additions
from authority.kernel.policy_tree import SHIPPED_PRICES
from authority.kernel.resource_files import file_segments
from authority.kernel.suggest import (
    LISTS,
    TOGETHER,
    Suggestion,
    Wish,
    suggest,
    together,
    toml,
)
from authority.kernel.suggest_words import looks_secret

BASE = "/home/u/proj"


def policy(text: str = "", base: str = BASE) -> Policy:
    return load("version = 1\n" + text, format="toml", base=base, name="p.toml", read_parent=none)


def none(base: str, name: str) -> Source:
    assert name == SHIPPED_PRICES
    return shipped_prices()


def wish(effect: str, resource: str, verb: str = "", **more: Any) -> Wish:
    return Wish(effect, resources.parse(effect, resource, cwd=BASE).text, verb, **more)


def rules(found: Suggestion) -> list[tuple[str, str]]:
    return [(f"{each.section}.{each.key}", each.rule) for each in found.additions]


def applied(text: str, found: Suggestion) -> Policy:
    """The policy as its file would be with the printed additions in it."""
    made = with_additions("version = 1\n" + text, found.additions, format="toml")
    return load(made, format="toml", base=BASE, name="p.toml", read_parent=none)


# --- one by one ---


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (wish("fs.read", "a.txt"), ("filesystem.read", "./a.txt")),
        (wish("fs.list", "docs"), ("filesystem.read", "./docs")),
        (wish("fs.write", "/data/x y.txt"), ("filesystem.write", "fs:/data/x y.txt")),
        (wish("fs.read", "we[ir]d*.txt"), ("filesystem.read", "./we\\[ir\\]d\\*.txt")),
        (wish("fs.read", b"bytes-\xff"), ("filesystem.read", "fs:/home/u/proj/bytes-%FF")),
        (
            wish("http.request", "https://h.example/a?b=1", "GET"),
            ("network.http", "GET https://h.example:443/a?b=1"),
        ),
        (
            wish("http.request", "https://h.example/a", "DELETE"),
            ("network.http", "DELETE https://h.example:443/a"),
        ),
        (wish("net.connect", "tcp://db.example:5432"), ("network.allow", "db.example:5432")),
        (wish("net.resolve", "dns:api.example"), ("network.http", "GET https://api.example/")),
    ],
)
def test_the_smallest_rule(asked: Wish, rule: tuple[str, str]) -> None:
    found = suggest(policy(), [asked])
    assert rules(found) == [rule]
    assert found.left == ()
    resource = resources.parse_text(asked.resource)
    assert not policy().judge(asked.effect, resource, asked.verb).allowed
    assert applied("", found).judge(asked.effect, resource, asked.verb).allowed


def test_the_reasons_say_which_entry_and_how_often() -> None:
    found = suggest(
        policy(), [wish("fs.read", "a", entry=9), wish("fs.read", "a", entry=4, times=2)]
    )
    (addition,) = found.additions
    assert addition.because == ("fs.read fs:/home/u/proj/a: entry 4, 3 times",)
    assert toml(found) == (
        '[filesystem]\nread = [\n    # fs.read fs:/home/u/proj/a: entry 4, 3 times\n    "./a",\n]\n'
    )


def test_one_rule_for_several_effects_on_one_file() -> None:
    asked = [
        wish("fs.read", "a"),
        wish("fs.stat", "a"),
        wish("fs.write", "a"),
        wish("fs.delete", "a"),
    ]
    assert rules(suggest(policy(), asked)) == [
        ("filesystem.read", "./a"), ("filesystem.write", "./a"),
    ]  # fmt: skip


def test_a_rename_wants_both_ends() -> None:
    asked = Wish("fs.rename", "fs:/home/u/proj/a", target="fs:/home/u/proj/b")
    assert rules(suggest(policy(), [asked])) == [
        ("filesystem.write", "./a"), ("filesystem.write", "./b"),
    ]  # fmt: skip
    half = policy('[filesystem]\nwrite = ["./a"]')
    assert rules(suggest(half, [asked])) == [("filesystem.write", "./b")]


def test_what_is_allowed_already_is_not_suggested() -> None:
    allowing = policy('[filesystem]\nread = ["./**"]')
    assert suggest(allowing, [wish("fs.read", "a")]) == Suggestion()


# --- not suggested ---


@pytest.mark.parametrize(
    ("text", "asked", "why"),
    [
        ('[filesystem]\ndeny = ["**/a"]', wish("fs.read", "a"), "filesystem.deny"),
        ('[filesystem]\ndeny = ["**/a"]', wish("fs.write", "x/a"), "filesystem.deny"),
        ('[network]\ndeny = ["*.internal"]', wish("http.request", "https://a.internal/", "GET"),
         "network.deny"),
        ('[network]\ndeny = ["*.internal"]', wish("net.connect", "tcp://a.internal:1"),
         "network.deny"),
        ("", wish("fs.read", "/proc/1/environ"), "no run reaches this"),
        ("", wish("tool.call", "tool:search"), "a person has to say what it is"),
        ("", wish("agent.spawn", "agent:child"), "a person has to say what it is"),
        ("", wish("fs.read", ".env"), "looks like a secret"),
        ("", wish("fs.write", "/home/u/.ssh/authorized_keys"), "looks like a secret"),
        ("", wish("fs.read", "a", layer="budget", rule="budgets.requests", reason="0 left"),
         "budgets.requests is for a person"),
        ("", wish("fs.read", "a", layer="labels", reason="the run is tainted"), "labels"),
        ("", wish("fs.read", "a", layer="capability", reason="scope"), "capability"),
        ("", wish("fs.look", "gone", looked=True, there=False), "is not there"),
        ("", Wish("fs.read", "nonsense"), "no canonical form"),
        ("", wish("http.request", "https://h.example/", "get"), ""),
    ],
)  # fmt: skip
def test_left_with_the_reason(text: str, asked: Wish, why: str) -> None:
    neighbour = wish("fs.read", "neighbour.txt")
    found = suggest(policy(text), [asked, neighbour])
    assert rules(found) == [("filesystem.read", "./neighbour.txt")]
    (left,) = found.left
    assert left.wish == asked
    assert why in left.why


def test_what_is_protected_is_left_even_where_things_act_later() -> None:
    guarded = policy().protect(["/home/u/proj/state"])
    asked = wish("fs.write", "state/.git/hooks/pre-commit")
    found = suggest(guarded, [asked, wish("fs.write", "free")])
    assert rules(found) == [("filesystem.write", "./free")]
    assert [left.wish for left in found.left] == [asked]


def test_another_file_of_the_chain_has_to_say_it() -> None:
    def parent(base: str, name: str) -> Source:
        return Source('version = 1\n[filesystem]\nread = ["./docs/**"]', "toml", BASE, "base.toml")

    chain = load(
        'version = 1\nextends = "base.toml"\n[filesystem]\nread = ["./docs/a"]',
        format="toml", base=BASE, name="own.toml", read_parent=parent,
    )  # fmt: skip
    found = suggest(chain, [wish("fs.read", "docs/b"), wish("fs.read", "other")])
    assert rules(found) == [("filesystem.read", "./docs/b")]
    (left,) = found.left
    assert "base.toml" in left.why


def test_a_child_runs_policy_is_its_parents_matter() -> None:
    with pytest.raises(PolicyError, match="parent"):
        suggest(narrow(policy(), policy()), [wish("fs.read", "a")])


SECRETS = [
    ".env", "x/.env.local", "prod.env", "server.pem", "server.key", "id_rsa", ".ssh/config", ".netrc",
    ".aws/credentials", ".npmrc", "/etc/shadow", "secrets/a.txt", "Secrets.YAML", "a.kdbx",
    ".config/gcloud/x", ".docker/config.json", ".git-credentials", "ID_ED25519", "terraform.tfstate",
]  # fmt: skip
PLAIN = [
    "a.txt", "key.txt", "keyboard.py", "environment.md", ".env.example", "id_rsa_notes/a.md",
    "docs/pem.md", "tokens.py", "monkey", "id.pub",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_by_its_name(name: str) -> None:
    assert looks_secret(resources.parse("fs.read", name, cwd=BASE).segments)


@pytest.mark.parametrize("name", PLAIN)
def test_no_secret(name: str) -> None:
    assert not looks_secret(resources.parse("fs.read", name, cwd=BASE).segments)


# --- warnings ---


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        (wish("fs.read", "/data/a"), "outside the policy's folder"),
        (wish("fs.write", ".git/hooks/post-commit"), "!!! DANGER !!! this is a repository's hooks"),
        (wish("fs.write", "/home/u/.bashrc"), "!!! DANGER !!! this is a shell's start file"),
        (wish("fs.write", ".github/workflows/ci.yml"), "!!! DANGER !!! this is a build definition"),
        (wish("http.request", "http://h.example/", "GET"), "not encrypted"),
        (wish("http.request", "https://h.example/?k=1", "GET"), "does it hold a secret"),
        (wish("http.request", "https://h.example/", "PUT"), "PUT can carry data out"),
        (wish("net.connect", "tcp://h.example:22"), "neither judged nor recorded"),
        (wish("net.connect", "tcp://h.example:443"), "neither judged nor recorded"),
        (wish("net.resolve", "dns:h.example"), "only the name was asked for"),
        (wish("fs.read", "docs", looked=True, folder=True), "a folder"),
    ],
)
def test_a_warning_beside_the_rule(asked: Wish, warning: str) -> None:
    found = suggest(policy(), [asked])
    (addition,) = found.additions
    assert any(warning in line for line in addition.warnings), addition
    assert f"    # {addition.warnings[0]}\n" in toml(found)


def test_no_warning_where_there_is_nothing_to_say() -> None:
    found = suggest(
        policy(), [wish("fs.read", "a"), wish("http.request", "https://h.example/", "GET")]
    )
    assert [each.warnings for each in found.additions] == [(), ()]


# --- together ---


def test_files_of_one_folder_become_one_rule_that_says_so() -> None:
    asked = [wish("fs.read", f"docs/{n}.md") for n in range(TOGETHER)]
    found = suggest(policy(), asked)
    (addition,) = found.additions
    assert (addition.rule, len(addition.because)) == ("./docs/*", TOGETHER)
    assert addition.warnings[0].startswith("BROAD: also every other file in /home/u/proj/docs")
    assert len(suggest(policy(), asked, exact=True).additions) == TOGETHER
    assert len(suggest(policy(), asked[:-1]).additions) == TOGETHER - 1
    deeper = applied("", found)
    assert not deeper.judge("fs.read", resources.parse("fs.read", "docs/x/y", cwd=BASE)).allowed


@pytest.mark.parametrize(
    "asked",
    [
        [wish("fs.read", f"/etc/app/{n}") for n in range(9)],
        [wish("fs.read", f"/top{n}") for n in range(9)],
        [wish("fs.read", f"/srv/{n}") for n in range(9)],
        [wish("fs.write", f"{n}.txt") for n in range(9)],
        [wish("fs.write", f"/home/u/{n}.txt") for n in range(9)],
        [wish("fs.write", f".git/hooks/{n}") for n in range(9)],
        [wish("fs.read", f"d/{n}", looked=True, folder=True) for n in range(9)],
        [wish("http.request", f"https://h.example/a/{n}", "GET") for n in range(9)],
        [wish("net.connect", f"tcp://h{n}.example:443") for n in range(9)],
    ],
)
def test_what_is_never_put_together(asked: list[Wish]) -> None:
    assert len(suggest(policy(), asked).additions) == 9


def test_reading_the_policys_own_folder_is_put_together_writing_is_not() -> None:
    found = suggest(policy(), [wish("fs.read", f"{n}.txt") for n in range(3)])
    assert rules(found) == [("filesystem.read", "./*")]


def test_a_name_that_another_rule_brings_is_not_suggested_twice() -> None:
    asked = [
        wish("net.resolve", "dns:h.example"),
        wish("http.request", "https://h.example/x", "POST"),
    ]
    assert rules(suggest(policy(), asked)) == [("network.http", "POST https://h.example:443/x")]


# --- texts that a program chose ---


@pytest.mark.parametrize(
    "name",
    [b'x"], write = ["**"]', b'", "*', "\u202egnp".encode(), "\U000e0041".encode(), b"'''",
     b'"""', b"#", b"]", b"\\"],
)  # fmt: skip
def test_a_name_says_nothing_of_its_own(name: bytes) -> None:
    asked = wish("fs.read", name)
    found = suggest(policy(), [asked])
    text = toml(found)
    parsed = tomllib.loads(text)
    assert list(parsed) == ["filesystem"]
    assert list(parsed["filesystem"]) == ["read"]
    assert len(parsed["filesystem"]["read"]) == 1
    assert all(char == "\n" or char.isprintable() for char in text)
    wider = applied('[filesystem]\nread = ["./x"]', found)
    assert wider.judge("fs.read", resources.parse_text(asked.resource)).allowed
    assert not wider.judge("fs.read", resources.parse("fs.read", "/other", cwd=BASE)).allowed


# --- for any policy and any wishes ---

NAMES = ["a", "b", "c*", "d[1]", ".env", "e.pem", ".git", "hooks", "docs", "x y"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(
    lambda names: f"{BASE}/" + "/".join(names)
) | st.sampled_from(["/data/a", "/data/b", "/etc/hosts", "/proc/self/mem", "/a"])
HOSTS = st.sampled_from(["a.example", "b.a.example", "c.internal"])
URLS = st.builds(
    lambda host, path, query: f"https://{host}/{path}{query}",
    HOSTS, st.sampled_from(["", "x", "x/y", "z*"]), st.sampled_from(["", "?q=1"]),
)  # fmt: skip
FILES = st.builds(wish, st.sampled_from(["fs.read", "fs.write", "fs.append", "fs.delete"]), PATHS)
WISHES = (
    FILES
    | FILES
    | st.builds(wish, st.just("http.request"), URLS, st.sampled_from(["GET", "POST"]))
    | st.builds(wish, st.just("net.connect"), HOSTS.map(lambda h: f"tcp://{h}:443"))
)
POLICIES = st.builds(
    lambda read, write, deny, http, net_deny: (
        f"[filesystem]\nread = {read}\nwrite = {write}  # kept\ndeny = {deny}\n"
        f"[network]\nhttp = {http}\ndeny = {net_deny}\n"
    ),
    *(
        st.lists(st.sampled_from(choices), max_size=2, unique=True).map(
            lambda items: "[" + ", ".join(f'"{item}"' for item in items) + "]"
        )
        for choices in (
            ["./docs/**", "./a", "/data/*"],
            ["./b/**", "./docs/*"],
            ["**/.env", "**/hooks/**", "./a/**", "/data/b"],
            ["GET https://a.example/x", "POST https://*.a.example/**"],
            ["*.internal", "https://a.example/x/**"],
        )
    ),
)


def covered(policy_: Policy, asked: Wish) -> bool:
    return policy_.judge(asked.effect, resources.parse_text(asked.resource), asked.verb).allowed


@settings(max_examples=250, deadline=None)
@given(POLICIES, st.lists(WISHES, max_size=10), st.lists(WISHES, max_size=25), st.booleans())
def test_it_allows_what_it_lists_and_nothing_else(
    text: str, asked: list[Wish], others: list[Wish], exact: bool
) -> None:
    before = policy(text)
    denied = [each for each in asked if not covered(before, each)]
    found = suggest(before, denied, exact=exact)
    after = applied(text, found)
    left = {one.wish for one in found.left}
    listed = {each for each in together(denied) if each not in left}
    broad = {
        (each.key, file_segments(each.rule[2:-2] or ".", BASE) if each.rule.startswith("./")
         else resources.parse_text(each.rule[:-2]).segments)
        for each in found.additions
        if any(line.startswith("BROAD") for line in each.warnings)
    }  # fmt: skip
    assert not (exact and broad)
    # Every denied request is either listed and allowed now, or left and denied as before.
    assert all(covered(after, each) for each in listed)
    assert not any(covered(after, each) for each in left)
    # What nobody listed is judged as before, but for other files right in a folder that is flagged.
    wanted = {(kind(each), each.resource, each.verb) for each in listed}
    for other in others:
        if covered(after, other) and not covered(before, other):
            segments = resources.parse_text(other.resource).segments
            known = (kind(other), other.resource, other.verb) in wanted
            assert known or (kind(other), segments[:-1]) in broad, other
    # Nothing that a rule forbids, or that looks like a secret, is among what is allowed now.
    for each in listed:
        judgement = before.judge(each.effect, resources.parse_text(each.resource), each.verb)
        assert not judgement.rule or judgement.rule == "built in"
        assert not (kind(each) in {"read", "write"}
                    and looks_secret(resources.parse_text(each.resource).segments))  # fmt: skip
    assert not any("**" in each.rule for each in found.additions)
    assert {each.place for each in found.additions} <= set(LISTS)


def kind(asked: Wish) -> str:
    if asked.effect.startswith("fs."):
        return "read" if asked.effect == "fs.read" else "write"
    return asked.effect


# --- putting it into a file ---

FILE = """\
# mine
version = 1

[filesystem]
read = ["./docs/**"]   # all of it
write = [
    "./out/**",
    './lit[1]',   # odd
    # nothing else
]
deny = []

[network]   # later
http = [ "GET https://a.example/]#[" ]

[budgets]
requests = 5
"""


def test_a_persons_file_keeps_every_line() -> None:
    asked = [
        wish("fs.read", "a"), wish("fs.write", "b"), wish("net.connect", "tcp://h.example:1"),
        wish("http.request", "https://h.example/", "GET"),
    ]  # fmt: skip
    found = suggest(policy(), asked)
    made = with_additions(FILE, found.additions, format="toml")
    for kept in ("# mine\n", "# all of it\n", "# odd\n", "# nothing else\n", "# later\n", "deny = []\n",
                 "\n[budgets]\nrequests = 5\n"):  # fmt: skip
        assert kept in made
    parsed = tomllib.loads(made)
    assert parsed["filesystem"]["read"] == ["./docs/**", "./a"]
    assert parsed["filesystem"]["write"] == ["./out/**", "./lit[1]", "./b"]
    assert parsed["network"]["allow"] == ["h.example:1"]
    assert parsed["network"]["http"][1:] == ["GET https://h.example:443/"]
    assert parsed["budgets"] == {"requests": 5}


@pytest.mark.parametrize(
    "text",
    ["version = 1\n", "version = 1", 'version = 1\n[filesystem]\nread = []\n',
     'version = 1\n[filesystem]\nread = ["a",]', 'version = 1\n[filesystem]\n[labels]\ntrusted = []\n',
     'version = 1\n[filesystem]\nread = ["a" # one\n # two\n]\n',
     "version = 1\n[filesystem]\nwrite = ['''\n[filesystem]\nread = [''']\n"],
)  # fmt: skip
def test_many_layouts(text: str) -> None:
    found = suggest(policy(), [wish("fs.read", "x"), wish("fs.read", "y")])
    parsed = tomllib.loads(with_additions(text, found.additions, format="toml"))
    assert parsed["filesystem"]["read"][-2:] == ["./x", "./y"]


@pytest.mark.parametrize(
    "text",
    ["version = 1\nfilesystem.read = []\n", "version = 1\nfilesystem = { read = [] }\n",
     'version = 1\n[filesystem]\n"read" = ["a"]\n', "version = 1\n[filesystem\n",
     'version = 1\n[filesystem]\nread = "x"\n', '[[filesystem]]\nread = []\n'],
)  # fmt: skip
def test_a_layout_that_can_not_be_edited_is_refused(text: str) -> None:
    found = suggest(policy(), [wish("fs.read", "x")])
    with pytest.raises(EditError):
        with_additions(text, found.additions, format="toml")


def test_json_is_written_anew() -> None:
    found = suggest(policy(), [wish("fs.read", "x")])
    made = with_additions('{"version": 1}', found.additions, format="json")
    assert (
        made == '{\n  "version": 1,\n  "filesystem": {\n    "read": [\n      "./x"\n    ]\n  }\n}\n'
    )


# --- what other effects bring ---

SERVER = '[mcp.files]\ncommand = ["server"]\nallow = ["read_*"]   # mine\n'


def test_tools_of_a_server_that_is_defined() -> None:
    asked = [wish("tool.call", "tool:files.write_file"), wish("tool.call", "tool:other.x")]
    found = suggest(policy(SERVER), asked)
    assert rules(found) == [("mcp.files.allow", "write_file")]
    assert [left.wish for left in found.left] == [asked[1]]
    after = applied(SERVER, found)
    assert after.judge("tool.call", resources.parse_text("tool:files.write_file")).allowed
    assert not after.judge("tool.call", resources.parse_text("tool:files.delete")).allowed


def test_a_model_by_its_name() -> None:
    found = suggest(policy(), [wish("model.chat", "model:claude-x-1")])
    assert rules(found) == [("models.allow", "claude-x-1")]
    assert (
        not applied("", found).judge("model.chat", resources.parse_text("model:claude-x-2")).allowed
    )


def test_a_denial_of_what_acts_later_names_the_rule_that_opens_it() -> None:
    asked = resources.parse("fs.write", ".git/hooks/x", cwd=BASE)
    closed = Judgement(False, "built in", "this is a repository's hooks")
    told = explain(policy(), "fs.write", asked, "", closed)
    assert told.snippet == '[filesystem]\nwrite = ["./.git/hooks/x"]\n'
    guarded = policy().protect([f"{BASE}/.git"])
    assert "no rule can allow it" in explain(guarded, "fs.write", asked, "", closed).missing
