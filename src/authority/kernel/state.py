"""What the gate knows: the parts of a `State`, and its canonical bytes. What changes it is in `fold`.

Rules
- Everything that the kernel decides on is here, and all of it comes from entries.
- Equal states have equal bytes (`dump`), so `digest` shows whether two gates know the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from authority.kernel.budgets import Account
from authority.kernel.file_labels import Marked
from authority.kernel.handles import Held
from authority.kernel.incidents import Case, Surroundings
from authority.kernel.labels import CLEAN, Label
from authority.kernel.rates import Usage, UsageDelta
from authority.kernel.resources import Resource

STATE_ACCOUNT = "state"
DENIALS_DEFAULT = 1000
"""Distinct denials that a run may collect when its policy sets no budget for them."""
DENIAL_REPEATS = 10
"""All denials together, repeats too, may be this many times the distinct ones."""
PINS_LIMIT = 20_000
"""Definitions of tools that a state directory keeps."""


class FoldError(ValueError):
    """An entry that can't follow the ones before it."""


class KeyInfo(msgspec.Struct):
    """`until` is 0 for the key that mints, else the end of a retired key's grace period (us)."""

    until: int = 0


class CapInfo(msgspec.Struct):
    """A capability that was minted or seen: the run it is bound to, and what it was made from."""

    run: str
    parent: str = ""


class Open(msgspec.Struct):
    """An admission without its outcome yet. `alone`: see `file_overlap`."""

    run: str
    effect: str
    resource: str
    reserve: dict[str, int]
    usage: dict[str, UsageDelta]
    target: str = ""
    handle: str = ""
    label: Label = CLEAN
    alone: bool = True


class Moved(msgspec.Struct):
    """What a run was let do after it read untrusted words: when first, and under which labels."""

    asked: int
    effect: str
    resource: str
    verb: str = ""
    label: Label = CLEAN


class Run(msgspec.Struct):
    """One execution of an agent. `label_at` is the entry that raised its label last, `seen` the one
    that brought each source; `endorsed` are bits by rule. `hints` is the label of messages of which
    nobody may see whether they came. `moved`: see `relatives`. `dry`: see `entries.RunStart`."""

    id: str
    policy: str
    capability: str
    started: int
    cwd: str
    parent: str = ""
    attached: bool = False
    running: bool = True
    halted: bool = False
    label: Label = CLEAN
    label_at: int = -1
    accounts: list[str] = []
    number: int = 0
    denied: set[str] = set()
    created: set[str] = set()
    children: list[str] = []
    code: int = 0
    reason: str = ""
    seen: dict[str, int] = {}
    handles: dict[str, Held] = {}
    endorsed: dict[str, int] = {}
    hints: Label = CLEAN
    moved: dict[str, Moved] = {}
    dry: str = ""


class Pending(msgspec.Struct):
    """An approval that was asked for. `answer`: "" waiting, `granted` (usable once), `refused`."""

    run: str
    effect: str
    resource: str
    request: str
    asked: int
    answer: str = ""


class Pin(msgspec.Struct):
    """What is approved of one tool of an MCP server, and what waits; both are digests, or empty."""

    server: str
    tool: str
    key: str
    approved: str = ""
    waiting: str = ""
    refused: str = ""
    seen: int = -1


class State(msgspec.Struct):
    """Everything the kernel decides on. Times are microseconds since the epoch. `used` is the label of
    runs that are over and used what the state directory has limits for."""

    log: str = ""
    seq: int = -1
    floor: int = 0
    clock_suspect: bool = False
    boot: str = ""
    boot_clock: int = 0
    boot_time: int = 0
    halted: int = -1
    keys: dict[str, KeyInfo] = {}
    caps: dict[str, CapInfo] = {}
    revoked: set[str] = set()
    usage: dict[str, Usage] = {}
    runs: dict[str, Run] = {}
    accounts: dict[str, Account] = msgspec.field(default_factory=lambda: {STATE_ACCOUNT: Account()})
    open: dict[int, Open] = {}
    approvals: dict[str, Pending] = {}
    policies: dict[str, str] = {}
    pins: dict[str, Pin] = {}
    cases: dict[str, Case] = {}
    canaries: dict[str, str] = {}
    files: dict[str, Marked] = {}
    used: Label = CLEAN
    version: str = ""
    two_people: bool = False

    def now(self, time: int) -> int:
        """The time to judge by: what expired stays expired when the clock steps back."""
        return max(time, self.floor)

    def canary(self, resource: Resource) -> str:
        """The name of the canary that a resource is, or nothing."""
        if not self.canaries:
            return ""
        trap = f"host:{resource.host}" if resource.host else resource.text
        return next((name for name, where in self.canaries.items() if where == trap), "")

    def ancestry(self, run: str) -> Iterable[str]:
        """The run and its ancestors, nearest first."""
        while run:
            yield run
            info = self.runs.get(run)
            run = info.parent if info else ""

    def root(self, run: str) -> Run:
        """The run that a run descends from, or itself."""
        return self.runs[[*self.ancestry(run)][-1]]

    def denials_spent(self, run: Run) -> bool:
        """Whether the run used up what it may be refused."""
        limit = self.accounts[run.accounts[0]].limit.get("denials", DENIALS_DEFAULT)
        return len(run.denied) >= limit or run.number >= limit * DENIAL_REPEATS


class _Dumped(msgspec.Struct, array_like=True):
    """Sorting needs names as keys, so what is keyed by number stands beside, in order."""

    state: State
    open: list[tuple[int, Open]]


_encode = msgspec.msgpack.Encoder(order="sorted").encode
_decode = msgspec.msgpack.Decoder(_Dumped).decode


def dump(state: State) -> bytes:
    """The state's canonical bytes (a snapshot)."""
    return _encode(_Dumped(msgspec.structs.replace(state, open={}), sorted(state.open.items())))


def load(data: bytes) -> State:
    """A state from `dump`. The caller has checked its digest against a committed entry."""
    try:
        dumped = _decode(data)
    except msgspec.DecodeError as error:
        raise FoldError(f"a snapshot that is no state: {error}") from error
    dumped.state.open = dict(dumped.open)
    return dumped.state


def digest(state: State) -> str:
    """SHA-256 of the canonical bytes: equal digests are equal states."""
    return hashlib.sha256(dump(state)).hexdigest()


def pin_name(key: str, tool: str) -> str:
    """What a tool's pin is kept under."""
    return f"{key}/{tool}"


def surroundings(state: State) -> Surroundings:
    """What a case's next step is judged against."""
    return Surroundings(state.seq, state.version, state.two_people)
