"""Policy: what one file says, and that everything it doesn't say is denied."""

from __future__ import annotations

import hashlib
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.canonical import decode
from authority.kernel.policy import (
    Policy,
    PolicyError,
    Source,
    check_warnings,
    explain,
    from_canonical,
    load,
)
from authority.kernel.requests import EFFECTS
from authority.kernel.resources import Resource, parse

BASE = "/home/u/proj"
FULL = """
version = 1
explain = "agent"
[filesystem]
read = ["./docs/**", "/data/a.txt"]
write = ["./out/**"]
deny = ["**/.env", "**/.git/hooks/**"]
[network]
allow = ["pypi.example:443"]
http = ["GET https://api.github.com/repos/**", "POST https://h.example/p", "http://intranet.example/**"]
deny = ["*.internal", "https://api.github.com/repos/secret/**", "bad.example:8443"]
private = ["intranet.example:80", "10.1.2.3", "169.254.169.254"]
[process]
exec = ["git", "/usr/bin/make"]
pass_env = ["LANG"]
env = { MODE = "demo" }
[limits]
memory = "512MiB"
processes = 8
cpus = "1.5"
tmp = 1000
[tools.search]
command = ["python3", "tools/search.py"]
timeout = "1500ms"
content = ["text"]
reads = "trusted"
env = { A = "b" }
[tools.plain]
command = ["/bin/plain"]
[tools.open]
command = ["/bin/open"]
content = []
[agents.child]
command = ["python3", "child.py"]
policy = "child.toml"
budgets = { tool_calls = 3, wall_time = "1m" }
[credentials.github]
from_env = "GITHUB_TOKEN"
hosts = ["api.github.com", "intranet.example:80"]
[budgets]
tool_calls = 100
input_tokens = 200_000
cost_usd = "2.50"
wall_time = "5m"
network_bytes = "20MB"
denials = 0
[labels]
trusted = ["user", "fs:./prompts/**", "https://docs.example/**", "tool:plain"]
content = ["POST https://h.example/p", "tool:plain"]
secrets = { payroll = ["fs:./payroll/**"], keys = ["fs:./keys"] }
release = { payroll = ["https://hr.example/**", "tool:search", "output"] }
[approvals]
require = ["https://payments.example/**", "DELETE https://h.example/**",
           "fs:./out/final/**", "tool:open"]
"""


def no_parent(_base: str, name: str) -> Source:
    raise AssertionError(f"nothing is extended, but {name} was asked for")


def make(text: str, kind: str = "toml") -> Policy:
    return load(text, format=kind, base=BASE, name="p.toml", read_parent=no_parent)


def ask(policy: Policy, effect: str, raw: str, verb: str = "") -> bool:
    return policy.judge(effect, parse(effect, raw, cwd=BASE), verb).allowed


full = make(FULL)


@pytest.mark.parametrize(
    ("effect", "raw", "verb", "allowed", "rule"),
    [
        ("fs.read", "docs/a", "", True, 'filesystem.read[0] "./docs/**"'),
        ("fs.read", "/data/a.txt", "", True, 'filesystem.read[1] "/data/a.txt"'),
        ("fs.read", "out/a", "", False, ""),
        ("fs.write", "docs/a", "", False, ""),
        ("fs.read", "docs/.env", "", False, 'filesystem.deny[0] "**/.env"'),
        ("fs.write", "out/.git/hooks/x", "", False, 'filesystem.deny[1] "**/.git/hooks/**"'),
        ("fs.write", "out/a", "", True, 'filesystem.write[0] "./out/**"'),
        ("fs.append", "out/a", "", True, 'filesystem.write[0] "./out/**"'),
        ("fs.mkdir", "out/a", "", True, 'filesystem.write[0] "./out/**"'),
        ("fs.rename", "out/a", "", True, 'filesystem.write[0] "./out/**"'),
        ("fs.delete", "out/a", "", True, 'filesystem.write[0] "./out/**"'),
        ("fs.stat", "docs/a", "", True, 'filesystem.read[0] "./docs/**"'),
        ("fs.list", "docs", "", True, 'filesystem.read[0] "./docs/**"'),
        ("fs.list", "/data", "", True, 'filesystem.read[1] "/data/a.txt"'),
        ("fs.list", "/etc", "", False, ""),
        ("http.request", "https://api.github.com/repos/x", "GET", True, None),
        ("http.request", "https://api.github.com/repos/x", "POST", False, ""),
        ("http.request", "https://api.github.com/repos/x?y", "GET", False, ""),
        ("http.request", "https://api.github.com/user", "GET", False, ""),
        ("http.request", "https://api.github.com/repos/secret", "GET", False, None),
        ("http.request", "https://h.example/p", "POST", True, None),
        ("http.request", "https://h.example/p", "GET", False, ""),
        ("http.request", "http://intranet.example/x", "HEAD", True, None),
        ("http.request", "http://intranet.example/x", "POST", False, ""),
        ("http.request", "https://pypi.example/", "GET", False, ""),
        ("net.connect", "pypi.example:443", "", True, 'network.allow[0] "pypi.example:443"'),
        ("net.connect", "pypi.example:80", "", False, ""),
        ("net.connect", "x.internal:443", "", False, 'network.deny[0] "*.internal"'),
        ("tool.call", "tool:search", "", True, "tools.search"),
        ("tool.call", "tool:other", "", False, ""),
        ("agent.spawn", "agent:child", "", True, "agents.child"),
        ("agent.spawn", "agent:other", "", False, ""),
        ("agent.wait", "run:x", "", True, "built in"),
        ("msg.send", "run:x", "", True, "built in"),
        ("output", "output:stdout", "", True, "built in"),
        ("model.chat", "model:x", "", False, ""),
        ("gate.halt", "gate:halt", "", False, ""),
    ],
)
def test_judgement(effect: str, raw: str, verb: str, allowed: bool, rule: str | None) -> None:
    got = full.judge(effect, parse(effect, raw, cwd=BASE), verb)
    assert got.allowed is allowed
    assert allowed or got.reason
    if rule is not None:
        assert got.rule == rule


