"""From a run's id to a report: find what is needed, say what is missing, play, record that it was done.

Rules
- The log is verified first: what does not hold is not played.
- The policy is the one that the run's first entry names by digest, from the content store.
- A variable that was given to the program and is not kept any more must be given by the caller.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.store import ContentStore
from authority.gate import build, given
from authority.isolation import probe
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy, PolicyError, from_canonical
from authority.recorded import recording as recordings
from authority.recorded.bodies import Kept
from authority.recorded.errors import ReplayRefused
from authority.recorded.recording import Recording
from authority.replay.account import Account
from authority.replay.report import Report
from authority.replay.stage import Stage, Wish


class Source:
    """What a replay is made from. `store` holds bodies and policies; `name` says where it is from."""

    def __init__(self, lines: Iterable[bytes], store: ContentStore | None, name: str) -> None:
        self.lines = lines
        self.store = store
        self.name = name


def policy_of(recording: Recording, store: ContentStore | None) -> Policy:
    """The policy of the run. Raises `ReplayRefused`."""
    digest = recording.start.policy
    try:
        if store is None:
            raise BodyMissing("there is no content store")
        policy = from_canonical(store.get(digest))
    except (BodyMissing, LogCorrupt, PolicyError) as error:
        raise ReplayRefused(f"the run's policy {digest[:16]} is not at hand: {error}") from None
    if policy.digest != digest:
        raise ReplayRefused(f"what is kept as the policy {digest[:16]} is another one")
    return policy


def values_of(
    recording: Recording, policy: Policy, store: ContentStore | None, more: Mapping[str, str]
) -> dict[str, str]:
    """The program's variables. Raises `ReplayRefused` for one that is neither kept nor given."""
    start = recording.start
    values = dict(policy.process.env)
    lost = ""
    if start.given is not None:
        try:
            if store is None:
                raise BodyMissing("there is no content store")
            values |= given.read(store, start.given)
        except (BodyMissing, LogCorrupt, ValueError) as error:
            lost = str(error)
    values |= more
    placeholders = [c.from_env for c in policy.credentials.values()]
    missing = sorted({*start.environment, *placeholders} - values.keys())
    if missing:
        names = printable(", ".join(missing), 200)
        raise ReplayRefused(
            f"values that the program was given are not kept: {names}"
            + (f" ({lost})" if lost else ""),
            f"give them: --env {printable(missing[0], 64)}=VALUE",
        )
    return values


def replay(
    source: Source,
    run: str,
    wish: Wish,
    *,
    account: Account | None,
    values: Mapping[str, str] | None = None,
) -> Report:
    """Play a run. Raises `AuthorityError`."""
    recording = recordings.read(source.lines, run)
    policy = policy_of(recording, source.store)
    wish.values = values_of(recording, policy, source.store, values or {})
    record = -1
    if account is not None:
        record = account.begin(recording, source.name, wish.until, build.digest())
    scratch = Path(tempfile.mkdtemp(prefix="authority-replay-"))
    try:
        kept = Kept(source.store)
        stage = Stage(recording, policy, kept, source.store, wish, probe(), scratch)
        report = asyncio.run(stage.play())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if account is not None:
        account.end(report)
    return msgspec.structs.replace(report, record=record)
