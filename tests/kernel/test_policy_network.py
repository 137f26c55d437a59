"""What a policy leaves open by host and port, its company proxy, and whom it trusts."""

from __future__ import annotations

from typing import Any

import pytest

from authority.kernel import flows
from authority.kernel.labels import Label
from authority.kernel.policy import (
    Policy,
    PolicyError,
    Source,
    explain,
    for_agent,
    from_canonical,
    load,
)
from authority.kernel.policy_explain import check_warnings
from authority.kernel.resources import ResourceError, parse, parse_text


def make(text: str, **parents: str) -> Policy:
    def read_parent(_base: str, name: str) -> Source:
        return Source("version = 1\n" + parents[name.removesuffix(".toml")], "toml", "/q", name)

    return load(
        "version = 1\n" + text, format="toml", base="/p/x", name="t.toml", read_parent=read_parent
    )


TOML = """[network]
http = ["GET https://api.example/a/**", "POST http://api.example:8080/x", "https://*.cdn.example"]
allow = ["db.example:5432", "*.git.example:22"]
deny = ["db2.example", "no.git.example:22", "https://api.example/secret/**"]
"""


@pytest.mark.parametrize(
    ("host", "ports"),
    [
        ("api.example", (443, 8080)),
        ("db.example", (5432,)),
        ("x.git.example", (22,)),
        ("y.x.git.example", (22,)),
        ("a.cdn.example", (443,)),
        ("git.example", ()),
        ("cdn.example", ()),
        ("no.git.example", ()),
        ("db2.example", ()),
        ("example", ()),
        ("xapi.example", ()),
        ("", ()),
    ],
)
def test_ports_of_a_host(host: str, ports: tuple[int, ...]) -> None:
    assert make(TOML).reach.ports(host) == ports
    assert from_canonical(make(TOML).canonical).reach.ports(host) == ports


def test_every_file_of_the_chain_has_to_leave_it_open() -> None:
    base = '[network]\nallow = ["db.example:5432", "db.example:5433", "o.example:1"]\n'
    narrower = make('extends = "b.toml"\n[network]\nallow = ["*.example:5432"]\n', b=base)
    assert narrower.reach.ports("db.example") == (5432,)
    assert narrower.reach.ports("o.example") == ()
    silent = make('extends = "b.toml"\n', b=base)
    assert silent.reach.ports("db.example") == (5432, 5433)
    none = make('extends = "b.toml"\n[network]\nallow = []\n', b=base)
    assert none.reach.ports("db.example") == ()


def test_hosts_that_the_runs_authority_vouches_for() -> None:
    assert make(TOML).reach.judged_hosts() == ("api.example", "cdn.example")
    base = '[network]\nhttp = ["https://*.example/**", "https://only.base/**"]\n'
    child = make(
        'extends = "b.toml"\n[network]\nhttp = ["https://a.example/**", "https://evil.test/**"]\n',
        b=base,
    )
    assert child.reach.judged_hosts() == ("a.example",)
    assert make('[network]\nallow = ["db.example:1"]\n').reach.judged_hosts() == ()


def test_it_costs_the_same_at_ten_rules_and_ten_thousand() -> None:
    """The look-ups are counted, not timed: one for the name and one for each ending."""
    many = make("[network]\nallow = [" + ",".join(f'"h{n}.example:1"' for n in range(5000)) + "]\n")
    assert many.reach.ports("h4999.example") == (1,)
    assert many.reach.ports("h5000.example") == ()


def judged(policy: Policy, effect: str, raw: str) -> bool:
    return policy.judge(effect, parse(effect, raw)).allowed


@pytest.mark.parametrize(
    ("raw", "allowed"),
    [
        ("db.example:5432", True),
        ("DB.example.:5432", True),
        ("db.example:5433", False),
        ("api.example:443", False),
        ("x.git.example:22", True),
        ("no.git.example:22", False),
        ("x.git.example.evil.test:22", False),
        ("db2.example:5432", False),
    ],
)
def test_a_tunnel_is_judged_by_host_and_exact_port(raw: str, allowed: bool) -> None:
    assert judged(make(TOML), "net.connect", raw) is allowed


@pytest.mark.parametrize(
    "raw",
    [
        "db.example",
        "db.example:0",
        "a@db.example:1",
        "2130706433:1",
        "db.example:1/x",
        "[::ffff:1.2.3.4]:1",
    ],
)
def test_what_is_no_tunnel_has_no_resource(raw: str) -> None:
    with pytest.raises(ResourceError):
        parse("net.connect", raw)


def test_names_are_judged() -> None:
    policy = make(TOML)
    for name in ("api.example", "a.cdn.example", "db.example"):
        assert judged(policy, "net.resolve", name)
    for name in ("evil.test", "cdn.example", "db2.example"):
        assert not judged(policy, "net.resolve", name)
    assert parse_text("dns:api.example") == parse("net.resolve", "API.example.")
    for bad in ("127.0.0.1", "dns:", "a..b", "a b"):
        with pytest.raises(ResourceError):
            parse("net.resolve", bad)


def test_denials_are_explained() -> None:
    policy = make(TOML)
    for effect, raw, snippet in (
        ("net.connect", "new.example:5432", 'allow = ["new.example:5432"]'),
        ("net.resolve", "new.example", 'http = ["GET https://new.example/**"]'),
    ):
        resource = parse(effect, raw)
        told = explain(policy, effect, resource, "", policy.judge(effect, resource))
        assert snippet in told.snippet
        assert judged(make(told.snippet), effect, raw)
    forbidden = parse("net.connect", "db2.example:1")
    assert "network.deny" in policy.judge("net.connect", forbidden).reason
    assert not explain(
        policy, "net.connect", forbidden, "", policy.judge("net.connect", forbidden)
    ).snippet


