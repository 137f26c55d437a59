"""What an attacker who writes answers can tell, and how answers are compared.

Rules
- Their answers are the best that there are, so they come from the ground truth of the attack; but a
  secret that nobody told them they don't know. Otherwise the benchmark itself would let it out.

This module needs nothing of Authority and nothing of AgentDojo.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def words(answer: Any) -> Iterator[str]:
    """The texts in an answer that are long enough to be told from others."""
    if isinstance(answer, dict | list):
        for item in answer.values() if isinstance(answer, dict) else answer:
            yield from words(item)
    elif isinstance(answer, str) and len(answer) >= 6:
        yield answer


def without(secrets: list[str], said: Any) -> Any:
    """An attacker's answer without what the attacker was not told."""
    if isinstance(said, list):
        return [without(secrets, item) for item in said]
    if isinstance(said, str):
        for secret in secrets:
            said = said.replace(secret, "(not known)")
    return said


def covers(pattern: list[str], path: list[str]) -> bool:
    """Whether a declared pointer covers the field: `*` is any one name, and what is below counts."""
    pairs = zip(pattern, path, strict=False)
    return len(path) >= len(pattern) and all(p in ("*", name) for p, name in pairs)


def equal(one: Any, other: Any) -> bool:
    """Whether two answers are the same, a number also where one is text."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return bool(one == other)
