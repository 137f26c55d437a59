"""Checkpoints: signed Merkle tree heads (c2sp.org/tlog-checkpoint), and when to make one.

Rules
- A checkpoint's text is three lines: the origin `authority/<log id>`, the number of entries, the
  root in base64. It is signed as a note by the log's Ed25519 key, whose name is the origin.
- Only durable entries are signed for; a checkpoint that ran ahead of the disk would turn the next
  power cut into 'tampering'.
- One is made every 1,000 entries, every 10 s while there are new ones, and on `force` (a run ends).
- `checkpoints/history.jsonl` keeps all of them, one JSON object a line, synced line by line;
  `checkpoints/latest` is the last one as a plain note, replaced whole. Reading takes both; a line
  of the history that a crash tore is passed over, other damage is not.
- Signing and writing happen in a thread; a failure there is kept in `error`, and raised by `force`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from authority.audit.errors import CheckpointInvalid
from authority.audit.files import FileLayer, OsLayer, write_all, write_new
from authority.audit.merkle import Frontier
from authority.audit.notes import Note, SigningKey, VerifyKey
from authority.audit.prefixes import Floor
from authority.audit.writer import Log
from authority.kernel.canonical import MAX_INTEGER, CanonicalError, decode, encode

EVERY_ENTRIES = 1000
EVERY_US = 10_000_000
FOLDER = "checkpoints"
LATEST = "latest"
HISTORY = "history.jsonl"


def origin_of(log_id: str) -> str:
    """The origin, and the signing key's name, of the log with this id."""
    return f"authority/{log_id}"


@dataclass(frozen=True)
class Checkpoint:
    """A tree head: `origin`, number of entries, root (32 bytes), and the note that it came in."""

    origin: str
    size: int
    root: bytes
    note: str = ""

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def floor(self, source: str = "the checkpoint") -> Floor:
        """What the log must hold because of it."""
        return Floor(self.size, self.root, source)

    @classmethod
    def parse(cls, note: str, key: VerifyKey) -> Checkpoint:
        """Read a note signed by the log's `key`. Raises `CheckpointInvalid`."""
        parsed = Note.parse(note)
        out = cls.parse_unsigned(note)
        if out.origin != key.name:
            raise CheckpointInvalid("the checkpoint is of another log than the key")
        if parsed.verified_by(key) is None:
            raise CheckpointInvalid("the checkpoint is not signed by the log's key")
        return out

    @staticmethod
    def size_of(note: str) -> int:
        """What a note says its size is, read in no other way; huge when it says nothing that counts."""
        lines = note.split("\n", 2)
        text = lines[1] if len(lines) == 3 else ""
        return int(text) if text.isdecimal() and text.isascii() and len(text) < 17 else MAX_INTEGER

    @classmethod
    def parse_unsigned(cls, note: str) -> Checkpoint:
        """Read a note's text without looking at signatures. Raises `CheckpointInvalid`."""
        text = Note.parse(note).text
        lines = text[:-1].split("\n")
        if len(lines) != 3:
            raise CheckpointInvalid("a checkpoint has three lines")
        origin, size, root = lines
        if not size.isdecimal() or not size.isascii() or str(int(size[:20])) != size:
            raise CheckpointInvalid("a checkpoint's size is not a plain number")
        try:
            raw = base64.b64decode(root, validate=True)
        except (binascii.Error, ValueError) as error:
            raise CheckpointInvalid("a checkpoint's root is not base64") from error
        if int(size) > MAX_INTEGER or len(raw) != 32:
            raise CheckpointInvalid("a checkpoint's size or root has the wrong length")
        out = cls(origin, int(size), raw, note)
        if out.text != text:
            raise CheckpointInvalid("a checkpoint is written in another way than the standard one")
        return out


def load(directory: str | os.PathLike[str], *, layer: FileLayer | None = None) -> list[str]:
    """All stored checkpoint notes, oldest first, unverified. Raises `CheckpointInvalid`."""
    layer = OsLayer() if layer is None else layer
    folder = os.path.join(os.path.abspath(os.fspath(directory)), FOLDER)
    notes: list[str] = []
    path = os.path.join(folder, HISTORY)
    if layer.exists(path):
        lines = layer.read(path).split(b"\n")
        for line in lines[:-1]:
            try:
                value = decode(line)
            except CanonicalError as error:
                # What a crash tore holds zeros, or was ended with this mark by the next writer.
                if b"\0" in line or line.endswith(b"#torn"):
                    continue
                raise CheckpointInvalid("the history of checkpoints is damaged") from error
            if not isinstance(value, dict) or not isinstance(value.get("note"), str):
                raise CheckpointInvalid("the history of checkpoints holds something else")
            notes.append(value["note"])
    latest = os.path.join(folder, LATEST)
    if layer.exists(latest):
        try:
            note = layer.read(latest).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointInvalid("the latest checkpoint is not UTF-8") from error
        if note not in notes:
            notes.append(note)
    return notes