# --- labels ---


def test_a_tunnel_is_control_until_it_is_named_as_content() -> None:
    resource = parse("net.connect", "db.example:5432")
    shaped = Label(frozenset({"https://evil.test"}))

    def refuses(policy: Policy, label: Label = shaped) -> str:
        sink = flows.sink(
            policy, "net.connect", resource, "", frozenset({"via"}), label.secrets, own=False
        )
        return sink.refuses(label)

    assert refuses(make(TOML))
    named = make(TOML + '[labels]\ncontent = ["tcp://db.example:5432"]\n')
    assert not refuses(named)
    assert refuses(make(TOML + '[labels]\ncontent = ["tcp://db.example:5433"]\n'))
    secret = Label(frozenset(), frozenset({"payroll"}))
    assert refuses(named, secret)
    released = make(
        TOML
        + '[labels]\ncontent = ["tcp://db.example:5432"]\nsecrets = { payroll = ["fs:/pay/**"] }\n'
        'release = { payroll = ["tcp://db.example:5432"] }\n'
    )
    assert not refuses(released, secret)


def test_what_a_tunnel_answers_carries_its_host() -> None:
    resource = parse("net.connect", "db.example:5432")
    assert flows.result_label(make(TOML), "net.connect", resource, "") == Label(
        frozenset({"tcp://db.example"})
    )
    trusted = make(TOML + '[labels]\ntrusted = ["tcp://db.example:5432"]\n')
    assert flows.result_label(trusted, "net.connect", resource, "").clean


# --- a company's proxy, more certificates ---


def test_proxy_and_certificates() -> None:
    policy = make('[network]\nproxy = "http://Proxy.corp:3128/"\nca = "./corp-ca.pem"\n')
    assert policy.network.proxy == "http://proxy.corp:3128"
    assert policy.network.ca == ("/p/x/corp-ca.pem",)
    assert make('[network]\nca = ["../a.pem", "/etc/b.pem"]\n').network.ca == (
        "/p/a.pem",
        "/etc/b.pem",
    )
    assert from_canonical(policy.canonical).network == policy.network


@pytest.mark.parametrize(
    "line",
    [
        'proxy = "proxy.corp:3128"',
        'proxy = "https://proxy.corp:3128"',
        'proxy = "socks5://proxy.corp:1080"',
        'proxy = "http://proxy.corp"',
        'proxy = "http://user:secret@proxy.corp:3128"',
        'proxy = "http://proxy.corp:3128/path"',
        'proxy = "http://proxy.corp:99999"',
        "proxy = 3128",
        'ca = "*.pem"',
        'ca = "https://corp/ca.pem"',
        'ca = "certs/"',
        "ca = 1",
    ],
)
def test_other_proxies_and_files_are_refused(line: str) -> None:
    with pytest.raises(PolicyError, match=r"network\.(proxy|ca)") as caught:
        make(f"[network]\n{line}\n")
    assert "secret" not in caught.value.message or "user information" in caught.value.message


def test_nothing_below_adds_a_way_out_or_trust() -> None:
    base = '[network]\nproxy = "http://p.corp:1"\nca = ["/a.pem", "/b.pem"]\n'
    kept = make('extends = "b.toml"\n', b=base).network
    assert (kept.proxy, kept.ca) == ("http://p.corp:1", ("/a.pem", "/b.pem"))
    fewer = make('extends = "b.toml"\n[network]\nca = ["/a.pem"]\n', b=base).network
    assert fewer.ca == ("/a.pem",)
    for line in ('proxy = "http://evil.test:1"', 'ca = ["/a.pem", "/evil.pem"]'):
        with pytest.raises(PolicyError):
            make(f'extends = "b.toml"\n[network]\n{line}\n', b=base)
        with pytest.raises(PolicyError):
            make(f'extends = "b.toml"\n[network]\n{line}\n', b="")


def test_a_child_has_its_parents_way_out() -> None:
    agent = '[agents.c]\ncommand = ["c"]\npolicy = "c.toml"\n'
    own = '[network]\nproxy = "http://evil.test:1"\nca = ["/a.pem", "/evil.pem"]\n'

    def child(parent: str) -> Any:
        def read(_base: str, name: str) -> Source:
            return Source("version = 1\n" + own, "toml", "/q", name)

        return for_agent(make(parent + agent), "c", read).network

    assert (child("").proxy, child("").ca) == ("", ())
    under = child('[network]\nproxy = "http://p.corp:1"\nca = ["/a.pem"]\n')
    assert (under.proxy, under.ca) == ("http://p.corp:1", ("/a.pem",))


def test_a_variable_of_a_credential_is_not_the_policys_to_set() -> None:
    table = '[credentials.h]\nfrom_env = "HUB"\nhosts = ["h.example"]\n'
    with pytest.raises(PolicyError, match="placeholder"):
        make(table + '[process]\nenv = { HUB = "x" }\n')
    assert make(table + '[process]\nenv = { OTHER = "x" }\n')


def test_broad_tunnels_are_warned_about() -> None:
    warned = check_warnings(
        make(
            '[network]\nallow = ["*.com:443", "h.example:443", "10.0.0.1:22", "dns.google:443"]\n'
            'http = ["https://h.example/**"]\nproxy = "http://p.corp:1"\n'
        )
    )
    assert any("*.com" in line and "top-level" in line for line in warned)
    assert any("h.example:443" in line and "requests" in line for line in warned)
    assert any("10.0.0.1" in line and "private" in line for line in warned)
    assert any("resolves names" in line for line in warned)
    assert check_warnings(make('[network]\nallow = ["db.example:5432"]\n')) == []
