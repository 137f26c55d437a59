"""No wider than: does NEW allow anything that OLD did not, in any of the ways a policy can?

Rules
- About requests (`prover`), for each effect: what NEW allows and OLD did not; what NEW allows without
  an approval and OLD only with one; what NEW trusts, stops calling secret, releases, or lets a run do
  that is not trusted, and OLD did not. The last four are asked where NEW allows the request.
- A rename touches two names, each judged by itself: if no name is newly allowed, no pair is.
- About the rest, which is finite, by comparing: tools, agents, credentials, private hosts, programs,
  variables, limits, budgets. A tool or agent that runs something else is wider, whatever it runs.
- An exception is what the person says may become wider: `EFFECT [to PATTERN]`, read narrowly. It
  covers requests, never the rest.
- Prices, upstreams and other terms of models are not compared: where they differ, and wherever a
  policy names MCP servers, nothing is decided (`Undecided`).
- Agents are compared with the name of their policy: what that file says is bounded by the parent's,
  and is a policy of its own to be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from authority.kernel import flows
from authority.kernel.policy import Policy
from authority.kernel.requests import EFFECTS
from authority.kernel.resources import Resource
from authority.kernel.tool_rules import ToolRules
from authority.proof.automata import FALSE, Formula, Undecided, both, either, negated
from authority.proof.claims import in_scope, is_in_scope, prover_for, takes
from authority.proof.encoding import Encoded
from authority.proof.prover import Prover, Question, Witness
from authority.proof.space import Cell
from authority.proof.statements import Scope

_READS: Final = tuple(sorted(flows._READS))
_ANSWERS: Final = (*_READS, *sorted(flows._NETWORK), "tool.call", *sorted(flows._MCP))


def widened(
    old: Policy, new: Policy, exceptions: tuple[Scope, ...] = (), *, prover: Prover | None = None
) -> Iterator[Witness]:
    """A shortest request for each way in which NEW is wider; nothing is the proof that it is not."""
    _comparable(old, new)
    prover = prover or prover_for(old, new, statements=exceptions)
    for question in _questions(old, new, exceptions):
        found = prover.shortest(question)
        if found is not None:
            yield found
    yield from definitions(old, new)


def _comparable(old: Policy, new: Policy) -> None:
    """Refuse what is not compared here: where models are asked, and what they cost.

    Every file of a chain can only make a model dearer, so NEW may have more of them.
    """
    gone = _terms(old) - _terms(new)
    elsewhere = [k for k, v in new.models.upstream.items() if old.models.upstream.get(k) != v]
    if gone or elsewhere:
        raise Undecided(
            "the policies differ in what models cost, or where they are asked",
            "only models.allow and models.deny are compared; make the rest of [models] the same",
        )


def _terms(policy: Policy) -> Counter[str]:
    files = [layer.models for layer in policy.layers]
    return Counter(repr((f._own, f._listed, f.knows, f.default_max_output, f.count)) for f in files)


def _questions(old: Policy, new: Policy, exceptions: tuple[Scope, ...]) -> Iterator[Question]:
    before, after = Encoded(old), Encoded(new)

    def outside(effect: str, cell: Cell) -> Formula:
        return negated(either(*(in_scope(each, effect, cell) for each in exceptions)))

    def is_outside(effect: str, resource: Resource, verb: str) -> bool:
        return not any(is_in_scope(each, effect, resource, verb) for each in exceptions)

    def question(why: str, effects: tuple[str, ...], more: Any, real: Any) -> Question:
        def formula(effect: str, cell: Cell) -> Formula:
            allowed = after.judge(effect, cell)
            return (
                FALSE
                if allowed == FALSE
                else both(outside(effect, cell), allowed, more(effect, cell))
            )

        def asked(effect: str, resource: Resource, verb: str) -> bool:
            return (
                is_outside(effect, resource, verb)
                and new.judge(effect, resource, verb).allowed
                and bool(real(effect, resource, verb))
            )

        return Question(why, effects, formula, asked)

    yield question(
        "is newly allowed",
        tuple(EFFECTS),
        lambda e, c: negated(before.judge(e, c)),
        lambda e, r, v: not old.judge(e, r, v).allowed,
    )
    yield question(
        "needs no approval any more",
        tuple(EFFECTS),
        lambda e, c: both(before.judge(e, c), before.approval(c), negated(after.approval(c))),
        lambda e, r, v: (
            old.judge(e, r, v).allowed and old.approval(e, r, v) and not new.approval(e, r, v)
        ),
    )
    yield question(
        "is newly trusted",
        _ANSWERS,
        lambda e, c: both(after.trusted(c), negated(before.trusted(c))),
        lambda e, r, v: new.trusted(r, v) and not old.trusted(r, v),
    )
    for name in sorted({n for layer in old.layers for n in layer.secrets}):
        yield question(
            f"no longer holds the secret {name}",
            _READS,
            lambda e, c, name=name: both(before.secret(name, c), negated(after.secret(name, c))),
            lambda e, r, v, name=name: name in old.secrets(r) and name not in new.secrets(r),
        )
    for name in sorted({n for layer in new.layers for n in layer.release}):
        yield question(
            f"may newly carry the secret {name}",
            tuple(EFFECTS),
            lambda e, c, name=name: both(
                after.releases(name, c), negated(before.releases(name, c))
            ),
            lambda e, r, v, name=name: (
                new.releases(name, e, r, v) and not old.releases(name, e, r, v)
            ),
        )
    yield question(
        "may newly be done by a run that is not trusted",
        tuple(e for e in EFFECTS if e != "tool.call"),
        lambda e, c: both(after.takes(e, c), negated(before.takes(e, c))),
        lambda e, r, v: takes(new, e, r, v) and not takes(old, e, r, v),
    )


def definitions(old: Policy, new: Policy) -> Iterator[Witness]:
    """What is wider in the parts of a policy that are no rules about resources."""
    for name in sorted(new.tools.keys() & old.tools.keys()):
        why = _wider_tool(old, new, name)
        if why:
            yield Witness("tool.call", f"tool:{name}", why=why)
    for name in sorted(new.agents.keys() & old.agents.keys()):
        was, now = old.agents[name], new.agents[name]
        if (was.command, was.base, was.policy) != (now.command, now.base, now.policy):
            yield Witness("agent.spawn", f"agent:{name}", why="runs something else")
        elif wider := _larger(was.budgets, now.budgets):
            yield Witness("agent.spawn", f"agent:{name}", why=f"may use more {wider}")
    yield from _credentials(old, new)
    yield from _private(old, new)
    yield from _sections(old, new)


def _wider_tool(old: Policy, new: Policy, name: str) -> str:
    was, now = old.tools[name], new.tools[name]
    if (was.command, was.base, dict(was.env)) != (now.command, now.base, dict(now.env)):
        return "runs something else"
    if now.timeout > was.timeout:
        return "may run longer"
    if not set(now.pass_env) <= set(was.pass_env):
        return "is passed more variables"
    if now.reads == "trusted" != was.reads:
        return "has results that are newly trusted"
    if why := _wider_rules(was.rules, now.rules):
        return why
    one, other = (_content(policy, name) for policy in (old, new))
    if other is not None and (one is None or not ("*" in one or other <= one)):
        return "takes more untrusted arguments"
    return ""


def _wider_rules(was: ToolRules, now: ToolRules) -> str:
    """What is newly taken of a tool's word, or newly given to it."""
    if was.changes and not now.changes:
        return "is no longer said to change something"
    if not set(was.secret) <= set(now.secret):
        return "has results that are no longer secret"
    if not set(now.receives) <= set(was.receives):
        return "may newly be given a secret"
    if not set(now.fields) <= set(was.fields):
        return "has fields that are newly trusted"
    if now.shape == "trusted" != was.shape:
        return "is newly trusted in what it lists"
    for pattern, issue in now.issues.items():
        before = was.issues.get(pattern)
        if before is None or before.kind != issue.kind or not set(issue.to) <= set(before.to):
            return "issues names that it did not"
    return ""


