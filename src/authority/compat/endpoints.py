"""What a run finds on its own loopback, and what answers there.

Rules
- Which endpoints a run has follows from its policy alone: without a network, model or MCP section there
  is no loopback and nothing to reach.
- The ports are fixed: the run's network is its own, so nobody else can be there first.
"""

from __future__ import annotations

from collections.abc import Mapping

from authority.compat.base import Door, Service
from authority.kernel.policy import Policy
from authority.protocol import Service as Kind

PROXY_PORT = 48101
MODEL_PORT = 48102
MCP_PORT = 48103
NAMES_PORT = 53


def listeners(policy: Policy) -> tuple[tuple[int, bool, int], ...]:
    """(service, datagrams, port) of each endpoint; none without a need for one."""
    if not (policy.network.allow or policy.network.http):
        return ()
    return ((int(Kind.PROXY), False, PROXY_PORT), (int(Kind.NAMES), True, NAMES_PORT))


def services(_door: Door) -> Mapping[int, Service]:
    """What answers, by kind of raw stream."""
    return {}
