"""Someone else's declarations and plans, for the same suites or others of the benchmark.

Rules
- Declarations are a file like `tools.toml`: `[SUITE.TOOL]` with the keys that are explained at its top,
  for every tool of each suite. What is missing or not known is an error: nothing is made up. The
  policy that is made of them is loaded once before anything runs.
- Plans are a Python file that defines `PLANS`, a dictionary from `("SUITE", "user_task_N")` to
  functions of a `Planner`, as `plans.py` does. Without plans plain agents run alone.
- They replace ours, and the report has their digests. The targets of the issue are those of our two
  suites with every task planned; elsewhere there is no target but that no attack and no leak passes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from authority.errors import AuthorityError
from authority.gate.policyfile import shipped_prices
from authority.kernel.policy import load
from authority.kernel.policy_sections import Source
from benchmarks.agentdojo import declared
from benchmarks.agentdojo.plans import PLANS

KEYS = frozenset(
    {
        "reads",
        "effect",
        "control",
        "content",
        "fields",
        "shape",
        "issues",
        "ids",
        "secret",
        "receives",
    }
)
"""What a declaration may say of a tool."""


LISTS = frozenset({"control", "content", "fields", "secret", "receives"})


class Unusable(Exception):
    """A file that can't be used as it is, in a sentence."""


def declarations(path: Path, tools: Mapping[str, Sequence[str]]) -> None:
    """Use these declarations. `tools` are the names of each suite's. Raises `Unusable`."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"{path}: {error}") from None
    for suite, names in tools.items():
        said = found.get(suite, {})
        if missing := sorted(set(names) - set(said)):
            raise Unusable(f"{path}: nothing is said of {suite}.{missing[0]}")
        if more := sorted(set(said) - set(names)):
            raise Unusable(f"{path}: {suite} has no tool {more[0]}")
        for name, one in said.items():
            if unknown := sorted(set(one) - KEYS):
                raise Unusable(f"{path}: {suite}.{name}: unknown key {unknown[0]}")
            if loose := sorted(key for key in LISTS & set(one) if not isinstance(one[key], list)):
                raise Unusable(f"{path}: {suite}.{name}: {loose[0]} has to be a list")
    before, declared.FILE = declared.FILE, path
    try:
        for suite in tools:
            _loads(path, suite)
    except Unusable:
        declared.FILE = before
        raise


def _loads(path: Path, suite: str) -> None:
    """Whether the gate takes the policy. Raises `Unusable`."""
    try:
        text = declared.policy(suite, "w1", "/world/tools.sock", "http://127.0.0.1:1/v1")
        load(text, format="toml", base="/", name=suite, read_parent=_prices)
    except AuthorityError as error:
        raise Unusable(f"{path}: the policy of {error}") from None


def _prices(_base: str, _reference: str) -> Source:
    """All that such a policy refers to."""
    return shipped_prices()


def plans(path: Path, suites: Sequence[str]) -> str:
    """Use these plans; the SHA-256 of their file. Raises `Unusable`."""
    spec = importlib.util.spec_from_file_location("brought_plans", path)
    if spec is None or spec.loader is None:
        raise Unusable(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError) as error:
        raise Unusable(f"{path}: {error}") from None
    found: Any = getattr(module, "PLANS", None)
    if not isinstance(found, dict) or not all(callable(plan) for plan in found.values()):
        raise Unusable(f"{path} defines no dictionary PLANS of functions")
    ours = {key: plan for key, plan in found.items() if key[0] in suites}
    if not ours:
        raise Unusable(f"{path} has no plan for {', '.join(suites)}")
    PLANS.clear()
    PLANS.update(ours)
    return hashlib.sha256(path.read_bytes()).hexdigest()
