"""Patterns: the index agrees with a naive matcher, and what is ambiguous is refused."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.pattern_match import match_parts, match_segment, may_continue
from authority.kernel.patterns import (
    Index,
    PatternError,
    PatternSet,
    file_pattern,
    host_pattern,
    literal,
    parse_pattern,
    tcp_pattern,
    url_pattern,
)
from authority.kernel.resources import Resource, ResourceError, parse

BASE = "/b"


def fs(path: str) -> Resource:
    return parse("fs.read", path, cwd=BASE)


def url(text: str) -> Resource:
    return parse("http.request", text)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("./docs/**", ["docs", "docs/a", "docs/a/.b"], ["doc", "docs2", "docs2/a", "/docs/a"]),
        ("docs/*", ["docs/a", "docs/.a"], ["docs", "docs/a/b"]),
        ("*.md", ["a.md", ".md"], ["a/b.md", "a.MD", "a.md.x"]),
        ("**/*.md", ["a.md", "x/y/.z.md"], ["a.mdx", "/c/a.md"]),
        ("**/.env", [".env", "a/.env", "a/b/.env"], ["a.env", ".env/x", "/.env"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a", "z", "a/z/b"]),
        ("a/**/b/**/c", ["a/b/c", "a/x/b/y/c", "a/b/b/c/c"], ["a/c", "a/c/b"]),
        ("x*y*z", ["xyz", "xAyBz", "xyyzz"], ["xz", "xzy", "axyz"]),
        ("ab*ba", ["abba", "abxba"], ["aba", "ab", "ba"]),
        ("a*b*b", ["abb", "abxb"], ["ab", "a"]),
        ("../sib/**", ["/sib/x"], ["sib/x", "/b/sib"]),
        ("/abs/a.txt", ["/abs/a.txt"], ["abs/a.txt", "/abs/a.txt/x"]),
        (r"a\*b", ["a*b"], ["axb", "ab"]),
        (r"\[id\].tsx", ["[id].tsx"], ["i.tsx"]),
        (r"q\?", ["q?"], ["qa"]),
        (r"\~x", ["~x"], ["x"]),
        ("x!y~z$", ["x!y~z$"], []),
        ("100%", ["100%"], ["100"]),
        ("*25", ["x25"], ["x%"]),
        ("fs:./a%2Ab", ["a*b"], ["axb"]),
        ("fs:/b/a%25b", ["a%b"], ["a%25b"]),
        ("/**", ["/", "/x", "a"], []),
        ("a/**/**/z", ["a/z", "a/b/z"], ["a"]),
    ],
)
def test_file_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    rule = file_pattern(pattern, base=BASE)
    assert [path for path in yes if not rule.matches(fs(path))] == []
    assert [path for path in no if rule.matches(fs(path))] == []


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a", ["a", "a/b"], ["ab", "c/a"]),
        ("a/**", ["a", "a/b/c"], ["ab"]),
        ("**/.env", ["/.env", "/x/.env", "a/.env/y"], ["/x.env"]),
        ("*.pem", ["a.pem", "a.pem/x"], ["x/a.pem"]),
        ("**/.git/hooks/**", ["/r/.git/hooks", "/r/.git/hooks/x/y"], ["/r/.git/config"]),
    ],
)
def test_file_patterns_that_forbid_are_read_widely(
    pattern: str, yes: list[str], no: list[str]
) -> None:
    rule = file_pattern(pattern, base=BASE, forbids=True)
    assert [path for path in yes if not rule.matches(fs(path))] == []
    assert [path for path in no if rule.matches(fs(path))] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "**",
        "fs:*",
        "fs:**",
        "a?",
        "a[b]",
        "a]",
        "{a,b}",
        "!a",
        "~/x",
        "$HOME/x",
        "a/",
        "a//b",
        "a/../b",
        "a/./b",
        "a/..",
        "../../x",
        "/../x",
        "a**",
        "**a",
        "a/b**/c",
        "***",
        "a\\",
        "a\nb",
        "a\u202eb",
        "a\x00",
        "https://h/",
        "x" * 5000,
        "/".join(["**", "a"] * 20),
        "*a" * 20,
        "fs:a%zz",
        "fs:/a%2Fb",
        "fs:/a/%2e%2e",
        "a/~b",
        "/" + "a/" * 300 + "b",
    ],
)
def test_bad_file_patterns_are_refused_with_a_hint(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        file_pattern(pattern, base=BASE)
    assert caught.value.message


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (
            "https://h.example/a/**",
            ["https://h.example/a", "https://H.example:443/a/b/", "https://h.example./a/b"],
            [
                "http://h.example/a",
                "https://h.example:8443/a",
                "https://h.example/ab",
                "https://h.example/a?q",
                "https://x.h.example/a",
                "https://h.example.evil/a",
            ],
        ),
        ("https://h.example", ["https://h.example/"], ["https://h.example/a"]),
        ("https://h.example/a?*", ["https://h.example/a", "https://h.example/a?x=1"], []),
        (
            "https://h.example/a?x=1",
            ["https://h.example/a?x=1"],
            ["https://h.example/a", "https://h.example/a?x=12", "https://h.example/a?x=1&y"],
        ),
        (
            "https://*.h.example/**",
            ["https://a.h.example/", "https://a.b.h.example/x"],
            ["https://h.example/", "https://ah.example/", "https://a.h.example.evil/"],
        ),
        (
            "https://h.example/%7Ea/%2f",
            ["https://h.example/~a/%2F"],
            ["https://h.example/~a//"][:0],
        ),
        (r"https://h.example/a\*b", ["https://h.example/a*b"], ["https://h.example/axb"]),
        ("https://h.example/*/x", ["https://h.example/a/x"], ["https://h.example/a/b/x"]),
        ("http://[::1]:8/**", ["http://[0::1]:8/a"], ["http://[::1]/a", "http://[2606::2]:8/a"]),
        ("https://bücher.example/**", ["https://xn--bcher-kva.example/"], []),
    ],
)
def test_url_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    rule = url_pattern(pattern)
    assert [text for text in yes if not rule.matches(url(text), "GET")] == []
    assert [text for text in no if rule.matches(url(text), "GET")] == []


def test_verbs() -> None:
    rule = url_pattern("GET,PUT https://h.example/**")
    there = url("https://h.example/a")
    assert [verb for verb in ("GET", "PUT", "POST", "get", "") if rule.matches(there, verb)] == [
        "GET",
        "PUT",
    ]
    default = url_pattern("https://h.example/**", default_verbs=["GET"])
    assert default.matches(there, "GET")
    assert not default.matches(there, "POST")
    assert parse_pattern("https://h.example/**").matches(there, "DELETE")


@pytest.mark.parametrize(
    "pattern",
    [
        "https://*/**",
        "https://**/x",
        "https://*.*.example/",
        "https://a.*.example/",
        "https://*.",
        "https://*a.example/",
        "https://*.1.2.3.4/",
        "https://h.example:*/",
        "https://h.example:0/",
        "https://u@h.example/",
        "https://h.example/a#b",
        "https://h.example//a",
        "h.example/a",
        "https://h.example/../a",
        "https://h.example/%2e%2e/a",
        "https://h.example/a**",
        "https://h.example/{id}",
        "https://h.example/[a]",
        "https://h.example/a b",
        "https://h.example/?a=*",
        "get https://h.example/",
        "GET,,PUT https://h.example/",
        "* https://h.example/",
        "GET  https://h.example/",
        "TRACE https://h.example/",
        "GET fs:/x",
        "https://127.1/",
        "https://0x7f.0.0.1/",
        "https:///x",
        "https://h.example/\\x",
        "ftp://h/",
    ],
)
def test_bad_url_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        url_pattern(pattern)
    with pytest.raises(PatternError):
        parse_pattern(pattern, forbids=True)


def test_hosts_that_are_forbidden_are_forbidden_everywhere() -> None:
    rule = host_pattern("*.internal")
    assert rule.matches(url("http://a.b.internal:99/x?y"), "PUT")
    assert rule.matches(url("https://internal/"), "GET")
    assert rule.matches(parse("net.connect", "x.internal:22"))
    assert not rule.matches(url("https://notinternal/"), "GET")
    one = host_pattern("h.example:8443")
    assert one.matches(url("https://h.example:8443/"))
    assert not one.matches(url("https://h.example/"))
    for bad in ("*", "*.", "a/b", "a:b", "a:0", "", "10.0.0.0/8", "a*b"):
        with pytest.raises(PatternError):
            host_pattern(bad)


def test_a_url_without_a_path_permits_little_and_forbids_much() -> None:
    deep = url("https://h.example/a/b?c")
    assert not parse_pattern("https://h.example").matches(deep)
    assert parse_pattern("https://h.example", forbids=True).matches(deep)
    assert parse_pattern("https://h.example/a", forbids=True).matches(deep)
    with pytest.raises(PatternError, match="one spelling"):
        parse_pattern("https://h.example/a?b=c", forbids=True)


def test_other_schemes() -> None:
    assert parse_pattern("tool:mcp_*").matches(parse("tool.call", "tool:mcp_x"))
    assert not parse_pattern("tool:mcp_*").matches(parse("tool.call", "tool:mcx"))
    assert not parse_pattern("tool:x").matches(parse("agent.spawn", "agent:x"))
    assert tcp_pattern("h.example:443", "h.example:443").matches(
        parse("net.connect", "h.example:443")
    )
    assert parse_pattern("tcp://*.example:443").matches(parse("net.connect", "a.example:443"))
    for bad in ("tool:", "tool:a b", "nope:x", "tcp://h.example", "tool", "fs:relative", "x y"):
        with pytest.raises(PatternError):
            parse_pattern(bad)
    with pytest.raises(PatternError):
        parse_pattern("fs:./x")
    assert parse_pattern("fs:./x", base=BASE).matches(fs("x"))


def naive(pattern: str, name: str) -> bool:
    """The meaning of a file pattern, written as plainly as possible; slow."""
    if pattern == "":
        return name == ""
    if pattern.startswith("/**") and pattern[3:4] in ("", "/"):
        spots = [i for i, char in enumerate(name) if char == "/"]
        return name[:1] in ("", "/") and any(
            naive(pattern[3:], name[spot:]) for spot in [*spots, len(name)]
        )
    if pattern[0] == "*":
        stop = name.find("/") if "/" in name else len(name)
        return any(naive(pattern[1:], name[i:]) for i in range(stop + 1))
    return name[:1] == pattern[0] and naive(pattern[1:], name[1:])


piece = st.sampled_from(["a", "b", "ab", "a.x", "b.x", ".x", "*", "a*", "*b", "*.x", "a*b", "**"])
names = st.lists(
    st.sampled_from(["a", "b", "ab", "aab", "a.x", "ab.x", ".x", "a.b.x", "c"]), max_size=6
)


@given(st.lists(st.lists(piece, min_size=1, max_size=6), min_size=1, max_size=12), names)
@settings(max_examples=600)
def test_the_index_agrees_with_the_naive_matcher(rules: list[list[str]], parts: list[str]) -> None:
    texts = ["/" + "/".join(rule) for rule in rules]
    resource = fs("/" + "/".join(parts))
    plain = "" if not parts else "/" + "/".join(parts)
    wanted = next((text for text in texts if naive(text, plain)), None)
    assert PatternSet([f"fs:{text}" for text in texts]).match(resource) == (
        None if wanted is None else f"fs:{wanted}"
    )
    index = Index([file_pattern(text, base=BASE) for text in texts])
    one_by_one = [p.matches(resource) for p in index.patterns]
    assert one_by_one == [naive(text, plain) for text in texts]


@given(st.lists(st.lists(piece, min_size=1, max_size=5), min_size=1, max_size=8), names)
@settings(max_examples=250)
def test_what_forbids_covers_all_below_in_the_index_too(
    rules: list[list[str]], parts: list[str]
) -> None:
    texts = ["/" + "/".join(rule) for rule in rules]
    index = Index([file_pattern(text, base=BASE, forbids=True) for text in texts])
    heads = ["" if not n else "/" + "/".join(parts[:n]) for n in range(len(parts) + 1)]
    wanted = [i for i, text in enumerate(texts) if any(naive(text, head) for head in heads)]
    assert index.find(fs("/" + "/".join(parts))) == (wanted[0] if wanted else None)


@given(st.lists(piece, min_size=1, max_size=5), names, names.filter(bool))
@settings(max_examples=300)
def test_a_way_to_something_covered_is_seen_as_one(
    rule: list[str], parts: list[str], more: list[str]
) -> None:
    text = "/" + "/".join(rule)
    index = Index([file_pattern(text, base=BASE)])
    if index.find(fs("/" + "/".join(parts + more))) is not None:
        assert index.below(fs("/" + "/".join(parts))) == 0
    if index.below(fs("/" + "/".join(parts))) is None:
        assert not may_continue(index.patterns[0].parts, tuple(parts))


hosts = st.sampled_from(["a.example", "b.a.example", "c.b.a.example", "example", "xa.example"])
url_rules = st.builds(
    "{}https://{}{}{}{}".format,
    st.sampled_from(["", "GET ", "POST,PUT "]),
    st.sampled_from(["", "*."]),
    hosts,
    st.sampled_from(["", ":443", ":8443"]),
    st.sampled_from(
        ["", "/", "/a", "/a/**", "/**", "/*/b", "/**/b", "/*.x", "/a?*", "/**?*", "/a?q"]
    ),
)
urls = st.builds(
    "https://{}{}{}".format,
    hosts,
    st.sampled_from(["", ":8443"]),
    st.sampled_from(["", "/a", "/a/", "/a/b", "/c/b", "/a.x", "/a?q", "/a/b?q=1", "/a%2Fb"]),
)


@given(st.lists(url_rules, min_size=1, max_size=15), urls, st.sampled_from(["GET", "POST", "PUT"]))
@settings(max_examples=300)
def test_the_index_agrees_on_urls(rules: list[str], text: str, verb: str) -> None:
    resource = url(text)
    for forbids in (False, True):
        patterns = []
        for rule in rules:
            try:
                patterns.append(parse_pattern(rule, forbids=forbids))
            except PatternError:
                assert forbids
                assert rule.endswith("?q")
        wanted = [i for i, pattern in enumerate(patterns) if pattern.matches(resource, verb)]
        assert Index(patterns).find(resource, verb) == (wanted[0] if wanted else None)


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=300)
def test_a_literal_covers_exactly_its_file(parts: list[bytes]) -> None:
    try:
        resource = parse("fs.read", b"/" + b"/".join(parts))
    except ResourceError:
        return
    rule = parse_pattern(literal(resource))
    assert rule.matches(resource)
    assert not rule.matches(parse("fs.read", resource.path + b"x"))
    assert not rule.matches(parse("fs.read", resource.path + b"/x"))


@pytest.mark.parametrize("tail", ["a*b?x=*", "a", "", "?*", "**", "a%2Ab?", "*/%2F?a?b"])
def test_a_literal_covers_exactly_its_url(tail: str) -> None:
    resource = url("https://h.example/" + tail)
    rule = parse_pattern(literal(resource))
    assert rule.matches(resource, "GET")
    assert not rule.matches(url("https://h.example/zzz"), "GET")
    assert not rule.matches(url("https://h.example/axb?x=y"), "GET")


def test_an_index_holds_one_kind_of_rule() -> None:
    with pytest.raises(ValueError, match="not both"):
        Index([file_pattern("a", base=BASE), file_pattern("a", base=BASE, forbids=True)])


def test_no_pattern_is_slow() -> None:
    """The classic traps of backtracking; a thousand matches must not take a noticeable time."""
    name = "a" * 255
    star = ("", *["a"] * 15, "b")
    path = tuple(["a"] * 1000)
    deep: tuple[str | None, ...] = tuple([None, "a"] * 15 + ["b"])
    began = time.process_time()
    for _ in range(200):
        assert not match_segment(star, name)
    for _ in range(5):
        assert not match_parts(deep, path)
        assert may_continue(deep, path)
    assert time.process_time() - began < 20  # exponential matching would take ages of the universe
