"""A policy that remembers: the same answers as one that does not, its own alone, in bounded memory."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
import weakref

from authority.kernel import resources
from authority.kernel.policy import Policy, add_rules, load, narrow
from authority.kernel.policy_remembered import Remembered
from authority.kernel.resources import SHORT, Resource, parse

BASE = "/home/u/p"
TEXT = """\
version = 1
[filesystem]
read = ["/home/u/**"]
write = ["./out/**"]
deny = ["**/.env"]
[network]
http = ["GET https://a.example/x/**", "POST https://a.example/x/post"]
[labels]
trusted = ["fs:./good/**", "GET https://a.example/x/**"]
[labels.secrets]
key = ["fs:./keys/**"]
[approvals]
require = ["POST https://a.example/**", "fs:./out/asked"]
"""
EFFECTS = ("fs.read", "fs.write", "fs.stat", "fs.delete", "http.request", "tool.call")
VERBS = ("", "GET", "POST", "own")
NAMES = (
    *("fs:/home/u/p/good/a", "fs:/home/u/p/keys/a", "fs:/home/u/p/out/asked", "fs:/home/u/p/.env"),
    *("fs:/etc/passwd", "https://a.example:443/x/post", "https://a.example:443/y", "tool:x"),
    f"fs:/home/u/p/good/{'x/' * SHORT}y",
)
Said = list[tuple[object, ...]]


def made(text: str = TEXT) -> Policy:
    return load(text, format="toml", base=BASE, name="p.toml", read_parent=lambda _b, _n: None)  # type: ignore[arg-type, return-value]


def said(policy: Policy) -> Said:
    return [
        (
            policy.judge(effect, resource, verb),
            policy.approval(effect, resource, verb),
            policy.trusted(resource, verb),
            policy.secrets(resource),
        )
        for effect, name, verb in itertools.product(EFFECTS, NAMES, VERBS)
        for resource in [resources.parse_text(name)]
    ]


def test_it_says_what_the_policy_says() -> None:
    plain, remembered = made(), Remembered(made())
    assert said(plain) == said(remembered) == said(remembered)
    assert remembered._judge.cache_info().hits  # type: ignore[attr-defined]
    assert len({str(each) for each in said(plain)}) > 20


def test_a_memory_is_no_other_policys() -> None:
    """Protection, a parent and added rules make another policy, which nothing was asked of yet."""
    remembered = Remembered(made())
    before = said(remembered)
    other = made("version = 1\n[filesystem]\nread = ['./good/**']\n")
    for make in (
        lambda policy: policy.protect(["/home/u/p/keys"], ["/home/u/p/out/more"]),
        lambda policy: narrow(policy, Remembered(other)),
        lambda policy: add_rules(policy, {("filesystem", "deny"): ["./good/**"]}),
    ):
        changed = Remembered(make(remembered))
        assert said(changed) == said(make(made())) != before
    assert said(remembered) == before


def test_a_program_can_not_fill_the_memory_with_names() -> None:
    """Names of as many parts as there can be, and then as many short ones as are remembered."""
    policy = Remembered(made())
    parts = [f"{number:02x}" for number in range(256)]

    def ask(names: int, length: int) -> Resource:
        resource = None
        for number in range(names):
            raw = "/".join(["", *(parts[(number + i) % 256] for i in range(length)), str(number)])
            resource = parse("fs.read", raw)
            policy.judge("fs.read", resource)
            policy.approval("fs.read", resource)
            policy.trusted(resource)
            policy.secrets(resource)
        assert resource is not None
        return resource

    tracemalloc.start()
    try:
        long = ask(200, 1300)
        assert len(long.text) > 3900
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
        short = ask(resources.REMEMBERED, 80)
        assert parse("fs.read", short.text.removeprefix("fs:")) is short  # the control
        assert tracemalloc.get_traced_memory()[0] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_policy_that_nothing_runs_under_takes_its_memory_along() -> None:
    policy = Remembered(made())
    said(policy)
    answers = weakref.ref(policy._judge)
    del policy
    gc.collect()
    assert answers() is None
