"""The decision: `decide(state, policy, request, facts) -> entries`, a pure function.

The stages, in the order of the specification's zero-trust flow. The first that says no ends it:

1. frame, schema, sequence: what the gate found while reading the request (`Facts.problem`).
2. halt: a halted or ended run, or a halted gate, admits nothing. A canary is refused here too.
3. capability: present, known key, MAC, minted here and not revoked (nor any ancestor), bound to this
   run or an ancestor of it, scope (resource, method, time), rate, count and quotas.
4. policy: allowed, and not waiting for a person's approval.
5. budget: the worst case fits every account from the run up to the state directory.
6. labels: what shaped the run so far, and what each argument carries, may flow into this sink.
7. definition: an MCP server's tool is still what was approved (asked last: it is looked up only for
   what all else would admit).
8. hidden: what depends on the values behind handles, for a request that names some (`handles`).

Rules
- Nothing here reads a clock, a file or a random number; every outside fact is in `Facts` and stands
  in the entry, so an auditor can run the same function on the log.
- An effect that goes on (a stream) is asked about again for each piece: `chunk`.
- Exactly one verdict comes out: `Admit` or `Denied`, preceded by `CapDerive` for attenuations that
  were not seen before. An exception is a defect; the gate answers it with `E_INTERNAL` and stops.
- `decide` changes nothing. `state.apply` folds the entries it returned.
"""

from __future__ import annotations

from authority.kernel import entries, flows, handles, relatives, sinks
from authority.kernel.capabilities import WAYS, Refusal, scope, use
from authority.kernel.codes import Code, Layer
from authority.kernel.decide_budget import fits, granted, worst
from authority.kernel.decide_labels import No as _No
from authority.kernel.decide_labels import hidden, known, labels, placed
from authority.kernel.decide_labels import required as approved
from authority.kernel.entries import AnyEntry, Body
from authority.kernel.facts import Facts, Request
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.rates import UsageDelta
from authority.kernel.requests import EFFECTS
from authority.kernel.sinks import Finding
from authority.kernel.state import Run, State, pin_name

GATE = "gate"
"""What capabilities for the gate itself are bound to, in place of a run."""
DERIVED_LIMIT = 10_000
"""Attenuated capabilities that may be in use at one time in a state directory."""

_RELATIVES = frozenset({"msg.send", "agent.wait"})


def decide(state: State, policy: Policy | None, request: Request, facts: Facts) -> list[AnyEntry]:
    """The entries of one decision, the verdict last. Their seq, batch and time are not set yet."""
    now = state.now(facts.time)
    caps = list(request.token.ids) if request.token and facts.mac_ok else []
    reserve: dict[str, int] = {}
    usage: dict[str, UsageDelta] = {}
    found = Finding()
    approval, also = "", ""
    try:
        if facts.problem:
            raise _No(facts.problem.code, facts.problem.layer, facts.problem.reason)
        run = _halted(state, request)
        known(run, request)
        _canary(state, request, facts.looked_up.get("canary", ""))
        usage = _capability(state, request, facts, now)
        rule, approval = _policy(state, policy, run, request)
        spec = EFFECTS[request.effect]
        reserve = worst(state, policy, run, spec, request, facts)
        fits(state, run, reserve)
        found, asked = labels(state, policy, run, request, facts.looked_up)
        approval, also = approval or asked, asked if approval else ""
        if not facts.preview:
            _definition(state, policy, request, facts)
            hidden(policy, request, facts, found)
    except _No as no:
        denied = _denied(state, request, facts, no, caps, reserve)
        if no.hidden:
            denied.usage, denied.shaped = usage, sorted(found.sent.sources)
            own = state.runs[request.run]
            label = _brought(state, policy, own, request, facts, reserve)
            label = label.join(sinks.answered(state, own, policy, request))
            denied.hinges = sinks.hinges(state, own, policy, request)
            denied.sources, denied.secrets = sorted(label.sources), sorted(label.secrets)
            denied.endorsed = dict(found.endorsed)
            denied.consumed = [each for each in (approval, also) if each]
            return [*_derived(state, request), denied]
        return [denied]
    derived: list[AnyEntry] = _derived(state, request)
    verdict = entries.Admit(
        run=request.run,
        effect=request.effect,
        resource=request.shown,
        stream=request.stream,
        n=request.n,
        request=request.digest,
        caps=caps,
        rule=rule,
        verb=request.verb,
        target=request.target.text if request.target else "",
        arguments=facts.body,
        reserve=reserve,
        usage=usage,
        numbers=facts.numbers,
        facts=facts.looked_up,
        approval=approval,
        also=also,
        label_at=run.label_at,
        final=request.effect == "output",
        at=now,
    )
    label = _brought(state, policy, run, request, facts, reserve)
    if request.handle:
        verdict.handle = f"h{len(run.handles) + 1}"
        label = label.join(sinks.answered(state, run, policy, request))
        verdict.hinges = sinks.hinges(state, run, policy, request)
        verdict.shaped = sorted(found.sent.sources)
        verdict.parts, verdict.filled = placed(run, request), facts.filled
        verdict.endorsed = dict(found.endorsed)
    verdict.sources, verdict.secrets = sorted(label.sources), sorted(label.secrets)
    return [*derived, verdict]


