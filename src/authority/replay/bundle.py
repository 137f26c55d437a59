"""A run as one file: what is needed to check it, judge it and play it again somewhere else.

A plain tar of regular files, in this order and with no other name:

    bundle.json        what it is of (`Manifest`)
    log/lines          stored lines, one a line
    log/proof.json     the stretches that they are, and the proof (`audit.slices`)
    log/checkpoint     the signed note that the proof ends at
    store/DIGEST       bodies and policies, by what the lines name
    keys/NAME          keys of sealed bodies, only where they were asked for

Rules
- Everything that can be told from the signed lines is: the manifest only says where to look, and what
  it says of the run must be what the lines say. What nobody signed (`image`) is the maker's word.
- From the run's first entry to its last every line is there, so that none is kept back, unless it was
  made `alone`: then the lines of other runs are not, and that is said.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from authority.audit import checkpoints, slices
from authority.audit.checkpoints import Checkpoint
from authority.audit.errors import BodyMissing
from authority.audit.merkle import Tree, leaf_hash
from authority.audit.notes import VerifyKey
from authority.audit.query import lines as all_lines
from authority.audit.slices import Stretch
from authority.audit.store import ContentStore
from authority.errors import AuthorityError
from authority.kernel import entries
from authority.kernel.canonical import digest as digest_of
from authority.kernel.canonical import encode, printable
from authority.kernel.decide import GATE
from authority.kernel.entries import AnyEntry, Body

FORMAT: Final = "authority/bundle/1"


class BundleInvalid(AuthorityError):
    """A bundle is not what it says. The message names what is wrong."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`first` and `last` entry of the run, whether it was made `alone`, bodies that were `missing` when
    it was made, and digests of the files that the run was shown (`image`) as they were then."""

    format: str
    run: str
    log: str
    key: str
    first: int
    last: int
    alone: bool
    missing: list[str]
    image: dict[str, str]


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which stretches of the log the lines are, and the hashes (hex) that lead to the checkpoint."""

    stretches: list[Stretch]
    hashes: list[str]


class Bundle(msgspec.Struct):
    """One that was read and checked."""

    manifest: Manifest
    digest: str
    lines: list[bytes]
    size: int
    bodies: dict[str, bytes]
    keys: dict[str, bytes]
    key: VerifyKey

    @property
    def judged(self) -> list[bytes]:
        """The lines on which the run's verdicts rest."""
        told = [entries.decode(line) for line in self.lines]
        if _shared(told):
            return self.lines
        family = {"", GATE, *_family(_parents(told), self.manifest.run)}
        return [line for line, e in zip(self.lines, told, strict=True) if e.run in family]

    def unpack(self, folder: Path) -> ContentStore:
        """Its bodies as a content store in a new folder."""
        store = ContentStore(folder / "store", keys=folder / "keys")
        for data in self.bodies.values():
            store.put(data)
        for name, key in self.keys.items():
            store.keep_key(name, key)
        return store


# --- making ---


def make(
    log: Path,
    store: ContentStore,
    run: str,
    key: VerifyKey,
    *,
    alone: bool = False,
    keys: Path | None = None,
) -> Iterator[tuple[str, bytes]]:
    """The members of a bundle, name and content. Raises `BundleInvalid`, `LogError`."""
    stored = list(all_lines(log))
    told = [entries.decode(line) for line in stored]
    first, last, chosen = _chosen(told, run, alone=alone)
    signed = [Checkpoint.parse(note, key) for note in checkpoints.load(log)]
    covering = [each for each in signed if each.size > last]
    if not covering:
        raise BundleInvalid(
            f"no checkpoint covers entry {last} yet",
            "one is made within 10 s and at each run's end",
        )
    checkpoint = min(covering, key=lambda each: each.size)
    tree = Tree([leaf_hash(line) for line in stored[: checkpoint.size]])
    if tree.root() != checkpoint.root:
        raise BundleInvalid("the log is not the one that the checkpoint was signed for")
    before = [stored[n - 1][-66:-2] if n else b"0" * 64 for n in chosen]
    parts = slices.stretches(chosen, [bytes.fromhex(each.decode()) for each in before])
    proof = Proof(parts, [node.hex() for node in slices.prove(tree, checkpoint.size, parts)])
    kept = [told[n] for n in chosen]
    bodies, missing = _bodies(store, kept, run)
    start = told[first]
    assert isinstance(start, entries.RunStart)
    manifest = Manifest(
        format=FORMAT,
        run=run,
        log=key.name.removeprefix("authority/"),
        key=key.to_text(),
        first=first,
        last=last,
        alone=alone,
        missing=missing,
        image=_image(start),
    )
    yield "bundle.json", encode(manifest)
    yield "log/lines", b"".join(stored[n] + b"\n" for n in chosen)
    yield "log/proof.json", encode(proof)
    yield "log/checkpoint", checkpoint.note.encode()
    for name, data in sorted(bodies.items()):
        yield f"store/{name}", data
    if keys is not None:
        for name in sorted(sealed(kept, run)):
            path = keys / name
            if path.is_file():
                yield f"keys/{name}", path.read_bytes()