def test_an_empty_policy_allows_only_printing_and_talking() -> None:
    empty = make("version = 1")
    samples = {"fs": "/x", "http": "https://h.example/", "tool": "tool:x", "agent": "run:x"}
    samples |= {"msg": "run:x", "output": "output:stdout", "net": "h.example:443"}
    samples |= {"msg": "run:x", "output": "output:stdout", "mcp": "mcp:x/tools"}
    samples |= {"model": "model:x"}
    system = {f"sys.{name}": f"sys:{name}" for name in ("time", "random", "uuid")}
    allowed = set()
    for effect in EFFECTS:
        special = {"agent.spawn": "agent:x", "net.resolve": "h.example"}
        special |= {"value.reveal": "handle:h1", "value.compute": "room:python", **system}
        raw = special.get(effect) or samples[effect.partition(".")[0]]
        if ask(empty, effect, raw, "GET" if effect == "http.request" else ""):
            allowed.add(effect)
    assert allowed == {"output", "msg.send", "msg.receive", "agent.wait", "value.reveal", *system}
    assert empty.trusts_user  # nothing is listed, so nobody is left out
    assert empty.process.exec == ()
    assert empty.budgets["denials"] == 50


def test_an_effect_on_a_resource_of_another_kind_is_denied() -> None:
    for effect in [*EFFECTS, "nonsense", "fs", ""]:
        for resource in (Resource("odd", "odd:x"), Resource("gate", "gate:x", ("x",))):
            assert not full.judge(effect, resource, "GET").allowed, effect


def test_a_folder_on_the_way_is_listed_in_part() -> None:
    way = full.judge("fs.list", parse("fs.list", BASE))
    assert (way.allowed, way.partial) == (True, True)
    assert not full.judge("fs.list", parse("fs.list", BASE + "/docs")).partial
    assert not ask(full, "fs.read", BASE)


def test_sections_have_their_units() -> None:
    assert (full.limits.memory, full.limits.processes) == (512 * 1024**2, 8)
    assert (full.limits.cpus, full.limits.tmp) == (1500, 1000)
    assert full.budgets["cost_usd"] == 2_500_000
    assert full.budgets["wall_time"] == 300_000_000
    assert full.budgets["network_bytes"] == 20_000_000
    assert full.budgets["denials"] == 0
    assert full.tools["search"].timeout == 1_500_000
    assert full.tools["search"].base == BASE
    assert full.tools["plain"].content is None
    assert full.agents["child"].budgets == {"tool_calls": 3, "wall_time": 60_000_000}
    assert full.credentials["github"].format == "Bearer {}"
    assert full.process.env == {"MODE": "demo"}
    assert full.explain == "agent"
    assert make("version = 1").explain == "operator"


