"""Credentials: they reach the host that they are for, and nothing of them comes back."""

from __future__ import annotations

import base64
import html
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.effects.base import EffectFailed, EffectRefused
from authority.effects.http_secrets import known_secrets
from authority.effects.secret_forms import _forms, redact
from authority.kernel import canonical
from authority.kernel.policy import Policy

from .speaker import http_effect
from .support import RawServer, call, policy, run, served
from .test_http import OK, local, resolver

SECRET = 'ghp_/aB"c<d>&+=%7xyzXYZ0123~'
TABLE = '[credentials.hub]\nfrom_env = "HUB"\nhosts = ["api.test:PORT"]\n'


async def with_secret(
    server: RawServer,
    *,
    table: str = TABLE,
    secrets: dict[str, str] | None = None,
    port: int | None = None,
    **arguments: Any,
) -> Any:
    effect = http_effect(
        secrets={"hub": SECRET} if secrets is None else secrets, resolver=resolver("127.0.0.1")
    )
    under = local(server, table.replace("PORT", str(port or server.port)))
    done = await effect.perform(
        call("http.request", f"http://api.test:{server.port}/", under=under, **arguments)
    )
    canonical.encode(done.facts)
    assert SECRET not in repr(done.facts)
    return done


def exchange(answer: Any, **options: Any) -> tuple[Any, RawServer]:
    async def main() -> tuple[Any, RawServer]:
        async with served(answer) as server:
            return await with_secret(server, **options), server

    result: tuple[Any, RawServer] = run(main())
    return result


def answer(body: bytes, *headers: bytes) -> bytes:
    head = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body)


def test_it_is_put_in_for_its_host() -> None:
    done, server = exchange(OK)
    assert f"Authorization: Bearer {SECRET}\r\n".encode() in server.seen[0]
    assert done.facts["credentials"] == ["hub"]
    assert "redacted" not in done.facts


def test_another_port_of_the_host_does_not_get_it() -> None:
    _, server = exchange(OK, port=443)
    assert b"uthorization" not in server.seen[0]
    _, server = exchange(OK, table=TABLE.replace("api.test:PORT", "api.test"))
    assert b"uthorization" not in server.seen[0], "a host alone is port 443"


def test_what_the_run_wrote_in_its_place_is_removed() -> None:
    headers = [
        ("authorization", "Bearer placeholder"),
        ("Cookie", "a=b"),
        ("Range", "bytes=0-3"),
        ("x_api_key", "mine"),
        ("X-Other", "stays"),
    ]
    table = TABLE + 'header = "X-Api-Key"\nformat = "{}"\n'
    _, server = exchange(OK, table=table, headers=headers)
    head = server.seen[0]
    assert f"X-Api-Key: {SECRET}\r\n".encode() in head
    for gone in (b"placeholder", b"Cookie", b"Range", b"mine"):
        assert gone not in head
    assert b"X-Other: stays" in head
    _, server = exchange(OK, table="", headers=headers)
    assert b"placeholder" in server.seen[0], "control: without a credential the run's own go out"


