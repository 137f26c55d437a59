"""Every change of a stored log is detected, and named. Each family has its control."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.audit.helpers import build, content, crashed_copy, forge, line_for, rewrite

from authority.audit import Log, LogCorrupt, LogTampered, SigningKey, open_log, verify
from authority.audit.chain import START, follow


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return build(tmp_path / "log", [1, 3, 1, 3])


def owner_of(data: bytes, offset: int) -> int:
    """The entry in whose line (newline included) an offset lies."""
    return data[:offset].count(b"\n")


def test_control_the_untouched_log_verifies_and_opens(small: Path) -> None:
    report = verify(small)
    assert report.ok
    assert report.entries == 8
    assert report.first_bad is None
    assert report.witnessed == "consistent, not independently witnessed"
    log = Log.open(small)
    assert log.recovery.clean
    assert log.next_seq == 8
    log.close()


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_is_found_in_its_entry(small: Path, mask: int) -> None:
    file = small / "00000001.jsonl"
    whole = file.read_bytes()
    data = content(small)
    for offset in range(len(data)):
        changed = bytearray(whole)
        changed[offset] ^= mask
        file.write_bytes(changed)
        report = verify(small)
        assert not report.ok, offset
        assert report.first_bad == owner_of(data, offset), (offset, report.problem)
        assert str(report.first_bad) in report.problem
    file.write_bytes(whole)
    assert verify(small).ok


def test_every_byte_set_to_zero_or_newline_is_found(small: Path) -> None:
    file = small / "00000001.jsonl"
    whole = file.read_bytes()
    data = content(small)
    for value in (0, 10):
        for offset in range(len(data)):
            if data[offset] != value:
                file.write_bytes(data[:offset] + bytes([value]) + data[offset + 1 :])
                report = verify(small)
                assert not report.ok
                assert report.first_bad == owner_of(data, offset)
    file.write_bytes(whole)


def test_every_flip_refuses_to_open_even_after_a_crash(small: Path, tmp_path: Path) -> None:
    """Recovery may cut a torn batch; it must not take a changed byte for one."""
    log = crashed_copy(small, tmp_path / "crashed")
    file = log / "00000001.jsonl"
    whole = file.read_bytes()
    data = content(log)
    for offset in range(0, len(data)):
        changed = bytearray(whole)
        changed[offset] ^= 0x01
        file.write_bytes(changed)
        with pytest.raises(LogCorrupt) as caught:
            Log.open(log)
        assert caught.value.entry == owner_of(data, offset)
    file.write_bytes(whole)
    opened = Log.open(log)
    assert opened.next_seq == 8
    assert not opened.recovery.clean
    assert opened.recovery.copied == "00000001.jsonl"
    assert opened.recovery.read_back in {"direct", "uncached"}
    opened.close()


@pytest.mark.parametrize("seq", range(8))
def test_deleted_entry(small: Path, tmp_path: Path, seq: int) -> None:
    lines = content(small).splitlines(keepends=True)
    rewrite(small, b"".join(lines[:seq] + lines[seq + 1 :]))
    report = verify(small)
    if seq == 7:
        # Without checkpoint or witness nobody can see that the very last line ever existed ...
        assert report.ok
        assert report.covered == 0
        with pytest.raises(LogTampered):  # ... but the log was closed in order with eight.
            Log.open(small)
        return
    assert not report.ok
    assert report.first_bad == seq
    assert f"entry {seq} is missing" in report.problem
    with pytest.raises(LogCorrupt):
        Log.open(crashed_copy(small, tmp_path / "crashed"))


def test_several_deleted_entries_are_named(small: Path) -> None:
    lines = content(small).splitlines(keepends=True)
    rewrite(small, b"".join(lines[:2] + lines[5:]))
    assert "entries 2 to 4 are missing" in verify(small).problem


@pytest.mark.parametrize("seq", range(7))
def test_swapped_and_repeated_entries(small: Path, tmp_path: Path, seq: int) -> None:
    lines = content(small).splitlines(keepends=True)
    swapped = [*lines[:seq], lines[seq + 1], lines[seq], *lines[seq + 2 :]]
    repeated = [*lines[: seq + 1], lines[seq], *lines[seq + 1 :]]
    for number, (mutated, bad) in enumerate(((swapped, seq), (repeated, seq + 1))):
        copy = crashed_copy(small, tmp_path / str(number))
        rewrite(copy, b"".join(mutated))
        assert verify(copy).first_bad == bad
        with pytest.raises(LogCorrupt):
            Log.open(copy)


def segmented(path: Path) -> Path:
    build(path, [2] * 12, segment_bytes=1024, pad=60)
    assert len([p for p in path.glob("*.jsonl") if p.read_bytes().strip(b"\0")]) >= 4
    return path


def test_segments_carry_the_chain_on(tmp_path: Path) -> None:
    log = segmented(tmp_path / "log")
    report = verify(log)
    assert report.ok
    assert report.entries == 24
    lines = content(log).split(b"\n")[:-1]
    assert follow(lines, START).next_seq == 24


@pytest.mark.parametrize("index", [1, 2, 3])
def test_dropped_segment(tmp_path: Path, index: int) -> None:
    log = segmented(tmp_path / "log")
    first = log / f"{index:08d}.jsonl"
    before = sum((log / f"{i:08d}.jsonl").read_bytes().count(b"\n") for i in range(1, index))
    first.unlink()
    report = verify(log)
    assert not report.ok
    assert report.first_bad == before
    assert first.name in report.problem
    with pytest.raises(LogTampered) as caught:
        Log.open(log)
    assert caught.value.entry == before


def test_dropped_segment_with_the_others_renamed(tmp_path: Path) -> None:
    log = segmented(tmp_path / "log")
    (log / "00000002.jsonl").unlink()
    for index in range(3, 20):
        file = log / f"{index:08d}.jsonl"
        if file.exists():
            file.rename(log / f"{index - 1:08d}.jsonl")
    report = verify(log)
    assert not report.ok
    assert "missing" in report.problem
    with pytest.raises(LogCorrupt):
        Log.open(log)


def test_bytes_behind_a_sealed_segment_or_in_zeros(tmp_path: Path) -> None:
    log = segmented(tmp_path / "log")
    for junk in (b"\0", b"\0\0x", b"junk\n"):
        copy = crashed_copy(log, tmp_path / junk.hex())
        with (copy / "00000001.jsonl").open("ab") as file:
            file.write(junk)
        assert not verify(copy).ok
        with pytest.raises(LogCorrupt):
            Log.open(copy)


def zero_sector(path: Path, number: int) -> None:
    file = path / "00000001.jsonl"
    data = bytearray(file.read_bytes())
    data[number * 512 : number * 512 + 512] = bytes(512)
    file.write_bytes(data)


def test_a_lost_sector_is_cut_only_from_the_last_batch(tmp_path: Path) -> None:
    """A zeroed sector is what a crash leaves; a later batch behind it proves that it was not one."""
    log = crashed_copy(build(tmp_path / "log", [1, 1, 3], pad=900), tmp_path / "crashed")
    early = crashed_copy(log, tmp_path / "early")
    zero_sector(early, 1)
    with pytest.raises(LogCorrupt, match="later batch behind it is intact") as caught:
        Log.open(early)
    assert caught.value.entry == 0
    late = crashed_copy(log, tmp_path / "late")
    zero_sector(late, 6)  # inside the last batch: entries 2, 3 and 4
    opened = Log.open(late)
    (cut,) = opened.recovery.cuts
    assert opened.next_seq == cut.seq in {2, 3}
    assert (late / "kept" / cut.file).stat().st_size == cut.size
    opened.acknowledge_repair()
    opened.close()
    again = Log.open(late)
    assert again.recovery.cuts == ()
    again.close()


def test_a_zero_byte_in_the_last_batch_is_not_taken_for_a_tear(tmp_path: Path) -> None:
    log = crashed_copy(build(tmp_path / "log", [1, 2], pad=400), tmp_path / "crashed")
    data = content(log)
    start = data.index(b"\n") + 1
    for offset in range(start, len(data) - 1):
        if offset % 512 in {0, 511} or offset == start:
            continue  # a piece of one byte may be a sector's
        rewrite(log, data[:offset] + b"\0" + data[offset + 1 :])
        with pytest.raises(LogCorrupt):
            Log.open(log)


def test_a_log_closed_in_order_is_never_cut(tmp_path: Path) -> None:
    log = build(tmp_path / "log", [1, 1], pad=900)
    zero_sector(log, 3)
    with pytest.raises(LogCorrupt, match="this is no crash"):
        Log.open(log)


def test_a_closed_log_may_be_continued_and_crash(tmp_path: Path) -> None:
    """The mark of an orderly close goes before the first new entry."""
    path = build(tmp_path / "log", [2])
    log = Log.open(path)
    log.append(line_for(log))
    log.flush()
    copy = tmp_path / "crashed"
    shutil.copytree(path, copy)
    log.close()
    again = Log.open(copy)
    assert again.next_seq == 3
    assert not again.recovery.clean
    again.close()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"seq":5', b'"seq":6', "carries the number 6"),
        (b'"batch":5', b'"batch":3', "wrong batch"),
        (b'"batch":5', b'"batch":6', "wrong batch"),
        (b'"seq":5', b'"seq":"5"', "not an entry"),
        (b'"kind":"test"', b'"kind":"te\xc3\xa9"', "belongs in no entry"),
        (b'"kind":"test"', b'"kind":"te\x7f"', "belongs in no entry"),
    ],
)
def test_well_chained_lines_that_are_not_the_entry(
    small: Path, tmp_path: Path, old: bytes, new: bytes, problem: str
) -> None:
    lines = content(small).split(b"\n")[:-1]
    assert b'"batch":5' in lines[5]
    forged = forge(lines, 5, lambda body: body.replace(old, new))
    copy = crashed_copy(small, tmp_path / "crashed")
    rewrite(copy, b"".join(line + b"\n" for line in forged))
    report = verify(copy)
    assert not report.ok
    assert report.first_bad == 5
    assert problem in report.problem
    with pytest.raises(LogCorrupt):
        Log.open(copy)


KEY = SigningKey("authority/test", bytes(range(32)))


def signed(path: Path, counts: tuple[int, ...] = (4, 4, 2)) -> Path:
    """A log with a checkpoint after each of `counts` entries but the last group."""
    log, checkpointer = open_log(path, KEY, segment_bytes=1 << 16)
    for number, count in enumerate(counts):
        for _ in range(count):
            log.append(line_for(log, note="n"))
        log.flush()
        if number < len(counts) - 1:
            checkpointer.force_now()
    checkpointer.close()
    log.close()
    return path


def test_control_signed_log(tmp_path: Path) -> None:
    log = signed(tmp_path / "log")
    report = verify(log, key=KEY.public)
    assert report.ok, report.problem
    assert report.covered == 8
    assert report.entries == 10
    opened, checkpointer = open_log(log, KEY)
    assert checkpointer.size == 8
    checkpointer.close()
    opened.close()


@pytest.mark.parametrize("keep", range(10))
def test_truncation_below_a_checkpoint(tmp_path: Path, keep: int) -> None:
    log = signed(tmp_path / "log")
    lines = content(log).splitlines(keepends=True)
    rewrite(log, b"".join(lines[:keep]))
    (log / "clean").unlink()
    report = verify(log, key=KEY.public)
    if keep >= 8:
        assert report.ok
        assert report.covered == 8  # and says that entries from 8 on are not covered
        return
    assert not report.ok
    assert report.first_bad == keep
    assert f"entries {keep} to 7 were cut off" in report.problem
    with pytest.raises(LogTampered) as caught:
        open_log(log, KEY)
    assert caught.value.entry == keep


@pytest.mark.parametrize("seq", range(10))
def test_rewritten_suffix_with_a_whole_chain(tmp_path: Path, seq: int) -> None:
    log = signed(tmp_path / "log")
    lines = content(log).split(b"\n")[:-1]
    forged = forge(lines, seq, lambda body: body.replace(b'"note":"n"', b'"note":"m"'))
    rewrite(log, b"".join(line + b"\n" for line in forged))
    (log / "clean").unlink()
    report = verify(log, key=KEY.public)
    if seq >= 8:
        assert report.ok  # above the last checkpoint: only a witness could tell
        return
    assert not report.ok
    assert report.first_bad == (0 if seq < 4 else 4)
    assert "rewritten" in report.problem
    with pytest.raises(LogTampered):
        open_log(log, KEY)


def test_damage_below_a_checkpoint_is_never_cut(tmp_path: Path) -> None:
    log = signed(tmp_path / "log", (4, 1))
    data = content(log)
    lines = data.splitlines(keepends=True)
    rewrite(log, b"".join(lines[:3]) + lines[3][:20])  # torn in shape, but signed for
    (log / "clean").unlink()
    with pytest.raises(LogCorrupt, match="a checkpoint covers this entry") as caught:
        open_log(log, KEY)
    assert caught.value.entry == 3


def test_bad_checkpoint_signature_and_foreign_key(tmp_path: Path) -> None:
    log = signed(tmp_path / "log")
    other = SigningKey("authority/test", bytes(32))
    assert "not signed" in verify(log, key=other.public).problem
    history = log / "checkpoints" / "history.jsonl"
    text = history.read_text()
    for at in range(0, len(text) - 1, 7):
        flipped = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        history.write_text(flipped)
        report = verify(log, key=KEY.public)
        assert not report.ok, (at, text[at])
    history.write_text(text)
    assert verify(log, key=KEY.public).ok


def test_fork_two_logs_with_one_key(tmp_path: Path) -> None:
    log = signed(tmp_path / "log")
    fork = tmp_path / "fork"
    shutil.copytree(log, fork)
    lines = content(fork).split(b"\n")[:-1]
    forged = forge(lines, 5, lambda body: body.replace(b'"note":"n"', b'"note":"m"'))
    rewrite(fork, b"".join(line + b"\n" for line in forged))
    (fork / "clean").unlink()
    shutil.rmtree(fork / "checkpoints")
    opened, checkpointer = open_log(fork, KEY)  # nothing inside gives the fork away
    checkpointer.force_now()
    checkpointer.close()
    opened.close()
    assert verify(fork, key=KEY.public).ok
    # Put beside the checkpoints of the other one, it cannot stand.
    with (fork / "checkpoints" / "history.jsonl").open("a") as file:
        file.write((log / "checkpoints" / "history.jsonl").read_text())
    report = verify(fork, key=KEY.public)
    assert not report.ok
    assert report.first_bad == 4
    assert "fork" in report.problem
