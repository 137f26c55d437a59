"""What lies in the folder of images: listed, kept within bounds, cleared.

Rules
- Kernel and initramfs stay until they are built anew. Root images and saved states are copies of what
  can be made again; the longest unused go first, when there are too many of them, when together they
  take more of the disk than `MOST_BYTES`, or when a person prunes.
- The newest root image and the newest saved state always stay: somebody has just made them.
- A saved state is memory and state: they go together, and both go with the root image that they were
  saved with, because nothing else fits them.
- What no record vouches for is no image and goes too. Whoever removes holds the lock of those who
  build; a run that has its image open keeps it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from authority.vm import cache

MOST_BYTES: Final = 3 << 30
ROOTS, STATES = 8, 6
_KINDS: Final = ("kernel", "initramfs", "root", "template")


@dataclass(frozen=True, slots=True)
class Item:
    """An image, or a saved state as one. `on_disk`: what it takes there; `used`: seconds since 1970."""

    name: str
    kind: str
    files: tuple[str, ...]
    bytes: int
    on_disk: int
    used: float
    digest: str
    facts: dict[str, Any]

    @property
    def age(self) -> int:
        """Seconds since it was used last."""
        return max(0, int(time.time() - self.used))


def items() -> list[Item]:
    """Everything that counts, by name."""
    found = []
    for record in sorted(cache.folder().glob("*.json")):
        name = record.name.removesuffix(".json")
        kind = name.partition("-")[0]
        if kind not in _KINDS or name.endswith(".state"):
            continue
        item = _state(name) if kind == "template" else _item(name, name, kind, (name,))
        if item is not None:
            found.append(item)
    return found


def _item(name: str, main: str, kind: str, files: tuple[str, ...]) -> Item | None:
    stored = cache.find(main)
    try:
        stats = [(cache.folder() / file).stat() for file in files]
    except FileNotFoundError:
        return None
    if stored is None:
        return None
    on_disk = sum(one.st_blocks * 512 for one in stats)
    used = max(one.st_mtime for one in stats)
    return Item(name, kind, files, stored.size, on_disk, used, stored.digest, stored.facts)


def _state(memory: str) -> Item | None:
    name = memory.removesuffix(".memory")
    state = cache.find(f"{name}.state")
    made = _item(name, memory, "template", (memory, f"{name}.state"))
    if state is None or made is None or state.facts.get("memory") != made.digest:
        return None
    return Item(
        name, "template", made.files, made.bytes, made.on_disk, made.used, made.digest, state.facts
    )


def tidy(folder: Path) -> list[Item]:
    """Removes what is too much; what went. The lock is held."""
    there = items()
    gone: list[Item] = []
    roots, states = (_newest(there, kind) for kind in ("root", "template"))
    gone += roots[ROOTS:] + states[STATES:]
    left = [item for item in there if item not in gone]
    spare = sorted(roots[1:ROOTS] + states[1:STATES], key=lambda item: item.used)
    while spare and sum(item.on_disk for item in left) > MOST_BYTES:
        gone.append(spare.pop(0))
        left.remove(gone[-1])
    return _remove(folder, there, gone)


def prune(*, unused: float) -> list[Item]:
    """Removes root images and saved states that were not used for so many seconds; what went."""
    with cache.building() as folder:
        there = items()
        old = [i for i in there if i.kind in ("root", "template") and i.age >= unused]
        return _remove(folder, there, old)


def _newest(there: Iterable[Item], kind: str) -> list[Item]:
    return sorted((i for i in there if i.kind == kind), key=lambda i: i.used, reverse=True)


def _remove(folder: Path, there: list[Item], gone: list[Item]) -> list[Item]:
    digests = {item.digest for item in gone if item.kind == "root"}
    kept = {item.digest for item in there if item.kind == "root" and item not in gone}
    gone += [
        item
        for item in there
        if item.kind == "template" and item not in gone and item.facts.get("root") in digests - kept
    ]
    for item in gone:
        for name in item.files:
            cache.forget(name)
    _orphans(folder)
    return gone


def _orphans(folder: Path) -> None:
    """Removes files of images without a record, records without a file, halves of saved states."""
    counted = {name for item in items() for name in item.files}
    for path in folder.iterdir():
        name = path.name.removesuffix(".json")
        if name.partition("-")[0] in _KINDS and "-" in name and name not in counted:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
