"""Generated policies and requests, odd ones among them, and what the encoding says of each.

`disagreements` holds the formulas of `encoding` against the compiled policy itself, one request at a
time: every question that a proof rests on, for every effect.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from urllib.parse import quote

from authority.errors import AuthorityError
from authority.kernel import flows
from authority.kernel.patterns import PatternError, parse_pattern
from authority.kernel.policy import Policy, PolicyError, Source, load, narrow
from authority.kernel.policy_persist import HOME, OWN
from authority.kernel.requests import EFFECTS
from authority.kernel.resource_urls import DEFAULT_PORTS
from authority.kernel.resources import Resource, parse
from authority.proof.alphabets import FILE, NAMES, URL
from authority.proof.automata import FALSE, TRUE, Formula, Searcher
from authority.proof.claims import takes
from authority.proof.encoding import Encoded
from authority.proof.space import Cell, cells, schemes_of, searchers

BASE = "/b/p"
LETTER = re.compile(rb"%[0-9A-F]{2}|.", re.DOTALL)
"""A letter of a URL's path: a byte, or one that is percent-encoded."""
FOLDERS = ["a", "b", "ab", "a b", "é", ".env", "x.pem", "a*b", "q"]
LATER = [
    ".git",
    "hooks",
    "config",
    "modules",
    "worktrees",
    ".vscode",
    ".github",
    "workflows",
    ".bashrc",
]
LATER += [
    "bin",
    "activate.sh",
    "x.pth",
    "sitecustomize",
    "pyvenv.cfg",
    ".Git",
    "HOO\u212aS",
    "wor\u212atrees",
]
LATER += [
    "\u212a",
    ".git\u0130",
    "jenkinsfile",
    "Scripts",
    "commondir",
    ".config",
    "fish",
    "hooks2",
]
URL_PARTS = [
    "a",
    "b",
    "ab",
    "a%2Fb",
    "%61",
    "x;y",
    "a%20b",
    "%C3%A9",
    "%5C",
    "a%5Cb",
    "2F",
    "%252F",
    "!",
    "%21",
]
RULE_PARTS = [
    "**",
    "*",
    "a*",
    "*b",
    "*2F*",
    "*%20*",
    "a",
    "b",
    "ab",
    "%C3%A9",
    "a%2Fb",
    "x;y",
    "!",
    "%21",
    "*b*",
]
HOSTS = ["h.example", "i.h.example", "j.i.h.example", "other.test", "10.0.0.1", "[2001:db8::1]"]
VERBS = ["GET", "HEAD", "POST", "PUT", "DELETE"]
SECRETS = ["s", "t"]


def file_rule(r: random.Random, *, forbids: bool = False) -> str:
    parts = []
    for _ in range(r.randint(1, 4)):
        kind = r.random()
        if kind < 0.2 and (not parts or parts[-1] != "**"):
            parts.append("**")
        elif kind < 0.45:
            parts.append(r.choice(["*", "a*", "*b", "*.pem", "*é*", "a*b*", "*a*"]))
        else:
            names = ["a", "b", "ab", "a b", "é", ".env", "x.pem", r"a\*b"]
            parts.append(r.choice(names if r.random() < 0.7 else LATER))
    text = "/".join(parts)
    if text in ("*", "**"):
        text = "./" + text
    return r.choice(["./", "/", "../", "" if forbids else "./", "/b/p/"]) + text


def url_rule(r: random.Random, *, forbids: bool = False) -> str:
    """One that can be read."""
    while True:
        text = _url_rule(r, forbids=forbids)
        try:
            parse_pattern(text, base=BASE, forbids=forbids)
        except PatternError:
            continue
        return text


def _url_rule(r: random.Random, *, forbids: bool) -> str:
    verbs = r.choice(["", "", "GET ", "POST ", "GET,PUT ", "POST,DELETE "])
    host = r.choice(["", "", "*."]) + r.choice(["h.example", "h.example", "i.h.example", "example"])
    if host[:2] != "*.":
        host = r.choice([host, host, "h.example", "10.0.0.1"])
    port = r.choice(["", "", "", "", ":8443"])
    parts = []
    for _ in range(r.randint(0, 3)):
        parts.append(r.choice(RULE_PARTS))
    path = r.choice(["", "/" + "/".join(parts), "/" + "/".join(parts), "/" + "/".join(parts)])
    if parts and parts[-1] != "**" and r.random() < 0.5:
        path += "/**"
    query = r.choice(["", "?*"]) if forbids else r.choice(["", "?*", "?*", "?q=1", "?"])
    return f"{verbs}{r.choice(['https', 'https', 'https', 'http'])}://{host}{port}{path}{query}"


