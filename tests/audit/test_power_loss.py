"""Power is lost at every operation; what was acknowledged must be there afterwards.

The disk is simulated (`simulated_disk.py`), because killing a process proves nothing about syncs:
the page cache survives it. The last tests take the syncs out and expect to lose entries.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from tests.audit.helpers import line_for
from tests.audit.simulated_disk import Disk, State, _clone, crashes

from authority.audit import Log, LogError, LogPoisoned, SigningKey, open_log
from authority.audit.chain import START, follow
from authority.audit.segments import segment_names

LOG = "/log"
KEY = SigningKey("authority/simulated", bytes(range(32)))


def stored(disk: Disk) -> list[bytes]:
    lines: list[bytes] = []
    for name in segment_names(disk.listdir(LOG)):
        lines += disk.read(f"{LOG}/{name}").rstrip(b"\0").split(b"\n")[:-1]
    return lines


def acknowledge(log: Log, disk: Disk) -> None:
    for seq in range(log.durable_seq + 1, log.next_seq):
        log.when_durable(seq, lambda error, seq=seq: error or disk.ack(seq))  # type: ignore[misc]


def workload(disk: Disk, seed: int, *, batches: int = 9, checkpoints: bool = False) -> list[bytes]:
    """Append batches of entries of many sizes over several segments; the stored lines."""
    rng = random.Random(seed)
    if checkpoints:
        log, checkpointer = open_log(LOG, KEY, layer=disk, segment_bytes=4096)
    else:
        log, checkpointer = Log.open(LOG, layer=disk, segment_bytes=4096), None
    for number in range(batches):
        for _ in range(rng.randrange(1, 6)):
            log.append(line_for(log, pad="x" * rng.choice((10, 300, 700, 1200))))
        acknowledge(log, disk)
        log.flush()
        if checkpointer and number % 3 == 1:
            checkpointer.force_now()
    if checkpointer:
        checkpointer.close()
    log._writer.close()
    return stored(disk)


def reopen(state: State, *, signed: bool = False) -> tuple[Disk, Log]:
    disk = Disk(_clone(state))
    if signed:
        log, checkpointer = open_log(LOG, KEY, layer=disk, segment_bytes=4096)
        checkpointer.close()
    else:
        log = Log.open(LOG, layer=disk, segment_bytes=4096)
    return disk, log


def losses(disk: Disk, written: list[bytes], *, signed: bool = False, each: int = 4) -> int:
    """How many crashes lost an acknowledged entry or refused to open."""
    rng = random.Random(1)
    lost = 0
    for acknowledged, state in crashes(disk.trace, None, rng, each=each):
        try:
            after, log = reopen(state, signed=signed)
        except LogError:
            lost += 1
            continue
        lines = stored(after)
        good = lines == written[: len(lines)] and len(lines) > acknowledged
        lost += not good
        assert log.next_seq == len(lines)
        log.close()
    return lost


@pytest.mark.parametrize("seed", range(3))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    disk = Disk()
    written = workload(disk, seed)
    assert len([op for op in disk.trace if op[0] == "fdatasync"]) >= 9
    assert len(segment_names(disk.listdir(LOG))) >= 3
    assert losses(disk, written) == 0


def test_nothing_acknowledged_is_lost_and_no_checkpoint_is_ahead() -> None:
    disk = Disk()
    written = workload(disk, 7, checkpoints=True)
    assert losses(disk, written, signed=True) == 0


def test_cuts_happen_and_stay_inside_the_last_batch() -> None:
    """The control for the tests above: the crashes do tear batches, and cuts are kept aside."""
    disk = Disk()
    workload(disk, 3)
    seen = 0
    for acknowledged, state in crashes(disk.trace, None, random.Random(2), each=5):
        after, log = reopen(state)
        for cut in log.recovery.cuts:
            seen += 1
            assert cut.seq > acknowledged
            assert cut.seq == log.next_seq
            kept = after.read(f"{LOG}/kept/{cut.file}")
            assert len(kept) == cut.size
        log.close()
    assert seen > 5


def test_a_second_crash_during_recovery_loses_nothing() -> None:
    disk = Disk()
    written = workload(disk, 5, batches=6)
    rng = random.Random(4)
    for acknowledged, state in crashes(disk.trace, None, rng, each=2, step=9):
        first, log = reopen(state)
        kept = log.next_seq
        log.append(line_for(log, note="after recovery"))
        acknowledge(log, first)
        log.flush()
        log.close()
        lines = stored(first)
        assert lines[:kept] == written[:kept]
        for again, second in crashes(first.trace, state, rng, each=2, step=5):
            after, reopened = reopen(second)
            now = stored(after)
            assert len(now) > max(acknowledged, again)
            assert now == lines[: len(now)]
            follow(now, START)
            reopened.close()


def test_without_fdatasync_entries_are_lost() -> None:
    """Taking the syncs out must make the test above fail, or it tests nothing."""
    disk = Disk(syncs=False)
    written = workload(disk, 0)
    assert losses(disk, written) > 50


class NoDataSync(Disk):
    """Everything is synced but the log's own commits."""

    def fdatasync(self, fd: int) -> None:
        pass


