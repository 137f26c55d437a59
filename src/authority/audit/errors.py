"""Everything that the audit log refuses with. Each says what is wrong and what a person can do.

Rules
- `LogCorrupt`: the stored bytes are not a log that we could have left behind, whatever crashed.
- `LogTampered`: the log is well formed, but it is not the one that a checkpoint or a witness saw.
- `LogPoisoned`: a write or a sync failed. Nothing more is written or acknowledged by this process.
- None of these is ever answered by a retry or by cutting more: a person decides.
"""

from __future__ import annotations

from authority.errors import AuthorityError


class LogError(AuthorityError):
    """The base of what the log refuses with."""


class LogMisuse(LogError):
    """The caller handed over a line that cannot be the next entry. Nothing was written."""


class LogLocked(LogError):
    """Another process holds the log."""


class LogPoisoned(LogError):
    """A write or sync failed before; `__cause__` is the first failure."""


class LogFull(LogError):
    """There is no space for another segment and the reserve is used up."""


class LogCorrupt(LogError):
    """Stored bytes are damaged. `entry` is the `seq` of the first entry that cannot be trusted."""

    def __init__(self, entry: int, message: str) -> None:
        super().__init__(
            message, "keep the directory as it is and run 'authority audit verify' for the details"
        )
        self.entry = entry


class LogTampered(LogCorrupt):
    """The log contradicts a signed checkpoint or a witness. `entry` as in `LogCorrupt`."""


class AnchorUnfit(LogError):
    """The log can't be opened from its anchor; nothing was changed, and all of it has to be read."""


class CheckpointInvalid(LogError):
    """A checkpoint is malformed, not signed by the expected key, or of another log."""


class WitnessRefused(LogError):
    """A witness would have to go back or to accept a fork."""


class BodyMissing(LogError):
    """A stored body, or the key that opens it, is not there."""
