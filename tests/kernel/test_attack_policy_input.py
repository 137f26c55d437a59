"""Attack family: policy texts that are wrong, hostile, or say something else than they show."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.policy import Policy, PolicyError, Source, load


def no_parent(_base: str, _name: str) -> Source:
    raise AssertionError


def make(text: str, kind: str = "toml", base: str = "/b") -> Policy:
    return load(text, format=kind, base=base, name="p", read_parent=no_parent)


SECRET = 'version = 1\n[credentials.x]\nfrom_env = "X"\nhosts = ["a"]\n'
BAD = [
    # text, key, line, a word of the message or hint
    ("", "version", 0, "version = 1"),
    ("version = 2", "version", 1, "must be 1"),
    ("version = true", "version", 1, "must be 1"),
    ("version = 1.0", "version", 1, "must be 1"),
    ('version = "1"', "version", 1, "must be 1"),
    ("version = 1\nversion = 1", "", 2, "twice"),
    ("version = 1\n[filesystem]\n[filesystem]", "", 3, "twice"),
    ("version = 1\n[filesystem]\nread = []\nread = []", "", 4, "twice"),
    ("version = 1\n\n[filesytem]\nread = []", "filesytem", 3, "did you mean filesystem"),
    ("version = 1\n[filesystem]\n\nraed = []", "filesystem.raed", 4, "did you mean read"),
    ("version = 1\n[filesystem]\nzzz = 1", "filesystem.zzz", 3, "known here"),
    ("version = 1\n[tools.x]\ncomand = []", "tools.x.comand", 3, "command"),
    ('version = 1\n[tools.x]\ntimeout = "1s"', "tools.x", 2, "needs command"),
    ("version = 1\n[tools.x]\ncommand = []", "tools.x.command", 3, "empty"),
    ('version = 1\n[tools."x y"]\ncommand = ["a"]', "tools.x y", 2, "plain name"),
    ('version = 1\n[tools]\nx = "y"', "tools.x", 3, "table"),
    ('version = 1\ntools = "y"', "tools", 2, "table"),
    ('version = 1\n[filesystem]\nread = "./a"', "filesystem.read", 3, "square brackets"),
    ("version = 1\n[filesystem]\nread = [1]", "filesystem.read[0]", 3, "text"),
    ("version = 1\n[filesystem]\nread = [1.5]", "filesystem.read[0]", 3, "float"),
    ('version = 1\n[filesystem]\nread = [""]', "filesystem.read[0]", 3, "1 to"),
    ('version = 1\n[filesystem]\nread = [\n"./a",\n"*",\n]', "filesystem.read[1]", 5, "bare"),
    ('version = 1\n[filesystem]\nwrite = ["**"]', "filesystem.write[0]", 3, "bare"),
    ('version = 1\n[filesystem]\nread = ["a/../b"]', "filesystem.read[0]", 3, ".."),
    ('version = 1\n[filesystem]\nread = ["../../../x"]', "filesystem.read[0]", 3, "above the root"),
    ('version = 1\n[filesystem]\nread = ["a[b]"]', "filesystem.read[0]", 3, "no wildcard"),
    ('version = 1\n[filesystem]\nread = ["a\\u0000"]', "filesystem.read[0]", 3, "control"),
    ('version = 1\n[filesystem]\nread = ["a\\nb"]', "filesystem.read[0]", 3, "control"),
    ('version = 1\n[filesystem]\nread = ["a\\u202eb"]', "filesystem.read[0]", 3, "invisible"),
    ("version = 1 # \u202e hidden", "", 1, "invisible"),
    ("version = 1\n# a\x07", "", 2, "control"),
    ("\ufeffversion = 1", "", 1, "invisible"),
    ('version = 1\n[network]\nhttp = ["https://*/x"]', "network.http[0]", 3, "host"),
    ('version = 1\n[network]\nhttp = ["*"]', "network.http[0]", 3, "bare"),
    ('version = 1\n[network]\nhttp = ["h.example/x"]', "network.http[0]", 3, "URL rule"),
    ('version = 1\n[network]\nhttp = ["FETCH  https://h/"]', "network.http[0]", 3, "URL rule"),
    ('version = 1\n[network]\nhttp = ["https://127.1/"]', "network.http[0]", 3, "plain address"),
    ('version = 1\n[network]\nallow = ["h.example"]', "network.allow[0]", 3, "port"),
    ('version = 1\n[network]\nallow = ["*"]', "network.allow[0]", 3, "bare"),
    ('version = 1\n[network]\nallow = ["*:443"]', "network.allow[0]", 3, "host"),
    ('version = 1\n[network]\ndeny = ["10.0.0.0/8"]', "network.deny[0]", 3, "ranges"),
    ('version = 1\n[network]\nprivate = ["*.corp"]', "network.private[0]", 3, "without wildcards"),
    ('version = 1\n[process]\nexec = ["./x"]', "process.exec[0]", 3, "absolute path"),
    ('version = 1\n[process]\nexec = ["/usr/../x"]', "process.exec[0]", 3, "absolute path"),
    ('version = 1\n[process]\nexec = ["*"]', "process.exec[0]", 3, "wildcards"),
    ('version = 1\n[process]\npass_env = ["A=B"]', "process.pass_env[0]", 3, "variable"),
    ('version = 1\n[process]\npass_env = ["*"]', "process.pass_env[0]", 3, "variable"),
    ('version = 1\n[process]\nenv = { AUTHORITY_X = "1" }', "process.env.AUTHORITY_X", 3, "gate"),
    ("version = 1\n[process]\nenv = { A = 1 }", "process.env.A", 3, "text"),
    ("version = 1\n[limits]\ncpus = 1.5", "limits.cpus", 3, "floats are refused"),
    ("version = 1\n[limits]\ncpus = 0", "limits.cpus", 3, "more than zero"),
    ('version = 1\n[limits]\ncpus = "1.2345"', "limits.cpus", 3, "decimals"),
    ("version = 1\n[limits]\nmemory = 0", "limits.memory", 3, "more than zero"),
    ("version = 1\n[limits]\nmemory = true", "limits.memory", 3, "size"),
    ('version = 1\n[limits]\nmemory = "1XB"', "limits.memory", 3, "size"),
    ('version = 1\n[limits]\nmemory = "1kb"', "limits.memory", 3, "size"),
    ("version = 1\n[budgets]\ntool_calls = -1", "budgets.tool_calls", 3, "negative"),
    ("version = 1\n[budgets]\ntool_calls = 1.0", "budgets.tool_calls", 3, "floats are refused"),
    ("version = 1\n[budgets]\ntool_calls = nan", "budgets.tool_calls", 3, "floats are refused"),
    ("version = 1\n[budgets]\ntool_calls = true", "budgets.tool_calls", 3, "whole number"),
    ("version = 1\n[budgets]\ntool_calls = 9007199254740992", "budgets.tool_calls", 3, "2^53"),
    ("version = 1\n[budgets]\ntool_calls = " + "9" * 5000, "", 0, "digits"),
    ('version = 1\n[budgets]\ncost_usd = "-1"', "budgets.cost_usd", 3, "amount"),
    ('version = 1\n[budgets]\ncost_usd = "1e3"', "budgets.cost_usd", 3, "amount"),
    ('version = 1\n[budgets]\ncost_usd = "0.0000001"', "budgets.cost_usd", 3, "amount"),
    ('version = 1\n[budgets]\ncost_usd = "9999999999"', "budgets.cost_usd", 3, "2^53"),
    ("version = 1\n[budgets]\nwall_time = 5", "budgets.wall_time", 3, "unit"),
    ('version = 1\n[budgets]\nwall_time = "5 weeks"', "budgets.wall_time", 3, "unit"),
    ('version = 1\n[budgets]\nwall_time = "٥m"', "budgets.wall_time", 3, "unit"),
    ('version = 1\n[budgets]\nwall_time = "9999999999999999d"', "budgets.wall_time", 3, "2^53"),
    ("version = 1\n[budgets]\nwall_time = 1979-05-27", "budgets.wall_time", 3, "unit"),
    ("version = 1\n[budgets]\nmoney = 1", "budgets.money", 3, "known here"),
    ('version = 1\nexplain = "everyone"', "explain", 2, "one of"),
    ("version = 1\nextends = []", "extends", 2, "1 to 8"),
    ('version = 1\n[credentials.x]\nfrom_env = "X"', "credentials.x", 2, "needs hosts"),
    (SECRET.replace('"a"', '"*.a"'), "credentials.x.hosts[0]", 4, "one host"),
    (SECRET + 'format = "x"', "credentials.x.format", 5, "{}"),
    (SECRET + 'format = "{}{0}"', "credentials.x.format", 5, "{}"),
    (SECRET + 'header = "Host"', "credentials.x.header", 5, "header"),
    (SECRET + 'header = "A: b"', "credentials.x.header", 5, "header"),
    (SECRET + '[process]\npass_env = ["X"]', "credentials.x.from_env", 3, "shows the secret"),
    ('version = 1\n[labels]\ntrusted = ["everything"]', "labels.trusted[0]", 3, "not a pattern"),
    ('version = 1\n[labels]\nrelease = { x = ["output"] }', "labels.release.x", 3, "neither"),
    ('version = 1\n[approvals]\nrequire = ["https://h/?a"]', "approvals.require[0]", 3, "one spelling"),
    ("version = 1\nnot toml", "", 2, "not TOML"),
    ("version = 1\na = [", "", 2, "not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "line", "word"), BAD, ids=range(len(BAD)))
def test_a_wrong_policy_says_where_and_what(text: str, key: str, line: int, word: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make(text)
    error = caught.value
    assert word in str(error), str(error)
    assert (error.file, error.key) == ("p", key)
    if line:
        assert error.line == line
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"version":1,"version":1}', "twice"),
        ('{"version":1,"filesystem":{"read":["./a"],"read":[]}}', "twice"),
        ('{"version":1,"budgets":{"tool_calls":1.0}}', "floats are refused"),
        ('{"version":1,"budgets":{"tool_calls":NaN}}', "floats are refused"),
        ('{"version":1,"budgets":{"tool_calls":null}}', "whole number"),
        ('{"version":1,"filesystem":{"read":["\\ud800"]}}', "control or invisible"),
        ('{"version":1,"filesystem":{"read":["a\\u0000"]}}', "control or invisible"),
        ('{"version":1} x', "not JSON"),
        ("[1]", "table"),
        ("", "not JSON"),
        ('{"version":1,"x":' + "1" * 5000 + "}", "not JSON"),
    ],
)
def test_a_wrong_json_policy(text: str, word: str) -> None:
    with pytest.raises(PolicyError, match=word):
        make(text, "json")


def test_the_control_a_right_one_loads() -> None:
    assert make('version = 1\n[filesystem]\nread = ["./a"]')
    assert make('{"version":1,"filesystem":{"read":["./a"]}}', "json")
    assert make("version = 1\nextends = []".replace("extends = []", "[tools]"))


def test_deep_and_huge_texts_are_refused_quickly() -> None:
    began = time.process_time()
    for text, kind in (
        ("version = 1\na = " + "[" * 100_000, "toml"),
        ("version = 1\na = " + "{a=" * 100_000, "toml"),
        ("version = 1\n" + "a." * 100_000 + "b = 1", "toml"),
        ("version = 1\n[" + "a." * 100_000 + "b]", "toml"),
        ('{"a":' * 100_000, "json"),
        ("[" * 100_000, "json"),
        ("#" * (5 * 1024 * 1024), "toml"),
        ('version = 1\n[filesystem]\nread = ["' + "a" * 100_000 + '"]', "toml"),
        ('version = 1\n[filesystem]\nread = ["' + "/**/a" * 1000 + '"]', "toml"),
    ):
        with pytest.raises(PolicyError):
            make(text, kind)
    assert time.process_time() - began < 20


def test_another_format_or_folder_is_refused() -> None:
    with pytest.raises(PolicyError, match="TOML or JSON"):
        make("version: 1", "yaml")
    for base in ("relative", "", "/a/../b", "/a\nb"):
        with pytest.raises(PolicyError):
            make("version = 1", base=base)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: b.decode("latin-1"))))
@settings(max_examples=300)
def test_no_text_crashes_the_reader(text: str) -> None:
    for kind in ("toml", "json"):
        for whole in (text, "version = 1\n" + text, '{"version":1,' + text):
            try:
                make(whole, kind)
            except PolicyError as error:
                assert str(error).isprintable()  # noqa: PT017


WORDS = """filesystem read write deny network http allow private process exec env pass_env limits
memory cpus tools x command timeout content reads agents policy budgets tool_calls cost_usd wall_time
labels trusted secrets release approvals require credentials from_env hosts header format explain"""
KEYS = st.sampled_from(WORDS.split())

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.just("**")
    | st.just("./a/**"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, values, max_size=4))
@settings(max_examples=400)
def test_no_document_crashes_the_schema(doc: dict[str, object]) -> None:
    import json

    try:
        policy = make(json.dumps({"version": 1, **doc}), "json")
    except PolicyError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert policy.digest