def any_rule(r: random.Random, *, forbids: bool) -> str:
    kind = r.random()
    if kind < 0.35:
        return url_rule(r, forbids=forbids)
    if kind < 0.7:
        return "fs:" + file_rule(r)
    return r.choice(
        ["tool:t", "tool:*", "tool:u*", "agent:*", "run:r*", "run:r1", "tcp://h.example:22"]
    )


def document(r: random.Random, *, extends: bool) -> str:
    def some(make, n: int = 3, **kw: bool) -> str:  # type: ignore[no-untyped-def]
        return json.dumps([make(r, **kw) for _ in range(r.randint(0, n))], ensure_ascii=False)

    out = ["version = 1"]
    if extends:
        out.append('extends = "base"')
    if r.random() < 0.9:
        out.append("[filesystem]")
        for key in ("read", "write"):
            if r.random() < 0.8:
                out.append(f"{key} = {some(file_rule)}")
        out.append(f"deny = {some(file_rule, 2, forbids=True)}")
    if r.random() < 0.9:
        out.append("[network]")
        if r.random() < 0.8:
            out.append(f"http = {some(url_rule, 8)}")
        out.append(
            'allow = ["h.example:22", "*.h.example:22"]' if r.random() < 0.5 else "allow = []"
        )
        deny = [url_rule(r, forbids=True) for _ in range(r.randint(0, 2))]
        deny += [r.choice(["*.h.example", "i.h.example", "h.example:8443", "other.test"])]
        out.append(f"deny = {json.dumps(deny[r.randint(0, 1) :], ensure_ascii=False)}")
    if not extends:
        out.append('[tools.t]\ncommand = ["t"]\ncontent = ["x"]')
        out.append('[tools.u1]\ncommand = ["t"]\nreads = "trusted"')
        out.append('[agents.c]\ncommand = ["c"]')
    if r.random() < 0.5:
        out.append('[process]\nexec_from = ["./a", "/b/ab"]')
        if not extends:
            out.append('home = "mine"')
    if r.random() < 0.6:
        out.append('[models]\nallow = ["gpt-*", "o1"]\ndeny = ["*/x"]')
    out.append("[labels]")
    if r.random() < 0.7:
        out.append(f"trusted = {json.dumps([any_rule(r, forbids=False) for _ in range(2)])}")
    if r.random() < 0.7:
        out.append(f"content = {json.dumps([any_rule(r, forbids=False) for _ in range(2)])}")
    names = [n for n in SECRETS if r.random() < 0.7]
    if names:
        secrets = ", ".join(f"{n} = {json.dumps(['fs:' + file_rule(r)])}" for n in names)
        out.append(f"secrets = {{ {secrets} }}")
        words = ["output", "run"]
        releases = ", ".join(
            f"{n} = {json.dumps([any_rule(r, forbids=False), r.choice(words)])}" for n in names
        )
        if r.random() < 0.8:
            out.append(f"release = {{ {releases} }}")
    out.append(f"[approvals]\nrequire = {json.dumps([any_rule(r, forbids=True)])}")
    return "\n".join(out)


def policy(r: random.Random) -> Policy:
    """A policy that loads: alone, one that extends, or a child under its parent; protected or not."""

    def one() -> Policy:
        while True:
            base = document(r, extends=False)
            text = document(r, extends=True) if r.random() < 0.4 else base

            def read_parent(_base: str, _name: str, base: str = base) -> Source:
                return Source(base, "toml", BASE, "base.toml")

            try:
                return load(text, format="toml", base=BASE, name="p.toml", read_parent=read_parent)
            except (PolicyError, PatternError):
                continue

    found = narrow(one(), one()) if r.random() < 0.2 else one()
    if r.random() < 0.5:
        try:
            found = found.protect(["/b/p/a/ab", "/q"], ["/b/p/b"])
        except PolicyError:
            return found
    return found