def test_labels() -> None:
    def res(effect: str, raw: str) -> Resource:
        return parse(effect, raw, cwd=BASE)

    assert full.trusts_user
    assert full.trusted(res("fs.read", "prompts/a"))
    assert not full.trusted(res("fs.read", "docs/a"))
    assert full.trusted(res("http.request", "https://docs.example/a"), "GET")
    assert not full.trusted(res("http.request", "https://docs.example/a?q"), "GET")
    assert full.trusted(res("tool.call", "tool:search"))  # reads = "trusted"
    assert full.trusted(res("tool.call", "tool:plain"))
    assert not full.trusted(res("tool.call", "tool:open"))
    assert full.secrets(res("fs.read", "payroll/x")) == {"payroll"}
    assert full.secrets(res("fs.list", "payroll")) == {"payroll"}
    assert full.secrets(res("fs.read", "keys")) == {"keys"}
    assert full.secrets(res("fs.read", "docs/a")) == frozenset()
    everything = frozenset({"*"})
    assert full.content("fs.write", res("fs.write", "out/a")) == everything
    assert (
        full.content("http.request", res("http.request", "https://h.example/x"), "GET")
        == everything
    )
    assert full.content("http.request", res("http.request", "https://h.example/x"), "POST") is None
    assert (
        full.content("http.request", res("http.request", "https://h.example/p"), "POST")
        == everything
    )
    assert full.content("http.request", res("http.request", "https://h.example/p"), "PUT") is None
    assert full.content("tool.call", res("tool.call", "tool:search")) == {"text"}
    assert full.content("tool.call", res("tool.call", "tool:plain")) == everything
    assert full.content("tool.call", res("tool.call", "tool:open")) == frozenset()
    assert full.content("tool.call", res("tool.call", "tool:nobody")) is None
    assert full.content("agent.spawn", res("agent.spawn", "agent:child")) is None
    assert full.content("fs.delete", res("fs.delete", "out/a")) is None
    released = [
        ("payroll", "http.request", "https://hr.example/a", True),
        ("payroll", "tool.call", "tool:search", True),
        ("payroll", "output", "output:stderr", True),
        ("payroll", "http.request", "https://h.example/p", False),
        ("payroll", "msg.send", "run:x", False),
        ("payroll", "fs.write", "out/a", False),
        ("keys", "output", "output:stdout", False),
        ("unheard-of", "output", "output:stdout", False),
    ]
    for secret, effect, raw, expected in released:
        assert full.releases(secret, effect, res(effect, raw), "POST") is expected, (secret, raw)


def test_approvals_are_read_widely() -> None:
    def rule(effect: str, raw: str, verb: str = "") -> str:
        return full.approval(effect, parse(effect, raw, cwd=BASE), verb)

    assert rule("http.request", "https://payments.example/x?y", "GET").startswith(
        "approvals.require[0]"
    )
    assert rule("http.request", "https://h.example/x?y", "DELETE").startswith(
        "approvals.require[1]"
    )
    assert rule("http.request", "https://h.example/x?y", "GET") == ""
    assert rule("fs.write", "out/final/x").startswith("approvals.require[2]")
    assert rule("fs.write", "out/x") == ""
    assert rule("tool.call", "tool:open").startswith("approvals.require[3]")


def test_private_hosts_are_named_exactly() -> None:
    assert full.names_private("intranet.example", 80)
    assert not full.names_private("intranet.example", 81)
    assert not full.names_private("x.intranet.example", 80)
    assert full.names_private("10.1.2.3", 1)
    assert not full.names_private("intranet.example", 80, "metadata")
    assert full.names_private("169.254.169.254", 80, "metadata")


def test_the_digest_is_over_what_decides() -> None:
    assert full.digest == hashlib.sha256(full.canonical).hexdigest()
    assert make(FULL + "# a comment\n").digest == full.digest
    assert make(FULL.replace('"5m"', '"300s"')).digest == full.digest
    assert make(FULL.replace("docs", "dogs", 1)).digest != full.digest
    other = load(FULL, format="toml", base="/elsewhere", name="p.toml", read_parent=no_parent)
    assert other.digest != full.digest
    assert full.protect(["/state"]).digest != full.digest
    assert isinstance(decode(full.canonical), dict)


def test_a_policy_comes_back_from_its_canonical_form() -> None:
    protected = full.protect(["/state"], ["/tools"])
    again = from_canonical(protected.canonical)
    assert (again.canonical, again.digest) == (protected.canonical, protected.digest)
    assert again.tools == protected.tools
    assert again.budgets == protected.budgets
    assert ask(again, "fs.read", "docs/a")
    assert not ask(again, "fs.read", "/state/x")
    for bad in (
        b"",
        b"{}",
        b"[]",
        protected.canonical[:-1],
        protected.canonical + b" ",
        b'{"policy":2}',
    ):
        with pytest.raises(PolicyError):
            from_canonical(bad)


def test_json_says_the_same() -> None:
    text = '{"version":1,"filesystem":{"read":["./docs/**"]},"limits":{"cpus":"1.5"}}'
    same = 'version = 1\n[filesystem]\nread = ["./docs/**"]\n[limits]\ncpus = "1.5"'
    assert make(text, "json").digest == make(same).digest


