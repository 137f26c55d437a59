"""Names in a real run: the C library asks, the gate answers, and nothing gets out beside it."""

from __future__ import annotations

import json
from pathlib import Path

import certifi

from gate.lab import OPEN, Lab

POLICY = OPEN + '[network]\nhttp = ["GET https://api.example/**"]\nallow = ["db.example:5432"]\n'

ASK = """
import json, socket
found = {}
def tell(name, call):
    try:
        found[name] = call()
    except OSError as error:
        found[name] = type(error).__name__ + " " + str(error.errno)
def look(name, port=443):
    return sorted({e[4][0] for e in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)})
names = "api.example API.example. db.example localhost secret.evil.test secret.evil.test"
for name in names.split():
    tell(name, lambda: look(name))
"""


def ran(lab: Lab, source: str, policy: str = POLICY) -> tuple[dict[str, object], str]:
    done = lab.run(ASK + source + "\nprint(json.dumps(found))", policy)
    assert done.out.startswith("{"), done.err
    return json.loads(done.out), done.run


def test_allowed_names_have_addresses_of_the_runs_own_loopback(lab: Lab) -> None:
    found, run = ran(lab, "")
    assert found["api.example"] == found["API.example."] == ["127.64.0.1"]
    assert found["db.example"] == ["127.64.0.2"]
    assert found["localhost"] == ["127.0.0.1"]
    assert found["secret.evil.test"] == "gaierror -2", "it does not exist"
    denied = lab.denials(run=run)
    assert [(e["effect"], e["resource"]) for e in denied] == [
        ("net.resolve", "dns:secret.evil.test")
    ]
    counts = [e["counts"] for e in lab.log(kind="tally", run=run)]
    assert sum(c.get("net.resolve", 0) for c in counts) >= 3
    assert sum(c.get("!net.resolve", 0) for c in counts) >= 1


def test_a_listener_is_there_when_the_name_is_known(lab: Lab) -> None:
    found, _ = ran(
        lab,
        """
def reach(name, port):
    with socket.create_connection((name, port), timeout=10) as s:
        return s.getpeername()[0]
tell("named", lambda: reach("db.example", 5432))
tell("other port", lambda: reach("db.example", 5433))
tell("not named", lambda: reach("127.64.0.9", 5432))
""",
    )
    assert found["named"] == "127.64.0.2"
    assert found["other port"] == found["not named"] == "ConnectionRefusedError 111"


def test_other_ways_out_do_not_exist(lab: Lab) -> None:
    """UDP (and so QUIC and plain DNS), ICMP, raw sockets, metadata addresses, DoH by address."""
    found, _ = ran(
        lab,
        """
def udp(address, port, data=b"x" * 1200):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.connect((address, port))
        s.send(data)
        return s.recv(2000).hex()
def tcp(address, port):
    return socket.create_connection((address, port), timeout=2).getpeername()
tell("quic", lambda: udp("192.0.2.1", 443))
tell("dns outside", lambda: udp("8.8.8.8", 53))
tell("metadata", lambda: tcp("169.254.169.254", 80))
tell("doh by address", lambda: tcp("1.1.1.1", 443))
tell("doh by name", lambda: look("dns.google"))
tell("udp6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
tell("icmp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1))
tell("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
tell("sctp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132))
tell("mptcp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
tell("asked here", lambda: udp("127.0.0.1", 53,
    bytes.fromhex("123401000001000000000000") + b"\\3api\\7example\\0\\0\\1\\0\\1")[:4])
""",
    )
    for name in ("quic", "dns outside", "metadata", "doh by address"):
        assert found[name] == "OSError 101", "the network is unreachable"
    assert found["doh by name"] == "gaierror -2"
    for name in ("udp6", "icmp", "raw", "sctp", "mptcp"):
        assert found[name] == "PermissionError 1"
    assert found["asked here"] == "1234", "the control: UDP to the run's own resolver"


def test_without_a_network_there_is_no_resolver(lab: Lab) -> None:
    found, run = ran(lab, "", OPEN)
    assert str(found["api.example"]).startswith("gaierror")
    assert lab.denials(run=run) == []


def test_the_environment_leads_to_the_runs_own_endpoints(lab: Lab) -> None:
    found, _ = ran(
        lab,
        """
import os, ssl
for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE",
             "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "MODE"):
    found[name] = os.environ.get(name)
context = ssl.create_default_context()
found["authorities"] = [c["subject"][1][0][1] for c in context.get_ca_certs()
                        if c["subject"][0][0][1] == "Authority"]
bundle = open(os.environ["SSL_CERT_FILE"]).read()
found["bundle"] = open("/etc/ssl/certs/ca-certificates.crt").read() == bundle
found["key"] = "PRIVATE" in bundle
found["resolv"] = open("/etc/resolv.conf").read()
""",
        POLICY + '[process]\nenv = { ALL_PROXY = "http://mine.test:1", MODE = "x" }\n',
    )
    assert found["HTTPS_PROXY"] == found["https_proxy"] == "http://127.0.0.1:48101"
    assert found["ALL_PROXY"] == "http://mine.test:1", "the person's own value stays"
    assert found["MODE"] == "x"
    assert found["SSL_CERT_FILE"] == found["REQUESTS_CA_BUNDLE"] == found["NODE_EXTRA_CA_CERTS"]
    assert len(found["authorities"]) == 1  # type: ignore[arg-type]
    assert found["bundle"] is True
    assert found["key"] is False
    assert found["resolv"] == "nameserver 127.0.0.1\noptions timeout:10 attempts:1\n"


def test_certificates_lie_over_those_that_packages_bring(lab: Lab) -> None:
    source = """
import certifi, os, pip._vendor.certifi as pips
ours = open(os.environ["SSL_CERT_FILE"]).read()
found["certifi"] = open(certifi.where()).read() == ours
found["pip"] = open(pips.where()).read() == ours
tell("write", lambda: open(certifi.where(), "w"))
"""
    found, _ = ran(lab, source)
    assert found["certifi"] is True
    assert found["pip"] is True
    assert str(found["write"]).startswith(("PermissionError", "OSError 30"))
    only_tunnels = OPEN + '[network]\nallow = ["db.example:5432"]\n'
    found, _ = ran(lab, 'import certifi\nfound["all"] = open(certifi.where()).read()', only_tunnels)
    assert found["all"] == Path(certifi.where()).read_text(), "no requests, no authority"
