"""Whether labels let a call through: asked for the call itself and for each of its arguments.

Pure. Rules
- The call itself, what it is about, and every argument that the program wrote have the run's label.
  An argument with parts from handles has their labels as well.
- What the run itself says is judged as a whole (`flows.sink`): a run that untrusted words shaped can
  make only calls that take untrusted content in all that it says, and none that changes something by
  being made (`ToolRules.changes`).
- A control argument takes no source that the policy does not trust. A content argument takes every
  source. Secrets go, by whatever argument, only where the policy releases them.
- A control argument that is a whole field of a handle may do more, by the policy's word alone:
  a *trusted field* has no source of its own; an *issued* name of the right kind, of a lookup that was
  asked in trusted words, may be used for the argument that it was issued for; an *endorsed* value of
  a narrow type may steer as long as the run, with its parents and children, has bits left. Whether
  the value has that kind is behind the handle, so that refusal is hidden (`Finding.hidden`).
- A list of those that are there (`$some`) says which are: each has the label of all that this hinges
  on, so a trusted field its handle's, unless it is recorded (`shapes`).
- Where the policy lets a person approve, a control argument of untrusted words waits for one. No
  approval lets a secret out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from authority.kernel import flows, resources, shapes
from authority.kernel.facts import Request
from authority.kernel.handles import Part, all_given
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.state import Run, State


class Finding(msgspec.Struct, frozen=True):
    """What the labels say. `why` empty: yes. `sent`: the label of all that the call is made with.

    `approvable`: a person may say yes. `hidden`: why the values behind handles say no, if they do.
    """

    why: str = ""
    sent: Label = CLEAN
    approvable: bool = False
    hidden: str = ""
    endorsed: Mapping[str, int] = {}


def bound(digest: str, sent: Label, asked_by: str = "") -> str:
    """What an approval is for: this request (its handles never change), under this label.

    A rule and the labels may both want one of the same request: `asked_by` keeps these two apart.
    """
    names = "\n".join(sorted(sent.sources)) + "\n\n" + "\n".join(sorted(sent.secrets))
    text = f"authority/approval/1{asked_by}\n{digest}\n{names}"
    return hashlib.sha256(text.encode()).hexdigest()


def answered(state: State, run: Run, policy: Policy | None, request: Request) -> Label:
    """The least label of what a handle is given for, whether the call is made or refused in secret.

    All that its arguments hold counts, in fields that the policy trusts too: whether such a field is
    there is its tool's word, but for a recorded one (`shapes`). So does the source of the answer, and
    what an MCP server was asked with before, since it may have seen that. What failing would bring
    counts in any case, because a program sees what a handle may steer: whether a file or a message is
    there does not show in that.
    """
    label = shapes.given(state, policy, run, request.parts)
    if policy is None or request.resource is None:
        return label
    resource = request.resource
    label = label.join(flows.result_label(policy, request.effect, resource, request.verb))
    label = label.join(flows.missing(state, run, request.effect, resource))
    found = policy.mcp_tool(resource) if request.effect == "tool.call" else None
    server = found[1] if found else resource.name if resource.scheme == "mcp" else ""
    if server:
        for held in run.handles.values():
            if held.resource.startswith((f"tool:{server}.", f"mcp:{server}/")):
                label = label.join(held.label)
    return label


def hinges(state: State, run: Run, policy: Policy | None, request: Request) -> list[str] | None:
    """The sources of all that decides whether a call is made; None: those of its parts' handles."""
    sources = shapes.given(state, policy, run, request.parts).sources
    if sources == all_given(run.label, run.handles, request.parts).sources:
        return None
    return sorted(sources)


def part_label(state: State, policy: Policy, run: Run, part: Part) -> Label:
    """The label of a part: its handle's, less its own source where the field is trusted."""
    held = run.handles[part.handle]
    if part.optional:
        return shapes.given(state, policy, run, (part,))
    if held.effect != "tool.call" or part.typed:
        return held.label
    rules = policy.tool_rules(resources.parse_text(held.resource))
    if rules is None or not rules.trusts(part.path):
        return held.label
    return Label(held.given.sources, held.label.secrets)


