"""A policy that remembers what it said of late.

Pure. A policy never changes and its answers are functions of what it is asked, so an answer that was
given once is the answer. A request asks several times about one resource, and programs come back to
the same ones. What is remembered is bounded: the least recently asked goes first, and about a
resource with a long text nothing is.
"""

from __future__ import annotations

from functools import lru_cache

from authority.kernel.policy import Policy
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import REMEMBERED, SHORT, Resource


class Remembered(Policy):
    """The same policy, with a memory of `most` answers to each question."""

    __slots__ = ("_approval", "_judge", "_secrets", "_trusted")

    def __init__(self, policy: Policy, most: int = REMEMBERED) -> None:
        for name in Policy.__slots__:
            setattr(self, name, getattr(policy, name))
        remember = lru_cache(maxsize=most)
        self._judge = remember(super().judge)
        self._approval = remember(super().approval)
        self._trusted = remember(super().trusted)
        self._secrets = remember(super().secrets)

    def judge(self, effect: str, resource: Resource, verb: str = "") -> Judgement:
        if len(resource.text) > SHORT:
            return super().judge(effect, resource, verb)
        return self._judge(effect, resource, verb)

    def approval(self, effect: str, resource: Resource, verb: str = "") -> str:
        if len(resource.text) > SHORT:
            return super().approval(effect, resource, verb)
        return self._approval(effect, resource, verb)

    def trusted(self, resource: Resource, verb: str = "") -> bool:
        if len(resource.text) > SHORT:
            return super().trusted(resource, verb)
        return self._trusted(resource, verb)

    def secrets(self, resource: Resource) -> frozenset[str]:
        if len(resource.text) > SHORT:
            return super().secrets(resource)
        return self._secrets(resource)
