"""Is a statement true of a policy? Statements become questions (`prover`), with the policy's own word.

Rules
- `never`: no request in the scope is allowed, also not with an approval.
- `a secret of`: no request in the scope is allowed into which the secret may flow (`flows.sink`).
  Reading and waiting let nothing out.
- `untrusted data`: no request in the scope is allowed to a run that is not trusted, whatever its
  arguments. Deleting what the run made itself is not counted.
- `needs an approval`: what is allowed in the scope wants a person's approval.
- `at most`: the policy sets a limit for the dimension, and it is not larger.
"""

from __future__ import annotations

from typing import Final

from authority.kernel import flows
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource
from authority.proof.automata import FALSE, TRUE, Formula, both, negated
from authority.proof.encoding import Encoded, covers, settled, truth
from authority.proof.prover import Prover, Question, Witness
from authority.proof.space import Cell
from authority.proof.statements import Scope, Statement

_OUTWARD_NONE: Final = flows._INWARD


def prover_for(*policies: Policy, statements: tuple[Statement | Scope, ...] = ()) -> Prover:
    """A prover that tells apart whatever these policies and statements do."""
    patterns = [p for policy in policies for p in Encoded(policy).patterns()]
    patterns += [p for each in statements for p in each.patterns]
    names = {name for policy in policies for name in (*policy.tools, *policy.agents)}
    names |= {"a"}  # one that nobody defines stands for all others
    return Prover(patterns, names)


def refute(policy: Policy, statement: Statement, prover: Prover) -> Witness | None:
    """The shortest request against the statement; None proves it. Raises `Undecided`."""
    if statement.kind == "budget":
        limit = policy.budgets.get(statement.dimension)
        if limit is not None and limit <= statement.amount:
            return None
        found = "no limit" if limit is None else str(limit)
        return Witness("", f"budgets.{statement.dimension}", why=f"{found} in the policy")
    return prover.shortest(_question(policy, statement))


def in_scope(scope: Scope | Statement, effect: str, cell: Cell) -> Formula:
    """Whether a request is one that the scope names."""
    if effect not in scope.effects:
        return FALSE
    if scope.everything:
        return TRUE
    if cell.name:
        return truth(any(p.matches(settled(cell), cell.verb) for p in scope.patterns))
    return covers(list(scope.patterns), cell)


def is_in_scope(scope: Scope | Statement, effect: str, resource: Resource, verb: str) -> bool:
    """The same of one request."""
    return effect in scope.effects and (
        scope.everything or any(p.matches(resource, verb) for p in scope.patterns)
    )


def _question(policy: Policy, statement: Statement) -> Question:
    encoded = Encoded(policy)

    def formula(effect: str, cell: Cell) -> Formula:
        named = in_scope(statement, effect, cell)
        if named == FALSE:
            return FALSE
        allowed = encoded.judge(effect, cell)
        if allowed == FALSE:
            return FALSE
        if statement.kind == "secret":
            return both(named, allowed, encoded.lets_out(statement.secret, effect, cell))
        if statement.kind == "untrusted":
            return both(named, allowed, encoded.takes(effect, cell))
        if statement.kind == "approval":
            return both(named, allowed, negated(encoded.approval(cell)))
        return both(named, allowed)

    def real(effect: str, resource: Resource, verb: str) -> bool:
        if not is_in_scope(statement, effect, resource, verb):
            return False
        if not policy.judge(effect, resource, verb).allowed:
            return False
        if statement.kind == "secret":
            return policy.releases(statement.secret, effect, resource, verb)
        if statement.kind == "untrusted":
            return takes(policy, effect, resource, verb)
        if statement.kind == "approval":
            return not policy.approval(effect, resource, verb)
        return True

    effects = statement.effects
    if statement.kind == "secret":
        effects = tuple(e for e in effects if e not in _OUTWARD_NONE)
    return Question(_WHY[statement.kind].format(statement.secret), effects, formula, real)


def takes(policy: Policy, effect: str, resource: Resource, verb: str) -> bool:
    """Whether a run that is not trusted may do this with arguments of its choice."""
    sink = flows.sink(policy, effect, resource, verb, frozenset(), frozenset(), own=False)
    return bool(sink.sources)


_WHY: Final = {
    "never": "is allowed",
    "secret": "is allowed, and the secret {} may flow into it",
    "untrusted": "is allowed to a run that is not trusted",
    "approval": "is allowed without an approval",
}
