"""Some lines of a log, with one proof that a signed checkpoint holds them all, each in its place.

Pure. Rules
- The proof is the hashes of the subtrees that hold none of the lines, left to right, as large as they
  come (RFC 6962 trees). With the lines it gives the checkpoint's root, or it proves nothing.
- `before` of a stretch is the hash of the entry before it, so that each line's own hash can be checked,
  and a changed line is named. The root then says that the stretch stands where it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from authority.audit.chain import BadLine, State, follow, head_of, plain, stored_hash
from authority.audit.errors import LogError
from authority.audit.merkle import Tree, leaf_hash, node_hash, split


class SliceInvalid(LogError):
    """The lines are not what they say. The message names the entry where that can be told."""


class Stretch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries `first` to `last`, without a gap; `before` is the hash before them, in hex."""

    first: int
    last: int
    before: str


def stretches(numbers: Sequence[int], before: Sequence[bytes]) -> list[Stretch]:
    """The stretches of rising entry numbers; `before` holds for each the hash of the entry before."""
    found: list[Stretch] = []
    for number, previous in zip(numbers, before, strict=True):
        if found and found[-1].last == number - 1:
            found[-1] = msgspec.structs.replace(found[-1], last=number)
        else:
            found.append(Stretch(number, number, previous.hex()))
    return found


def prove(tree: Tree, size: int, parts: Sequence[Stretch]) -> list[bytes]:
    """The proof for a tree of `size` leaves."""
    return list(_missing(tree, 0, size, parts))


def _missing(tree: Tree, low: int, high: int, parts: Sequence[Stretch]) -> Iterator[bytes]:
    inside = [part for part in parts if part.first < high and part.last >= low]
    if not inside:
        yield tree.range(low, high)
    elif any(part.first <= low and part.last >= high - 1 for part in inside):
        return  # all of it is there
    else:
        middle = low + split(high - low)
        yield from _missing(tree, low, middle, inside)
        yield from _missing(tree, middle, high, inside)


def check(
    lines: Sequence[bytes],
    parts: Sequence[Stretch],
    proof: Sequence[bytes],
    size: int,
    root: bytes,
) -> None:
    """Whether the lines are entries of the log whose tree of `size` leaves has this root.

    Raises `SliceInvalid`.
    """
    _check_parts(parts, size)
    if sum(part.last - part.first + 1 for part in parts) != len(lines):
        raise SliceInvalid("there are not as many entries as there should be")
    at = 0
    leaves: dict[int, bytes] = {}
    for part in parts:
        count = part.last - part.first + 1
        some = lines[at : at + count]
        at += count
        _check_stretch(part, some)
        leaves.update((part.first + n, leaf_hash(line)) for n, line in enumerate(some))
    hashes = iter(proof)
    try:
        found = _root(leaves, 0, size, parts, hashes)
    except StopIteration:
        raise SliceInvalid("the proof is too short") from None
    if next(hashes, None) is not None:
        raise SliceInvalid("the proof is too long")
    if found != root:
        raise SliceInvalid("the checkpoint does not hold these entries")


def _check_parts(parts: Sequence[Stretch], size: int) -> None:
    end = -1
    for part in parts:
        if not end < part.first <= part.last < size:
            raise SliceInvalid(
                "the stretches of entries are out of order, or beyond the checkpoint"
            )
        end = part.last


def _check_stretch(part: Stretch, lines: Sequence[bytes]) -> None:
    try:
        before = bytes.fromhex(part.before)
    except ValueError:
        raise SliceInvalid("a stretch's hash is malformed") from None
    for number, line in enumerate(lines, part.first):
        if not plain(line) or stored_hash(line) is None:
            raise SliceInvalid(f"entry {number} is damaged")
    head = head_of(lines[0])
    if head is None:
        raise SliceInvalid(f"entry {part.first} is damaged")
    try:
        follow(list(lines), State(part.first, head.batch, before))
    except BadLine as error:
        raise SliceInvalid(error.reason) from None


def _root(
    leaves: dict[int, bytes],
    low: int,
    high: int,
    parts: Sequence[Stretch],
    hashes: Iterator[bytes],
) -> bytes:
    inside = [part for part in parts if part.first < high and part.last >= low]
    if not inside:
        return next(hashes)
    if high - low == 1:
        return leaves[low]
    middle = low + split(high - low)
    left = _root(leaves, low, middle, inside, hashes)
    return node_hash(left, _root(leaves, middle, high, inside, hashes))
