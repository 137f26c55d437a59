"""The names of every refusal, and of the layer that refuses.

A code is stable: programs branch on it, entries store it, documents list it. The sentence is what
the agent is told; it never holds a detail of the policy (the operator's rendering does).
"""

from __future__ import annotations

from enum import StrEnum


class Layer(StrEnum):
    """Where in a request's life a refusal was made, in the order in which layers are asked."""

    FRAME = "frame"
    SCHEMA = "schema"
    SEQUENCE = "sequence"
    HALT = "halt"
    CAPABILITY = "capability"
    POLICY = "policy"
    BUDGET = "budget"
    LABELS = "labels"
    EFFECT = "effect"
    INTERNAL = "internal"


class Code(StrEnum):
    """Why a request was refused."""

    FRAME_TOO_LARGE = "E_FRAME_TOO_LARGE"
    SCHEMA_INVALID = "E_SCHEMA_INVALID"
    REPLAY = "E_REPLAY"
    CAP_MISSING = "E_CAP_MISSING"
    CAP_INVALID = "E_CAP_INVALID"
    CAP_EXPIRED = "E_CAP_EXPIRED"
    CAP_REVOKED = "E_CAP_REVOKED"
    CAP_SCOPE = "E_CAP_SCOPE"
    CAP_RATE = "E_CAP_RATE"
    POLICY_DENY = "E_POLICY_DENY"
    APPROVAL_REQUIRED = "E_APPROVAL_REQUIRED"
    BUDGET_EXCEEDED = "E_BUDGET_EXCEEDED"
    RATE_LIMIT = "E_RATE_LIMIT"
    TAINT = "E_TAINT"
    HALTED = "E_HALTED"
    EFFECT_FAILED = "E_EFFECT_FAILED"
    INTERNAL = "E_INTERNAL"


SENTENCES: dict[Code, str] = {
    Code.FRAME_TOO_LARGE: "The frame is larger than the channel allows.",
    Code.SCHEMA_INVALID: "The request does not have the form that this effect asks for.",
    Code.REPLAY: "This request number was used before.",
    Code.CAP_MISSING: "The request carries no capability.",
    Code.CAP_INVALID: "The capability is not valid here.",
    Code.CAP_EXPIRED: "The capability is not valid at this time.",
    Code.CAP_REVOKED: "The capability was revoked.",
    Code.CAP_SCOPE: "The capability does not cover this.",
    Code.CAP_RATE: "The capability is used faster or more often than it allows.",
    Code.POLICY_DENY: "The policy does not allow this.",
    Code.APPROVAL_REQUIRED: "A person has to approve this first.",
    Code.BUDGET_EXCEEDED: "The budget does not cover this.",
    Code.RATE_LIMIT: "Too many requests at this time.",
    Code.TAINT: (
        "Words of an untrusted or secret source may not flow into this. Take them as a handle, put "
        "them into an argument that may carry them, or have a person approve."
    ),
    Code.HALTED: "The run is halted.",
    Code.EFFECT_FAILED: "The effect was allowed and tried, and it failed.",
    Code.INTERNAL: "The gate could not decide, so the answer is no.",
}
