"""HTTP over real sockets: what is sent, what comes back, what is recorded."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from authority.effects.base import EffectFailed, EffectRefused
from authority.kernel import canonical
from authority.kernel.codes import Code
from authority.kernel.policy import Policy

from .speaker import http_effect
from .support import RawServer, call, policy, run, served

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Thing: one\r\n\r\nhello"


def resolver(*addresses: str) -> Callable[[str, int], Any]:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


def local(server: RawServer, more: str = "") -> Policy:
    return policy(f'[network]\nprivate = ["api.test:{server.port}"]\n{more}')


async def ask(
    server: RawServer,
    path: str = "/",
    *,
    scheme: str = "http",
    secrets: dict[str, str] | None = None,
    more: str = "",
    options: dict[str, Any] | None = None,
    reserved: dict[str, int] | None = None,
    **arguments: Any,
) -> Any:
    """One request to `server` under the name api.test, which leads to the loopback address."""
    effect = http_effect(
        secrets=secrets or {}, **{"resolver": resolver("127.0.0.1"), **(options or {})}
    )
    done = await effect.perform(
        call(
            "http.request",
            f"{scheme}://api.test:{server.port}{path}",
            under=local(server, more),
            reserved=reserved,
            **arguments,
        )
    )
    canonical.encode(done.facts)
    return done


def exchange(answer: Any, path: str = "/", **options: Any) -> tuple[Any, RawServer]:
    async def main() -> tuple[Any, RawServer]:
        async with served(answer) as server:
            return await ask(server, path, **options), server

    result: tuple[Any, RawServer] = run(main())
    return result


def test_an_exchange_and_its_record() -> None:
    done, server = exchange(OK, "/a%2Fb/c?x=%20y")
    url = f"http://api.test:{server.port}/a%2Fb/c?x=%20y"
    assert done.value == {
        "status": 200,
        "headers": [["Content-Length", "5"], ["X-Thing", "one"]],
        "body": b"hello",
        "url": url,
    }
    assert done.facts == {
        "address": "127.0.0.1",
        "status": 200,
        "bytes_in": len(OK),
        "bytes_out": len(server.seen[0]),
        "size": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
    }
    assert done.spent == {"requests": 1, "network_bytes": len(OK) + len(server.seen[0])}
    lines = server.seen[0].split(b"\r\n")
    assert lines[0] == b"GET /a%2Fb/c?x=%20y HTTP/1.1", "the target goes out as it was judged"
    assert sorted(lines[1:-2]) == [
        b"Accept-Encoding: identity",
        b"Connection: close",
        f"Host: api.test:{server.port}".encode(),
        b"User-Agent: authority",
    ]


def test_a_body_and_headers_go_out() -> None:
    _, server = exchange(
        OK,
        method="POST",
        body=b"\0data",
        headers=[("X-A", "1"), ("X-A", "2"), ("user-agent", "me")],
    )
    head, _, body = server.seen[0].partition(b"\r\n\r\n")
    assert body == b"\0data"
    assert b"Content-Length: 5" in head
    assert head.count(b"X-A") == 2
    assert b"user-agent: me" in head
    assert b"authority" not in head
    _, server = exchange(OK, method="POST")
    assert b"Content-Length: 0" in server.seen[0]


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    done, server = exchange(answer)
    assert done.value["status"] == 302
    assert ["Location", "http://127.0.0.1:1/"] in done.value["headers"]
    assert server.peers == 1


def test_chunks_are_joined_and_interim_answers_are_skipped() -> None:
    answer = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    )
    done, _ = exchange(answer)
    assert done.value["body"] == b"abcde"
    assert done.spent["network_bytes"] > len(answer)


def test_head_has_no_body() -> None:
    done, _ = exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", method="HEAD")
    assert (done.value["status"], done.value["body"]) == (200, b"")


def test_no_environment_no_cookies_no_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    (tmp_path / ".netrc").write_text("machine api.test login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))

    async def main() -> list[bytes]:
        async with served(OK.replace(b"X-Thing: one", b"Set-Cookie: a=b; Path=/")) as server:
            effect = http_effect(secrets={}, resolver=resolver("127.0.0.1"))
            for _ in range(2):
                await effect.perform(
                    call("http.request", f"http://api.test:{server.port}/", under=local(server))
                )
            assert server.peers == 2, "one connection a request"
            return server.seen

    first, second = run(main())
    assert first == second
    assert b"ookie" not in second
    assert b"uthorization" not in second
    assert not keys.exists()


# --- TLS ---


class Authorities:
    """A certificate authority made for this test, and certificates from it."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._sign(self.name, self.key.public_key(), None, authority=True)

    def _sign(self, subject: x509.Name, key: Any, names: Any, *, authority: bool) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, folder: Path, *names: Any) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._sign(subject, key.public_key(), names, authority=False)
        pem = serialization.Encoding.PEM
        (folder / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.anchors().decode())
        return context

    def anchors(self) -> bytes:
        return bytes(self.certificate.public_bytes(serialization.Encoding.PEM))