def test_without_the_commits_own_fdatasync_entries_are_lost() -> None:
    disk = NoDataSync()
    written = workload(disk, 0)
    assert losses(disk, written) > 10


class NoFolderSync(Disk):
    """File contents are synced, names are not."""

    def sync_directory(self, path: str) -> None:
        pass


def test_without_folder_syncs_entries_are_lost() -> None:
    disk = NoFolderSync()
    written = workload(disk, 0)
    assert losses(disk, written) > 10


def test_after_a_failed_sync_the_next_start_does_not_believe_the_cache() -> None:
    """The kernel drops pages whose sync failed but shows them until they are evicted."""
    disk = Disk()
    log = Log.open(LOG, layer=disk, segment_bytes=4096)
    log.append(line_for(log, note="first"))
    log.flush()
    log.append(line_for(log, note="second"))
    disk.fail["fdatasync"] = [OSError(5, "Input/output error")]
    told: list[Any] = []
    log.when_durable(1, told.append)
    with pytest.raises(LogPoisoned):
        log.flush()
    assert isinstance(told[0], LogPoisoned)
    with pytest.raises(LogPoisoned):
        log.append(line_for(log))
    log.close()

    again = Log.open(LOG, layer=disk, segment_bytes=4096)  # same machine, same page cache
    assert "Input/output error" in again.recovery.poisoned
    assert again.recovery.copied == "00000001.jsonl"
    assert again.recovery.read_back == "direct"
    assert again.recovery.kept.startswith("00000001.jsonl.")
    believed = again.next_seq
    again.close()
    lines = stored(disk)
    assert len(lines) == believed

    after, third = reopen(disk.state.crash(random.Random(0), 0.0))
    assert third.next_seq == believed
    assert stored(after) == lines
    third.close()


def test_the_mark_of_a_failed_sync_is_not_needed() -> None:
    """The same when the dying process could not leave a mark: the absent `clean` is enough."""
    disk = Disk()
    log = Log.open(LOG, layer=disk, segment_bytes=4096)
    log.append(line_for(log, note="first"))
    log.flush()
    log.append(line_for(log, note="second"))
    disk.fail["fdatasync"] = [OSError(5, "Input/output error")]
    disk.fail["fsync"] = [OSError(5, "Input/output error")]
    with pytest.raises(LogPoisoned):
        log.flush()
    log.close()
    assert not disk.exists(f"{LOG}/poisoned")
    again = Log.open(LOG, layer=disk, segment_bytes=4096)
    assert not again.recovery.clean
    believed = again.next_seq
    again.close()
    _, third = reopen(disk.state.crash(random.Random(0), 0.0))
    assert third.next_seq == believed
    third.close()


def test_a_copy_that_does_not_read_back_refuses_the_start() -> None:
    class Liar(Disk):
        def read_back(self, path: str) -> tuple[bytes, str]:
            data, how = super().read_back(path)
            return data[:-1] + b"\1", how

    disk = Liar()
    log = Log.open(LOG, layer=disk)
    log.append(line_for(log))
    log.flush()
    log._writer.close()
    with pytest.raises(LogError, match="read back"):
        Log.open(LOG, layer=disk)


