"""Judging a whole log directory again, and what came of it.

Rules
- The lines are read as they are stored; that they are the ones which were written is `verify`'s
  business, and is asked first by whoever says that a log re-judges.
- A line that is no entry of these rules, or a log of other rules, is a difference at that line.
- Whether the MACs held can't be asked of the log: no token is stored. It is always given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from authority.audit.reading import Reader
from authority.kernel import entries
from authority.kernel.entries import EntryError
from authority.rejudge.judge import Difference, Judge
from authority.rejudge.sources import Sources

Progress = Callable[[int, int], None]


class Rejudged(msgspec.Struct, frozen=True):
    """`judged` verdicts were recomputed; `different` of them came out otherwise."""

    ok: bool
    entries: int
    judged: int
    different: int
    differences: tuple[Difference, ...]
    given: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As a dictionary for `--json`."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def rejudge(
    directory: str | os.PathLike[str], sources: Sources, *, progress: Progress | None = None
) -> Rejudged:
    """Judge the log in `directory` again. Raises `OSError`, `LogCorrupt`, `LogTampered`."""
    judge = Judge(sources)
    reader = Reader(directory)
    total, done = reader.size if progress else 0, 0
    for block in reader.blocks():
        if not all(_fed(judge, line) for line in block.lines()):
            break
        if progress:
            done += len(block.data)
            progress(done, max(total, done))
    return _ended(judge)


def rejudge_lines(lines: Iterable[bytes], sources: Sources) -> Rejudged:
    """Judge some lines of a log again, in rising order. What lies between them is not known: lines of
    other runs, which decide nothing about these as long as the log has no budgets of its own."""
    judge = Judge(sources)
    for line in lines:
        try:
            entry = entries.decode(line)
        except EntryError as error:
            judge.refuse(f"the line is no entry: {error}")
            break
        if isinstance(entry, entries.Snapshot):
            continue  # it is of the whole state
        judge.state.seq = entry.seq - 1
        if not judge.feed(entry):
            break
    return _ended(judge)


def _ended(judge: Judge) -> Rejudged:
    judge.end()
    different = judge.verdicts["different"]
    return Rejudged(
        not different,
        judge.count,
        judge.judged,
        different,
        tuple(judge.differences),
        dict(sorted(judge.given.items())),
    )


def _fed(judge: Judge, line: bytes) -> bool:
    try:
        entry = entries.decode(line)
    except EntryError as error:
        judge.refuse(f"the line is no entry: {error}")
        return False
    return judge.feed(entry)
