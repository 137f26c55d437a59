"""The resolver of a run: names of the policy and no others, nothing asked of anybody outside."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from authority.compat import dns, names
from authority.compat.names import FIRST, Names, Place

from .support import FakeDoor, policy
from .test_dns import query

AAAA = 28
TOML = """
[network]
http = ["GET https://api.example/**", "GET http://api.example:8080/x", "GET https://*.cdn.example/**"]
allow = ["db.example:5432", "xn--bcher-kva.example:443", "git.example:22", "git.example:443"]
deny = ["evil.cdn.example", "*.bad.cdn.example", "git.example:443"]
"""


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> Any:
        raise AssertionError("a resolver outside was asked")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(socket, "gethostbyname", asked)


class Asker:
    def __init__(self, text: str = TOML) -> None:
        self.door = FakeDoor(policy(text))
        self.names = Names(self.door)  # type: ignore[arg-type]

    def ask(self, name: str, kind: int = dns.A, **more: Any) -> tuple[int, list[str]]:
        """(code, addresses)"""
        told = asyncio.run(self.names.answer(query(name, kind, **more)))
        count = struct.unpack(">H", told[6:8])[0]
        records = [told[len(told) - 16 * n :][:16] for n in range(count, 0, -1)]
        found = [socket.inet_ntoa(record[-4:]) for record in records if record[3] == dns.A]
        return told[3] & 15, found


def test_each_name_has_an_address_of_its_own() -> None:
    asker = Asker()
    assert asker.ask("api.example") == (dns.NOERROR, ["127.64.0.1"])
    assert asker.ask("db.example") == (dns.NOERROR, ["127.64.0.2"])
    assert asker.ask("API.EXAMPLE") == (dns.NOERROR, ["127.64.0.1"]), "the same for the whole run"
    assert asker.ask("a.cdn.example")[1] == ["127.64.0.3"]
    assert asker.ask("b.a.cdn.example")[1] == ["127.64.0.4"]
    assert asker.door.denied == []


def test_the_gate_listens_before_the_answer_and_once() -> None:
    asker = Asker()
    asker.ask("api.example")
    assert asker.door.listening == [(FIRST, 443), (FIRST, 8080)]
    asker.ask("api.example")
    asker.ask("git.example")
    assert asker.door.listening[2:] == [(FIRST + 1, 22)], "the denied port is not listened on"


def test_a_connection_is_known_by_its_address() -> None:
    asker = Asker()
    asker.ask("api.example")
    asker.ask("db.example")
    detail = socket.inet_aton("127.64.0.2") + struct.pack(">H", 5432)
    assert asker.names.place(detail) == Place("db.example", 5432)
    for other in ("127.64.0.3", "127.64.0.0", "127.0.0.1", "10.0.0.1", "255.255.255.255"):
        assert asker.names.place(socket.inet_aton(other) + b"\x01\xbb") is None
    assert asker.names.place(b"") is None
    assert asker.names.place(detail + b"x") is None


@pytest.mark.parametrize(
    "name",
    [
        "evil.test",
        "example",
        "cdn.example",
        "evil.cdn.example",
        "bad.cdn.example",
        "x.bad.cdn.example",
        "api.example.evil.test",
        "xapi.example",
        "api.examplex",
        "www.api.example",
        "bcher.example",
        "xn--bcher-kva.example.evil.test",
        "xn--bcher-kv.example",
        "2130706433",
        "127.0.0.1",
        "0x7f.1",
        "169.254.169.254",
        "metadata.google.internal",
        "localhost.example",
        "use-application-dns.net",
        "_acme-challenge.api.example",
        "sk-live-secret0123.evil.test",
        "",
    ],
)
def test_other_names_do_not_exist(name: str) -> None:
    asker = Asker()
    assert asker.ask(name) == (dns.NXDOMAIN, [])
    assert len(asker.door.denied) == 1
    effect, shown, reason = asker.door.denied[0]
    assert effect == "net.resolve"
    assert name in shown
    assert reason
    assert asker.door.listening == []
    assert asker.ask("api.example")[1] == ["127.64.0.1"]


def test_an_international_name_and_its_twins() -> None:
    asker = Asker()
    assert asker.ask("xn--bcher-kva.example")[0] == dns.NOERROR
    assert asker.ask("xn--bche-4ua.example")[0] == dns.NXDOMAIN
    assert asker.ask("bücher.example".encode().decode("latin-1"))[0] == dns.NXDOMAIN


@pytest.mark.parametrize("label", ["a.api", "api\0", "api.example", "*"])
def test_bytes_inside_a_label_make_no_allowed_name(label: str) -> None:
    asker = Asker()
    raw = bytes((len(label),)) + label.encode() + b"\x07example\0"
    told = asyncio.run(asker.names.answer(query(raw=raw)))
    assert told[3] & 15 == dns.NXDOMAIN
    assert len(asker.door.denied) == 1
    assert asker.door.denied[0][1].isprintable()


@pytest.mark.parametrize("kind", [28, 65, 64, 16, 15, 33, 5, 6, 2, 12, 35, 257, 999])
def test_other_types_are_empty_for_a_name_that_is_there(kind: int) -> None:
    asker = Asker()
    assert asker.ask("api.example", kind) == (dns.NOERROR, [])
    assert asker.ask("other.example", kind) == (dns.NXDOMAIN, [])
    assert asker.ask("api.example", dns.ANY) == (dns.NOERROR, ["127.64.0.1"])


def test_a_refused_name_is_a_denial_once_and_then_a_tally() -> None:
    asker = Asker()
    for kind in (dns.A, AAAA, dns.A):
        asker.ask("secret.evil.test", kind)
    assert len(asker.door.denied) == 1
    assert asker.door.glanced == ["dns:secret.evil.test"] * 2
    asker.ask("other.evil.test")
    assert len(asker.door.denied) == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_REMEMBERED", 2)
    asker = Asker()
    for name in ("a.test", "b.test", "c.test", "c.test", "a.test"):
        asker.ask(name)
    assert len(asker.door.denied) == 4, "what is not remembered is a denial again"


@pytest.mark.parametrize(("bound", "limit"), [("MAX_NAMES", 3), ("MAX_LISTENERS", 3)])
def test_names_and_listeners_are_bounded(
    bound: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, bound, limit)
    asker = Asker()
    codes = [asker.ask(f"h{n}.cdn.example")[0] for n in range(5)]
    assert codes == [dns.NOERROR] * 3 + [dns.SERVFAIL] * 2
    assert asker.ask("h0.cdn.example")[0] == dns.NOERROR, "what is there stays"
    assert len(asker.door.troubles) == 1
    assert len(asker.door.listening) == 3


def test_localhost_and_backward_questions() -> None:
    asker = Asker()
    assert asker.ask("localhost") == (dns.NOERROR, ["127.0.0.1"])
    assert asker.ask("sub.localhost", AAAA) == (dns.NOERROR, [])
    asker.ask("api.example")
    told = asyncio.run(asker.names.answer(query("1.0.64.127.in-addr.arpa", dns.PTR)))
    assert told.endswith(b"\x03api\x07example\0")
    assert asker.ask("1.0.0.127.in-addr.arpa", dns.PTR)[0] == dns.NOERROR
    assert asker.door.denied == []
    for name in ("2.0.64.127.in-addr.arpa", "8.8.8.8.in-addr.arpa", "a.0.64.127.in-addr.arpa"):
        assert asker.ask(name, dns.PTR)[0] == dns.NXDOMAIN
    assert len(asker.door.denied) == 3


def test_what_is_no_query_is_answered_and_told_once() -> None:
    asker = Asker()
    for _ in range(3):
        told = asyncio.run(asker.names.answer(query(counts=(2, 0, 0, 0))))
        assert told[3] & 15 == dns.FORMERR
    assert asyncio.run(asker.names.answer(b"x")) == b""
    assert len(asker.door.troubles) == 2


def test_each_datagram_goes_back_to_its_asker() -> None:
    class Stream:
        def __init__(self) -> None:
            self.incoming = [
                b"ABCDEF" + query("api.example"),
                b"abcdef" + b"x",
                b"GHIJKL" + query("no.test"),
            ]
            self.sent: list[bytes] = []

        async def read(self) -> bytes:
            return self.incoming.pop(0) if self.incoming else b""

        async def write(self, data: bytes) -> None:
            self.sent.append(data)

    stream = Stream()
    asyncio.run(Asker().names.serve(stream))  # type: ignore[arg-type]
    assert [each[:6] for each in stream.sent] == [b"ABCDEF", b"GHIJKL"]


def test_a_policy_without_a_network_knows_no_name() -> None:
    asker = Asker("")
    assert asker.ask("api.example") == (dns.NXDOMAIN, [])
    assert not policy("").needs_network
    assert policy(TOML).needs_network