def _brought(
    state: State,
    policy: Policy | None,
    run: Run,
    request: Request,
    facts: Facts,
    reserve: dict[str, int],
) -> Label:
    """What a model's answer brings beside the label of what it is asked."""
    assert request.resource is not None
    label = granted(state, policy, run, request, facts, reserve)
    return label.join(flows.brought(policy, request.effect, request.resource, facts.looked_up))


def chunk(
    state: State,
    policy: Policy | None,
    request: Request,
    of: int,
    way: str,
    charge: dict[str, int],
    body: Body,
    label: Label,
    canary: str = "",
) -> AnyEntry:
    """Whether an admitted effect (entry `of`, made by `request`) may go on with one more piece.

    Asked again for each: halt and revocation, the budget, and for what goes out the labels, because
    the run may have read something since. `label` is that of a piece that comes in.
    """
    admission = state.open.get(of)
    try:
        run = _halted(state, request)
        if admission is None or admission.run != request.run:
            raise _No(Code.HALTED, Layer.HALT, f"entry {of} is not under way")
        caps = list(request.token.ids) if request.token else []
        stopped = recheck(state, request.run, caps)
        if stopped:
            raise _No(stopped, Layer.CAPABILITY, "the capability was revoked")
        _canary(state, request, canary)
        fits(state, run, charge)
        if way == "out":
            labels(state, policy, run, request)
    except _No as no:
        looked_up = {"canary": canary} if canary else {}
        piece = Facts(0, looked_up=looked_up, body=body)
        denied = _denied(state, request, piece, no, [], charge)
        denied.of, denied.way = of, way
        return denied
    return entries.Chunk(
        run=request.run,
        of=of,
        way=way,
        body=body,
        charge={k: v for k, v in charge.items() if v},
        sources=sorted(label.sources),
        secrets=sorted(label.secrets),
        label_at=run.label_at,
    )


def recheck(state: State, run: str, caps: list[str]) -> Code | None:
    """Asked again when the intent is durable, right before performing: halted or revoked since?"""
    info = state.runs.get(run)
    if state.halted >= 0 or info is None or info.halted or not info.running:
        return Code.HALTED
    if any(cap in state.revoked for cap in caps):
        return Code.CAP_REVOKED
    return None


def _halted(state: State, request: Request) -> Run:
    run = state.runs.get(request.run)
    if run is None or not run.running:
        raise _No(Code.HALTED, Layer.HALT, "the run is not running")
    if state.halted >= 0:
        raise _No(Code.HALTED, Layer.HALT, f"everything was halted in entry {state.halted}")
    if run.halted:
        raise _No(Code.HALTED, Layer.HALT, "the run was halted")
    if request.effect not in EFFECTS or request.resource is None or request.arguments is None:
        raise _No(Code.SCHEMA_INVALID, Layer.SCHEMA, f"no effect {request.effect!r} of this form")
    return run


def _canary(state: State, request: Request, found: str) -> None:
    """What nothing legitimate touches is refused before anything else is asked."""
    for resource in (request.resource, request.target):
        found = found or (state.canary(resource) if resource else "")
    if found:
        raise _No(Code.POLICY_DENY, Layer.POLICY, f"canary {found}", "canary")


def _capability(state: State, request: Request, facts: Facts, now: int) -> dict[str, UsageDelta]:
    token, layer = request.token, Layer.CAPABILITY
    if token is None:
        raise _No(Code.CAP_MISSING, layer, "no capability was presented")
    key = state.keys.get(token.kid)
    if key is None or not facts.mac_ok:
        raise _No(Code.CAP_INVALID, layer, "unknown key or wrong MAC")
    if key.until and now > key.until:
        raise _No(Code.CAP_INVALID, layer, f"key {token.kid} is retired and its grace is over")
    for cap in token.ids:
        if cap in state.revoked:
            raise _No(Code.CAP_REVOKED, layer, f"capability {cap} was revoked")
    root = state.caps.get(token.ids[0])
    if root is None or root.run != token.run or token.run not in state.ancestry(request.run):
        raise _No(Code.CAP_INVALID, layer, "the capability is not bound to this run")
    if len(state.caps) > DERIVED_LIMIT and token.ids[-1] not in state.caps:
        raise _No(Code.CAP_INVALID, layer, "too many attenuated capabilities are in use")
    assert request.resource is not None
    label = handles.all_given(
        state.runs[request.run].label, state.runs[request.run].handles, request.parts
    )
    for resource in (request.resource, request.target):
        if resource is None:
            continue
        refusal = scope(
            token,
            effect=request.effect,
            resource=resource,
            verb=request.verb,
            run=request.run,
            now=now,
            numbers=facts.numbers,
            label=label,
        )
        if refusal:
            raise _No(refusal.code, layer, refusal.reason)
    if request.effect in WAYS:
        return {}
    deltas = use(token, state.usage, now=now, numbers=facts.numbers)
    if isinstance(deltas, Refusal):
        told = relatives.kin(state, request.run)
        raise _No(deltas.code, layer, deltas.reason, told=told)
    return deltas


