"""Witnesses: who remembers the log's last checkpoint where the gate cannot change it.

Rules
- A witness accepts a checkpoint only if the log signed it and it extends the one that it holds:
  same size with the same root, or larger with a valid consistency proof (RFC 6962). It never goes
  back. Then it cosigns (c2sp.org/tlog-cosignature, time included) and keeps the note.
- A directory witness is a folder `witness.pub`, `<SHA-256 of the origin>.note` and, readable to the
  witness alone, `witness.key`. It counts as *independent* only when folder and files belong to
  another uid than ours and nothing about them is writable to us; root is never independent of
  anyone's files, so a gate that runs as root has no independent directory witness on its machine.
- An independent one is fed by its owner: `python -m authority.audit.witness --log LOG --key KEY
  FOLDER`, run as that user; it recomputes the tree from the log's own lines and takes nothing on
  trust. One in our own uid may be fed by the `Checkpointer`; it guards against accidents only.
- Whoever opens or verifies the log asks `remembered`: the cosigned note is a floor like a
  checkpoint.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from hashlib import sha256

from authority.audit.anchor import Anchor
from authority.audit.anchor import load as load_anchor
from authority.audit.checkpoints import Checkpoint, create_key, load, load_key
from authority.audit.errors import CheckpointInvalid, LogError, WitnessRefused
from authority.audit.files import OsLayer, write_new
from authority.audit.merkle import Frontier, Tree, leaf_hash, verify_consistency
from authority.audit.notes import WITNESS, Note, SigningKey, VerifyKey
from authority.audit.reading import Reader
from authority.errors import AuthorityError

KEY = "witness.key"
PUBLIC = "witness.pub"


class DirectoryWitness:
    """A witness in a folder. `name` of its key is for people; the folder's owner is what counts."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Raises `OSError` or `CheckpointInvalid` when there is no witness in `directory`."""
        self.directory = os.path.abspath(os.fspath(directory))
        self._lines: _Lines | None = None
        text = OsLayer().read(os.path.join(self.directory, PUBLIC)).decode("ascii", "replace")
        self.public = VerifyKey.from_text(text)
        if self.public.kind != WITNESS:
            raise CheckpointInvalid("the key in the witness's folder is not a witness's key")

    @classmethod
    def create(cls, directory: str | os.PathLike[str], name: str) -> DirectoryWitness:
        """Make the folder's keys; the folder may exist but hold no witness. Raises `OSError`."""
        path = os.path.abspath(os.fspath(directory))
        os.makedirs(path, mode=0o755, exist_ok=True)
        key = create_key(os.path.join(path, KEY), name, WITNESS)
        public = os.path.join(path, PUBLIC)
        write_new(OsLayer(), public, key.public.to_text().encode() + b"\n")
        os.chmod(public, 0o644)
        return cls(path)

    @property
    def source(self) -> str:
        """How messages call it."""
        return f"the witness {self.public.name}"

    @property
    def independent(self) -> bool:
        """Whether its memory is out of our reach, by owner and mode of folder and files."""
        us = os.geteuid()
        if us == 0:
            return False
        paths = [self.directory]
        paths += [os.path.join(self.directory, name) for name in os.listdir(self.directory)]
        for path in paths:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode) or info.st_uid == us or os.access(path, os.W_OK):
                return False
        # Who can rename the folder can put another in its place.
        parent = os.path.dirname(self.directory)
        sticky = os.stat(parent).st_mode & stat.S_ISVTX
        return bool(os.stat(parent).st_uid != us and (sticky or not os.access(parent, os.W_OK)))

    def remembered(self, key: VerifyKey) -> Checkpoint | None:
        """The last checkpoint of the log with `key`; None if it saw none.

        Raises `CheckpointInvalid` when the note is not signed by log and witness.
        """
        path = self._path(key.name)
        try:
            data = OsLayer().read(path)
        except FileNotFoundError:
            return None
        text = data.decode("utf-8", "replace")
        out = Checkpoint.parse(text, key)
        if Note.parse(text).verified_by(self.public) is None:
            raise CheckpointInvalid(f"{self.source} did not sign the checkpoint in its folder")
        return out

    def observe(self, checkpoint: Checkpoint, key: VerifyKey, log_directory: str) -> None:
        """Check by the log's own lines that `checkpoint` extends what is remembered; cosign.

        A process that observes one log again and again reads only what is new since the last time.

        Raises `WitnessRefused`, `CheckpointInvalid`, `OSError`.
        """
        last = self.remembered(key)
        if last is None or not 0 < last.size < checkpoint.size:
            self.accept(checkpoint.note, key, [], int(time.time()))
            return
        lines = self._lines
        if lines is None or lines.directory != log_directory or lines.size > last.size:
            lines = self._lines = _lines_through(log_directory, last)
        if lines.root(last.size) != last.root or lines.root(checkpoint.size) != checkpoint.root:
            raise self._fork(checkpoint.size, last.size)
        self._cosign(checkpoint.note, key, int(time.time()))

    def accept(self, note: str, key: VerifyKey, proof: list[bytes], now_s: int) -> str:
        """Cosign `note` if `proof` shows that it extends what is remembered; the signature line.

        Raises `WitnessRefused`, `CheckpointInvalid`, `OSError`.
        """
        new = Checkpoint.parse(note, key)
        last = self.remembered(key)
        if last is not None:
            if new.size < last.size:
                raise WitnessRefused(
                    f"{self.source} saw {last.size} entries and does not go back to {new.size}"
                )
            if not verify_consistency(last.size, new.size, last.root, new.root, proof):
                raise self._fork(new.size, last.size)
        return self._cosign(note, key, now_s)

    def _fork(self, new: int, last: int) -> WitnessRefused:
        return WitnessRefused(
            f"{self.source}: the checkpoint of {new} entries does not extend the one of {last}: "
            "a fork, or rewritten entries"
        )

    def _cosign(self, note: str, key: VerifyKey, now_s: int) -> str:
        signer: SigningKey = load_key(os.path.join(self.directory, KEY))
        text = Note.parse(note).text
        line = signer.sign(text, now_s)
        path = self._path(key.name)
        log_line = next(each for each in note.split("\n") if each.startswith(f"\u2014 {key.name} "))
        write_new(OsLayer(), path, f"{text}\n{log_line}\n{line}".encode())
        os.chmod(path, 0o644)
        return line

    def _path(self, origin: str) -> str:
        return os.path.join(self.directory, sha256(origin.encode()).hexdigest() + ".note")


