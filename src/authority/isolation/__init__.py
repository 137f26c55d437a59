"""Where a run lives: name spaces, limits, and a statement of what protection is in force."""

from authority.isolation.plan import Plan, plan
from authority.isolation.probe import Host, probe
from authority.isolation.refusal import IsolationRefused
from authority.isolation.sandbox import ExitStatus, Sandbox, start
from authority.isolation.spec import SandboxSpec

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
