"""The stages of a decision that ask about labels and handles. See `decide`, `sinks`, `handles`.

Pure. Rules
- What is refused in `known` and `labels` follows from what the program knows, and it is told so. What
  is refused in `hidden` depends on values that it has not seen.
- `hidden` is asked last, when everything else has said yes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from authority.kernel import sinks
from authority.kernel.codes import Code, Layer
from authority.kernel.facts import Facts, Request
from authority.kernel.handles import HANDLES_LIMIT, Part, all_given
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.sinks import Finding
from authority.kernel.state import Run, State


class No(Exception):
    """A stage said no. Never leaves the decision. `hidden`: nobody is told; `told`: the label of what
    is told by it."""

    def __init__(
        self,
        code: Code,
        layer: Layer,
        reason: str,
        rule: str = "",
        approval: str = "",
        hidden: bool = False,
        told: Label = CLEAN,
    ) -> None:
        super().__init__(reason)
        self.code, self.layer, self.reason, self.rule = code, layer, reason, rule
        self.approval, self.hidden, self.told = approval, hidden, told


def labels(
    state: State,
    policy: Policy | None,
    run: Run,
    request: Request,
    facts: Mapping[str, Any] = {},
) -> tuple[Finding, str]:
    """What the labels say, and the approval that is used up for it. `facts`: as looked up."""
    if run.label.clean and not request.parts:
        return Finding(), ""
    assert policy is not None
    assert request.resource is not None
    found = sinks.judge(state, policy, run, request, facts)
    if not found.why:
        return found, ""
    rule = f"labels ({request.effect})"
    if not (found.approvable and policy.approves(request.resource, request.verb)):
        raise No(Code.TAINT, Layer.LABELS, found.why, rule)
    key = sinks.bound(request.digest, found.sent)
    no = No(Code.APPROVAL_REQUIRED, Layer.LABELS, found.why, rule)
    return found, approved(state, run, request, key, no)


def required(state: State, run: Run, request: Request, rule: str) -> str:
    """The approval that is used up where a rule wants one, whatever the labels are.

    A person saw whose words had shaped the run by then. If it has read more since, it is another one.
    """
    no = No(Code.APPROVAL_REQUIRED, Layer.POLICY, "a person has to approve", rule)
    key = request.digest
    asked = state.approvals.get(_name(run, key))
    if asked is not None and asked.asked < run.label_at:
        label = all_given(run.label, run.handles, request.parts)
        key = sinks.bound(request.digest, label, "rule")
    return approved(state, run, request, key, no)


def approved(state: State, run: Run, request: Request, key: str, no: No) -> str:
    """The name of an approval that was granted. Raises `no`, which asks for it."""
    name = _name(run, key)
    pending = state.approvals.get(name)
    if pending is None or pending.answer != "granted" or pending.request != request.digest:
        no.approval = name
        raise no
    return name


def _name(run: Run, key: str) -> str:
    return f"{run.id}.{key[:32]}"


def known(run: Run, request: Request) -> None:
    """A request names handles that the run has, and there is room for one more."""
    for part in request.parts:
        held = run.handles.get(part.handle)
        if held is None or held.born < 0:
            raise No(Code.SCHEMA_INVALID, Layer.SCHEMA, f"no handle {part.handle}")
    if request.handle and len(run.handles) >= HANDLES_LIMIT:
        reason = f"a run holds at most {HANDLES_LIMIT} handles"
        raise No(Code.BUDGET_EXCEEDED, Layer.BUDGET, reason, "handles")
    if request.effect == "value.reveal" and request.resource is not None:
        held = run.handles.get(request.resource.name)
        if held is None or held.born < 0:
            raise No(Code.SCHEMA_INVALID, Layer.SCHEMA, f"no handle {request.resource.name}")


def hidden(policy: Policy | None, request: Request, facts: Facts, found: Finding) -> None:
    """What depends on values that the program has not seen, so that it is not told either."""
    if not request.parts:
        return
    assert policy is not None
    assert request.resource is not None
    if facts.unfit:
        raise No(Code.SCHEMA_INVALID, Layer.SCHEMA, facts.unfit, hidden=True)
    if behind := facts.looked_up.get("canary_behind", ""):
        raise No(Code.POLICY_DENY, Layer.POLICY, f"canary {behind}", "canary", hidden=True)
    why = policy.refuses_arguments(request.effect, request.resource, request.arguments)
    if why:
        reason = f"{request.resource.text}: {why}"
        raise No(Code.POLICY_DENY, Layer.POLICY, reason, "arguments", hidden=True)
    if found.hidden:
        raise No(Code.TAINT, Layer.LABELS, found.hidden, f"labels ({request.effect})", hidden=True)


def placed(run: Run, request: Request) -> list[Part]:
    """The parts of a request, each with the entry that brought its bytes."""
    return [
        msgspec.structs.replace(part, born=run.handles[part.handle].born)
        if part.handle in run.handles
        else part
        for part in request.parts
    ]
