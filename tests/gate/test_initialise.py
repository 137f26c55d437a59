"""`init` on a disk that is full at each step: with room again, the next one makes a whole directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from authority.audit import verify
from authority.audit.witness import DirectoryWitness
from authority.gate import opening, statedir
from authority.kernel import capabilities

EVERY_STEP = """
import json, os, subprocess, sys
from pathlib import Path
from authority.gate import opening, statedir
disk = Path(sys.argv[1])
said = []
for room in range(2, 40):
    options = f"size=8m,nr_inodes={room}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", disk], check=True)
    child = os.fork()
    if child == 0:
        try:
            opening.initialise(disk / "state")
        except OSError:
            os._exit(1)
        os._exit(0)
    full = os.waitpid(child, 0)[1] != 0
    subprocess.run(["mount", "-o", "remount,size=8m,nr_inodes=999", disk], check=True)
    state = statedir.StateDir(disk / "state")
    if not state.complete():
        opening.initialise(disk / "state")
    opened = opening.open_state(statedir.open_existing(disk / "state"))
    texts = [path.read_text().strip() for path in (state.admin_token, state.resume_token)]
    known = sorted(opened.ledger.state.caps)
    opened.checkpointer.close()
    opened.ledger.log.close()
    said.append([room, full, texts, known])
    subprocess.run(["umount", disk], check=True)
    if not full:
        break
print(json.dumps(said))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a disk of its own, which root can make")
def test_a_full_disk_at_any_step_leaves_what_the_next_one_completes(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", EVERY_STEP, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: list[Any] = json.loads(done.stdout)
    assert [full for _, full, *_ in said] == [True] * (len(said) - 1) + [False]  # it did fill up
    for room, _, texts, known in said:
        ids = [capabilities.parse(capabilities.from_text(text)).ids[0] for text in texts]
        assert set(ids) <= set(known), room


def test_a_log_without_its_key_is_no_rest_of_an_interrupted_start(tmp_path: Path) -> None:
    directory, _ = opening.initialise(tmp_path / "state")
    kept = sorted(path.name for path in directory.log.iterdir())
    directory.signing_key.unlink()
    with pytest.raises(statedir.StateDirError, match="its signing key is gone"):
        opening.initialise(tmp_path / "state")
    assert sorted(path.name for path in directory.log.iterdir()) == kept
    assert (directory.witness / "witness.key").exists()


def test_one_whose_token_was_given_away_is_made_no_second_time(tmp_path: Path) -> None:
    """Who resumes may be another than who asks; 'init' for a new policy changes nothing of it."""
    directory, fingerprint = opening.initialise(tmp_path / "state")
    directory.resume_token.unlink()
    before = (directory.log / "00000001.jsonl").read_bytes()
    words = [Path(sys.executable).with_name("authority"), "init", "--no-policy", "--json"]
    words += ["--state", directory.root]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    assert (said["created"], said["fingerprint"]) == (False, fingerprint)
    assert (directory.log / "00000001.jsonl").read_bytes() == before


def test_of_two_that_make_it_at_once_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first has no key yet, and what it made looks like a rest."""
    made: list[str] = []
    make = DirectoryWitness.create

    def attempt() -> None:
        try:
            statedir.create(tmp_path / "state")
            made.append("made")
        except (statedir.StateDirError, OSError):
            made.append("refused")

    other = threading.Thread(target=attempt)

    def meanwhile(folder: Path, name: str) -> DirectoryWitness:
        witness = make(folder, name)
        if not other.ident:
            other.start()
            other.join(0.3)
        return witness

    monkeypatch.setattr(DirectoryWitness, "create", meanwhile)
    attempt()
    other.join(60)
    assert made == ["made", "refused"]
    opening.initialise(tmp_path / "state")
    assert verify(tmp_path / "state/log").ok


def test_what_it_makes_is_private_whatever_the_umask(tmp_path: Path) -> None:
    above = tmp_path / "not" / "there"
    before = os.umask(0)
    try:
        opening.initialise(above / "state")
    finally:
        os.umask(before)
    state = above / "state"
    made = [above.parent, *above.parent.rglob("*")]
    closed = [path for path in made if path.parent != state / "witness"]  # what is in it is public
    assert len(closed) > 10
    assert {path: path.stat().st_mode & 0o077 for path in closed} == dict.fromkeys(closed, 0)
