"""The hash chain: how a line is sealed, and how stored lines are checked.

Pure. Rules (docs/log-format.md gives them byte by byte)
- A stored line is the entry's canonical JSON with one more last member, `hash`:
  `body ,"hash":" 64 lower-case hex "}`, then a newline. `body` ends before the closing brace.
- `hash = SHA-256(previous hash (32 bytes, zero for the first entry) || body)`.
- The tail has a fixed length, so splitting there is splitting at the last `,"hash":"`.
- `seq` counts from 0 without gaps. `batch` is the `seq` of the first entry of the entry's batch, so
  an entry begins a batch (`batch == seq`) or continues its predecessor's. One intact line is thus
  enough to know where its batch began, which is what recovery needs.
- Lines are printable ASCII. Hashing is done on stored bytes, never on something re-serialised.
"""

from __future__ import annotations

from binascii import hexlify
from hashlib import sha256
from typing import NamedTuple

import msgspec

GENESIS = bytes(32)
"""The hash before the first entry."""

MARK = b',"hash":"'
END = b'"}'
TAIL = len(MARK) + 64 + len(END)
"""Length of what follows the body, without the newline."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """The members that the chain rests on."""

    seq: int
    batch: int


class NewHead(Head, frozen=True, gc=False):
    """What a new entry must have besides, and `hash`, which it must not bring.

    `time` is in microseconds since the epoch.
    """

    time: int
    kind: str
    hash: str | msgspec.UnsetType = msgspec.UNSET


read_head = msgspec.json.Decoder(Head).decode
read_heads = msgspec.json.Decoder(Head).decode_lines
read_new_head = msgspec.json.Decoder(NewHead).decode


class State(NamedTuple):
    """Where a chain stands: the next `seq`, the batch of the last entry, the last hash."""

    next_seq: int = 0
    batch: int = 0
    hash: bytes = GENESIS


START = State()
"""The chain before the first entry."""


class BadLine(Exception):
    """A line does not continue the chain. `entry` is the `seq` expected there, `index` its place.

    `state` is the chain just before it.
    """

    def __init__(self, index: int, state: State, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.state = state
        self.entry = state.next_seq
        self.reason = reason


def seal(previous: bytes, line: bytes) -> tuple[bytes, bytes]:
    """(hash, stored line with newline) for an entry's canonical JSON after the hash `previous`."""
    body = line[:-1]
    digest = sha256(previous + body).digest()
    return digest, b'%b,"hash":"%b"}\n' % (body, hexlify(digest))


def stored_hash(line: bytes) -> bytes | None:
    """The hash that a stored line (without newline) carries, or None if it has no proper tail."""
    if len(line) <= TAIL or line[-TAIL:-66] != MARK or line[-2:] != END:
        return None
    text = line[-66:-2]
    if text.strip(b"0123456789abcdef"):
        return None
    return bytes.fromhex(text.decode("ascii"))


def head_of(line: bytes) -> Head | None:
    """The head of a stored line (without newline) of proper form, or None. Hashes nothing."""
    if line[:1] != b"{" or stored_hash(line) is None:
        return None
    try:
        return read_head(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def follow(lines: list[bytes], state: State) -> State:
    """Check that `lines` (without newlines) continue the chain. Raises `BadLine` at the first.

    All is computed in one loop and compared at once. Only when something is wrong is each line
    looked at by itself.
    """
    after = _continued(lines, state)
    if after is None:
        for index, line in enumerate(lines):
            step = _continued([line], state)
            if step is None:
                following = lines[index + 1] if index + 1 < len(lines) else None
                raise BadLine(index, state, diagnose(line, following, state))
            state = step
        return state
    return after


def _continued(lines: list[bytes], state: State) -> State | None:
    """The chain after `lines`, or None if any of them is not as it must be."""
    first, batch, previous = state
    if not first:
        batch = 0  # the first entry of all begins a batch, whatever part this is
    hashed = sha256
    digests = [previous := hashed(previous + line[:-75]).digest() for line in lines]
    # One blank before each digest, then what must stand between two of them in its place.
    tails = hexlify(b"".join(digests), " ", 32).replace(b" ", END + MARK)
    if b"".join([line[-75:] for line in lines]) != MARK + tails + END:
        return None
    # What closes an object before an opening brace ends an entry. So where every line begins with one,
    # as many entries as lines means one on each, although they are read together.
    if b"".join([line[:1] for line in lines]) != b"{" * len(lines):
        return None
    try:
        heads = read_heads(b"\n".join(lines))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # not JSON of this form
    if [head.seq for head in heads] != list(range(first, first + len(lines))):
        return None
    for head in heads:
        if head.batch != batch:
            batch = head.batch
            if batch != head.seq:
                return None
    return State(first + len(lines), batch, previous)


def plain(data: bytes) -> bool:
    """Whether stored bytes hold only printable ASCII and newlines, where they are JSON: of what is
    below 0x20 JSON takes a carriage return and a tab besides, between its words."""
    return data.isascii() and not any(no in data for no in (b"\x7f", b"\r", b"\t"))


def diagnose(line: bytes, following: bytes | None, state: State) -> str:
    """Say what is wrong with a line that does not continue the chain."""
    expected = state.next_seq
    if b"\0" in line:
        return f"entry {expected} is damaged: zero bytes stand inside its line"
    stored = stored_hash(line)
    if stored is None:
        return f"entry {expected} is damaged: its line does not end in a hash as it must"
    body = line[:-TAIL]
    head = head_of(line)
    digest = sha256(state.hash + body).digest()
    if head is not None and head.seq != expected:
        if digest == stored:
            return f"entry {expected} carries the number {head.seq}"
        if head.seq > expected:
            # Only a damaged digit or missing lines lead here; the next line's number decides.
            return _missing(expected, head.seq, following)
        return (
            f"entry {head.seq} stands where entry {expected} belongs: lines were moved or repeated"
        )
    if digest == stored:
        if head is None:
            return f"entry {expected} is hashed well but is not an entry: its seq or batch"
        return f"entry {expected} carries a wrong batch number"
    if following is not None:
        after = stored_hash(following)
        if after == sha256(digest + following[:-TAIL]).digest():
            return f"entry {expected} is damaged: its hash was changed, its other bytes were not"
        if after == sha256(stored + following[:-TAIL]).digest():
            return f"entry {expected} is damaged: its bytes were changed, its hash was not"
    return f"entry {expected} is damaged: its bytes do not match its hash"


def _missing(expected: int, found: int, following: bytes | None) -> str:
    after = None if following is None else head_of(following)
    if after is not None and after.seq == expected + 1:
        return f"entry {expected} is damaged: it carries the number {found}"
    last = found - 1
    which = f"entry {expected} is" if last == expected else f"entries {expected} to {last} are"
    return f"{which} missing: entry {found} follows entry {expected - 1}"