def request(r: random.Random) -> tuple[str, Resource, str]:
    """An effect, a resource that it can name, and a verb."""
    while True:
        effect = r.choice(sorted(EFFECTS) if r.random() < 0.5 else ["http.request", "fs.rename"])
        family, verb = effect.partition(".")[0], ""
        if family == "fs":
            names = FOLDERS if r.random() < 0.4 else FOLDERS + LATER * 2
            raw = "/".join(r.choice(names) for _ in range(r.randint(0, 6)))
            raw = r.choice(["/", "", "", "/b/p/", "/b/", "/b/p/a/", "/home/agent/"]) + raw
            verb = r.choice(["", "", OWN, HOME])
        elif family == "http":
            verb = r.choice(VERBS)
            path = "/".join(r.choice(URL_PARTS) for _ in range(r.randint(0, 4)))
            raw = f"{r.choice(['https', 'https', 'https', 'http'])}://"
            raw += r.choice([*HOSTS, "h.example", "h.example", "i.h.example"])
            raw += f"{r.choice(['', '', '', '', ':8443', ':9'])}/{path}"
            raw += r.choice(["", "", "/"]) if path else ""
            raw += r.choice(["", "", "", "?q=1", "?", "?z"])
        elif effect == "net.resolve":
            raw = r.choice(HOSTS)
        elif family == "net":
            raw = f"{r.choice(HOSTS)}:{r.choice([22, 8443])}"
        elif family == "model":
            raw = r.choice(["model:gpt-4", "model:gpt-4/x", "model:o1", "model:z"])
        elif effect in ("mcp.list", "mcp.read", "mcp.prompt"):
            raw = "mcp:files/resources"
        elif family == "tool":
            raw = r.choice(["tool:t", "tool:u1", "tool:zz"])
        elif effect == "agent.spawn":
            raw = r.choice(["agent:c", "agent:zz"])
        elif effect == "output":
            raw = r.choice(["output:stdout", "output:stderr"])
        else:
            raw = r.choice(["run:r1", "run:r2", "run:x"])
        try:
            return effect, parse(effect, raw, cwd=BASE), verb
        except AuthorityError:
            continue


def near(r: random.Random, made: Policy) -> tuple[str, Resource, str] | None:
    """A request that one of the policy's rules covers or nearly covers, oddly spelled."""
    pattern = r.choice(list(Encoded(made).patterns()) or [None])
    if pattern is None or not pattern.schemes & {"fs", "http", "https"}:
        return None
    segments: list[str] = []
    for part in pattern.parts:
        if part is None:
            segments += [r.choice(["a", "b", "x.pem"]) for _ in range(r.randint(0, 2))]
        else:
            pieces = (part,) if isinstance(part, str) else part
            segments.append(r.choice(["", "", "a", "zz"]).join(pieces))
    if r.random() < 0.2 and segments:
        segments.pop(r.randrange(len(segments)))
    try:
        if "fs" in pattern.schemes:
            effect = r.choice([e for e in sorted(EFFECTS) if e.startswith("fs.")])
            if r.random() < 0.5:
                segments.insert(r.randint(0, len(segments)), r.choice(LATER))
            if r.random() < 0.3:
                segments.append(r.choice(LATER))
            verb = r.choice(["", "", OWN, HOME])
            return effect, parse(effect, "/" + "/".join(segments)), verb
        joints = [r.choice(["/", "/", "/", "%2F", "%5C", "%2F/"]) for _ in segments]
        quoted = [quote(s, safe="!;%" if not pattern.forbids else "!;") for s in segments]
        path = "".join(j + s for j, s in zip(["/", *joints[1:]], quoted, strict=False))
        host = pattern.host if not pattern.subdomains else r.choice(["z.", ""]) + pattern.host
        place = f"[{host}]" if ":" in host else host
        port = pattern.port or r.choice([443, 80])
        query = r.choice(["", "?q=1", "?", "?z"])
        verb = r.choice(sorted(pattern.verbs) if pattern.verbs and r.random() < 0.8 else VERBS)
        scheme = r.choice(sorted(pattern.schemes & {"http", "https"}))
        raw = f"{scheme}://{place}:{port}{path or '/'}{query}"
        return "http.request", parse("http.request", raw), verb
    except AuthorityError:
        return None