DENIED = [
    ("fs.read", "secret [1]/a*b.txt", ""),
    ("fs.read", "/elsewhere/x", ""),
    ("fs.list", "lists", ""),
    ("fs.write", "new\\file", ""),
    ("fs.delete", "~x/$y", ""),
    ("fs.read", "100%", ""),
    ("http.request", "https://h.example/a/*?q=*", "PUT"),
    ("http.request", "http://[2606::1]:99/", "GET"),
    ("net.connect", "[2606::1]:22", ""),
    ("tool.call", "tool:a.b", ""),
    ("agent.spawn", "agent:other", ""),
]


@pytest.mark.parametrize(("effect", "raw", "verb"), DENIED)
def test_the_snippet_allows_exactly_what_was_denied(effect: str, raw: str, verb: str) -> None:
    empty = make("version = 1")
    resource = parse(effect, raw, cwd=BASE)
    judgement = empty.judge(effect, resource, verb)
    found = explain(empty, effect, resource, verb, judgement)
    assert not judgement.allowed
    assert found.missing
    assert tomllib.loads(found.snippet)
    wider = make("version = 1\n" + found.snippet)
    assert wider.judge(effect, resource, verb).allowed
    if resource.scheme in ("fs", "https", "http"):
        near = parse(effect, resource.text + "x")
        assert not wider.judge(effect, near, verb).allowed
        assert not wider.judge(effect, resource, "POST").allowed or resource.scheme == "fs"


def test_a_denial_by_a_rule_needs_a_person() -> None:
    for effect, raw in (("fs.read", "docs/.env"), ("fs.read", "/proc/self/mem")):
        resource = parse(effect, raw, cwd=BASE)
        found = explain(full, effect, resource, "", full.judge(effect, resource))
        assert found.snippet == ""
        assert "a person" in found.missing or "no rule can" in found.missing


def test_a_rule_that_names_a_protected_path_is_an_error() -> None:
    with pytest.raises(PolicyError, match="protected"):
        make('version = 1\n[filesystem]\nread = ["/proc/cpuinfo"]')
    reads = make('version = 1\n[filesystem]\nread = ["/state/log/**"]')
    for path in ("/state", "/state/log", b"/state/log"):
        with pytest.raises(PolicyError, match="protected"):
            reads.protect([path])
    assert reads.protect([], ["/state"])  # reading is not writing
    assert reads.protect(["/state/key", "/stat"])  # beside it, or a look-alike
    writes = make('version = 1\n[filesystem]\nwrite = ["/tools/*"]')
    with pytest.raises(PolicyError, match=r"filesystem.write\[0\]"):
        writes.protect([], ["/tools"])
    with pytest.raises(PolicyError):
        writes.protect(["relative"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[filesystem]\nread = ["/**"]', "whole machine"),
        ('[filesystem]\nwrite = ["./**"]', "whole folder"),
        ('[filesystem]\nread = ["./a/x"]\ndeny = ["./a"]', "no effect"),
        ('[filesystem]\nread = ["./a", "./a"]', "twice"),
        ('[network]\nhttp = ["https://*.com/**"]', "top-level"),
        ('[network]\nhttp = ["https://h.example"]', "root page"),
        ('[network]\nhttp = ["http://h.example/**"]', "not encrypted"),
        ('[network]\nhttp = ["https://10.0.0.1/**"]', "network.private"),
        ('[network]\nhttp = ["https://a.internal/**"]\ndeny = ["*.internal"]', "forbids it"),
        ('[process]\npass_env = ["GITHUB_TOKEN"]', "looks like a secret"),
        ('[credentials.x]\nfrom_env = "T"\nhosts = ["h.example"]', "no http rule"),
        ('[labels]\ntrusted = ["user", "https://*.example/**"]', "trusts whoever"),
        ('[labels]\ntrusted = ["tool:x"]', 'leaves "user" out'),
    ],
)
def test_warnings(text: str, word: str) -> None:
    assert any(word in line for line in check_warnings(make("version = 1\n" + text)))


def test_the_control_a_tight_policy_has_no_warnings() -> None:
    text = 'version = 1\n[filesystem]\nread = ["./docs/**"]\n[network]\nhttp = ["https://h.example/a/**"]'
    assert check_warnings(make(text)) == []


@given(st.lists(st.sampled_from(["docs", "out", ".env", "a", ".git", "hooks", "x.md"]), max_size=4))
@settings(max_examples=200)
def test_denial_beats_allowance(parts: list[str]) -> None:
    policy = make('version = 1\n[filesystem]\nread = ["./**"]\ndeny = ["**/.env", "./out"]')
    resource = parse("fs.read", BASE + "/" + "/".join(parts))
    expected = ".env" not in parts and parts[:1] != ["out"]
    assert policy.judge("fs.read", resource).allowed is expected
