"""Labels: what may have shaped a value, and what it may reveal.

Rules
- A label is two sets. *sources*: untrusted places whose words may have shaped the value. *secrets*:
  names of secrets that the value may reveal. The empty label is trusted and public.
- Join is union in both sets, so labels form a join semilattice: joining is associative,
  commutative, idempotent, and never removes anything.
- A flow into a sink is allowed when the label's sets are subsets of what the sink accepts. A sink
  that accepts `ANY_SOURCE` takes untrusted content; secrets are always accepted by name only.
- A run's own label only rises. After it has seen a value, everything that it sends carries it.

Source: D. Denning, "A Lattice Model of Secure Information Flow", CACM 19(5), 1976.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

ANY_SOURCE = "*"
USER = "user"
"""Who hands a run its arguments, its environment and its standard input, as a source."""


class Label(msgspec.Struct, frozen=True, omit_defaults=True):
    """`sources` and `secrets` as described above."""

    sources: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()

    def join(self, other: Label) -> Label:
        """The least label above both."""
        if other <= self:
            return self
        return Label(self.sources | other.sources, self.secrets | other.secrets)

    def __le__(self, other: Label) -> bool:
        return self.sources <= other.sources and self.secrets <= other.secrets

    @property
    def clean(self) -> bool:
        """Trusted and public."""
        return not self.sources and not self.secrets


CLEAN = Label()


class Sink(msgspec.Struct, frozen=True):
    """What may flow in: source names (or `ANY_SOURCE`), and secret names."""

    sources: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()

    def refuses(self, label: Label) -> str:
        """Why `label` may not flow in, for the operator; empty when it may."""
        if ANY_SOURCE not in self.sources and (foreign := label.sources - self.sources):
            return f"shaped by untrusted {_some(foreign)}"
        if hidden := label.secrets - self.secrets:
            return f"may reveal secret {_some(hidden)}"
        return ""


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
