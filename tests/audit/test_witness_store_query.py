"""Checkpoints, witnesses, bodies, queries and proofs, each on a real log."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.audit.helpers import MICROSECONDS, content, forge, line_for, rewrite

from authority.audit import (
    Checkpoint,
    ContentStore,
    DirectoryWitness,
    Filter,
    Log,
    LogCorrupt,
    LogTampered,
    SigningKey,
    VerifyKey,
    open_log,
    read,
    tail,
    verify,
)
from authority.audit.checkpoints import Checkpointer, create_key, load, load_key
from authority.audit.errors import BodyMissing, CheckpointInvalid, LogError, WitnessRefused
from authority.audit.notes import Note
from authority.audit.prove import ProofInvalid, check, check_export, export, prove
from authority.audit.query import find
from authority.kernel.canonical import encode

KEY = SigningKey("authority/test", bytes(range(32)))


def signed(path: Path, count: int, witnesses: tuple[DirectoryWitness, ...] = ()) -> Path:
    log, checkpointer = open_log(path, KEY, witnesses=witnesses)
    for number in range(count):
        kind = ("request", "denied")[number % 2]
        log.append(
            line_for(log, kind=kind, run=f"r{number % 3}", resource=f"fs:/data/{number}.txt")
        )
        log.flush()
    checkpointer.force_now()
    checkpointer.close()
    log.close()
    return path


# Notes and keys


def test_the_note_format_against_the_specifications_own_key() -> None:
    """The example key and note of Go's sumdb/note, which defines the format."""
    key = VerifyKey.from_text("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\n"
    text += "then you don't know what your problem is.\n"
    signature = (
        "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfq"
        "dngotpRZb6KE6RyyBwJnAM=\n"
    )
    assert Note.parse(f"{text}\n{signature}").verified_by(key) == 0
    with pytest.raises(CheckpointInvalid):
        Note.parse(f"{text}x\n\n{signature}").verified_by(key)


def test_keys_round_trip_and_damage_is_seen(tmp_path: Path) -> None:
    text = KEY.public.to_text()
    assert VerifyKey.from_text(text + "\n") == KEY.public
    assert SigningKey.from_text(KEY.to_text()).public == KEY.public
    for at in range(len("authority/test+"), len(text)):
        other = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(CheckpointInvalid):
            VerifyKey.from_text(other)
    key = create_key(tmp_path / "key", "authority/x")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_key(tmp_path / "key").public == key.public
    assert len(key.public.fingerprint.split()) == 16
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "key", "authority/x")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(CheckpointInvalid):
        load_key(tmp_path / "key")


@pytest.mark.parametrize(
    "text",
    [
        "authority/test\n01\n{root}\n",
        "authority/test\n-1\n{root}\n",
        "authority/test\n1\n{root}\nmore\n",
        "authority/test\n1\nAAAA\n",
        "authority/test\n99999999999999999999999\n{root}\n",
        "authority/other\n1\n{root}\n",
    ],
)
def test_checkpoints_of_another_form_are_refused(text: str) -> None:
    good = Checkpoint("authority/test", 1, bytes(32))
    note = good.text + "\n" + KEY.sign(good.text)
    assert Checkpoint.parse(note, KEY.public).size == 1
    bad = text.format(root="A" * 43 + "=")
    with pytest.raises(CheckpointInvalid):
        Checkpoint.parse(bad + "\n" + KEY.sign(bad), KEY.public)


def test_a_checkpoint_every_thousand_entries_and_every_ten_seconds(tmp_path: Path) -> None:
    async def main() -> None:
        log = Log.open(tmp_path / "log")
        checkpointer = Checkpointer(log, KEY, tmp_path / "log")
        now = 1_000_000_000
        assert not checkpointer.maybe(now)
        log.append(line_for(log))
        assert not checkpointer.maybe(now)  # nothing durable yet: nothing to sign
        await log.durable(0)
        assert checkpointer.maybe(now)
        await checkpointer.force()
        log.append(line_for(log))
        await log.durable(1)
        assert not checkpointer.maybe(now + 9_999_999)
        assert checkpointer.maybe(now + 10_000_000)
        for _ in range(1000):
            log.append(line_for(log))
        await log.durable(1001)
        await asyncio.sleep(0.1)
        assert checkpointer.maybe(now + 10_000_001)
        latest = await checkpointer.force()
        assert latest is not None
        assert latest.size == 1002
        checkpointer.close()
        assert checkpointer.error is None
        log.close()

    asyncio.run(main())
    sizes = [Checkpoint.parse(note, KEY.public).size for note in load(tmp_path / "log")]
    assert sizes == [1, 2, 1002]
    report = verify(tmp_path / "log", key=KEY.public)
    assert report.ok
    assert report.covered == 1002


