"""Opening a log from its anchor: quick, believed nothing, and everything is read all the same.

Each falsehood stands beside the control: the same log, opened from the anchor that is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.audit.helpers import line_for

from authority.audit import DirectoryWitness, LogCorrupt, LogTampered, SigningKey, open_log, verify
from authority.audit import anchor as anchors
from authority.audit.chain import TAIL, seal, stored_hash
from authority.audit.checkpoints import HISTORY, Checkpoint, load
from authority.audit.errors import WitnessRefused
from authority.audit.files import OsLayer
from authority.audit.opening import everything
from authority.kernel.canonical import encode

KEY = SigningKey("authority/test", bytes(range(32)))
SEGMENT = 4096
ENTRIES = 400


def grow(path: Path, count: int, witness: DirectoryWitness | None = None) -> None:
    """More entries, a checkpoint after every ten, closed in order; the anchor as a gate keeps it."""
    witnesses = [witness] if witness is not None else []
    log, checkpointer = open_log(path, KEY, segment_bytes=SEGMENT, witnesses=witnesses)
    anchors.keep(str(path), OsLayer(), log.recovery.borders, log.next_seq)
    for number in range(count):
        log.append(line_for(log, note="n" * (number % 50)))
        if number % 10 == 9:
            log.flush()
            checkpointer.force_now()
    log.flush()
    checkpointer.force_now()
    checkpointer.close()
    log.close()


@pytest.fixture
def anchored(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    grow(path, ENTRIES)
    grow(path, 5)
    assert (path / anchors.NAME).exists()
    return path


def opened(path: Path, witnesses: list[DirectoryWitness] | None = None) -> tuple[int, Any]:
    """(entries that were not read, where the chain and the tree stand), closed again in order."""
    log, checkpointer = open_log(path, KEY, segment_bytes=SEGMENT, witnesses=witnesses or [])
    found = log.recovery.unread, (log.next_seq, log.head, log.tree().root(), checkpointer.size)
    checkpointer.close()
    log.close()
    return found


def kept(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / anchors.NAME).read_bytes())
    return value


def keep(path: Path, value: object) -> None:
    (path / anchors.NAME).write_text(json.dumps(value), "ascii")


def test_it_leads_to_the_same_place(anchored: Path) -> None:
    unread, there = opened(anchored)
    assert ENTRIES - 40 < unread < ENTRIES
    (anchored / anchors.NAME).unlink()
    assert opened(anchored) == (0, there)
    assert there[0] == ENTRIES + 5


def test_the_log_goes_on_from_there(anchored: Path) -> None:
    unread, _ = opened(anchored)
    grow(anchored, 100)
    report = verify(anchored, key=KEY.public)
    assert report.ok, report.problem
    assert report.entries == report.covered == ENTRIES + 105
    grow(anchored, 0)
    assert opened(anchored)[0] > unread


def _edge(value: dict[str, Any]) -> None:
    place = max(at for at, node in enumerate(value["edge"]) if node)
    value["edge"][place] = "0" * 64


FALSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "another edge": _edge,
    "an edge of another form": lambda v: v["edge"].append("0" * 64),
    "another head": lambda v: v.update(head="0" * 64),
    "a short head": lambda v: v.update(head="00"),
    "an entry more": lambda v: v.update(entries=v["entries"] + 1),
    "no entries": lambda v: v.update(entries=0, edge=[]),
    "entries below none": lambda v: v.update(entries=-1, edge=["0" * 64]),
    "the segment before": lambda v: v.update(segment=v["segment"] - 1),
    "the segment behind": lambda v: v.update(segment=v["segment"] + 1),
    "a segment that is not there": lambda v: v.update(segment=99),
    "the first segment": lambda v: v.update(segment=1),
    "a number as text": lambda v: v.update(segment=str(v["segment"])),
    "a member less": lambda v: v.pop("head"),
}


@pytest.mark.parametrize("falsehood", FALSE)
def test_a_false_anchor_is_passed_over(anchored: Path, falsehood: str) -> None:
    unread, there = opened(anchored)
    assert unread
    value = kept(anchored)
    FALSE[falsehood](value)
    keep(anchored, value)
    assert opened(anchored) == (0, there)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"text"', "[1, 2]", "{}", "\0" * 64])
def test_what_is_no_anchor_is_passed_over(anchored: Path, text: str) -> None:
    there = opened(anchored)[1]
    (anchored / anchors.NAME).write_text(text, "ascii")
    assert opened(anchored) == (0, there)


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda name: os.mkfifo(name, 0o600),
    "a folder": lambda name: name.mkdir(),
    "a link to a good one": lambda name: name.symlink_to(name.with_name("kept-aside")),
    "a link to nothing": lambda name: name.symlink_to("nothing"),
    "a file without end": lambda name: (name.touch(), os.truncate(name, 1 << 40)),
    "a good one and a megabyte of blanks": lambda name: name.write_bytes(
        name.with_name("kept-aside").read_bytes() + b" " * (1 << 20)
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_something_else_in_its_place_is_passed_over(anchored: Path, what: str) -> None:
    there = opened(anchored)[1]
    name = anchored / anchors.NAME
    name.rename(anchored / "kept-aside")
    ODD[what](name)
    assert opened(anchored) == (0, there)


def _damage(path: Path, entry: int) -> None:
    """Change a letter of an entry's own text, wherever it lies."""
    mark = b'"seq":%d,' % entry
    for segment in sorted(path.glob("*.jsonl")):
        data = segment.read_bytes()
        if mark in data:
            begin = data.rfind(b"\n", 0, data.index(mark)) + 1
            end = data.index(b"\n", begin)
            line = data[begin:end].replace(b'"note":"n', b'"note":"m')
            assert line != data[begin:end]
            segment.write_bytes(data[:begin] + line + data[end:])
            return
    raise AssertionError(f"no entry {entry}")