def _content(policy: Policy, name: str) -> frozenset[str] | None:
    from authority.kernel.resources import named

    return policy.content("tool.call", named("tool", name))


def _larger(old: Any, new: Any) -> str:
    """A limit that is larger in NEW, or that only OLD had."""
    return next((k for k in sorted(old) if k not in new or new[k] > old[k]), "")


def _credentials(old: Policy, new: Policy) -> Iterator[Witness]:
    for name, now in sorted(new.credentials.items()):
        was = old.credentials.get(name)
        same = was is not None and (was.from_env, was.header.lower(), was.format) == (
            now.from_env,
            now.header.lower(),
            now.format,
        )
        for host in now.hosts:
            if was is None or not same or host not in was.hosts:
                yield Witness("http.request", host, why=f"is newly sent the credential {name}")
                break


def _private(old: Policy, new: Policy) -> Iterator[Witness]:
    named = {place for policy in (old, new) for layer in policy.layers for place in layer.private}
    for host, port in sorted(named):
        # Port 0 names every port: one that nobody names stands for them.
        taken = {p for h, p in named if h == host}
        asked = port or next(p for p in range(1, 65536) if p not in taken)
        if new.names_private(host, asked) and not old.names_private(host, asked):
            yield Witness("http.request", f"{host}:{asked}", why="may newly be a private address")
            return
    nobody = ("a" * 40, 1)
    if new.names_private(*nobody) and not old.names_private(*nobody):
        yield Witness("http.request", "any host", why="may newly be a private address")


