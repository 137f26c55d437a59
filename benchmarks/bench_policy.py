"""What a policy decision costs: at 20, 1,000 and 10,000 rules, at worst, and beside two peers.

One rule in ten begins with `**` or has a wildcard host. Every figure is the best of several rounds,
of which the sizes take turns, so that a busy machine is busy for all. The requests are the same at
each size: allowed, denied by a rule and covered by none, files and URLs. Worst case: rules that no
index can file (`/base/x*<n>*`), none of which matches.

The peers get the same file rules in their own words (Cedar: `like`, prepared once; Casbin: an own
glob function, its compiled enforcer). They answer a narrower question; the figure shows the order of
magnitude, and that their cost rises with the number of rules.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from typing import Any

from authority.kernel.policy import Policy, Source, load
from authority.kernel.resources import Resource, parse

BASE = "/srv/app"
SIZES = (20, 1_000, 10_000)
TARGET_RATIO = 1.5
Row = dict[str, Any]


def _row(
    name: str, value: float | None, unit: str, detail: str, target: str = "", ok: Any = None
) -> Row:
    rounded = None if value is None else round(value, 3)
    return {
        "name": name,
        "value": rounded,
        "unit": unit,
        "target": target,
        "ok": ok,
        "detail": detail,
    }


def _no_parent(_base: str, _name: str) -> Source:
    raise AssertionError("nothing is extended")


def file_rules(count: int) -> list[str]:
    """`count` patterns below the base; one in ten begins with `**`."""
    rules = ["/srv/app/docs/**", "/srv/app/data/f1.txt"]
    for n in range(2, count):
        if n % 10 == 0:
            rules.append(f"/**/cache{n}" if n % 20 else f"/**/name{n}/*.ext{n}")
        else:
            rules.append(f"/srv/app/d{n % 37}/e{n}/**")
    return rules[:count]


def url_rules(count: int) -> list[str]:
    """`count` URL rules; one in ten has a wildcard host."""
    rules = ["GET https://api.example/repos/**"]
    for n in range(1, count):
        host = f"*.h{n}.example" if n % 10 == 0 else f"h{n % 53}.example"
        rules.append(f"GET https://{host}/p{n}/**")
    return rules


def policy(count: int) -> Policy:
    """Half of the rules are for files, half for URLs; a few denials stand beside them."""

    def texts(items: list[str]) -> str:
        return "[" + ",".join(f'"{item}"' for item in items) + "]"

    text = (
        f"version = 1\n[filesystem]\nread = {texts(file_rules(count // 2))}\n"
        'deny = ["**/.env", "**/.git/hooks/**"]\n'
        f"[network]\nhttp = {texts(url_rules(count // 2))}\n"
        'deny = ["*.internal"]\n'
    )
    return load(text, format="toml", base=BASE, name="bench", read_parent=_no_parent)


def requests() -> list[tuple[str, Resource, str, bool]]:
    """Effect, resource, verb, and what the answer must be."""
    return [
        ("fs.read", parse("fs.read", "/srv/app/docs/a/b/c.md"), "", True),
        ("fs.read", parse("fs.read", "/srv/app/data/f1.txt"), "", True),
        ("fs.read", parse("fs.read", "/srv/app/docs/.env"), "", False),
        ("fs.read", parse("fs.read", "/srv/app/other/x/y.txt"), "", False),
        ("http.request", parse("http.request", "https://api.example/repos/o/r"), "GET", True),
        ("http.request", parse("http.request", "https://x.api.example/other"), "GET", False),
        ("http.request", parse("http.request", "https://x.internal/"), "GET", False),
    ]


def _time(work: Callable[[], None], seconds: float) -> float:
    """Microseconds of one call, over about `seconds`."""
    count, spent = 0, 0.0
    began = time.perf_counter()
    while spent < seconds:
        work()
        count += 1
        spent = time.perf_counter() - began
    return spent / count * 1e6


def _decisions(quick: bool) -> list[Row]:
    asked = requests()
    policies = {size: policy(size) for size in SIZES}
    for subject in policies.values():
        for effect, resource, verb, wanted in asked:
            if subject.judge(effect, resource, verb).allowed is not wanted:
                raise AssertionError(f"{effect} {resource.text}: the benchmark asks wrongly")

    def judge_all(subject: Policy) -> None:
        for effect, resource, verb, _ in asked:
            subject.judge(effect, resource, verb)

    best = dict.fromkeys(SIZES, float("inf"))
    for _ in range(4 if quick else 12):
        for size in SIZES:
            once = _time(lambda size=size: judge_all(policies[size]), 0.03)  # type: ignore[misc]
            best[size] = min(best[size], once / len(asked))
    rows = [
        _row(
            f"decision at {size:,} rules", best[size], "us", f"{len(asked)} kinds of request, mean"
        )
        for size in SIZES
    ]
    for size in SIZES[1:]:
        ratio = best[size] / best[SIZES[0]]
        target = f"<= {TARGET_RATIO}" if size == 1_000 else ""
        ok = ratio <= TARGET_RATIO if target else None
        detail = "one rule in ten begins with ** or a wildcard host"
        rows.append(_row(f"cost at {size:,} rules to 20", ratio, "ratio", detail, target, ok))
    return rows


def _worst(quick: bool) -> list[Row]:
    rows = []
    for size in (20, 1_000):
        rules = ",".join(f'"/srv/x*{n}*y"' for n in range(size))
        text = f"version = 1\n[filesystem]\nread = [{rules}]"
        subject = load(text, format="toml", base=BASE, name="worst", read_parent=_no_parent)
        resource = parse("fs.read", "/srv/xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaz")
        cost = min(
            _time(lambda: subject.judge("fs.read", resource) and None, 0.05)  # noqa: B023
            for _ in range(2 if quick else 5)
        )
        rows.append(
            _row(
                f"worst case at {size:,} rules",
                cost,
                "us",
                "only rules that no index can file; linear",
            )
        )
    return rows


def _loading(quick: bool) -> list[Row]:
    rows = []
    for size in (1_000,) if quick else (1_000, 10_000):
        began = time.perf_counter()
        policy(size)
        spent = (time.perf_counter() - began) * 1000
        rows.append(
            _row(f"loading {size:,} rules", spent, "ms", "TOML, checks, index, digest; once a run")
        )
    began = time.perf_counter()
    rounds = 200 if quick else 2000
    for _ in range(rounds):
        parse("fs.read", "docs/a/b/c.md", cwd=BASE)
        parse("http.request", "https://api.example/repos/o/r?page=2")
    spent = (time.perf_counter() - began) / rounds / 2 * 1e6
    rows.append(_row("making a resource canonical", spent, "us", "mean of a file and a URL"))
    return rows


def _cedar(quick: bool) -> list[Row]:
    try:
        import cedarpy
    except ImportError:
        return [_row("cedarpy", None, "", "cedarpy is not installed")]
    rows = []
    request = {
        "principal": 'Run::"r"',
        "action": 'Action::"read"',
        "resource": 'File::"f"',
        "context": {"path": "/srv/app/docs/a/b/c.md"},
    }
    for size in SIZES[:2]:
        words = (rule.replace("**", "*") for rule in file_rules(size))
        text = "\n".join(
            f'permit(principal, action, resource) when {{ context.path like "{word}" }};'
            for word in words
        )
        rules = cedarpy.PolicySet.from_str(text)
        if not cedarpy.is_authorized(request, rules, []).allowed:
            raise AssertionError("Cedar was asked wrongly")
        cost = min(
            _time(lambda: cedarpy.is_authorized(request, rules, []) and None, 0.1)  # noqa: B023
            for _ in range(1 if quick else 3)
        )
        rows.append(_row(f"cedarpy at {size:,} rules", cost, "us", "one file request, allowed"))
    return rows


def _casbin(quick: bool) -> list[Row]:
    try:
        import casbin
    except ImportError:
        return [_row("casbin", None, "", "casbin is not installed")]
    rows = []
    for size in SIZES[:2]:
        model = casbin.Model()
        model.add_def("r", "r", "obj, act")
        model.add_def("p", "p", "obj, act")
        model.add_def("e", "e", "some(where (p.eft == allow))")
        model.add_def("m", "m", "r.act == p.act && glob(r.obj, p.obj)")
        enforcer = casbin.Enforcer(model)
        enforcer.add_function("glob", fnmatch.fnmatchcase)
        for rule in file_rules(size):
            enforcer.add_policy(rule.replace("**", "*"), "read")
        if enforcer.enforce("/srv/app/nothing", "read"):
            raise AssertionError("Casbin was asked wrongly")
        cost = min(
            _time(lambda: enforcer.enforce("/srv/app/nothing", "read") and None, 0.1)  # noqa: B023
            for _ in range(1 if quick else 3)
        )
        rows.append(
            _row(f"casbin at {size:,} rules", cost, "us", "one file request, covered by no rule")
        )
    return rows


def run(quick: bool) -> list[Row]:
    """The rows of the table."""
    return [*_decisions(quick), *_worst(quick), *_loading(quick), *_cedar(quick), *_casbin(quick)]
