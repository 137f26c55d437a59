"""The writer in a real event loop on real files: order, groups, poison, lock, kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from benchmarks.crash_kill import WRITER
from tests.audit.helpers import line_for

from authority.audit import Log, LogPoisoned, read, verify
from authority.audit.errors import LogError, LogLocked, LogMisuse
from authority.audit.files import OsLayer
from authority.kernel.canonical import encode

Main = Callable[[], Awaitable[None]]


def run(main: Main, *, fast: bool = False) -> None:
    if fast:
        uvloop.run(main())  # type: ignore[arg-type]
    else:
        asyncio.run(main())  # type: ignore[arg-type]


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_many_writers_share_syncs_and_all_are_there(tmp_path: Path, fast: bool) -> None:
    syncs = 0

    class Counting(OsLayer):
        def fdatasync(self, fd: int) -> None:
            nonlocal syncs
            syncs += 1
            super().fdatasync(fd)

    receipts: dict[int, bytes] = {}

    async def main() -> None:
        log = Log.open(tmp_path / "log", layer=Counting(), segment_bytes=32 * 1024)

        async def writer(name: int) -> None:
            for number in range(20):
                receipt = log.append(line_for(log, run=f"r{name}", n=number, pad="p" * 100))
                await log.durable(receipt.seq)
                assert log.durable_seq >= receipt.seq
                receipts[receipt.seq] = receipt.hash

        await asyncio.gather(*[writer(name) for name in range(32)])
        log.close()

    run(main, fast=fast)
    entries = list(read(tmp_path / "log"))
    assert [entry["seq"] for entry in entries] == list(range(640))
    assert {entry["seq"]: bytes.fromhex(entry["hash"]) for entry in entries} == receipts
    assert syncs < 320
    assert verify(tmp_path / "log").ok
    assert len(list((tmp_path / "log").glob("*.jsonl"))) > 2


class Gated(OsLayer):
    """Holds every commit until it is let through; can fail it instead."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.error: OSError | None = None

    def fdatasync(self, fd: int) -> None:
        self.entered.release()
        assert self.go.acquire(timeout=20)
        if self.error is not None:
            raise self.error
        super().fdatasync(fd)


def test_nothing_is_told_before_its_own_sync(tmp_path: Path) -> None:
    async def main() -> None:
        layer = Gated()
        log = Log.open(tmp_path / "log", layer=layer)
        told: list[int] = []

        def wait_for(seq: int) -> None:
            log.when_durable(seq, lambda error: told.append(seq if error is None else -1))

        wait_for(log.append(line_for(log)).seq)
        await asyncio.to_thread(layer.entered.acquire)
        assert log.next_batch == 1
        second = log.append(line_for(log)).seq
        third = log.append(line_for(log)).seq
        wait_for(third)
        wait_for(second)
        assert (log.next_batch, told, log.durable_seq) == (1, [], -1)
        layer.go.release()
        await asyncio.to_thread(layer.entered.acquire)
        await asyncio.sleep(0)
        assert told == [0]
        assert log.durable_seq == 0
        assert log.tree().size == 1
        with pytest.raises(LogMisuse):
            wait_for(3)
        layer.go.release()
        await log.durable(third)
        assert told == [0, 1, 2]
        wait_for(1)
        assert told[-1] == 1  # at once
        log.close()
        assert [entry["batch"] for entry in read(tmp_path / "log")] == [0, 1, 1]

    run(main)


def test_a_disk_that_hangs_holds_up_only_what_needs_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        layer = Gated()
        log = Log.open(tmp_path / "log", layer=layer)
        waits = asyncio.ensure_future(log.durable(log.append(line_for(log)).seq))
        await asyncio.to_thread(layer.entered.acquire)
        for _ in range(100):
            await asyncio.sleep(0.001)  # others go on
        assert not waits.done()
        layer.go.release()
        await waits
        log.close()

    run(main)
    assert verify(tmp_path / "log").entries == 1


def test_the_first_failure_poisons_everything(tmp_path: Path) -> None:
    async def main() -> None:
        layer = Gated()
        log = Log.open(tmp_path / "log", layer=layer)
        first = log.append(line_for(log)).seq
        waits = [asyncio.ensure_future(log.durable(first))]
        await asyncio.to_thread(layer.entered.acquire)
        waits.append(asyncio.ensure_future(log.durable(log.append(line_for(log)).seq)))
        await asyncio.sleep(0)
        layer.error = OSError(5, "Input/output error")
        layer.go.release()
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(result, LogPoisoned) for result in results)
        assert isinstance(log.poisoned, LogPoisoned)
        assert isinstance(log.poisoned.__cause__, OSError)
        with pytest.raises(LogPoisoned):
            log.append(line_for(log))
        with pytest.raises(LogPoisoned):
            await log.durable(first)
        assert log.durable_seq == -1
        log.close()
        assert not (tmp_path / "log" / "clean").exists()
        assert (tmp_path / "log" / "poisoned").exists()

    run(main)
    log = Log.open(tmp_path / "log")
    assert "Input/output error" in log.recovery.poisoned
    assert log.recovery.kept
    assert (tmp_path / "log" / "kept" / log.recovery.kept).exists()
    log.close()
    clean = Log.open(tmp_path / "log")
    assert clean.recovery.clean
    assert not clean.recovery.poisoned
    clean.close()