# Witnesses


def test_a_witness_cosigns_what_extends_and_refuses_to_go_back(tmp_path: Path) -> None:
    witness = DirectoryWitness.create(tmp_path / "w", "witness-1")
    log = signed(tmp_path / "log", 5, (witness,))
    seen = witness.remembered(KEY.public)
    assert seen is not None
    assert seen.size == 5
    old = tmp_path / "old"
    shutil.copytree(log, old)
    log2, checkpointer = open_log(log, KEY, witnesses=(witness,))
    log2.append(line_for(log2))
    log2.flush()
    checkpointer.force_now()
    checkpointer.close()
    log2.close()
    seen = witness.remembered(KEY.public)
    assert seen is not None
    assert seen.size == 6
    with pytest.raises(WitnessRefused, match="does not go back"):
        witness.accept(load(old)[-1], KEY.public, [], 1)
    # A restored copy of the state directory is refused at open, and named by verify.
    with pytest.raises(LogTampered, match="the witness witness-1"):
        open_log(old, KEY, witnesses=(witness,))
    report = verify(old, key=KEY.public, witnesses=(witness,))
    assert not report.ok
    assert report.first_bad == 5
    assert verify(old, key=KEY.public).ok  # without the witness nobody can tell
    report = verify(log, key=KEY.public, witnesses=(witness,))
    assert report.ok
    # Our own uid owns it: it does not count as independent.
    assert not witness.independent
    assert report.witnessed == "consistent, not independently witnessed"


def test_a_fork_is_refused_by_the_witness(tmp_path: Path) -> None:
    witness = DirectoryWitness.create(tmp_path / "w", "witness-1")
    log = signed(tmp_path / "log", 5, (witness,))
    lines = content(log).split(b"\n")[:-1]
    forged = forge(lines, 2, lambda body: body.replace(b"data", b"DATA"))
    rewrite(log, b"".join(line + b"\n" for line in forged))
    (log / "clean").unlink()
    shutil.rmtree(log / "checkpoints")
    report = verify(log, key=KEY.public, witnesses=(witness,))
    assert report.first_bad == 0
    assert "fork" in report.problem
    opened, checkpointer = open_log(log, KEY)  # without its witness the gate cannot see it
    opened.append(line_for(opened))
    opened.flush()
    checkpointer._witnesses = (witness,)
    with pytest.raises(WitnessRefused, match="fork"):
        checkpointer.force_now()
    checkpointer.close()
    opened.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another uid needs root")
def test_a_witness_of_another_uid_is_independent(tmp_path: Path) -> None:
    log = signed(tmp_path / "log", 5)
    witness_uid, auditor_uid = 64_001, 64_002
    home = Path("/tmp") / f"authority-witness-{os.getpid()}"
    folder = home / "w"
    try:
        home.mkdir(mode=0o755)
        witness = DirectoryWitness.create(folder, "witness-2")
        code = "from authority.audit.witness import main; raise SystemExit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, "--log", log, "--key", KEY.public.to_text(), folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "cosigned 5 entries\n", done.stderr
        assert not witness.independent  # root could write it
        for path in (home, folder, *folder.iterdir()):
            os.chown(path, witness_uid, witness_uid)
        os.chmod(folder / "witness.key", 0o600)
        public = tmp_path.parent
        copy = home.parent / f"{home.name}-log"
        shutil.copytree(log, copy)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, auditor_uid, auditor_uid)
        assert public
        read_fd, write_fd = os.pipe()
        child = os.fork()
        if child == 0:
            code_out = 1
            try:
                os.setresgid(auditor_uid, auditor_uid, auditor_uid)
                os.setresuid(auditor_uid, auditor_uid, auditor_uid)
                report = verify(copy, key=KEY.public, witnesses=(witness,))
                os.write(write_fd, json.dumps(report.to_json()).encode())
                code_out = 0
            finally:
                os._exit(code_out)
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as file:
            found = json.loads(file.read())
        assert os.waitpid(child, 0)[1] == 0
        assert found["witnessed"] == "independently witnessed"
        assert found["vouched"] == 5
        shutil.rmtree(copy)
    finally:
        shutil.rmtree(home, ignore_errors=True)


# Bodies


def test_bodies_are_found_by_digest_and_changes_are_seen(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "bodies", keys=tmp_path / "keys")
    digest = asyncio.run(store.put_durable(b"body"))
    assert store.put(b"body") == digest
    assert store.get(digest) == b"body"
    assert store.has(digest)
    path = tmp_path / "bodies" / digest[:2] / digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"bodY")
    with pytest.raises(LogCorrupt):
        store.get(digest)
    for wrong in ("0" * 64, "../../etc/passwd", digest.upper(), ""):
        with pytest.raises(BodyMissing):
            store.get(wrong)


