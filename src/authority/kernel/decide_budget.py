"""The stage of a decision that asks about the budget: the worst case, and whether it fits.

Pure. Rules
- What is reserved is the most that the request can cost. For what comes from handles a bound stands, so
  what is reserved tells nothing of it. A body that goes into the store is part of it.
- A model may say no more than is left. Where that is less than was asked for, the answer tells what
  others used, and has their label (`granted`).
- It has to fit every account from the run up to the state directory. A refusal tells what was used
  there, and has that label.
"""

from __future__ import annotations

from authority.kernel import budgets, handles, models, relatives
from authority.kernel.codes import Code, Layer
from authority.kernel.decide_labels import No
from authority.kernel.facts import Facts, Request
from authority.kernel.labels import CLEAN, Label
from authority.kernel.policy import Policy
from authority.kernel.requests import Spec
from authority.kernel.state import Run, State


def worst(
    state: State, policy: Policy | None, run: Run, spec: Spec, request: Request, facts: Facts
) -> dict[str, int]:
    """What a request reserves. Raises `No` for one that nothing bounds where something is limited."""
    if request.effect in models.EFFECTS:
        most = _model(state, policy, run, request, facts)
    else:
        most = spec.reserve(request.arguments, facts.looked_up)
        if request.parts:
            most = handles.hidden_reserve(
                request.effect,
                spec.reserve(handles.shown(request.effect, request.arguments), {}),
            )
    reserve = {k: v for k, v in most.items() if v}
    if facts.body and facts.body.kept in {"store", "sealed"}:
        reserve["stored_bytes"] = reserve.get("stored_bytes", 0) + facts.body.size
    return reserve


def _model(
    state: State, policy: Policy | None, run: Run, request: Request, facts: Facts
) -> dict[str, int]:
    assert policy is not None
    assert request.resource is not None
    chain = [state.accounts[name] for name in run.accounts]
    terms = policy.model(request.resource.name)
    try:
        return models.worst(request.effect, facts.looked_up, terms, chain)
    except models.Unbounded as why:
        raise No(Code.BUDGET_EXCEEDED, Layer.BUDGET, str(why), why.rule) from None


def fits(state: State, run: Run, reserve: dict[str, int]) -> None:
    """Raises `No` where it does not."""
    try:
        lack = budgets.shortfall(state.accounts, run.accounts, reserve)
    except budgets.BudgetError as error:
        raise No(Code.BUDGET_EXCEEDED, Layer.BUDGET, str(error)) from error
    if lack:
        raise No(
            Code.BUDGET_EXCEEDED,
            Layer.BUDGET,
            f"{lack.dimension} of {lack.account}: {lack.wanted} wanted, {lack.left} left",
            f"budgets.{lack.dimension}",
            told=relatives.used(state, lack.account),
        )


def granted(
    state: State,
    policy: Policy | None,
    run: Run,
    request: Request,
    facts: Facts,
    reserve: dict[str, int],
) -> Label:
    """What it brings that a model may say no more than is left: whoever used the rest."""
    label = CLEAN
    if request.effect not in models.EFFECTS or policy is None or request.resource is None:
        return label
    for name in run.accounts:
        if state.accounts[name].limit.keys() & set(models.TOKENS):
            label = label.join(relatives.used(state, name))
    if label <= run.label:
        return CLEAN
    terms = policy.model(request.resource.name)
    whole = models.worst(request.effect, facts.looked_up, terms, ())
    return label if any(reserve.get(d, 0) != whole.get(d, 0) for d in models.TOKENS) else CLEAN