def test_a_failing_callback_silences_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: problems.append(context)
        )
        log = Log.open(tmp_path / "log")
        seq = log.append(line_for(log)).seq
        log.when_durable(seq, lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        await log.durable(seq)
        assert isinstance(problems[0]["exception"], ZeroDivisionError)
        log.close()

    run(main)


def test_a_large_backlog_is_split_into_batches(tmp_path: Path) -> None:
    async def main() -> None:
        log = Log.open(tmp_path / "log")
        log.batch_bytes = 2000
        for _ in range(40):
            log.append(line_for(log, pad="b" * 300))
        await log.durable(39)
        log.close()

    run(main)
    entries = list(read(tmp_path / "log"))
    assert len({entry["batch"] for entry in entries}) >= 8
    assert verify(tmp_path / "log").ok


def test_close_commits_what_is_pending(tmp_path: Path) -> None:
    async def main() -> None:
        log = Log.open(tmp_path / "log")
        told: list[Any] = []
        for _ in range(5):
            log.when_durable(log.append(line_for(log)).seq, told.append)
        log.close()
        assert told == [None] * 5

    run(main)
    assert verify(tmp_path / "log").entries == 5


def test_lines_that_are_not_the_next_entry_are_refused(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log")
    good = {"seq": 0, "batch": 0, "time": 1, "kind": "k"}
    for wrong in (
        encode({**good, "seq": 1}),
        encode({**good, "batch": 1}),
        encode({**good, "hash": "0" * 64}),
        encode({"seq": 0, "batch": 0}),
        encode({**good, "kind": 5}),
        encode({**good, "pad": "x" * (1 << 20)}),
        b"[]",
        b"",
        encode(good) + b"\n",
        b" " + encode(good),
        encode(good).replace(b'"k"', b'"\xc3\xa9"'),
        encode(good).replace(b'"k"', b'"\x7f"'),
        encode(good)[:-1],
    ):
        with pytest.raises(LogMisuse):
            log.append(wrong)
    assert log.next_seq == 0
    assert log.append(encode(good)).seq == 0
    log.flush()
    log.close()
    with pytest.raises(LogMisuse):
        log.append(encode({**good, "seq": 1, "batch": 1}))
    assert verify(tmp_path / "log").entries == 1


def test_one_writer(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log")
    code = (
        "import sys; from authority.audit import Log; from authority.audit.errors import LogLocked\n"
        "try: Log.open(sys.argv[1])\n"
        "except LogLocked: sys.exit(7)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], check=False)
    assert result.returncode == 7
    with pytest.raises(LogLocked):
        Log.open(tmp_path / "log")
    log.close()
    Log.open(tmp_path / "log").close()


def test_a_live_log_can_be_read_and_its_last_line_may_be_growing(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log")
    log.append(line_for(log))
    log.flush()
    segment = tmp_path / "log" / "00000001.jsonl"
    whole = segment.read_bytes()
    size = len(whole.rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(size)
        file.write(b'{"batch":1,"half')
    report = verify(tmp_path / "log")
    assert report.ok
    assert report.writing
    assert [entry["seq"] for entry in read(tmp_path / "log")] == [0]
    os.close(log._lock)  # the writer is gone: now the same bytes are a torn line
    report = verify(tmp_path / "log")
    assert not report.ok
    assert report.first_bad == 1
    log._writer.close()


def test_kill_minus_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: dict[int, str] = {}
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "log")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(1 + 150)]  # the first says that it is open
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().split(b"\n")
        child.wait()
        for line in lines:
            if line.strip().count(b" ") == 1 and len(line.split()[1]) == 64:
                seq, digest = line.split()
                acknowledged[int(seq)] = digest.decode()
    assert len(acknowledged) >= 600
    log = Log.open(tmp_path / "log")
    log.close()
    entries = {entry["seq"]: entry["hash"] for entry in read(tmp_path / "log")}
    assert {seq: entries.get(seq) for seq in acknowledged} == acknowledged
    assert verify(tmp_path / "log").ok


def test_files_are_private_and_links_are_not_followed(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log")
    log.close()
    for path in (tmp_path / "log").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    segment = tmp_path / "log" / "00000001.jsonl"
    segment.rename(tmp_path / "elsewhere")
    segment.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Log.open(tmp_path / "log")


def test_foreign_mark_files_are_refused(tmp_path: Path) -> None:
    Log.open(tmp_path / "log").close()
    (tmp_path / "log" / "clean").write_text("yes")
    with pytest.raises(LogError, match="clean"):
        Log.open(tmp_path / "log")
