"""Heads: one strict reading, the same for any split; what two readers could understand differently."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.worker import asking, heads
from authority.worker.asking import Origin
from authority.worker.heads import Bad, Head, Request

PLACE = Origin("https", "api.test", 443)
GOOD = b"POST /a?b=c HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\nX-A:  v w\t\r\n\r\n"


def read(data: bytes, cuts: list[int] = []) -> object:  # noqa: B006
    """What comes of `data` in pieces: head and rest, the sentence of a refusal, or None."""
    head = Head()
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    try:
        for first, last in pairwise(borders):
            if found := head.feed(data[first:last]):
                return found[0], found[1] + data[last:]
    except Bad as bad:
        return bad.sentence
    return None


def parsed(data: bytes) -> Request:
    head = Head()
    found = head.feed(data)
    assert found is not None
    return heads.request(found[0])


def test_a_request() -> None:
    request = parsed(GOOD + b"abc")
    assert (request.method, request.target, request.minor) == ("POST", "/a?b=c", 1)
    assert request.fields == [("Host", "api.test"), ("Content-Length", "3"), ("X-A", "v w")]
    ask = asking.asking(request, PLACE)
    assert ask.url == "https://api.test:443/a?b=c"
    assert (ask.length, ask.fields, ask.keeps) == (3, [("X-A", "v w")], True)


HOST = b"Host: api.test\r\n"
REFUSED = {
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n",
    "the same length twice": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n" * 2,
    "a list of lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n",
    "a signed length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n",
    "a hexadecimal length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x3\r\n",
    "a huge length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999\r\n",
    "length and coding": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "another coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n",
    "identity": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n" * 2,
    "xchunked": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n",
    "a blank before the colon": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n",
    "a folded line": b"POST / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n",
    "a folded first line": b"POST / HTTP/1.1\r\n Host: api.test\r\n",
    "an underscore": b"POST / HTTP/1.1\r\n" + HOST + b"Content_Length: 3\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n",
    "no name": b"GET / HTTP/1.1\r\n" + HOST + b": x\r\n",
    "a control character": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x0bb\r\n",
    "DEL": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x7fb\r\n",
    "coding in 1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + HOST,
    "no host": b"GET / HTTP/1.1\r\nX: y\r\n",
    "another host": b"GET / HTTP/1.1\r\nHost: evil.test\r\n",
    "another port": b"GET / HTTP/1.1\r\nHost: api.test:80\r\n",
    "a list of hosts": b"GET / HTTP/1.1\r\nHost: api.test, evil.test\r\n",
    "userinfo in Host": b"GET / HTTP/1.1\r\nHost: api.test@evil.test\r\n",
    "a trailing dot": b"GET / HTTP/1.1\r\nHost: api.test.\r\n",
    "an absolute other host": b"GET https://evil.test/ HTTP/1.1\r\n" + HOST,
    "an absolute other scheme": b"GET http://api.test:443/ HTTP/1.1\r\n" + HOST,
    "absolute userinfo": b"GET https://api.test@evil.test/ HTTP/1.1\r\n" + HOST,
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST,
    "an authority": b"GET api.test:443 HTTP/1.1\r\n" + HOST,
    "a fragment": b"GET /a#b HTTP/1.1\r\n" + HOST,
    "a backslash": b"GET /a\\b HTTP/1.1\r\n" + HOST,
    "HTTP/0.9": b"GET /\r\n" + HOST,
    "HTTP/2": b"PRI * HTTP/2.0\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST,
    "a small version": b"GET / http/1.1\r\n" + HOST,
    "a small method": b"get / HTTP/1.1\r\n" + HOST,
    "two blanks": b"GET  / HTTP/1.1\r\n" + HOST,
    "a tab": b"GET\t/ HTTP/1.1\r\n" + HOST,
    "a blank in the target": b"GET /a b HTTP/1.1\r\n" + HOST,
    "a blank at the end": b"GET / HTTP/1.1 \r\n" + HOST,
    "a blank line first": b"\r\nGET / HTTP/1.1\r\n" + HOST,
    "bytes beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\n" + HOST,
    "CONNECT inside": b"CONNECT api.test:443 HTTP/1.1\r\n" + HOST,
    "TRACE": b"TRACE / HTTP/1.1\r\n" + HOST,
    "a body with GET": b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n",
    "a chunked body with HEAD": b"HEAD / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n",
    "another expectation": b"POST / HTTP/1.1\r\n" + HOST + b"Expect: tea\r\n",
    "another method in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X-HTTP-Method-Override: PUT\r\n",
    "another URL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X_Original_URL: /admin\r\n",
    "Connection names Host": b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Host\r\n",
    "many fields": b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * heads.MAX_FIELDS,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_readers_could_understand_differently(name: str) -> None:
    def refused() -> None:
        data = REFUSED[name]
        found = Head().feed(data + b"\r\n") or (data[:-2], b"")
        asking.asking(heads.request(found[0]), PLACE)

    with pytest.raises(Bad) as bad:
        refused()
    assert bad.value.sentence.isprintable()


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhOsT: API.test:443\r\n\r\n",
        b"GET https://api.test/x HTTP/1.1\r\nHost: api.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: api.test\r\nX: \xc3\xa9\r\nEmpty:\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: Chunked\r\n\r\n",
    ],
)
def test_control_what_is_read(data: bytes) -> None:
    asking.asking(parsed(data), PLACE)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: api.test\n\n",
        b"GET / HTTP/1.1\r\nHost: api.test\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\rHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * heads.MAX_HEAD,
        b"GET / HTTP/1.1\r\nX: " + b"a" * heads.MAX_HEAD + b"\r\n\r\n",
    ],
)
def test_line_ends_and_bounds(data: bytes) -> None:
    assert isinstance(read(data), str)
    assert read(data) == read(data, list(range(0, len(data), 97)))


PIECES = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\0", b"GET / HTTP/1.1", b"Host: a", b"X:y", b" "]
    )
    | st.binary(max_size=6),
    max_size=14,
).map(b"".join)


@settings(max_examples=300)
@given(data=PIECES, cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_split_gives_the_same(data: bytes, cuts: list[int]) -> None:
    assert read(data, cuts) == read(data) == read(data, list(range(len(data))))


@settings(max_examples=200)
@given(data=PIECES)
def test_what_is_read_is_what_is_written(data: bytes) -> None:
    """A head that passes is rendered again to lines that mean the same: nothing hides in it."""
    found = read(b"GET /x HTTP/1.1\r\nHost: api.test\r\n" + data + b"\r\n\r\n")
    if not isinstance(found, tuple):
        return
    try:
        request = heads.request(found[0])
    except Bad:
        return
    again = parsed(heads.render("GET /x HTTP/1.1", request.fields))
    assert again == request


def test_what_ends_at_this_hop() -> None:
    fields = [
        ("Host", "a"),
        ("Connection", "keep-alive, X-Mine"),
        ("Keep-Alive", "1"),
        ("X-Mine", "gone"),
        ("Proxy-Authorization", "Basic x"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AA"),
        ("Alt-Svc", "h3=:443"),
        ("X-Other", "stays"),
    ]
    assert heads.end_to_end(fields) == [("X-Other", "stays")]


@pytest.mark.parametrize(
    "target", ["a.test", "a.test:0", "a.test:99999", "u@a.test:1", "http://a:1", "a:b:1"]
)
def test_connect_targets(target: str) -> None:
    with pytest.raises(Bad):
        asking.connect(Request("CONNECT", target, 1, []))
    assert asking.connect(Request("CONNECT", "A.test:443", 1, [("Host", "a.TEST")])) == (
        "a.test",
        443,
    )
    with pytest.raises(Bad):
        asking.connect(Request("CONNECT", "a.test:443", 1, [("Host", "b.test:443")]))
