"""Attack family: paths that look like what is allowed and lead somewhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.policy import Policy, load
from authority.kernel.resources import ResourceError, parse

BASE = "/srv/app"


def policy(text: str) -> Policy:
    def none(_base: str, _name: str) -> object:
        raise AssertionError

    return load(
        "version = 1\n" + text,
        format="toml",
        base=BASE,
        name="p.toml",
        read_parent=none,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "raw",
    [
        "..",
        "../x",
        "/data/../etc/passwd",
        "/data/..",
        "a/../../b",
        "fs:/data/../etc",
        "fs:/data/%2e%2e/etc",
        "fs:/data/%2E./etc",
        "fs:/data/./x",
        "fs:/data//x",
        "fs:/data/",
        "fs:/data%2fetc",
        "fs:/data/%2f",
        "fs:/a%00b",
        "fs:/%zz",
        "fs:/%",
        "fs:relative",
        "fs:",
        "a\x00b",
        b"a\x00",
        "a\nb",
        "a\x1b[2J",
        "a\x7f",
        "a\u0085b",
        "x" * 256,
        "/" + "/".join(["x" * 200] * 21),
        "\ud800",
    ],
)
def test_a_path_that_is_not_plain_is_refused(raw: str | bytes) -> None:
    for effect in ("fs.read", "fs.write", "fs.list", "fs.delete"):
        with pytest.raises(ResourceError):
            parse(effect, raw, cwd="/data")


@pytest.mark.parametrize(
    "path",
    [
        "/database",
        "/data.txt",
        "/Data/x",
        "/DATA/x",
        "/dat",
        "/data\u200b/x",
        "/d\u0430ta/x",
        "/x/data/y",
        "/%64ata/x",
        "/data%2Fx",
        "/data\\x",
        "/ data/x",
    ],
)
def test_a_look_alike_prefix_is_not_covered(path: str) -> None:
    rules = policy('[filesystem]\nread = ["/data/**"]')
    assert rules.judge("fs.read", parse("fs.read", "/data/x")).allowed
    assert not rules.judge("fs.read", parse("fs.read", path)).allowed


@pytest.mark.parametrize(
    "path",
    [
        "https://h.example/a/../admin",
        "https://h.example/a/%2e%2e/admin",
        "https://h.example/a/.%2E/admin",
        "https://h.example/a/..%2fadmin",
        "https://h.example/a/..%5cadmin",
        "https://h.example/a/%2e%2e%2fadmin",
        "https://h.example/a/%252e%252e/admin",
        "https://h.example/a/%252e%252e%252fadmin",
        "https://h.example/a/%25252e%25252e/admin",
        "https://h.example/a/..;/admin",
        "https://h.example/a/..;x=1/admin",
        "https://h.example/a/.",
        "https://h.example/a/./b",
        "https://h.example//admin",
        "https://h.example/a//b",
        "https://h.example\\a",
    ],
)
def test_a_url_path_that_some_server_reads_otherwise_is_refused(path: str) -> None:
    with pytest.raises(ResourceError):
        parse("http.request", path)


def test_an_encoded_slash_never_matches_a_slash() -> None:
    rules = policy('[network]\nhttp = ["https://h.example/a/b/*"]')
    ask = lambda url: rules.judge("http.request", parse("http.request", url), "GET").allowed  # noqa: E731
    assert ask("https://h.example/a/b/c")
    assert not ask("https://h.example/a%2Fb/c")
    assert not ask("https://h.example/a/b/c/d")
    assert ask("https://h.example/a/b/c%2Fd")  # one segment, forwarded as it came


@pytest.mark.parametrize(
    "url",
    [
        "https://h.example/admin",
        "https://h.example/admin/",
        "https://h.example/admin/x",
        "https://h.example/admin?x=1",
        "https://h.example/%61dmin/x",
        "https://h.example/admin%2Fx",
        "https://h.example/admin%5Cx",
        "https://h.example/admin/x?y",
    ],
)
def test_a_denial_holds_however_the_path_is_encoded(url: str) -> None:
    rules = policy(
        '[network]\nhttp = ["GET https://h.example/**?*"]\ndeny = ["https://h.example/admin/**"]'
    )
    assert not rules.judge("http.request", parse("http.request", url), "GET").allowed
    control = parse("http.request", "https://h.example/administrator?x=1")
    assert rules.judge("http.request", control, "GET").allowed


@pytest.mark.parametrize("rule", ["a@b/c", "a%40b/c", "a%40b%2Fc", "%61@b/c/**", "a%40*/c"])
@pytest.mark.parametrize("path", ["a@b/c", "a%40b/c", "a@b%2fc", "a%40b%2Fc/d"])
def test_a_denial_holds_however_it_is_written_itself(rule: str, path: str) -> None:
    rules = policy(
        f'[network]\nhttp = ["GET https://h.example/**"]\ndeny = ["https://h.example/{rule}"]'
    )

    def ask(path: str) -> bool:
        resource = parse("http.request", f"https://h.example/{path}")
        return rules.judge("http.request", resource, "GET").allowed

    assert not ask(path)
    assert ask("a@b/d")


PROTECTED = policy('[filesystem]\nread = ["/**"]\nwrite = ["/srv/**"]').protect(
    ["/srv/state", b"/srv/k\xff"], ["/srv/app/tools"]
)


@pytest.mark.parametrize(
    ("effect", "path", "allowed"),
    [
        ("fs.read", "/srv/state", False),
        ("fs.read", "/srv/state/key", False),
        ("fs.stat", "/srv/state/key", False),
        ("fs.list", "/srv/state", False),
        ("fs.write", "/srv/state/key", False),
        ("fs.read", b"/srv/k\xff/x", False),
        ("fs.read", "/srv/statement", True),
        ("fs.rename", "/srv", False),
        ("fs.delete", "/srv", False),
        ("fs.rename", "/srv/app", False),
        ("fs.rename", "/srv/app2", True),
        ("fs.read", "/srv/app/tools/t.py", True),
        ("fs.write", "/srv/app/tools/t.py", False),
        ("fs.append", "/srv/app/tools/t.py", False),
        ("fs.delete", "/srv/app/tools/t.py", False),
        ("fs.mkdir", "/srv/app/tools/new", False),
        ("fs.rename", "/srv/app/tools", False),
        ("fs.write", "/srv/app/out", True),
        ("fs.read", "/proc/self/environ", False),
        ("fs.read", "/sys/kernel", False),
        ("fs.read", "/dev/mem", False),
        ("fs.read", "/process", True),
    ],
)
def test_no_rule_reaches_what_is_protected(effect: str, path: str | bytes, allowed: bool) -> None:
    assert PROTECTED.judge(effect, parse(effect, path)).allowed is allowed


def test_a_rename_may_not_carry_away_the_folder_of_a_denial() -> None:
    rules = policy('[filesystem]\nwrite = ["./**"]\nread = ["./**"]\ndeny = ["./a/secret"]')
    for path, allowed in (("a", False), ("a/secret", False), ("a/other", True), ("b", True)):
        resource = parse("fs.rename", path, cwd=BASE)
        assert rules.judge("fs.rename", resource).allowed is allowed, path


segment = st.sampled_from(
    ["data", "dat", "data2", "etc", "Data", "d", "%64ata", "data.", "*", "data*"]
)


@given(st.lists(segment, max_size=4))
@settings(max_examples=300)
def test_only_what_is_below_the_folder_is_covered(parts: list[str]) -> None:
    rules = policy('[filesystem]\nread = ["/data/**"]')
    resource = parse("fs.read", "/" + "/".join(parts))
    assert rules.judge("fs.read", resource).allowed == (parts[:1] == ["data"])
