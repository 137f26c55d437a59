"""Changes of files that are under way at one time: what none of them may take off.

Pure. Rules
- An outcome stands after what it tells of, and two that overlap stand in any order. So of a change that
  was not *alone* nobody knows what the file holds now, and no label is taken off for it: where it would
  have replaced, moved or removed words it leaves their label, and what it brings is joined.
- A change is not alone when, between its admission and its outcome, another one was under way, at its
  names, above or below them, that brings words: by its label, or by moving or linking what is there.
- Nor is it when, at its outcome, somebody still reads there: their answer's label comes with their own
  outcome, and it may have been the old words that they got.
- Whether a call on handles was made may not be seen, so what it may have left is not taken off as long
  as its run has the handle, whether it was under way or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from authority.kernel.file_labels import CHANGES, READS, Files
from authority.kernel.state import Open, Run

_TAKE_OFF: Final = frozenset({"fs.write", "fs.delete", "fs.rename", "fs.link"})
_CARRY: Final = frozenset({"fs.rename", "fs.link"})


def admitted(files: Files, under_way: Iterable[Open], one: Open) -> None:
    """A change was admitted while others were: what each of them means for the rest."""
    if not files or one.effect not in CHANGES:
        return
    for other in under_way:
        if other.effect in CHANGES and _meet(one, other):
            one.alone = one.alone and not _brings(other)
            other.alone = other.alone and not _brings(one)


def alone(files: Files, under_way: Mapping[int, Open], runs: Iterable[Run], one: Open) -> bool:
    """Whether what is recorded may be taken off for a change that was made."""
    if not files or not one.alone or one.effect not in _TAKE_OFF:
        return one.alone
    if one.effect == "fs.write" and one.resource not in files:
        return True  # nothing is there to be taken off
    if any(other.effect in READS and _meet(one, other) for other in under_way.values()):
        return False
    names = [*_names(one)]
    return not any(
        held.effect in CHANGES and any(_related(name, held.resource) for name in names)
        for run in runs
        for held in run.handles.values()
    )


def _brings(one: Open) -> bool:
    return not one.label.clean or one.effect in _CARRY


def _names(one: Open) -> Iterator[str]:
    yield one.resource
    if one.target:
        yield one.target


def _meet(one: Open, other: Open) -> bool:
    return any(_related(mine, theirs) for mine in _names(one) for theirs in _names(other))


def _related(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
