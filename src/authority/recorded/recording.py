"""One run as the log has it: what was asked, what came of it, what it printed.

Rules
- The stored lines are read once, and nothing is guessed: a run that is not there, or whose first entry
  is missing, is refused.
- A request is known by its stream and number, as its sender counted it. Those that services of the
  gate asked for a program (stream 0) have no such order: they are known by effect and digest.
- That the lines are the ones which were written is `verify`'s business; whoever plays a run asks it
  first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from authority.audit.chain import stored_hash
from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.kernel.labels import Label
from authority.recorded.errors import ReplayRefused


class Asked(msgspec.Struct):
    """One recorded request: its verdict, and the outcome of what was admitted. `hash` is that of the
    entry on which the answer rested; `release` is that entry's number, -1 when there was no answer."""

    verdict: entries.Admit | entries.Denied
    outcome: entries.Outcome | None = None
    hash: bytes = b""
    chunks: list[entries.Chunk] = []
    refused: list[entries.Denied] = []
    done: bool = False

    @property
    def seq(self) -> int:
        return self.verdict.seq

    @property
    def denied(self) -> bool:
        return isinstance(self.verdict, entries.Denied)

    @property
    def release(self) -> int:
        if self.denied:
            return self.verdict.seq
        return self.outcome.seq if self.outcome is not None else -1


class Printed(msgspec.Struct):
    """A piece of output, or its refusal."""

    verdict: entries.Admit | entries.Denied

    @property
    def descriptor(self) -> int:
        return 2 if self.verdict.resource == "output:stderr" else 1


class Recording(msgspec.Struct):
    """See the module."""

    log: str
    start: entries.RunStart
    start_hash: bytes
    end: entries.RunEnd | None
    head: bytes
    last: int
    streams: dict[int, dict[int, list[Asked]]]
    own: list[Asked]
    printed: list[Printed]
    inputs: list[entries.Input]
    derived: Mapping[str, tuple[str, Any]]
    label: Label
    rows: list[entries.AnyEntry]

    def requests(self) -> list[Asked]:
        """All requests, in the order of their verdicts."""
        native = (a for by_n in self.streams.values() for found in by_n.values() for a in found)
        return sorted([*native, *self.own], key=lambda asked: asked.seq)


def read(lines: Iterable[bytes], run: str) -> Recording:
    """The recording of `run` in stored lines. Raises `ReplayRefused`, `EntryError`."""
    log = ""
    start: entries.RunStart | None = None
    end: entries.RunEnd | None = None
    start_hash = head = b""
    streams: dict[int, dict[int, list[Asked]]] = defaultdict(lambda: defaultdict(list))
    own: list[Asked] = []
    printed: list[Printed] = []
    inputs: list[entries.Input] = []
    derived: dict[str, tuple[str, Any]] = {}
    rows: list[entries.AnyEntry] = []
    by_seq: dict[int, Asked] = {}
    mark = f'"run":"{run}"'.encode()
    last = -1
    for line in lines:
        if mark not in line:
            if b'"kind":"gate.start"' in line:
                opened = entries.decode(line)
                if isinstance(opened, entries.GateStart):
                    log = opened.log
            continue
        entry = entries.decode(line)
        if entry.run != run:
            continue
        rows.append(entry)
        last, head = entry.seq, stored_hash(line) or b""
        match entry:
            case entries.RunStart():
                start, start_hash = entry, head
            case entries.RunEnd():
                end = entry
            case entries.CapDerive():
                derived[entry.id] = (entry.parent, entry.restriction)
            case entries.Input():
                inputs.append(entry)
            case entries.Denied(of=of) if of >= 0:
                if of in by_seq:
                    by_seq[of].refused.append(entry)
            case entries.Admit() | entries.Denied():
                if entry.effect == "output":
                    printed.append(Printed(entry))
                    continue
                asked = by_seq[entry.seq] = Asked(entry, hash=head)
                if entry.stream or not entry.effect:
                    streams[entry.stream][entry.n].append(asked)
                else:
                    own.append(asked)
            case entries.Chunk():
                if entry.of in by_seq:
                    by_seq[entry.of].chunks.append(entry)
            case entries.Outcome():
                if entry.of in by_seq:
                    by_seq[entry.of].outcome, by_seq[entry.of].hash = entry, head
            case _:
                pass
    if start is None:
        raise ReplayRefused(
            f"the log has no run {printable(run, 64)}",
            "'authority audit query --kind run.start' lists them",
        )
    if start.attached:
        raise ReplayRefused(
            "the run's program was started by somebody else (attached)",
            "only what Authority started can be started again",
        )
    return Recording(
        log=log,
        start=start,
        start_hash=start_hash,
        end=end,
        head=head,
        last=last,
        streams={number: dict(by_n) for number, by_n in streams.items()},
        own=own,
        printed=printed,
        inputs=inputs,
        derived=derived,
        label=Label(frozenset(start.sources), frozenset(start.secrets)),
        rows=rows,
    )
