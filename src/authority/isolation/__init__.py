"""Where a run lives: name spaces, limits, and a statement of what protection is in force."""

from authority.isolation.plan import Plan, SandboxSpec, plan
from authority.isolation.probe import Host, probe
from authority.isolation.refusal import IsolationRefused
from authority.isolation.sandbox import ExitStatus, Sandbox, start

__all__ = [
    "ExitStatus",
    "Host",
    "IsolationRefused",
    "Plan",
    "Sandbox",
    "SandboxSpec",
    "plan",
    "probe",
    "start",
]