def _derived(state: State, request: Request) -> list[AnyEntry]:
    token = request.token
    if token is None or token.ids[-1] in state.caps:
        return []
    return [
        entries.CapDerive(
            run=request.run,
            id=token.ids[i],
            parent=token.ids[i - 1],
            restriction=token.restrictions[i].plain(),
        )
        for i in range(1, len(token.ids))
        if token.ids[i] not in state.caps
    ]


def _policy(state: State, policy: Policy | None, run: Run, request: Request) -> tuple[str, str]:
    layer, effect, resource = Layer.POLICY, request.effect, request.resource
    if policy is None or policy.digest != run.policy or resource is None:
        raise _No(Code.INTERNAL, Layer.INTERNAL, "the run's policy is not at hand")
    if effect in _RELATIVES:
        other = resource.text.removeprefix("run:")
        if other != run.parent and other not in run.children:
            raise _No(Code.POLICY_DENY, layer, "only a parent and its children talk", "relation")
        if effect == "agent.wait" and other not in run.children:
            raise _No(Code.POLICY_DENY, layer, "only a child can be waited for", "relation")
    if effect == "msg.receive" and resource.text != f"run:{run.id}":
        raise _No(Code.POLICY_DENY, layer, "a run receives its own messages only", "relation")
    rule = ""
    for each in (resource, request.target):
        if each is None:
            continue
        judgement = policy.judge(effect, each, request.verb)
        if not judgement.allowed:
            raise _No(Code.POLICY_DENY, layer, judgement.reason, judgement.rule)
        rule = rule or judgement.rule
    refused = (
        policy.refuses_arguments(effect, resource, request.arguments) if not request.parts else ""
    )
    if refused:
        raise _No(Code.POLICY_DENY, layer, f"{resource.text}: {refused}", f"{rule}, arguments")
    required = next(
        (
            r
            for each in (resource, request.target)
            if each
            if (r := policy.approval(effect, each, request.verb))
        ),
        "",
    )
    if not required and request.token and request.token.needs_approval:
        required = "capability"
    if not required:
        return rule, ""
    return rule, approved(state, run, request, required)


def _definition(state: State, policy: Policy | None, request: Request, facts: Facts) -> None:
    """A tool of an MCP server is called only as it was approved."""
    if request.effect != "tool.call" or policy is None or request.resource is None:
        return
    found = policy.mcp_tool(request.resource)
    if found is None:
        return
    server, name, tool = found
    pin = state.pins.get(pin_name(server.key(name), tool))
    why = server.unapproved(tool, pin.approved if pin else "", facts.looked_up)
    if why:
        code = Code.APPROVAL_REQUIRED if facts.looked_up.get("definition") else Code.POLICY_DENY
        changed = facts.looked_up.get("changed")
        told = sinks.answered(state, state.runs[request.run], policy, request) if changed else CLEAN
        reason, rule = f"{request.resource.text}: {why}", f"mcp.{name}.approve"
        raise _No(code, Layer.POLICY, reason, rule, told=told)


def _denied(
    state: State,
    request: Request,
    facts: Facts,
    no: _No,
    caps: list[str],
    reserve: dict[str, int],
) -> entries.Denied:
    run = state.runs.get(request.run)
    denied = entries.Denied(
        run=request.run,
        code=no.code,
        layer=no.layer,
        number=run.number + 1 if run else 0,
        reason=no.reason,
        effect=request.effect,
        resource=request.shown,
        verb=request.verb,
        target=request.target.text if request.target else "",
        stream=request.stream,
        n=request.n,
        request=request.digest,
        caps=caps,
        rule=no.rule,
        numbers=facts.numbers,
        facts=facts.looked_up,
        arguments=facts.body,
        approval=no.approval,
        label_at=run.label_at if run else -1,
        again=bool(run and request.digest in run.denied),
        at=state.now(facts.time),
        given=facts.problem is not None,
        reserve=reserve,
    )
    if run is not None and not no.told <= run.label:
        denied.sources, denied.secrets = sorted(no.told.sources), sorted(no.told.secrets)
    if run is not None and request.parts:
        denied.parts, denied.filled = placed(run, request), facts.filled
    if run is not None and no.hidden:
        denied.hidden, denied.number, denied.again = True, run.number, False
        denied.handle = f"h{len(run.handles) + 1}"
    token = request.token
    if caps and token is not None and not denied.given and not no.hidden:
        unknown = [at for at, id_ in enumerate(token.ids) if id_ not in state.caps]
        denied.links = [token.links[at].restriction.plain() for at in unknown]
        if 0 in unknown:
            denied.kid, denied.bound = token.kid, token.run
    return denied
