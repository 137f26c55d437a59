"""A run that goes on with a recorded one: answered from the log up to an entry, and live from there.

Rules
- Up to entry N nothing is performed and nothing judged: each request must be the recorded one, and gets
  the recorded answer. What is asked beyond N waits until everything up to N was asked; then requests go
  to the pipeline like any run's.
- The first difference up to N ends the run, and is told.
- The new run begins with the label that the old one had after N: its program knows what that one read.
- Only what came through the channel can be answered so. Services behind mounts and endpoints act for
  real from the start, so a recording that needs them before N is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from authority.audit import query
from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.store import ContentStore
from authority.gate import given
from authority.gate.answers import Answer, Reply
from authority.gate.channel import Takes
from authority.gate.reader import Asked
from authority.gate.run import Run, Start
from authority.kernel import capabilities, entries
from authority.kernel.labels import Label
from authority.recorded import recording as recordings
from authority.recorded.bodies import Kept
from authority.recorded.errors import Diverged, ReplayRefused
from authority.recorded.matcher import Matcher
from authority.recorded.recording import Recording

_HARMLESS = frozenset({"fs.mount", "net.resolve"})


class Continuing:
    """What the requests of such a run go to. See `gate.channel.Takes`."""

    def __init__(self, run: Run, live: Takes, matcher: Matcher, upto: int) -> None:
        self._run = run
        self._live = live
        self._matcher = matcher
        self._upto = upto
        self._waiting: list[tuple[Asked, Reply]] = []
        self._begun = matcher.frontier > upto
        self._blind = False

    def blind(self, run: str) -> bool:
        """Whether it gets no receipts: from its first handle on. See `gate.channel.Takes`."""
        return self._blind or self._live.blind(run)

    def submit(self, asked: Asked, reply: Reply) -> None:
        self._blind = self._blind or asked.request.handle
        if self._begun:
            self._live.submit(asked, reply)
            return
        try:
            found = self._matcher.match(asked)
            told = self._matcher.answer(found) if found.seq <= self._upto else None
        except Diverged as other:
            if other.divergence.entry > self._upto:
                self._waiting.append((asked, reply))
                return
            what = other.divergence
            self._run.on_trouble(
                f"the replay diverged at entry {what.entry}: {what.what}: "
                f"then {what.then}, now {what.now}"
            )
            self._run.stop("diverged")
            return
        if found.seq > self._upto:
            self._waiting.append((asked, reply))
        elif told is not None:
            refused, body = told
            reply(Answer(asked.request.n, refused, found.release, found.hash, body))
        self._go_on()

    def _go_on(self) -> None:
        if self._matcher.frontier <= self._upto:
            return
        self._begun = True
        self._run.on_trouble(f"entry {self._upto} is reached: from here on the run is live")
        waiting, self._waiting = self._waiting, []
        for asked, reply in waiting:
            self._live.submit(asked, reply)


def read(log: Any, run: str) -> Recording:
    """The recording of a run in a log that may be growing. Raises `ReplayRefused`. Blocks."""
    return recordings.read(query.lines(log), run)


def started(spec: Start, recording: Recording, store: ContentStore, upto: int) -> Start:
    """How to start a run that goes on with a recorded one after an entry. Raises `ReplayRefused`."""
    start = recording.start
    if not start.seq <= upto < recording.last:
        raise ReplayRefused(
            f"entry {upto} is not within the run", f"it goes from {start.seq} to {recording.last}"
        )
    for asked in recording.own:
        if asked.seq <= upto and asked.verdict.effect not in _HARMLESS:
            raise ReplayRefused(
                f"entry {asked.seq} ({asked.verdict.effect}) did not come through the channel",
                "such a run can be replayed, but not gone on with after that entry",
            )
    if any(asked.verdict.handle and asked.seq <= upto for asked in recording.requests()):
        raise ReplayRefused(
            "it held handles, and those ended with it", "go on before its first handle"
        )
    if start.parent or start.terminal:
        raise ReplayRefused("a child, or a run at a terminal, can't be gone on with")
    values = dict(spec.policy.process.env)
    if start.given is not None:
        try:
            values |= given.read(store, start.given)
        except (BodyMissing, LogCorrupt, ValueError) as error:
            raise ReplayRefused(f"what the program was given is not kept: {error}") from None
    missing = [name for name in start.environment if name not in values]
    if missing:
        raise ReplayRefused(f"the policy no longer sets {missing[0]}")
    for asked in recording.own:
        asked.done = True  # its own services ask anew
    kept = Kept(store)

    def begin(run: Run, live: Takes) -> Takes:
        own = capabilities.parse(run.token).id
        return Continuing(run, live, Matcher(recording, kept, spec.policy, own), upto)

    return replace(
        spec,
        argv=tuple(start.program),
        cwd=start.cwd,
        environment={name: values[name] for name in start.environment},
        caller={**spec.caller, "PATH": start.search_path},
        label=_label(recording, upto),
        files=str(start.protection.get("files", "")),
        seed=start.seed,
        continues=start.run,
        replayed=upto,
        begin=begin,
    )


def _label(recording: Recording, upto: int) -> Label:
    """The label that the run had after entry `upto`."""
    label = recording.label
    for row in recording.rows:
        if row.seq <= upto and isinstance(row, entries.Outcome | entries.Chunk | entries.Tally):
            label = label.join(Label(frozenset(row.sources), frozenset(row.secrets)))
    return label