def judge(
    state: State, policy: Policy, run: Run, request: Request, facts: Mapping[str, Any] = {}
) -> Finding:
    """Ask the labels about a request. Its handles are known (`run.handles`). `facts`: as looked up."""
    parts = [(part, part_label(state, policy, run, part)) for part in request.parts]
    sent = run.label
    for _, label in parts:
        sent = sent.join(label)
    if sent.clean:
        return Finding()
    assert request.resource is not None
    given = flows.argument_names(request.effect, request.arguments)
    elsewhere = flows.elsewhere(policy, request.effect, request.resource, facts)
    sink = flows.sink(
        policy,
        request.effect,
        request.resource,
        request.verb,
        given,
        sent.secrets,
        own=request.shown in run.created,
        elsewhere=elsewhere,
    )
    secret = sink.refuses(Label(frozenset(), sent.secrets))
    why = sink.refuses(run.label)
    if why:
        was = "the run is" if why.startswith("shaped") else "the run"
        return Finding(f"{was} {why}", sent, approvable=not secret)
    if secret:
        return Finding(f"what it is given {secret}", sent)
    content = _content(policy, request, elsewhere=elsewhere)
    endorsed: dict[str, int] = {}
    hidden = ""
    for part, label in parts:
        if "*" in content or part.argument in content or label.sources <= sink.sources:
            continue
        kind = _issued(policy, run, part, request)
        rule = ""
        if not kind:
            kind, rule, bits = _endorsed(state, policy, run, part, label, request, endorsed)
            if kind:  # that the value is of its type was seen to when it was put in its place
                endorsed[rule] = endorsed.get(rule, 0) + bits
        if not kind:
            shaped = sink_words(label)
            return Finding(f"argument {part.argument} is {shaped}", sent, approvable=True)
        if not rule and kind not in part.fits:
            hidden = hidden or f"argument {part.argument} is no {kind}"
    return Finding("", sent, hidden=hidden, endorsed=endorsed)


def sink_words(label: Label) -> str:
    """Why an argument is refused, for the operator."""
    return flows.CONTROL.refuses(Label(label.sources))


def _content(policy: Policy, request: Request, *, elsewhere: bool) -> frozenset[str]:
    assert request.resource is not None
    if elsewhere:
        listed = policy.lists_content(request.resource, request.verb)
        return frozenset("*") if listed else frozenset()
    content = policy.content(request.effect, request.resource, request.verb)
    if flows.takes_anything(request.effect, request.verb):
        return frozenset("*")
    return content or frozenset()


def _issued(policy: Policy, run: Run, part: Part, request: Request) -> str:
    """The kind of value that an issued name has to be, or nothing."""
    held = run.handles[part.handle]
    if held.effect != "tool.call" or request.effect != "tool.call" or part.typed:
        return ""
    if not part.whole or held.given.sources:
        return ""
    lookup = resources.parse_text(held.resource)
    rules = policy.tool_rules(lookup)
    if rules is None or request.resource is None:
        return ""
    return rules.issued(part.path, request.resource.text, part.argument)


def _endorsed(
    state: State,
    policy: Policy,
    run: Run,
    part: Part,
    label: Label,
    request: Request,
    used: Mapping[str, int],
) -> tuple[str, str, int]:
    """The kind by which a narrow value may steer, the rule's name, and its bits."""
    if not part.whole or not part.kind or request.resource is None:
        return "", "", 0
    use = f"{request.resource.text} {part.argument}"
    for name, rule in policy.labels.endorse.items():
        spent = state.root(run.id).endorsed.get(name, 0) + used.get(name, 0)
        fits = rule.type == part.kind and use in rule.to and label.sources <= set(rule.sources)
        if fits and spent + part.bits <= rule.bits:
            return part.kind, name, part.bits
    return "", "", 0
