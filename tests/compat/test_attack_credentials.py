"""Credentials behind a placeholder: they go to their hosts alone, no other key does, none returns."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.compat.credentials import Clean, Keyring
from authority.effects.base import EffectFailed
from authority.effects.secret_forms import Scrubber
from authority.kernel.policy import PolicyError
from authority.kernel.resources import Resource, parse

from .support import policy

HUB, NPM = "ghp_real/secret+of=hub0123", "npm_another-real-secret"
TOML = """
[network]
http = ["GET,POST https://api.hub.example/**?*", "GET https://npm.example/**?*",
        "GET https://free.example/**?*"]
[credentials.hub]
from_env = "HUB_TOKEN"
hosts = ["api.hub.example"]
[credentials.npm]
from_env = "NPM_TOKEN"
hosts = ["npm.example", "api.hub.example:8443"]
header = "X-Npm"
format = "npm {}"
"""
SECRETS = {"hub": HUB, "npm": NPM}


def keyring(text: str = TOML, secrets: dict[str, str] | None = None) -> Keyring:
    counter = iter(range(100))
    return Keyring(
        policy(text), SECRETS if secrets is None else secrets, lambda: f"{next(counter):032x}"
    )


RING = keyring()
OWN, FOREIGN = RING.placeholders["hub"], RING.placeholders["npm"]


def url(text: str = "https://api.hub.example/x") -> Resource:
    return parse("http.request", text)


def asked(*headers: tuple[str, str], at: str = "https://api.hub.example/x") -> Clean:
    found = RING.clean(url(at), headers)
    assert HUB not in repr(found)
    assert NPM not in repr(found)
    return found


def sent(*headers: tuple[str, str], at: str = "https://api.hub.example/x") -> Any:
    return RING.fill(asked(*headers, at=at))


def header(filled: Any, name: str) -> list[str]:
    return [value for key, value in filled.headers if key.lower() == name.lower()]


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_the_run_holds_placeholders_that_are_new_for_each_run() -> None:
    assert RING.environment == {"HUB_TOKEN": OWN, "NPM_TOKEN": FOREIGN}
    assert OWN.startswith("authority-placeholder-hub-")
    assert HUB not in repr(RING.environment)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("Authorization", f"Bearer {OWN}", f"Bearer {HUB}"),
        ("authorization", f"token {OWN}", f"token {HUB}"),
        ("Authorization", OWN, HUB),
        ("X-Api-Key", OWN, HUB),
        ("Private-Token", OWN, HUB),
        ("Authorization", basic(f"x-access-token:{OWN}"), basic(f"x-access-token:{HUB}")),
        ("Authorization", basic(f"{OWN}:x-oauth-basic"), basic(f"{HUB}:x-oauth-basic")),
        ("Authorization", basic(f"{OWN}:"), basic(f"{HUB}:")),
        ("Authorization", basic(f"me@mail.example:{OWN}"), basic(f"me@mail.example:{HUB}")),
    ],
)
def test_a_placeholder_is_filled_where_keys_stand(name: str, value: str, wanted: str) -> None:
    filled = sent((name, value))
    assert header(filled, name) == [wanted]
    assert filled.names == ("hub",)
    assert sum(HUB in value for _, value in filled.headers) <= 1, "once is enough"


def test_what_the_program_did_not_use_is_set_as_the_policy_says() -> None:
    assert header(sent(), "Authorization") == [f"Bearer {HUB}"]
    assert header(sent(at="https://npm.example/x"), "X-Npm") == [f"npm {NPM}"]
    assert sent(at="https://free.example/x").headers == []


def test_a_placeholder_in_the_query() -> None:
    filled = sent(at=f"https://api.hub.example/x?a=1&access_token={OWN}&b=2")
    assert filled.target == f"/x?a=1&access_token={quote(HUB, safe='')}&b=2"
    assert filled.names == ("hub",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer ghp_attacker"),
        ("AUTHORIZATION", "Bearer ghp_attacker"),
        ("Authorization", f"Bearer ghp_attacker {OWN}"),
        ("Authorization", f"Bearer {OWN} ghp_attacker"),
        ("Authorization", f"Bearer ghp_attacker,{OWN}"),
        ("Authorization", f"Digest username=attacker, response={OWN}"),
        ("Authorization", basic("attacker:password")),
        ("Authorization", basic(f"ghp_0123456789012345678901234567890123456:{OWN}")),
        ("Authorization", basic(f"attacker:pass:{OWN}")),
        ("Authorization", f"Bearer {FOREIGN}"),
        ("Cookie", "session=attacker"),
        ("Cookie", f"session=attacker; x={OWN}"),
        ("Proxy-Authorization", "Basic YTpi"),
        ("X-Api-Key", "attacker"),
        ("x_api_key", "attacker"),
        ("Api-Key", "attacker"),
        ("X-Auth-Token", "attacker"),
        ("PRIVATE-TOKEN", "attacker"),
        ("X-Goog-Api-Key", "attacker"),
        ("X-Amz-Security-Token", "attacker"),
        ("X-Attacker-Session", "attacker"),
    ],
)
def test_a_key_of_ones_own_is_removed(name: str, value: str) -> None:
    found = asked((name, value), ("Accept", "text/html"))
    assert found.removed == (name.lower().replace("_", "-"),)
    filled = RING.fill(found)
    assert "attacker" not in repr(filled)
    assert FOREIGN not in repr(filled)
    assert header(filled, "Accept") == ["text/html"]
    assert header(filled, "Authorization") == [f"Bearer {HUB}"]


@pytest.mark.parametrize(
    "query",
    [
        "access_token=attacker",
        "ACCESS_TOKEN=attacker",
        "access-token=attacker",
        "acces%73_token=attacker",
        "api_key=attacker",
        "key%5B%5D=attacker",
        "a=1;key=attacker",
        "key=attacker;a=1",
        "token=attacker&token=attacker2",
        f"token={OWN}attacker",
        f"token={FOREIGN}",
        "X-Amz-Signature=attacker",
        "sig",
    ],
)
def test_a_key_in_the_query_is_removed(query: str) -> None:
    found = asked(at=f"https://api.hub.example/x?q=1&{query}&last=2")
    filled = RING.fill(found)
    assert "attacker" not in filled.target
    assert FOREIGN not in filled.target
    assert filled.target.startswith("/x?q=1")
    assert filled.target.endswith("last=2")
    assert all(name.startswith("?") for name in found.removed)
    assert found.removed


def test_what_is_no_key_stays() -> None:
    at = "https://api.hub.example/x?page_token=abc&pageToken=d&code=e&monkey=1"
    found = asked(("Idempotency-Key", "k1"), ("X-Page", "2"), at=at)
    assert found.resource == url(at)
    assert found.removed == ()
    assert header(RING.fill(found), "Idempotency-Key") == ["k1"]


def test_only_parameters_that_are_keys_are_judged_away() -> None:
    found = asked(at="https://api.hub.example/x?key=attacker")
    assert found.resource == url("https://api.hub.example/x"), "what is judged is what is sent"
    assert RING.fill(found).target == "/x"


def test_other_hosts_keep_their_own_logins() -> None:
    given_ = ("Authorization", "Bearer mine")
    assert asked(given_, at="https://free.example/x").headers == [given_]
    assert header(sent(given_, at="https://api.hub.example:444/x"), "Authorization") == [
        "Bearer mine"
    ], "a host alone is port 443"


@pytest.mark.parametrize(
    ("at", "headers"),
    [
        ("https://free.example/x", [("Authorization", f"Bearer {OWN}")]),
        ("https://free.example/x", [("Authorization", basic(f"u:{OWN}"))]),
        ("https://free.example/x", [("Authorization", basic(f"user:{OWN}"))]),
        ("https://free.example/x", [("X-Anything", f"a{OWN}b")]),
        ("https://free.example/x", [("X-Anything", OWN.upper())]),
        ("https://free.example/x", [("X-Anything", OWN.encode().hex())]),
        (f"https://free.example/x?q={OWN}", []),
        (f"https://free.example/{OWN}/x", []),
        (f"https://free.example/x?q={OWN.replace('-', '%2D')}", []),
        (f"https://api.hub.example:444/x?token={OWN}", []),
        (f"https://npm.example/x?token={OWN}", []),
    ],
)
def test_a_placeholder_for_another_host_is_told(at: str, headers: list[tuple[str, str]]) -> None:
    assert RING.foreign(url(at), headers) == ("hub",)


def test_a_placeholder_for_its_host_is_not_foreign() -> None:
    own = [("Authorization", basic(f"u:{OWN}"))]
    assert RING.foreign(url(f"https://api.hub.example/x?token={OWN}"), own) == ()
    assert RING.foreign(url("https://free.example/x"), [("Authorization", "Bearer x")]) == ()


@pytest.mark.parametrize("name", ["X-Title", "User-Agent", "Referer"])
def test_the_secret_goes_where_keys_stand_and_nowhere_else(name: str) -> None:
    filled = sent((name, f"see {OWN}"), at=f"https://api.hub.example/{OWN}?title={OWN}")
    assert HUB not in filled.target
    assert quote(HUB, safe="") not in filled.target
    assert header(filled, name) == [f"see {OWN}"]
    assert header(filled, "Authorization") == [f"Bearer {HUB}"]


def test_answers_are_asked_for_whole_and_plain() -> None:
    given_ = [("Range", "bytes=0-3"), ("If-Range", "x"), ("Accept-Encoding", "gzip")]
    assert header(sent(*given_), "Accept-Encoding") == ["identity"]
    assert header(sent(*given_), "Range") == []
    assert sent(*given_, at="https://free.example/x").headers == given_
    at, other = url(), url("https://free.example/x")
    packed = [(b"Content-Encoding", b"gzip")]
    assert RING.unacceptable(at, 200, packed)
    assert RING.unacceptable(at, 206, [])
    assert RING.unacceptable(at, 200, [(b"content-encoding", b"identity")]) == ""
    assert RING.unacceptable(other, 206, packed) == ""


def test_headers_of_an_answer() -> None:
    given_ = [
        (b"Location", f"https://evil.example/?t={quote(HUB, safe='')}".encode()),
        (b"X-Echo", base64.b64encode(f"user:{HUB}".encode())),
        (b"Set-Cookie", b"session=1"),
        (b"Content-Type", b"text/html"),
    ]
    out, places = RING.answer_headers(url(), given_)
    assert places == 2
    assert dict(out)[b"Location"] == f"https://evil.example/?t={OWN}".encode()
    assert HUB.encode() not in repr(out).encode()
    assert b"Set-Cookie" not in dict(out)
    assert dict(out)[b"Content-Type"] == b"text/html"
    kept, _ = RING.answer_headers(url("https://free.example/"), given_)
    assert dict(kept)[b"Set-Cookie"] == b"session=1"


@given(st.lists(st.integers(1, 90), max_size=6))
def test_a_body_across_borders(cuts: list[int]) -> None:
    body = f'{{"a": "{HUB}", "b": "{NPM}", "c": "{basic(f"u:{HUB}")}"}}'.encode()
    at = sorted({min(cut, len(body)) for cut in cuts})
    scrubber = RING.scrubber()
    assert isinstance(scrubber, Scrubber)
    pieces = [body[a:b] for a, b in zip([0, *at], [*at, len(body)], strict=True)]
    out = b"".join([*map(scrubber.feed, pieces), scrubber.end()])
    assert out.count(OWN.encode()) == 2
    assert out.count(FOREIGN.encode()) == 1
    assert scrubber.places == 3


def test_without_credentials_nothing_is_looked_for() -> None:
    ring = keyring("", {})
    assert ring.scrubber() is None
    assert ring.clean(url(), [("Cookie", "a=b")]).headers == [("Cookie", "a=b")]


def test_a_secret_leaves_over_tls_or_to_loopback() -> None:
    text = TOML.replace('["api.hub.example"]', '["api.hub.example:80"]').replace(
        "https://api.hub", "http://api.hub"
    )
    ring = keyring(text)
    plain = url("http://api.hub.example/x")
    filled = ring.fill(ring.clean(plain, []))
    with pytest.raises(EffectFailed, match="https"):
        ring.check_transport(filled, plain, "192.0.2.1")
    ring.check_transport(filled, plain, "127.0.0.1")
    RING.check_transport(sent(), url(), "192.0.2.1")


@pytest.mark.parametrize("secrets", [{}, {"hub": "short", "npm": NPM}])
def test_a_secret_that_is_not_there_or_not_usable_fails(secrets: dict[str, str]) -> None:
    ring = keyring(secrets=secrets)
    with pytest.raises(EffectFailed) as caught:
        ring.fill(ring.clean(url(), []))
    assert "short" not in caught.value.sentence


def test_a_credential_for_a_tunnel_is_a_policy_error() -> None:
    tunnel = TOML.replace("[network]", '[network]\nallow = ["api.hub.example:443"]')
    assert policy(tunnel), "an http rule beside it is where the credential goes"
    only = '[network]\nallow = ["*.hub.example:443"]\n' + TOML[TOML.index("[credentials.hub") :]
    with pytest.raises(PolicyError, match="opaque tunnel"):
        policy(only)
    assert policy(only.replace(":443", ":444"))