def write(members: Iterable[tuple[str, bytes]], path: Path) -> str:
    """Write a bundle to a new file; its digest. Raises `FileExistsError`, `OSError`."""
    with (
        path.open("xb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o600
            tar.addfile(member, io.BytesIO(data))
    return digest_of(path.read_bytes())


def _chosen(told: Sequence[AnyEntry], run: str, *, alone: bool) -> tuple[int, int, list[int]]:
    """The run's first and last entry, and all that belong into its bundle."""
    parents = _parents(told)
    if run not in parents:
        raise BundleInvalid(
            f"the log has no run {printable(run, 64)}",
            "'authority audit query --kind run.start' lists them",
        )
    late = entries.Denied | entries.CapRevoke | entries.Incident | entries.Halt
    of_run = [e.seq for e in told if e.run == run and not isinstance(e, late)]
    first = next(e.seq for e in told if isinstance(e, entries.RunStart) and e.run == run)
    ends = [e.seq for e in told if isinstance(e, entries.RunEnd) and e.run == run]
    last = ends[0] if ends else max(of_run)
    family = _family(parents, run)
    shared = _shared(told[: last + 1])
    chosen = [
        e.seq
        for e in told[: last + 1]
        if shared
        or (e.seq >= first and not alone)
        or e.run in family
        or (e.run in ("", GATE) and not isinstance(e, entries.Snapshot))
    ]
    return first, last, chosen


def _parents(told: Iterable[AnyEntry]) -> dict[str, str]:
    return {e.run: e.parent for e in told if isinstance(e, entries.RunStart)}


def _shared(told: Iterable[AnyEntry]) -> bool:
    """Whether all runs draw on budgets of the state directory: then each decides about the others."""
    return any(isinstance(e, entries.GateStart) and e.limits for e in told)


def _family(parents: dict[str, str], run: str) -> set[str]:
    """The run, those above it and all below those."""
    top = run
    while parents.get(top):
        top = parents[top]
    found = {top}
    for name, parent in parents.items():  # in the order in which they began
        if parent in found:
            found.add(name)
    return found


def _named(entry: AnyEntry) -> Iterator[Body]:
    for name in ("arguments", "result", "body", "given"):
        body = getattr(entry, name, None)
        if isinstance(body, Body):
            yield body


def _wanted(kept: Sequence[AnyEntry]) -> set[str]:
    """Digests of everything in the store that these entries rest on."""
    found = {b.digest for e in kept for b in _named(e) if b.kept in ("store", "sealed")}
    return found | {e.policy for e in kept if isinstance(e, entries.RunStart)}


def sealed(kept: Sequence[AnyEntry], run: str) -> set[str]:
    """Names of the keys of what is sealed in the run's own entries."""
    own = [e for e in kept if e.run == run]
    found = {b.digest for e in own for b in _named(e) if b.kept in ("sealed", "sealed-inline")}
    return found | {e.key for e in own if isinstance(e, entries.Input) and e.key}


def wanted_for(told: Sequence[AnyEntry], run: str) -> set[str]:
    """What a bundle holds of the store: the bodies of the family, and the policies that decide."""
    family = _family(_parents(told), run)
    found = _wanted([e for e in told if e.run in family])
    if _shared(told):
        found |= {e.policy for e in told if isinstance(e, entries.RunStart)}
    return found


def _bodies(
    store: ContentStore, kept: Sequence[AnyEntry], run: str
) -> tuple[dict[str, bytes], list[str]]:
    found, missing = {}, []
    for name in sorted(wanted_for(kept, run)):
        try:
            found[name] = store.get(name)
        except BodyMissing:
            missing.append(name)
    return found, missing


def _image(start: entries.RunStart) -> dict[str, str]:
    """Digests of the files of the runtime that the run was shown one by one, as they are now."""
    found = {}
    for line in start.protection.get("runtime", []):
        path = str(line).rpartition(" (")[0]
        if Path(path).is_file():
            found[printable(path)] = digest_of(Path(path).read_bytes())
    return found
