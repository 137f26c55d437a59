"""That a run was played is itself on record: in a log of its own, never in the recorded one.

Rules
- `STATE/replays` is a log like any other, without checkpoints: nobody's key signs a second tree under
  the name of the first. It is open only while an entry is written, so replays may run side by side.
- The entry that a replay begins is durable before the program starts, and one that ended has its end.
  A replay without an end was cut off.
"""

from __future__ import annotations

import time
from pathlib import Path

from authority.audit.errors import LogError
from authority.audit.writer import Log
from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.recorded.errors import ReplayRefused
from authority.recorded.recording import Recording
from authority.replay.report import Report

_TRIES = 100
_PAUSE = 0.05


class Account:
    """Where replays are recorded: `folder`, made when it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seq = -1

    def begin(self, recording: Recording, source: str, until: int, build: str) -> int:
        """Record that a replay begins; its entry."""
        start = recording.start
        self._seq = self._append(
            entries.Replay(
                run=start.run,
                log=recording.log,
                head=recording.head.hex(),
                source=source,
                first=start.seq,
                last=recording.last,
                policy=start.policy,
                until=until,
                build=build,
            )
        )
        return self._seq

    def end(self, report: Report) -> None:
        """Record what it came to."""
        other = report.divergence
        self._append(
            entries.ReplayEnd(
                run=report.run,
                of=self._seq,
                verdict=report.verdict,
                matched=report.matched,
                code=report.code,
                entry=other.entry if other else -1,
                what=other.what if other else "",
                limits=[printable(limit, 300) for limit in report.limits],
            )
        )

    def _append(self, entry: entries.AnyEntry) -> int:
        log = self._open()
        try:
            entry.seq, entry.batch, entry.time = log.next_seq, log.next_batch, _now()
            log.append(entries.encode(entry))
            log.flush()
        finally:
            log.close()
        return entry.seq

    def _open(self) -> Log:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for tried in range(_TRIES):
            try:
                return Log.open(self._folder)
            except LogError as error:
                if "lock" not in error.message and "another" not in error.message:
                    raise
                if tried == _TRIES - 1:
                    raise ReplayRefused(
                        "the record of replays is held by another process"
                    ) from None
            time.sleep(_PAUSE)
        raise AssertionError


def _now() -> int:
    return time.time_ns() // 1000
