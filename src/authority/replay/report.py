"""What a replay came to.

Rules
- `same` alone means: every recorded request was asked again, in its place, with the same arguments and
  as wide a capability; the program printed the same bytes and ended with the same code.
- `limits` names what could not be controlled or compared. With any of them a run that went the same way
  is `as far as it can be replayed`, which is less.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from authority.recorded.errors import Divergence

SAME: Final = "same"
PARTLY: Final = "as far as it can be replayed"
DIVERGED: Final = "diverged"
STOPPED: Final = "stopped where asked"


class Report(msgspec.Struct, frozen=True):
    """`matched` of `requests` recorded requests were asked again as they were; `printed` bytes were
    compared, `code` and `then_code` are the program's exit codes."""

    run: str
    verdict: str
    matched: int
    requests: int
    printed: int
    code: int
    then_code: int
    first: int
    last: int
    limits: tuple[str, ...]
    reordered: int = 0
    divergence: Divergence | None = None
    record: int = -1

    @property
    def ok(self) -> bool:
        return self.divergence is None

    def to_json(self) -> dict[str, Any]:
        """As a dictionary for `--json`."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found, "ok": self.ok}