def _sections(old: Policy, new: Policy) -> Iterator[Witness]:
    def wider(what: str, why: str) -> Witness:
        return Witness("", what, why=why)

    for key in ("exec", "pass_env"):
        added = sorted(set(getattr(new.process, key)) - set(getattr(old.process, key)))
        if added:
            yield wider(f"process.{key}", f"newly holds {added[0]}")
    for name, value in sorted(new.process.env.items()):
        if old.process.env.get(name) != value:
            yield wider(f"process.env.{name}", "is newly set, or to another text")
    for folder in sorted(set(new.process.exec_from) - set(old.process.exec_from)):
        yield wider("process.exec_from", f"newly holds {folder}")
    if new.process.home not in ("", old.process.home):
        yield wider("process.home", "is another home that outlives the run")
    if new.filesystem.files == "bind" != old.filesystem.files:
        yield wider("filesystem.files", "newly takes the files from the gate")
    if new.network.proxy != old.network.proxy:
        yield wider("network.proxy", "is another way out")
    for name in sorted(set(new.network.ca) - set(old.network.ca)):
        yield wider("network.ca", f"newly trusts {name}")
    was, now = old.limits, new.limits
    for field in was.__struct_fields__:
        if getattr(now, field) > getattr(was, field):
            yield wider(f"limits.{field}", f"is larger: {getattr(now, field)}")
    if name := _larger(old.budgets, new.budgets):
        yield wider(f"budgets.{name}", f"is larger: {new.budgets.get(name, 'no limit')}")
    if new.explain == "agent" != old.explain:
        yield wider("explain", "newly tells the agent which rule refused")
    if new.trusts_user and not old.trusts_user:
        yield wider("labels.trusted", "newly trusts the user")
    approve = {text for layer in old.layers for text in layer.approve.texts}
    for text in sorted({t for layer in new.layers for t in layer.approve.texts} - approve):
        yield wider("labels.approve", f"newly lets a person decide about {text}")
    for name, rule in sorted(new.labels.endorse.items()):
        before = old.labels.endorse.get(name)
        if before is None or rule != msgspec.structs.replace(
            before, bits=min(before.bits, rule.bits)
        ):
            yield wider(f"labels.endorse.{name}", "lets more untrusted words steer")
    if new.labels.compute and not old.labels.compute:
        yield wider("labels.compute", "newly has rooms for programs")
    if new.needs_network and not old.needs_network:
        yield wider("network", "newly lets the run use TCP on its own loopback")
