"""Checking a whole log without its gate: what an auditor runs.

Rules
- Everything stored is checked in one pass: each line's form and hash, numbers, batches, segment
  borders, and the Merkle root at every checkpoint and witnessed size. What is wrong first is named.
- A line that ends in nothing is 'still being written' only while a writer holds the lock.
  Otherwise it is reported: opening the log decides whether a crash may have left it.
- `key` has to come from outside (printed by `init`). Without one the checkpoints' signatures are
  checked with `local_key`, which whoever rewrote the log could have replaced too.
- *Independently witnessed* needs an outside key and an independent witness that vouches for a
  prefix; `vouched` says how many entries that covers. Entries beyond the last checkpoint could be
  cut off by the machine's owner without a trace until a checkpoint or witness covers them: `covered`
  says where that begins.
- Bodies in the content store are not read here; their digests are in the entries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from authority.audit import checkpoints
from authority.audit.chain import START, BadLine, State, follow, head_of, plain
from authority.audit.errors import CheckpointInvalid, LogCorrupt
from authority.audit.notes import VerifyKey
from authority.audit.prefixes import Floor, Prefixes
from authority.audit.reading import Block, Reader
from authority.audit.witness import DirectoryWitness

WITNESSED = "independently witnessed"
UNWITNESSED = "consistent, not independently witnessed"
BROKEN = "not consistent"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What `verify` found. `first_bad` is the first entry that cannot be trusted, or None.

    `entries` counts those that check out; `head` is the last one's hash, `root` the root of a
    whole log's tree.
    `covered` entries stand under a checkpoint or witness that agreed, `vouched` under one that is
    independent. `writing` says that a live gate was in the middle of a line.
    """

    ok: bool
    entries: int
    head: str
    root: str
    first_bad: int | None
    problem: str
    witnessed: str
    covered: int
    vouched: int
    checkpoints: int
    key: str
    writing: bool

    def to_json(self) -> dict[str, Any]:
        """As a dictionary for `--json`."""
        return asdict(self)


class _Problem(Exception):
    def __init__(self, entry: int, text: str) -> None:
        super().__init__(text)
        self.entry = entry
        self.text = text


def verify(
    directory: str | os.PathLike[str],
    *,
    key: VerifyKey | None = None,
    local_key: VerifyKey | None = None,
    witnesses: Sequence[DirectoryWitness] = (),
    progress: Progress | None = None,
) -> Report:
    """Check the log in `directory`. `progress(done, total)` counts bytes.

    Raises `OSError` when files cannot be read; everything else that is wrong is in the report.
    """
    known = key or local_key
    state = START
    problem: _Problem | None = None
    prefixes = Prefixes()
    vouched: list[Floor] = []
    notes: list[str] = []
    writing = False
    try:
        notes = _notes(directory)
        found, vouched = _floors(notes, known, witnesses)
        prefixes = Prefixes(found)
    except _Problem as error:
        problem = error
    reader = Reader(directory)
    try:
        state = _walk(reader, prefixes, progress)
        writing = bool(reader.tail) and reader.live
        _compare(state, prefixes, cut_off=bool(reader.tail) and not writing)
    except _Walked as stopped:
        state = stopped.state
        problem = stopped.problem  # damaged lines come before what a checkpoint says of them
    except _Problem as error:
        problem = problem or error
    agreed = prefixes.agreed
    independent = max((floor.size for floor in vouched if floor.size <= agreed), default=0)
    witnessed = BROKEN
    if problem is None:
        witnessed = WITNESSED if key is not None and independent else UNWITNESSED
    return Report(
        ok=problem is None,
        entries=state.next_seq,
        head=state.hash.hex(),
        root=prefixes.tree.root().hex() if problem is None else "",
        first_bad=None if problem is None else problem.entry,
        problem="" if problem is None else problem.text,
        witnessed=witnessed,
        covered=agreed,
        vouched=independent if key is not None else 0,
        checkpoints=len(notes),
        key="" if known is None else known.to_text(),
        writing=writing,
    )