OPERATIONS = [
    "open",
    "pwrite",
    "fdatasync",
    "fsync",
    "truncate",
    "rename",
    "unlink",
    "mkdir",
    "sync_directory",
    "read",
    "listdir",
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("number", [5, 28], ids=["EIO", "ENOSPC"])
def test_a_failure_of_any_operation_loses_nothing(operation: str, number: int) -> None:
    """The nth call of one kind fails: whatever was acknowledged is there after a power cut."""
    for nth in range(0, 30, 3):
        disk = Disk()
        rng = random.Random(nth)
        acked: list[int] = []
        try:
            log = Log.open(LOG, layer=disk, segment_bytes=4096)
            disk.fail[operation] = _After(nth, OSError(number, "injected"))  # type: ignore[assignment]
            for _ in range(8):
                for _ in range(3):
                    log.append(line_for(log, pad="x" * rng.choice((30, 900))))
                log.when_durable(log.next_seq - 1, _note(log.next_seq - 1, acked))
                log.flush()
        except (LogError, OSError):
            pass
        else:
            log._writer.close()
        disk.fail.clear()
        for keep in (0.0, 0.5, 1.0):
            after, reopened = reopen(disk.state.crash(rng, keep))
            assert reopened.next_seq > max(acked, default=-1), (operation, nth)
            follow(stored(after), START)
            reopened.close()


def _note(seq: int, acked: list[int]) -> Any:
    return lambda error: error or acked.append(seq)


class _After(list[Any]):
    """A failure for the nth call, written as the list that `Disk.fail` takes from."""

    def __init__(self, skip: int, failure: BaseException) -> None:
        super().__init__([*[None] * skip, failure])


@pytest.mark.parametrize("count", [0, 1, 100, 511, 512, 513])
def test_short_writes_are_completed_or_poison(count: int) -> None:
    disk = Disk()
    log = Log.open(LOG, layer=disk, segment_bytes=4096)
    disk.fail["pwrite"] = [count]
    log.append(line_for(log, pad="y" * 900))
    log.flush()
    assert log.durable_seq == 0
    disk.fail["pwrite"] = [count, OSError(28, "No space left on device")]
    log.append(line_for(log, pad="y" * 900))
    with pytest.raises(LogPoisoned):
        log.flush()
    log.close()
    again = Log.open(LOG, layer=disk, segment_bytes=4096)
    assert again.next_seq == 1
    again.close()


def test_a_full_disk_leaves_the_reserve_and_then_poisons() -> None:
    class Full(Disk):
        full = False

        def open(self, path: str, *, create: bool = False) -> int:
            if create and self.full:
                raise OSError(28, "No space left on device")
            return super().open(path, create=create)

    disk = Full()
    log = Log.open(LOG, layer=disk, segment_bytes=4096)
    assert log.trouble == ""
    disk.full = True
    durable = 0
    while log.poisoned is None:
        log.append(line_for(log, pad="z" * 500))
        with contextlib.suppress(LogPoisoned):
            log.flush()
            durable += 1
    assert "reserve is used up" in str(log.poisoned)
    assert "No space" in log.trouble
    assert durable >= 12  # two segments of 4096 bytes: the first and the reserve
    log.close()
    disk.full = False
    again = Log.open(LOG, layer=disk, segment_bytes=4096)
    assert again.next_seq == durable
    assert again.trouble == ""
    again.append(line_for(again))
    again.flush()
    again.close()


def test_trouble_ends_when_space_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authority.audit.segments._RETRY_S", 0.0)
    disk = Disk()
    log = Log.open(LOG, layer=disk, segment_bytes=4096)
    disk.only = "00000002"
    disk.fail["open"] = [OSError(28, "No space left on device")]
    troubled = False
    for _ in range(8):
        log.append(line_for(log, pad="z" * 500))
        log.flush()
        troubled = troubled or bool(log.trouble)
    log._writer._join()
    assert troubled
    assert log.trouble == ""
    log.close()