def forms() -> list[bytes]:
    raw = SECRET.encode()
    found = [
        raw,
        raw.upper(),
        raw.swapcase(),
        quote(SECRET, safe="").encode(),
        quote(SECRET, safe="").lower().encode(),
        json.dumps({"token": SECRET}).encode(),
        json.dumps(SECRET).replace("/", "\\/").encode(),
        html.escape(f"<b>{SECRET}</b>").encode(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
    ]
    for lead in ("", "a", "ab", "user:", "Bearer "):
        for trail in ("", "z", "zz"):
            text = (lead + SECRET + trail).encode()
            found += [base64.b64encode(text), base64.urlsafe_b64encode(text)]
    return found


def leaks(data: bytes) -> bool:
    """Whether ten characters in a row of any spelling of the secret are left."""
    lower = data.lower()
    return any(
        form[start : start + 10] in lower
        for form in _forms(SECRET)
        for start in range(len(form) - 9)
    )


@pytest.mark.parametrize("form", forms(), ids=range(len(forms())))
def test_an_echo_in_body_or_header_is_taken_out(form: bytes) -> None:
    header = b"X-Echo: " + form
    done, _ = exchange(answer(b"before " + form + b" after", header))
    everything = done.value["body"] + repr(done.value["headers"]).encode()
    assert leaks(form), "control: the test would see it"
    assert not leaks(everything)
    assert b"[credential hub]" in done.value["body"]
    assert done.value["body"].startswith(b"before ")
    assert done.value["body"].endswith(b" after")
    assert done.facts["redacted"] >= 2


def test_an_echo_split_over_chunks_and_reads() -> None:
    async def slowly(_reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in SECRET.encode():
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    done, _ = exchange(slowly)
    assert done.value["body"] == b"[credential hub]"


def test_where_it_could_hide_is_refused() -> None:
    for bad in (
        answer(b"x", b"Content-Encoding: gzip"),
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\nghp_",
    ):
        with pytest.raises(EffectFailed, match="host that gets a credential"):
            exchange(bad)
        assert exchange(bad, table="")[0].value["status"] in (200, 206), "control"


def test_a_session_cookie_stays_at_the_gate() -> None:
    bad = answer(b"x", b"Set-Cookie: session=s3cr3t", b"X-Other: y")
    assert exchange(bad)[0].value["headers"][1:] == [["X-Other", "y"]]
    assert len(exchange(bad, table="")[0].value["headers"]) == 3, "control"


def test_another_host_that_echoes_it() -> None:
    """The service under another name, for which no credential is put in: still taken out."""
    done, server = exchange(answer(SECRET.encode()), port=443)
    assert b"uthorization" not in server.seen[0]
    assert done.value["body"] == b"[credential hub]"


@pytest.mark.parametrize(
    "secrets", [{}, {"hub": ""}, {"hub": "short"}, {"hub": "with\r\nX: newline"}, {"hub": "é" * 9}]
)
def test_a_secret_that_cannot_be_used(secrets: dict[str, str]) -> None:
    async def main() -> None:
        async with served(OK) as server:
            with pytest.raises(EffectFailed, match="credential hub") as failed:
                await with_secret(server, secrets=secrets)
            assert server.peers == 0
            assert not secrets.get("hub") or secrets["hub"] not in failed.value.sentence

    run(main())


def test_two_credentials_for_one_header() -> None:
    table = TABLE + TABLE.replace(".hub", ".other").replace("HUB", "OTHER")
    with pytest.raises(EffectFailed, match="claim the same header"):
        exchange(OK, table=table, secrets={"hub": SECRET, "other": SECRET + "2"})
    _, server = exchange(
        OK,
        table=table + 'header = "X-Key"\nformat = "{}"\n',
        secrets={"hub": SECRET, "other": SECRET + "2"},
    )
    assert f"X-Key: {SECRET}2\r\n".encode() in server.seen[0]


def test_it_never_leaves_in_the_clear() -> None:
    """Plain http to an address that is not loopback: refused before anything is dialled."""
    effect = http_effect(secrets={"hub": SECRET}, resolver=resolver("8.8.8.8"), timeout_us=500_000)
    under = policy(TABLE.replace("PORT", "80"))
    with pytest.raises(EffectRefused, match="only sent over https"):
        run(effect.perform(call("http.request", "http://api.test/", under=under)))


def test_errors_do_not_hold_it() -> None:
    for bad in (
        SECRET.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 " + SECRET.encode() + b"\r\nx\r\n\r\n",
    ):
        with pytest.raises(EffectFailed) as failed:
            exchange(bad)
        assert SECRET not in failed.value.sentence + repr(failed.value.facts)
        assert SECRET not in repr(failed.value.__cause__)
        assert failed.value.__suppress_context__


def known(secret: str) -> Any:
    under: Policy = policy(TABLE.replace("PORT", "443"))
    return known_secrets(under, {"hub": secret})


@settings(max_examples=60)
@given(
    secret=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60),
    lead=st.binary(max_size=5),
    trail=st.binary(max_size=5),
)
def test_any_secret_is_found_in_base64(secret: str, lead: bytes, trail: bytes) -> None:
    encoded = base64.b64encode(lead + secret.encode() + trail)
    out, places = redact(encoded, known(secret))
    assert places >= 1
    assert b"[credential hub]" in out


@settings(max_examples=60)
@given(data=st.binary(max_size=200))
def test_what_holds_no_secret_stays_as_it_is(data: bytes) -> None:
    assert redact(data, known(SECRET)) == (data, 0)


def test_overlapping_secrets() -> None:
    under = policy(
        TABLE.replace("PORT", "443") + '[credentials.more]\nfrom_env = "MORE"\nhosts = ["b.test"]\n'
    )
    both = known_secrets(under, {"hub": "abcdefgh", "more": "efghijklm"})
    out, places = redact(b"-abcdefghijklm-abcdefgh-", both)
    assert (out, places) == (b"-[credential hub]-[credential hub]-", 2)