def tls_exchange(tmp_path: Path, name: str, *, trusted: bool = True) -> tuple[Any, list[str]]:
    authorities = Authorities()
    server_tls = authorities.server(
        tmp_path, x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    )
    seen: list[str] = []
    server_tls.sni_callback = lambda _socket, sni, _context: seen.append(sni)

    async def main() -> Any:
        async with served(OK, tls=server_tls) as server:
            options = {"anchors": authorities.anchors()} if trusted else {}
            return await ask(server, scheme="https", options=options)

    return run(main()), seen


def test_tls_speaks_to_the_name_and_dials_the_address(tmp_path: Path) -> None:
    done, seen = tls_exchange(tmp_path, "api.test")
    assert done.value["body"] == b"hello"
    assert seen == ["api.test"]
    assert done.facts["address"] == "127.0.0.1"
    assert done.facts["bytes_in"] == len(OK), "plain bytes are counted"


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    """It is valid for the address that is dialled: that must not help."""
    with pytest.raises(EffectFailed, match="certificate was not accepted: Hostname mismatch"):
        tls_exchange(tmp_path, "other.test")


def test_an_unknown_authority_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EffectFailed, match="certificate was not accepted"):
        tls_exchange(tmp_path, "api.test", trusted=False)


def test_plain_text_where_tls_is_spoken() -> None:
    async def main() -> None:
        async with served(OK) as server:
            await ask(server, scheme="https", options={"timeout_us": 400_000})

    with pytest.raises(EffectFailed):
        run(main())


# --- what cannot be reached ---


def test_nobody_listens_and_a_name_without_address() -> None:
    async def main() -> None:
        async with served(OK) as server:
            pass
        with pytest.raises(EffectFailed, match="could not be reached"):
            await ask(server)

        async def none(_host: str, _port: int) -> list[str]:
            raise OSError("no such name: internal.example")

        for nothing in (none, resolver()):
            with pytest.raises(EffectFailed) as failed:
                await ask(server, options={"resolver": nothing})
            assert failed.value.sentence == "The host's name could not be resolved."

    run(main())


def test_the_next_judged_address_is_tried() -> None:
    async def main() -> Any:
        async with served(OK, host="127.0.0.1") as server:
            return await ask(server, options={"resolver": resolver("127.0.0.2", "127.0.0.1")})

    assert run(main()).facts["address"] == "127.0.0.1"


def test_the_real_resolver() -> None:
    async def main() -> Any:
        async with served(OK) as server:
            under = policy(f'[network]\nprivate = ["localhost:{server.port}"]\n')
            url = f"http://localhost:{server.port}/"
            return await http_effect(secrets={}).perform(call("http.request", url, under=under))

    assert run(main()).value["body"] == b"hello"


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get", "GET /x", "", "GE\r\nT", "A" * 40])
def test_methods_that_do_not_exist(method: str) -> None:
    with pytest.raises(EffectRefused) as refused:
        exchange(OK, method=method)
    assert refused.value.code == Code.SCHEMA_INVALID


@pytest.mark.parametrize("arguments", [{"max_bytes": -1}, {"max_bytes": 2**40}, {"body": b"x"}])
def test_arguments_out_of_bounds(arguments: dict[str, Any]) -> None:
    with pytest.raises(EffectRefused) as refused:
        exchange(OK, reserved={"network_bytes": 99999}, **arguments)
    assert refused.value.code == Code.SCHEMA_INVALID
