"""Reading a bundle, and checking all of it before anything is made of it. Its form stands in `bundle`.

Rules
- Names are matched, never followed: nothing is unpacked by a name that stands in the file.
- A body that no line names, one that is not what its name says, and one that is neither there nor said
  to be missing are refused, each by its name.
- A member is no longer than anything that the gate stores, and all of them together are bounded.
- What the manifest says of the run must be what the signed lines say.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any, Final

import msgspec

from authority.audit import slices
from authority.audit.checkpoints import Checkpoint
from authority.audit.errors import CheckpointInvalid
from authority.audit.notes import VerifyKey
from authority.audit.slices import SliceInvalid, Stretch
from authority.kernel import entries
from authority.kernel.canonical import digest as digest_of
from authority.kernel.canonical import printable
from authority.kernel.entries import AnyEntry, EntryError
from authority.kernel.policy import PolicyError, from_canonical
from authority.replay.bundle import (
    FORMAT,
    Bundle,
    BundleInvalid,
    Manifest,
    Proof,
    sealed,
    wanted_for,
)

MOST: Final = 1 << 30
"""Bytes of one member that are read; nothing that the gate stores is as long."""
ALTOGETHER: Final = 1 << 32
MEMBERS: Final = 1_000_000
_NAME: Final = re.compile(r"(?:store|keys)/([0-9a-f]{64})\Z")
_FIXED: Final = ("bundle.json", "log/lines", "log/proof.json", "log/checkpoint")


def read(path: Path, key: VerifyKey | None = None) -> Bundle:
    """Read a bundle and check all of it. `key` is the log's, from outside; without one its own key is
    taken, which says nothing about who made it. Raises `BundleInvalid`, `OSError`."""
    members = _members(path)
    for name in _FIXED:
        if name not in members:
            raise BundleInvalid(f"the bundle has no {name}")
    manifest = _decode(members["bundle.json"], Manifest, "bundle.json")
    proof = _decode(members["log/proof.json"], Proof, "log/proof.json")
    if manifest.format != FORMAT:
        raise BundleInvalid("this is no bundle of this format")
    try:
        known = key or VerifyKey.from_text(manifest.key)
        if key is not None and key.to_text() != manifest.key:
            raise BundleInvalid("the bundle is of another log than the key")
        checkpoint = Checkpoint.parse(members["log/checkpoint"].decode("utf-8"), known)
        hashes = [bytes.fromhex(node) for node in proof.hashes]
    except (CheckpointInvalid, UnicodeDecodeError, ValueError) as error:
        raise BundleInvalid(f"the checkpoint does not hold: {error}") from None
    lines = members["log/lines"].split(b"\n")
    if lines.pop() != b"":
        raise BundleInvalid("the last line of the log is cut off")
    try:
        slices.check(lines, proof.stretches, hashes, checkpoint.size, checkpoint.root)
        told = [entries.decode(line) for line in lines]
    except (SliceInvalid, EntryError) as error:
        raise BundleInvalid(str(error)) from None
    _check_run(manifest, told, proof.stretches)
    bodies = {
        m[1]: data for name, data in members.items() if (m := _NAME.match(name)) and name[0] == "s"
    }
    keys = {
        m[1]: data for name, data in members.items() if (m := _NAME.match(name)) and name[0] == "k"
    }
    _check_bodies(manifest, told, bodies, keys)
    return Bundle(
        manifest, digest_of(path.read_bytes()), lines, checkpoint.size, bodies, keys, known
    )


def _members(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(path, mode="r:") as tar:
            for count, member in enumerate(tar):
                name = member.name
                shown = printable(name, 120)
                if count >= MEMBERS:
                    raise BundleInvalid("the bundle has too many members")
                if not member.isreg() or member.type == tarfile.GNUTYPE_SPARSE:
                    raise BundleInvalid(f"{shown} in the bundle is no plain file")
                if name not in _FIXED and not _NAME.match(name):
                    raise BundleInvalid(f"{shown} does not belong into a bundle")
                if name in found:
                    raise BundleInvalid(f"{shown} is in the bundle twice")
                total += member.size
                if not 0 <= member.size <= MOST or total > ALTOGETHER:
                    raise BundleInvalid(f"{shown} in the bundle is too long")
                file = tar.extractfile(member)
                data = file.read(member.size) if file is not None else b""
                if len(data) != member.size:
                    raise BundleInvalid(f"{shown} in the bundle is cut off")
                found[name] = data
    except (tarfile.TarError, EOFError, ValueError, UnicodeError) as error:
        raise BundleInvalid(
            f"the bundle can't be read as tar: {printable(str(error), 200)}"
        ) from None
    return found


def _decode(data: bytes, kind: type[Any], name: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"{name} is malformed: {printable(str(error), 200)}") from None


def _check_run(manifest: Manifest, told: list[AnyEntry], parts: list[Stretch]) -> None:
    """What the manifest says of the run must be what the lines say."""
    run = manifest.run
    starts = [e.seq for e in told if isinstance(e, entries.RunStart) and e.run == run]
    ends = [e.seq for e in told if isinstance(e, entries.RunEnd) and e.run == run]
    if starts != [manifest.first]:
        raise BundleInvalid(
            f"entry {manifest.first} is not the first of the run {printable(run, 64)}"
        )
    if manifest.last < manifest.first or (ends and ends[0] != manifest.last):
        raise BundleInvalid(
            f"entry {manifest.last} is not the last of the run {printable(run, 64)}"
        )
    logs = {e.log for e in told if isinstance(e, entries.GateStart)}
    if logs != {manifest.log}:
        raise BundleInvalid("the entries are of another log than the bundle says")
    if manifest.alone:
        return
    whole = any(p.first <= manifest.first and p.last >= manifest.last for p in parts)
    if not whole:
        there = {n for p in parts for n in range(p.first, p.last + 1)}
        gone = next(n for n in range(manifest.first, manifest.last + 1) if n not in there)
        raise BundleInvalid(f"entry {gone} of the run's time is missing")


def _check_bodies(
    manifest: Manifest, told: list[AnyEntry], bodies: dict[str, bytes], keys: dict[str, bytes]
) -> None:
    wanted = wanted_for(told, manifest.run)
    policies = {e.policy for e in told if isinstance(e, entries.RunStart)}
    for name, data in bodies.items():
        if digest_of(data) != name:
            what = "the policy" if name in policies else "the body"
            raise BundleInvalid(f"{what} {name} is not what its digest says")
        if name not in wanted:
            raise BundleInvalid(f"no entry names the body {name}")
    for name in sorted(wanted - bodies.keys()):
        if name not in manifest.missing:
            raise BundleInvalid(f"the body {name} is missing")
    for name in sorted(policies & bodies.keys()):
        try:
            policy = from_canonical(bodies[name])
        except PolicyError as error:
            raise BundleInvalid(f"the policy {name} is none: {error.message}") from None
        if policy.digest != name:
            raise BundleInvalid(f"the policy {name} does not have its digest")
    unknown = keys.keys() - sealed(told, manifest.run)
    if unknown:
        raise BundleInvalid(f"no entry names the key {min(unknown)}")
    for name, key in keys.items():
        if len(key) != 32:
            raise BundleInvalid(f"the key {name} is none")