def cell_of(resource: Resource, verb: str) -> Cell:
    if resource.scheme == "dns":
        return Cell("dns", name=resource.host)
    name = resource.name if resource.scheme in ("tool", "agent", "output") else ""
    return Cell(resource.scheme, resource.host, resource.port, resource.query, verb, name)


def word_of(resource: Resource) -> tuple[int, ...]:
    """The word of a resource's path or name, to hold a formula against one request."""
    if resource.scheme == "fs":
        segments = (s.encode("utf-8", "surrogateescape") for s in resource.segments)
        return tuple(n for s in segments for n in (0, *(FILE.by_raw[bytes((b,))] for b in s)))
    if resource.scheme in DEFAULT_PORTS:
        path = ("/" + "/".join(resource.segments)).encode("ascii")
        return tuple(0 if raw == b"/" else URL.by_raw[raw] for raw in LETTER.findall(path))
    if resource.scheme in ("run", "model"):
        return (0, *(NAMES.by_raw[bytes((b,))] for b in resource.name.encode("ascii")))
    return ()


def holds(by_scheme: dict[str, Searcher], formula: Formula, resource: Resource) -> bool:
    if formula in (TRUE, FALSE):
        return formula == TRUE
    return by_scheme[resource.scheme].holds(formula, word_of(resource))


def questions(
    policy: Policy, effect: str, resource: Resource, verb: str
) -> Iterator[tuple[str, Formula, bool]]:
    """(question, formula, what the policy says) for one request."""
    encoded, cell = Encoded(policy), cell_of(resource, verb)
    yield "judge", encoded.judge(effect, cell), policy.judge(effect, resource, verb).allowed
    yield "approval", encoded.approval(cell), bool(policy.approval(effect, resource, verb))
    yield "trusted", encoded.trusted(cell), policy.trusted(resource, verb)
    yield "takes", encoded.takes(effect, cell), takes(policy, effect, resource, verb)
    for name in SECRETS:
        yield f"secret {name}", encoded.secret(name, cell), name in policy.secrets(resource)
        released = policy.releases(name, effect, resource, verb)
        yield f"releases {name}", encoded.releases(name, cell), released
        sink = flows.sink(policy, effect, resource, verb, frozenset(), frozenset([name]), own=False)
        yield f"lets out {name}", encoded.lets_out(name, effect, cell), name in sink.secrets


def disagreements(seed: int, policies: int, requests: int) -> Iterator[str]:
    """Where the encoding and the compiled policy differ, or the space lacks a request."""
    r, by_scheme = random.Random(seed), searchers()
    for _ in range(policies):
        made = policy(r)
        patterns = tuple(Encoded(made).patterns())
        for _ in range(requests):
            effect, resource, verb = (r.random() < 0.7 and near(r, made)) or request(r)
            for what, formula, expected in questions(made, effect, resource, verb):
                if holds(by_scheme, formula, resource) is not expected:
                    yield f"{what}: {effect} {verb} {resource.text}: the policy says {expected}"
            word = word_of(resource)
            if word and not by_scheme[resource.scheme].can_ask(word):
                yield f"the space lacks {resource.text}"
            if resource.scheme not in schemes_of(effect):
                yield f"{effect} is not asked about {resource.scheme}"
            if resource.scheme in ("http", "https", "tcp") and not stands_for(
                resource, verb, patterns
            ):
                yield f"no cell stands for {verb} {resource.text}"


def stands_for(resource: Resource, verb: str, patterns: tuple) -> bool:  # type: ignore[type-arg]
    """Whether a cell is told apart from the request's own by no pattern (nor by GET and HEAD)."""
    own = cell_of(resource, verb)
    relevant = [p for p in patterns if resource.scheme in p.schemes]
    wanted = [own.covered(p) for p in relevant]
    return any(
        (cell.verb in ("GET", "HEAD")) == (verb in ("GET", "HEAD"))
        and [cell.covered(p) for p in relevant] == wanted
        for cell in cells(resource.scheme, patterns)
    )
