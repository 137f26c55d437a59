"""Resources: one canonical form, whatever the spelling; parsing it again changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authority.kernel.resources import Resource, ResourceError, named, parse, parse_text

CWD = "/home/u/proj"


@pytest.mark.parametrize(
    ("raw", "text", "path"),
    [
        ("a.txt", "fs:/home/u/proj/a.txt", b"/home/u/proj/a.txt"),
        ("./a//b/./c/", "fs:/home/u/proj/a/b/c", b"/home/u/proj/a/b/c"),
        ("/", "fs:/", b"/"),
        (".", "fs:/home/u/proj", b"/home/u/proj"),
        ("//data///x", "fs:/data/x", b"/data/x"),
        ("fs:/data/a", "fs:/data/a", b"/data/a"),
        ("/100%", "fs:/100%25", b"/100%"),
        ("fs:/100%25", "fs:/100%25", b"/100%"),
        ("/%2e%2e/x", "fs:/%252e%252e/x", b"/%2e%2e/x"),
        (b"/caf\xe9", "fs:/caf%E9", b"/caf\xe9"),
        ("fs:/caf%e9", "fs:/caf%E9", b"/caf\xe9"),
        ("/café", "fs:/café", "/café".encode()),
        ("fs:/caf%c3%a9", "fs:/café", "/café".encode()),
        ("/a*b", "fs:/a*b", b"/a*b"),
        ("/~/...", "fs:/~/...", b"/~/..."),
        ("/a b", "fs:/a b", b"/a b"),
        ("./fs:/x", "fs:/home/u/proj/fs:/x", b"/home/u/proj/fs:/x"),
    ],
)
def test_a_file_has_one_form(raw: str | bytes, text: str, path: bytes) -> None:
    resource = parse("fs.read", raw, cwd=CWD)
    assert (resource.scheme, resource.text, resource.path) == ("fs", text, path)
    assert parse_text(text) == resource


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("https://Example.COM", "https://example.com:443/"),
        ("HTTPS://example.com./a", "https://example.com:443/a"),
        ("http://example.com:8080/a/", "http://example.com:8080/a/"),
        ("https://h.example/%7euser/%41", "https://h.example:443/~user/A"),
        ("https://h.example/a%2fb", "https://h.example:443/a%2Fb"),
        ("https://h.example/a%252Fb", "https://h.example:443/a%252Fb"),
        ("https://h.example/ä", "https://h.example:443/%C3%A4"),
        ("https://h.example/%e9", "https://h.example:443/%E9"),
        ("https://h.example/a?x=1&y=%3d#part", "https://h.example:443/a?x=1&y=%3D"),
        ("https://h.example/a?", "https://h.example:443/a?"),
        ("https://h.example?q", "https://h.example:443/?q"),
        ("https://bücher.example/", "https://xn--bcher-kva.example:443/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example:443/"),
        ("https://[2001:DB8:0::1]:99/", "https://[2001:db8::1]:99/"),
        ("http://127.0.0.1:8000/x", "http://127.0.0.1:8000/x"),
        ("https://my_host.example/", "https://my_host.example:443/"),
        ("https://r3---sn.example/", "https://r3---sn.example:443/"),
        ("https://h.example/{a}|[b]", "https://h.example:443/%7Ba%7D%7C%5Bb%5D"),
    ],
)
def test_a_url_has_one_form(raw: str, text: str) -> None:
    resource = parse("http.request", raw)
    assert resource.text == text
    assert parse("http.request", text) == resource == parse("http.request", raw.encode())


def test_the_parts_of_a_url() -> None:
    got = parse("http.request", "https://[::1]:8/a/b/?q=1")
    assert got == Resource("https", "https://[::1]:8/a/b/?q=1", ("a", "b", ""), "::1", 8, "q=1")


@pytest.mark.parametrize(
    ("effect", "raw", "text"),
    [
        ("tool.call", "tool:search", "tool:search"),
        ("agent.spawn", "agent:child-1", "agent:child-1"),
        ("agent.wait", "run:r1.2", "run:r1.2"),
        ("msg.send", "run:r1", "run:r1"),
        ("msg.receive", "run:r1", "run:r1"),
        ("output", "output:stdout", "output:stdout"),
        ("model.chat", "model:vendor/claude-x:1", "model:vendor/claude-x:1"),
        ("net.connect", "PyPI.example:443", "tcp://pypi.example:443"),
        ("net.connect", "tcp://[::1]:443", "tcp://[::1]:443"),
        ("gate.halt", "gate:halt", "gate:halt"),
    ],
)
def test_names(effect: str, raw: str, text: str) -> None:
    resource = parse(effect, raw)
    assert resource.text == text
    assert parse_text(text) == resource


@pytest.mark.parametrize(
    ("effect", "raw"),
    [
        ("tool.call", "search"),
        ("tool.call", "agent:search"),
        ("tool.call", "tool:"),
        ("tool.call", "tool:a/b"),
        ("tool.call", "tool:a*"),
        ("tool.call", "tool:a\n"),
        ("tool.call", "tool:-x"),
        ("tool.call", "tool:" + "a" * 65),
        ("agent.spawn", "run:x"),
        ("agent.wait", "agent:x"),
        ("output", "output:file"),
        ("http.request", "ftp://h.example/"),
        ("http.request", "/etc/passwd"),
        ("http.request", "tool:x"),
        ("net.connect", "h.example"),
        ("net.connect", "https://h.example:443"),
        ("fs.read", ""),
        ("fs.read", "fs:x"),
        ("nonsense", "x"),
        ("agent", "run:x"),
        ("", ""),
    ],
)
def test_what_is_no_resource_of_the_effect_is_refused(effect: str, raw: str) -> None:
    with pytest.raises(ResourceError) as caught:
        parse(effect, raw, cwd=CWD)
    assert caught.value.message


def test_a_relative_path_needs_a_directory() -> None:
    with pytest.raises(ResourceError, match="relative"):
        parse("fs.read", "a")
    with pytest.raises(ResourceError, match="absolute"):
        parse("fs.read", "a", cwd="b")


def test_only_files_have_a_path() -> None:
    with pytest.raises(ResourceError, match="not a file"):
        _ = named("tool", "x").path


names = st.binary(min_size=1, max_size=12).filter(
    lambda b: b not in (b".", b"..") and b"/" not in b
)


@given(st.lists(names, max_size=5))
@settings(max_examples=300)
def test_every_path_that_is_taken_comes_back_byte_for_byte(parts: list[bytes]) -> None:
    path = b"/" + b"/".join(parts)
    try:
        resource = parse("fs.read", path)
    except ResourceError as error:
        assert "control character" in error.message  # noqa: PT017
        return
    assert resource.path == path
    assert parse_text(resource.text) == resource
    assert resource.text.encode()  # no lone surrogate reaches a log


@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60)),
    st.sampled_from(["fs.read", "http.request", "net.connect", "tool.call"]),
)
@settings(max_examples=400)
@example(b"fs:/%", "fs.read")
@example("https://[", "http.request")
@example("https://h:\u0663/", "http.request")
@example("https://h/\udcff", "http.request")
def test_nothing_crashes_parsing_and_parsing_is_idempotent(raw: str | bytes, effect: str) -> None:
    try:
        resource = parse(effect, raw, cwd=CWD)
    except ResourceError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert parse(effect, resource.text, cwd="/elsewhere") == resource == parse_text(resource.text)


@given(st.text(alphabet="abc/%2eEfF.?#:@[]\\0x é*", max_size=40))
@settings(max_examples=400)
def test_url_parsing_is_idempotent_and_never_leaves_a_dot_segment(tail: str) -> None:
    try:
        resource = parse("http.request", "https://h.example/" + tail)
    except ResourceError:
        return
    assert parse("http.request", resource.text) == resource
    assert not {".", ".."} & set(resource.segments)
    assert resource.host == "h.example"
    assert "" not in resource.segments[:-1]