class _Lines:
    """The tree of a log's first lines, which grows as they are read; nothing is read twice."""

    def __init__(self, directory: str, anchor: Anchor | None = None) -> None:
        self.directory = directory
        self._reader = Reader(directory, anchor.segment if anchor is not None else 1)
        self._tree = anchor.tree() if anchor is not None else Frontier()
        self._read: list[bytes] = []

    @property
    def size(self) -> int:
        return self._tree.size

    def root(self, size: int) -> bytes:
        """The root of the first `size` lines, not fewer than before. Raises `LogError`."""
        missing = size - self._tree.size
        if len(self._read) < missing:
            for block in self._reader.blocks():
                self._read += block.lines()
        if len(self._read) < missing:
            held = self._tree.size + len(self._read)
            raise LogError(f"the log holds {held} entries, not the {size} asked for")
        self._tree.add_lines(self._read[:missing])
        del self._read[:missing]
        return self._tree.root()


def _lines_through(directory: str, last: Checkpoint) -> _Lines:
    """The lines up to `last`, from the anchor if it leads to the root that `last` has: then the edge
    in it is that tree's, and what is new can be held against it."""
    anchor = load_anchor(directory, OsLayer())
    if anchor is not None and anchor.entries < last.size:
        lines = _Lines(directory, anchor)
        try:
            if lines.root(last.size) == last.root:
                return lines
        except LogError:
            pass  # not that log's; all of it is read, and decides
    return _Lines(directory)


def read_tree(log_directory: str, size: int) -> Tree:
    """The tree of the first `size` lines of a log. Raises `LogError` when there are fewer."""
    leaves: list[bytes] = []
    for block in Reader(log_directory).blocks():
        leaves += map(leaf_hash, block.lines())
        if len(leaves) >= size:
            return Tree(leaves[:size])
    if len(leaves) == size:
        return Tree(leaves)
    raise LogError(f"the log holds {len(leaves)} entries, not the {size} asked for")


def pull(log_directory: str, witness: DirectoryWitness, key: VerifyKey) -> Checkpoint | None:
    """Take the log's latest checkpoint into `witness`, recomputing its root. For the owner's use.

    Raises `WitnessRefused`, `LogError`, `OSError`.
    """
    notes = load(log_directory)
    if not notes:
        return None
    latest = max((Checkpoint.parse(note, key) for note in notes), key=lambda each: each.size)
    if read_tree(log_directory, latest.size).root() != latest.root:
        raise WitnessRefused("the log's lines do not have the root that its checkpoint signs")
    witness.observe(latest, key, log_directory)
    return latest


def main(arguments: list[str] | None = None) -> int:
    """Feed a directory witness as its owner. Exit code 0 when it cosigned, 1 when it refused."""
    parser = argparse.ArgumentParser(
        prog="python -m authority.audit.witness", description=main.__doc__
    )
    parser.add_argument("folder", help="the witness's folder, made when it does not exist")
    parser.add_argument("--log", required=True, help="the log's directory")
    parser.add_argument("--key", required=True, help="the log's public key, from outside")
    parser.add_argument("--name", default=f"witness-{os.geteuid()}", help="for a new folder")
    options = parser.parse_args(arguments)
    try:
        if not os.path.exists(os.path.join(options.folder, PUBLIC)):
            DirectoryWitness.create(options.folder, options.name)
        witness = DirectoryWitness(options.folder)
        seen = pull(options.log, witness, VerifyKey.from_text(options.key))
    except (AuthorityError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print("no checkpoint yet" if seen is None else f"cosigned {seen.size} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