class _Walked(Exception):
    def __init__(self, state: State, problem: _Problem) -> None:
        super().__init__(problem.text)
        self.state = state
        self.problem = problem


def _notes(directory: str | os.PathLike[str]) -> list[str]:
    try:
        return checkpoints.load(directory)
    except CheckpointInvalid as error:
        raise _Problem(0, error.message) from error


def _floors(
    notes: Iterable[str], key: VerifyKey | None, witnesses: Sequence[DirectoryWitness]
) -> tuple[list[Floor], list[Floor]]:
    floors: list[Floor] = []
    vouched: list[Floor] = []
    try:
        for note in notes:
            read = checkpoints.Checkpoint.parse_unsigned(note)
            if key is not None:
                try:
                    checkpoints.Checkpoint.parse(note, key)
                except CheckpointInvalid as error:
                    raise _Problem(
                        0, f"checkpoint of {read.size} entries: {error.message}"
                    ) from error
            floors.append(read.floor(f"the checkpoint of {read.size} entries"))
        for witness in witnesses:
            if key is None:
                raise _Problem(
                    0, "a witness's memory can be checked only with the log's public key"
                )
            remembered = witness.remembered(key)
            if remembered is not None:
                floors.append(remembered.floor(witness.source))
                if witness.independent:
                    vouched.append(floors[-1])
    except CheckpointInvalid as error:
        raise _Problem(0, error.message) from error
    return floors, vouched


def _walk(reader: Reader, prefixes: Prefixes, progress: Progress | None) -> State:
    state = START
    total = reader.size if progress else 0
    done = 0
    segment = ""
    try:
        for block in reader.blocks():
            lines = block.lines()
            if block.segment != segment:
                segment = block.segment
                _check_border(segment, lines[0], state)
            state = _follow(block, lines, state)
            prefixes.add_lines(lines)
            if progress:
                done += len(block.data)
                progress(done, max(total, done))
    except BadLine as error:
        raise _Walked(error.state, _Problem(error.entry, f"{segment}: {error.reason}")) from error
    except LogCorrupt as error:
        text = f"{error.message}: entry {state.next_seq} should follow"
        raise _Walked(state, _Problem(state.next_seq, text)) from error
    except _Problem as error:
        raise _Walked(state, error) from error
    return state


def _check_border(segment: str, line: bytes, state: State) -> None:
    first = head_of(line)
    if first and first.seq == state.next_seq and first.batch != first.seq:
        raise _Problem(state.next_seq, f"{segment} begins inside a batch")


def _follow(block: Block, lines: list[bytes], state: State) -> State:
    if plain(block.data):
        return follow(lines, state)
    good = next(index for index, line in enumerate(lines) if not plain(line))
    state = follow(lines[:good], state)
    entry = state.next_seq
    raise _Walked(
        state,
        _Problem(
            entry, f"{block.segment}: entry {entry} is damaged: a byte in it belongs in no entry"
        ),
    )


def _compare(state: State, prefixes: Prefixes, *, cut_off: bool) -> None:
    if cut_off:
        raise _Problem(state.next_seq, f"entry {state.next_seq} is cut off in its line")
    wrong = prefixes.contradicted
    if wrong is not None:
        first = min(prefixes.agreed, wrong.size - 1)
        which = (
            f"entry {first}" if first == wrong.size - 1 else f"entries {first} to {wrong.size - 1}"
        )
        raise _Problem(
            first,
            f"the chain is whole but {which} {'is' if first == wrong.size - 1 else 'are'} not what "
            f"{wrong.source} signed for: rewritten, or a fork",
        )
    if prefixes.unreached:
        floor = prefixes.unreached[-1]
        raise _Problem(
            state.next_seq,
            f"the log ends before entry {state.next_seq}, but {floor.source} vouches for "
            f"{floor.size}: entries {state.next_seq} to {floor.size - 1} were cut off",
        )