def test_damage_before_it_is_found_by_reading_everything(anchored: Path) -> None:
    unread, _ = opened(anchored)
    last = ENTRIES + 4
    assert sum(map(len, everything(anchored, KEY.public, [], last))) == last + 1
    _damage(anchored, 7)
    assert opened(anchored)[0] == unread, "the bytes before the anchor are not read by opening"
    with pytest.raises(LogCorrupt, match="entry 7"):
        list(everything(anchored, KEY.public, [], last))
    assert verify(anchored, key=KEY.public).first_bad == 7
    (anchored / anchors.NAME).unlink()
    with pytest.raises(LogCorrupt, match="entry 7"):
        open_log(anchored, KEY, segment_bytes=SEGMENT)


def test_damage_behind_it_refuses_the_opening(anchored: Path) -> None:
    assert opened(anchored)[0]
    _damage(anchored, ENTRIES + 1)
    with pytest.raises(LogCorrupt, match=f"entry {ENTRIES + 1}"):
        open_log(anchored, KEY, segment_bytes=SEGMENT)


def test_a_missing_segment_before_it_refuses_the_opening(anchored: Path) -> None:
    assert opened(anchored)[0]
    (anchored / "00000002.jsonl").unlink()
    with pytest.raises(LogTampered, match="00000002"):
        open_log(anchored, KEY, segment_bytes=SEGMENT)


def test_a_log_that_is_too_short_refuses_the_opening(anchored: Path) -> None:
    assert opened(anchored)[0]
    last = max(p for p in anchored.glob("*.jsonl") if p.read_bytes().strip(b"\0"))
    data = last.read_bytes()
    lines = data.rstrip(b"\0").splitlines(keepends=True)
    last.write_bytes(b"".join(lines[:-1]) + bytes(len(data) - len(b"".join(lines[:-1]))))
    with pytest.raises(LogTampered):
        open_log(anchored, KEY, segment_bytes=SEGMENT)


def test_after_a_stop_that_was_not_orderly_everything_is_read(anchored: Path) -> None:
    unread, there = opened(anchored)
    assert unread
    (anchored / "clean").unlink()
    assert opened(anchored) == (0, there)
    assert opened(anchored) == (unread, there)