def test_sealed_bodies_open_until_their_key_is_destroyed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "bodies", keys=tmp_path / "keys")
    first, second = store.seal(b"secret"), asyncio.run(store.seal_durable(b"secret"))
    assert first != second  # nobody can tell that they are the same
    assert store.unseal(first) == b"secret"
    assert b"secret" not in store.get(first)
    (tmp_path / "keys" / first).unlink()
    with pytest.raises(BodyMissing, match="destroyed"):
        store.unseal(first)
    assert store.get(first)  # what the log commits to is still there
    assert store.unseal(second) == b"secret"
    (tmp_path / "keys" / second).write_bytes(bytes(32))
    with pytest.raises(LogCorrupt):
        store.unseal(second)
    with pytest.raises(BodyMissing):
        ContentStore(tmp_path / "bodies").unseal(second)


# Queries


def test_filters_find_and_tail(tmp_path: Path) -> None:
    log = signed(tmp_path / "log", 12)
    assert [e["seq"] for e in read(log, Filter(kinds=frozenset({"denied"})))] == [1, 3, 5, 7, 9, 11]
    both = Filter(kinds=frozenset({"denied"}), runs=frozenset({"r0"}))
    assert [e["seq"] for e in read(log, both)] == [3, 9]
    when = Filter(since=MICROSECONDS + 3, until=MICROSECONDS + 5)
    assert [e["seq"] for e in read(log, when)] == [3, 4]
    assert [e["seq"] for e in read(log, Filter(resource="fs:/data/1*.txt"))] == [1, 10, 11]
    assert [e["seq"] for e in tail(log, last=3)] == [9, 10, 11]
    assert list(tail(log, last=0)) == []
    entry, line = find(log, 7)
    assert entry["seq"] == 7
    assert json.loads(line) == entry
    with pytest.raises(LogError, match="no entry 12"):
        find(log, 12)


def test_tail_follows_over_segments(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "log", segment_bytes=2048)
    log.append(line_for(log, pad="x" * 500))
    log.flush()
    stop = False
    entries = tail(tmp_path / "log", last=5, follow=True, pause_s=0.001, stop=lambda: stop)
    assert next(entries)["seq"] == 0
    for number in range(1, 12):
        log.append(line_for(log, pad="x" * 500))
        log.flush()
        assert next(entries)["seq"] == number
    stop = True
    assert list(entries) == []
    log.close()


# Proofs


def test_a_stranger_checks_an_entry_with_the_key_alone(tmp_path: Path) -> None:
    log = signed(tmp_path / "log", 9)
    for seq in range(9):
        proof = encode(prove(log, seq, KEY.public))
        assert check(proof, KEY.public)["seq"] == seq
    other = SigningKey("authority/test", bytes(32)).public
    with pytest.raises(ProofInvalid):
        check(proof, other)
    value = json.loads(proof)
    changes = {
        "seq": 7,
        "line": value["line"].replace("data", "DATA"),
        "path": value["path"][:-1],
        "checkpoint": value["checkpoint"].replace("\n9\n", "\n8\n"),
        "format": "authority/inclusion/2",
    }
    for name, wrong in changes.items():
        with pytest.raises(ProofInvalid):
            check({**value, name: wrong}, KEY.public)
        with pytest.raises(ProofInvalid):
            check({key: part for key, part in value.items() if key != name}, KEY.public)
    for junk in (b"", b"[]", b"{}", b"\xff"):
        with pytest.raises(ProofInvalid):
            check(junk, KEY.public)
    with pytest.raises(LogError, match="no checkpoint covers"):
        prove(log, 9, KEY.public)


def test_an_export_is_chained_and_anchored(tmp_path: Path) -> None:
    log = signed(tmp_path / "log", 9)
    data = b"".join(export(log, 3, 6, KEY.public))
    assert check_export(data, KEY.public) == 4
    assert check_export(b"".join(export(log, 0, 8))) == 9
    rows = data.split(b"\n")
    for wrong in (
        b"\n".join([rows[0], *rows[2:]]),
        b"\n".join([rows[0], rows[2], rows[1], *rows[3:]]),
        data.replace(b"data/4", b"data/5"),
        b"\n".join([*rows[:-2], b""]),
    ):
        with pytest.raises(ProofInvalid):
            check_export(wrong, KEY.public)
    with pytest.raises(LogError):
        list(export(log, 3, 9))
    with pytest.raises(LogError):
        list(export(log, 4, 3))