class Observer(Protocol):
    """Who is shown new checkpoints: a witness."""

    def observe(self, checkpoint: Checkpoint, key: VerifyKey, log_directory: str) -> None:
        """Take note of `checkpoint`, or raise `WitnessRefused`."""


class Checkpointer:
    """Makes checkpoints of an open log. Owned by the event loop's thread."""

    def __init__(
        self,
        log: Log,
        key: SigningKey,
        directory: str | os.PathLike[str],
        *,
        layer: FileLayer | None = None,
        witnesses: Sequence[Observer] = (),
        last_size: int = 0,
    ) -> None:
        """`directory` is the log's; `last_size` the size of the last checkpoint made before.

        Raises `OSError` when the folder for checkpoints cannot be made.
        """
        self._log = log
        self._key = key
        self._layer: FileLayer = OsLayer() if layer is None else layer
        self._directory = os.path.abspath(os.fspath(directory))
        self._folder = os.path.join(self._directory, FOLDER)
        self._witnesses = tuple(witnesses)
        self._layer.mkdir(self._folder)
        self._layer.sync_directory(self._directory)
        self.size = last_size
        """Entries under the last checkpoint that was asked for."""
        self.latest: Checkpoint | None = None
        """The last one that is stored."""
        self.error: BaseException | None = None
        """The first failure to store or to witness; the gate shows it."""
        self._time_us = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="log-checkpoint")
        self._running: Future[Checkpoint] | None = None

    def maybe(self, now_us: int) -> bool:
        """Begin a checkpoint if one is due at `now_us` (microseconds). Never blocks."""
        if self._running is not None:
            if not self._running.done():
                return False
            self._settle()
        new = self._log.durable_seq + 1 - self.size
        if new <= 0 or (new < EVERY_ENTRIES and now_us - self._time_us < EVERY_US):
            return False
        self._time_us = now_us
        self._running = self._worker.submit(self._make, self._take())
        return True

    async def force(self) -> Checkpoint | None:
        """Make one of all durable entries now; None when the last one covers them.

        Raises what kept it from being stored or witnessed.
        """
        if self._running is not None:
            await asyncio.wait([asyncio.wrap_future(self._running)])
            self._settle()
        if self._log.durable_seq + 1 <= self.size and self.error is None:
            return self.latest
        future = self._worker.submit(self._make, self._take())
        self._running = future
        return await asyncio.wrap_future(future)

    def force_now(self) -> Checkpoint | None:
        """`force` for a program without an event loop. Blocks."""
        if self._running is not None:
            self._settle()
        if self._log.durable_seq + 1 > self.size:
            return self._make(self._take())
        return self.latest

    def close(self) -> None:
        """Wait for the one in progress."""
        self._worker.shutdown(wait=True)
        if self._running is not None:
            self._settle()

    def _settle(self) -> None:
        running, self._running = self._running, None
        if running is not None and self.error is None:
            self.error = running.exception()

    def _take(self) -> Frontier:
        tree = self._log.tree()
        self.size = tree.size
        return tree

    def _make(self, tree: Frontier) -> Checkpoint:
        unsigned = Checkpoint(self._key.name, tree.size, tree.root())
        note = unsigned.text + "\n" + self._key.sign(unsigned.text)
        out = Checkpoint(unsigned.origin, unsigned.size, unsigned.root, note)
        self._append(encode({"note": note}) + b"\n")
        write_new(self._layer, os.path.join(self._folder, LATEST), note.encode())
        self.latest = out
        for witness in self._witnesses:
            witness.observe(out, self._key.public, self._directory)
        return out

    def _append(self, line: bytes) -> None:
        layer = self._layer
        path = os.path.join(self._folder, HISTORY)
        if not layer.exists(path):
            write_new(layer, path, b"")
        fd = layer.open(path)
        try:
            size = layer.size(fd)
            if size:
                end = layer.read(path)[-1:]
                if end != b"\n":
                    line = b"#torn\n" + line
            write_all(layer, fd, line, size)
            layer.fdatasync(fd)
        finally:
            layer.close(fd)


def load_key(path: str | os.PathLike[str]) -> SigningKey:
    """Read a signing key, not one that others may read. Raises `CheckpointInvalid`, `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, encoding="ascii") as file:
        if os.fstat(fd).st_mode & 0o077:
            raise CheckpointInvalid("the signing key may be read by others", "chmod 600 the file")
        return SigningKey.from_text(file.read())


def create_key(path: str | os.PathLike[str], name: str, kind: int = 1) -> SigningKey:
    """Make a new signing key at `path`, 0600, durable. Raises `FileExistsError`, `OSError`."""
    key = SigningKey(name, os.urandom(32), kind)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="ascii") as file:
        file.write(key.to_text() + "\n")
        file.flush()
        os.fsync(fd)
    OsLayer().sync_directory(os.path.dirname(os.path.abspath(path)))
    return key