def test_without_a_checkpoint_above_it_everything_is_read(anchored: Path) -> None:
    unread, there = opened(anchored)
    history = anchored / "checkpoints" / HISTORY
    lines = history.read_text("ascii").splitlines(keepends=True)
    below = [each for each in lines if int(json.loads(each)["note"].split("\n")[1]) <= unread]
    assert 0 < len(below) < len(lines)
    history.write_text("".join(below), "ascii")
    (anchored / "checkpoints" / "latest").unlink()
    assert opened(anchored) == (0, (*there[:3], max(10 * (unread // 10), 0)))


def test_a_checkpoint_before_it_that_is_not_signed_is_found(anchored: Path) -> None:
    history = anchored / "checkpoints" / HISTORY
    lines = history.read_text("ascii").splitlines(keepends=True)
    assert opened(anchored)[0]
    value = json.loads(lines[0])
    text = value["note"].split("\n")
    text[2] = "A" * 43 + "="
    value["note"] = "\n".join(text)
    history.write_text(json.dumps(value) + "\n" + "".join(lines[1:]), "ascii")
    with pytest.raises(LogTampered, match="claims the expected key"):
        list(everything(anchored, KEY.public, [], ENTRIES + 4))


def test_a_witness_that_remembers_less_is_asked_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    witness = DirectoryWitness.create(tmp_path / "witness", "w")
    grow(path, 100, witness)
    grow(path, ENTRIES)
    grow(path, 5)
    unread, there = opened(path)
    assert unread > 100
    assert opened(path, [witness]) == (0, there), "its memory lies before the anchor"
    grow(path, 10, witness)
    assert opened(path, [witness])[0] >= unread, "and now behind it"


def test_a_witness_goes_on_from_the_anchor_and_sees_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "log"
    witness = DirectoryWitness.create(tmp_path / "witness", "w")
    grow(path, ENTRIES, witness)
    grow(path, 5, witness)
    unread, _ = opened(path, [witness])
    assert unread
    remembered = witness.remembered(KEY.public)
    assert remembered is not None
    _damage(path, 7)
    grow(path, 5, DirectoryWitness(witness.directory))
    later = witness.remembered(KEY.public)
    assert later is not None
    assert later.size == remembered.size + 5, "only what is new was read, and it extends the old"
    grow(path, 5)
    with pytest.raises(WitnessRefused, match="a fork, or rewritten"):
        DirectoryWitness(witness.directory).observe(
            signed_for_nothing(later.size + 1), KEY.public, str(path)
        )


def test_a_false_anchor_makes_no_fork_of_a_good_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    witness = DirectoryWitness.create(tmp_path / "witness", "w")
    grow(path, ENTRIES, witness)
    grow(path, 5)
    value = kept(path)
    _edge(value)
    keep(path, value)
    latest = Checkpoint.parse(load(path)[-1], KEY.public)
    DirectoryWitness(witness.directory).observe(latest, KEY.public, str(path))
    remembered = witness.remembered(KEY.public)
    assert remembered is not None
    assert remembered.size == ENTRIES + 5


def test_a_rewritten_end_behind_it_refuses_the_opening(anchored: Path) -> None:
    unread, there = opened(anchored)
    assert unread
    segments = [p for p in sorted(anchored.glob("*.jsonl")) if p.read_bytes().strip(b"\0")]
    data = segments[-1].read_bytes()
    lines = data.rstrip(b"\0").split(b"\n")[:-1]
    previous = stored_hash(segments[-2].read_bytes().split(b"\n")[-2])
    assert previous is not None
    new, head = b"", previous
    for number, line in enumerate(lines):
        body = line[:-TAIL]
        if number >= len(lines) - 3:
            body = body.replace(b'"note":"', b'"note":"m')
        head, sealed = seal(head, body + b"}")
        new += sealed
    segments[-1].write_bytes(new + bytes(max(0, len(data) - len(new))))
    clean = {"entries": there[0], "head": head.hex()}
    (anchored / "clean").write_bytes(encode(clean))
    with pytest.raises(LogTampered, match="is not the one that"):
        open_log(anchored, KEY, segment_bytes=SEGMENT)


def test_a_signed_checkpoint_before_it_of_another_tree_is_found(anchored: Path) -> None:
    history = anchored / "checkpoints" / HISTORY
    unread, _ = opened(anchored)
    other = json.dumps({"note": signed_for_nothing(unread - 1).note})
    history.write_text(other + "\n" + history.read_text("ascii"), "ascii")
    assert opened(anchored)[0] == unread
    with pytest.raises(LogTampered, match="not what"):
        list(everything(anchored, KEY.public, [], ENTRIES + 4))


def signed_for_nothing(size: int) -> Checkpoint:
    """A checkpoint that the log's key signs for some other tree."""
    unsigned = Checkpoint(KEY.name, size, bytes(32))
    return replace(unsigned, note=unsigned.text + "\n" + KEY.sign(unsigned.text))
