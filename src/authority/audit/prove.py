"""Proofs that a stranger can check: one entry is in the log that a signed checkpoint stands for.

Rules
- A proof is JSON: the entry's stored line, its place, the audit path (RFC 6962, hex) and the signed
  checkpoint note. Checking needs the log's public key from outside, and nothing else of ours.
- An export is the lines of a range with the hash before them, so the chain inside it can be
  checked, and an inclusion proof of its last line, so it is anchored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from authority.audit import checkpoints
from authority.audit.chain import GENESIS, BadLine, State, follow, head_of, plain, stored_hash
from authority.audit.checkpoints import Checkpoint
from authority.audit.errors import CheckpointInvalid, LogError
from authority.audit.merkle import leaf_hash, verify_inclusion
from authority.audit.notes import VerifyKey
from authority.audit.query import lines
from authority.audit.witness import read_tree
from authority.kernel.canonical import CanonicalError, decode, encode

FORMAT = "authority/inclusion/1"
EXPORT = "authority/export/1"


class ProofInvalid(LogError):
    """A proof does not prove what it says."""


def prove(directory: str | os.PathLike[str], seq: int, key: VerifyKey) -> dict[str, Any]:
    """The proof for entry `seq` under the newest checkpoint signed by `key`.

    Raises `LogError` when no checkpoint covers the entry, or the tree is not the checkpoint's.
    """
    where = os.path.abspath(os.fspath(directory))
    signed = [Checkpoint.parse(note, key) for note in checkpoints.load(where)]
    signed = [each for each in signed if each.size > seq]
    if not signed or seq < 0:
        raise LogError(
            f"no checkpoint covers entry {seq} yet", "one is made within 10 s and at each run's end"
        )
    checkpoint = max(signed, key=lambda each: each.size)
    tree = read_tree(where, checkpoint.size)
    if tree.root() != checkpoint.root:
        raise LogError("the log is not the one that the checkpoint was signed for")
    line = next(line for index, line in enumerate(lines(where)) if index == seq)
    return {
        "format": FORMAT,
        "seq": seq,
        "line": line.decode("ascii"),
        "path": [node.hex() for node in tree.inclusion(seq)],
        "checkpoint": checkpoint.note,
    }


def check(proof: Mapping[str, Any] | bytes, key: VerifyKey) -> dict[str, Any]:
    """The proved entry. Raises `ProofInvalid`."""
    try:
        value = decode(proof) if isinstance(proof, bytes) else dict(proof)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ProofInvalid("this is not an inclusion proof")
        seq, line, path = value["seq"], value["line"], value["path"]
        if type(seq) is not int or type(line) is not str or type(path) is not list:
            raise ProofInvalid("the proof is malformed")
        stored = line.encode("ascii")
        nodes = [bytes.fromhex(node) for node in path]
        checkpoint = Checkpoint.parse(value["checkpoint"], key)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProofInvalid("the proof is malformed") from error
    except (CanonicalError, CheckpointInvalid) as error:
        raise ProofInvalid(error.message) from error
    leaf = leaf_hash(stored)
    if not verify_inclusion(seq, checkpoint.size, leaf, nodes, checkpoint.root):
        raise ProofInvalid(f"the checkpoint does not hold this line as entry {seq}")
    head = head_of(stored)
    if head is None or head.seq != seq or not plain(stored):
        raise ProofInvalid("the line is in the log but is not that entry")
    entry = decode(stored)
    if not isinstance(entry, dict):
        raise ProofInvalid("the line is in the log but is not an entry")
    return entry


def export(
    directory: str | os.PathLike[str], first: int, last: int, key: VerifyKey | None = None
) -> Iterator[bytes]:
    """The range `first` to `last` (inclusive) as lines: a header, the stored lines, and with `key`
    a proof of the last. Raises `LogError` when the range is not in the log.
    """
    if not 0 <= first <= last:
        raise LogError("a range goes from a number to the same or a larger one")
    previous = GENESIS
    count = -1
    for count, line in enumerate(lines(directory)):
        if count < first:
            if count == first - 1:
                previous = stored_hash(line) or GENESIS
            continue
        if count == first:
            yield (
                encode({"first": first, "format": EXPORT, "last": last, "previous": previous.hex()})
                + b"\n"
            )
        if count > last:
            break
        yield line + b"\n"
    if count < last:
        raise LogError(f"the log holds {count + 1} entries: there is no entry {last}")
    if key is not None:
        yield encode(prove(directory, last, key)) + b"\n"


def check_export(data: bytes, key: VerifyKey | None = None) -> int:
    """How many entries a well-formed export holds. With `key` it must end in a proof.

    Raises `ProofInvalid`.
    """
    rows = data.split(b"\n")
    if rows.pop() != b"" or len(rows) < 2:
        raise ProofInvalid("an export has a header and entries, each line ended")
    try:
        header = decode(rows[0])
        first, last = header["first"], header["last"]
        previous = bytes.fromhex(header["previous"])
        if header["format"] != EXPORT:
            raise ProofInvalid("this is not an export")
        if type(first) is not int or type(last) is not int or not 0 <= first <= last:
            raise ProofInvalid("the export's header names no range")
    except (CanonicalError, KeyError, TypeError, ValueError) as error:
        raise ProofInvalid("the export's header is malformed") from error
    stored = rows[1 : last - first + 2]
    rest = rows[last - first + 2 :]
    head = head_of(stored[0])
    if len(stored) != last - first + 1 or head is None or len(rest) > 1:
        raise ProofInvalid("the export does not hold the entries that its header names")
    try:
        follow(stored, State(first, head.batch, previous))
    except BadLine as error:
        raise ProofInvalid(error.reason) from error
    if key is not None:
        if not rest:
            raise ProofInvalid("the export carries no proof")
        proved = check(rest[0], key)
        if proved["hash"] != (stored_hash(stored[-1]) or b"").hex():
            raise ProofInvalid("the export's proof is of another entry")
    return len(stored)
