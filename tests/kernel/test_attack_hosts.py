"""Attack family: hosts that mean something else to whoever dials them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.resources import ResourceError, judge_address, parse

REFUSED = [
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "1.2.3.4.5",
    "127.0.0.256",
    "127.0.0.01",
    "00.0.0.0",
    "127.0.0.0x1",
    "0x",
    "a.b.123",
    "１２７.1",
    "127。1",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[fe80::1%25eth0]",
    "[fe80::1%eth0]",
    "[::1",
    "::1",
    "[::1]x",
    "[1]",
    "[v1.x]",
    "[]",
    "user@good.example",
    "user:pw@good.example",
    "good.example@evil.example",
    "@good.example",
    "",
    ".",
    "..",
    "a..b",
    ".a",
    "a.example..",
    "-a.example",
    "a-.example",
    "a" * 64 + ".example",
    ".".join(["a" * 60] * 5),
    "good.example%00.evil.example",
    "good%2eexample",
    "good.example%2f",
    "good .example",
    "good.example\t",
    "good.example\n",
    "good.example\r\nHost: evil",
    "good.example\x00",
    "good.example\\@evil.example",
    "good\\.example",
    "good.example\u200b",
    "go\u00adod.example",
    "go\u202eod.example",
    "xn--a.example",
    "xn--.example",
    "xn--good-.example",
    "*.example",
    "a,b",
    "a'b",
    "a$b",
    "good.example:",
    "good.example:0",
    "good.example:65536",
    "good.example:0443",
    "good.example:+443",
    "good.example:4 43",
    "good.example:４４３",
    "good.example:443:443",
]


@pytest.mark.parametrize("host", REFUSED)
@pytest.mark.parametrize("form", ["https://{}/", "http://{}/x?y"])
def test_a_host_with_two_meanings_is_refused(host: str, form: str) -> None:
    with pytest.raises(ResourceError):
        parse("http.request", form.format(host))
    with pytest.raises(ResourceError):
        parse("net.connect", f"{host}:443" if "]" in host or ":" not in host else host)


@pytest.mark.parametrize(
    ("host", "same"),
    [
        ("GOOD.example", "good.example"),
        ("good.example.", "good.example"),
        ("ｇｏｏｄ.example", "good.example"),
        ("good。example", "good.example"),
        ("１２７.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("[2001:DB8::A]", "2001:db8::a"),
        ("[64:ff9b::127.0.0.1]", "64:ff9b::7f00:1"),
    ],
)
def test_the_control_other_spellings_of_one_host_are_one(host: str, same: str) -> None:
    assert parse("http.request", f"https://{host}/").host == same


@pytest.mark.parametrize("fake", ["gооd.example", "good.examрle", "ɡood.example", "gοod.example"])
def test_a_look_alike_never_equals_what_it_looks_like(fake: str) -> None:
    try:
        host = parse("http.request", f"https://{fake}/").host
    except ResourceError:
        return
    assert host != "good.example"
    assert "xn--" in host
    assert host.isascii()


@pytest.mark.parametrize(
    "url",
    [
        "https:good.example/",
        "https:/good.example/",
        "https:///good.example/",
        "https:\\\\good.example\\",
        "//good.example/",
        " https://good.example/",
        "https://good.example/\n",
        "ht\ttps://good.example/",
        "https://good.example /",
        "file:///etc/passwd",
        "javascript://good.example/",
        "https://" + "a" * 9000,
        "https://good.example/%zz",
        "https://good.example/%",
        "https://good.example/a%00b",
        "https://good.example/a%0d%0aX: y",
        "https://good.example/?a=%00",
        "https://good.example/a b",
        "https://good.example/\ud800",
    ],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ResourceError):
        parse("http.request", url)


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "reserved"),
        ("0.1.2.3", "reserved"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("169.254.1.1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("192.0.0.192", "metadata"),
        ("192.0.0.8", "reserved"),
        ("192.0.2.1", "reserved"),
        ("198.18.0.1", "reserved"),
        ("198.51.100.1", "reserved"),
        ("203.0.113.1", "reserved"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "reserved"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("fec0::1", "private"),
        ("fc00::1", "private"),
        ("fd12::1", "private"),
        ("fd00:ec2::254", "metadata"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "reserved"),
        ("100::1", "reserved"),
        ("4000::1", "reserved"),
        ("::ffff:127.0.0.1", "embedded (IPv4-mapped) loopback"),
        ("::ffff:169.254.169.254", "embedded (IPv4-mapped) metadata"),
        ("::7f00:1", "embedded (IPv4-compatible) loopback"),
        ("::8.8.8.8", "embedded"),
        ("64:ff9b::7f00:1", "embedded (NAT64) loopback"),
        ("64:ff9b::a9fe:a9fe", "embedded (NAT64) metadata"),
        ("64:ff9b:1::1", "private"),
        ("2002:7f00:1::", "embedded (6to4) loopback"),
        ("2002:808:808::", "embedded (6to4)"),
        ("2001:0:808:808::80ff:fffe", "embedded (Teredo) loopback"),
        ("2001:0:1::f7f7:f7f7", "embedded (Teredo)"),
        ("fe80::1%eth0", "not an address"),
        ("127.1", "not an address"),
        ("localhost", "not an address"),
        ("", "not an address"),
    ],
)
def test_addresses_that_are_not_public(address: str, word: str) -> None:
    assert (judge_address(address) or "").startswith(word)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "169.253.0.1",
        "198.20.0.1",
        "2606:4700::1111",
        "2a00:1450::1",
        "64:ff9b::808:808",
        "::ffff:8.8.8.8",
    ],
)
def test_the_control_public_addresses(address: str) -> None:
    assert judge_address(address) is None


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=300)
def test_never_more_public_than_the_standard_library_says(value: int) -> None:
    address = ipaddress.IPv4Address(value)
    if not address.is_global:
        assert judge_address(str(address)) is not None
    for prefix in ("::ffff:", "64:ff9b::"):
        assert (judge_address(prefix + str(address)) is None) == (
            judge_address(str(address)) is None
        )
