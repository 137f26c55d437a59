"""The entries of the log: everything that ever changes the gate's state, one Struct a kind.

Rules
- An entry holds every fact that the decision rested on, so that `decide` can be run again on the
  log alone and must give the same verdict.
- Members are integers, strings, booleans, lists and maps of those. No floats. Members at their
  default are left out.
- A capability is named by its ids; token bytes, keys and secrets never stand in an entry.
- What a program sent or got is a `Body`: the digest and size of its bytes, the text itself when it
  is short and harmless, and how it is kept (`inline`, `store`, `sealed`, `sealed-inline`, `digest`
  alone).
- `RULES` names the version of the rules under which the gate decided and folded. A change to either
  that would judge or fold an old log differently takes a new number.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from authority.kernel import canonical
from authority.kernel.handles import Part
from authority.kernel.rates import UsageDelta

RULES = 1


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What all entries have: `seq`, `batch` (group commit), `time` (us since the epoch), `run`."""

    seq: int = -1
    batch: int = -1
    time: int = -1
    run: str = ""


class Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes that an entry commits to. `digest` is SHA-256 in hex, of the ciphertext when sealed."""

    digest: str
    size: int
    kept: str = "digest"
    text: str = ""


class GateStart(Entry, tag="gate.start", kw_only=True):
    """A gate opened the log. `build` is the digest of its own program. What was in flight before is in
    doubt, so spent; its runs ended."""

    log: str
    rules: int
    version: str
    boot: str
    boot_clock: int
    public_key: str
    identity: dict[str, int] = {}
    limits: dict[str, int] = {}
    build: str = ""
    two_people: bool = False


class GateStop(Entry, tag="gate.stop", kw_only=True):
    reason: str


class Repair(Entry, tag="repair", kw_only=True):
    """Recovery cut a torn last batch. `cut` bytes lie in the side `file` now."""

    cut: int
    digest: str
    file: str


class Key(Entry, tag="key", kw_only=True):
    """`action`: `add` (mints from now on) or `retire` (verifies until `until`, never mints)."""

    kid: str
    action: str
    until: int = 0


class RunStart(Entry, tag="run.start", kw_only=True):
    """A run begins: what it is, under which policy, contained by what.

    For a replay: `seed` of Python's hashes, `search_path` in which the program was looked up,
    `terminal` (rows, columns), and `given`: the values of variables that stand in no policy, sealed.
    `continues` is a run whose entries up to `replayed` gave this one its first answers.
    `dry`: `kept` when what it does to files is kept apart, `applied` when it makes such changes.
    """

    capability: str
    policy: str
    policy_path: str = ""
    program: list[str] = []
    cwd: str = "/"
    parent: str = ""
    attached: bool = False
    budgets: dict[str, int] = {}
    sources: list[str] = []
    secrets: list[str] = []
    protection: dict[str, Any] = {}
    environment: list[str] = []
    agent: str = ""
    seed: str = ""
    search_path: str = ""
    terminal: list[int] = []
    given: Body | None = None
    continues: str = ""
    replayed: int = -1
    dry: str = ""


class RunEnd(Entry, tag="run.end", kw_only=True):
    """`reason`: exited, killed, stopped, halted, wall_time, denials, disconnected, failed, ..."""

    reason: str
    code: int = 0
    wall_time: int = 0
    detail: str = ""


class CapMint(Entry, tag="cap.mint", kw_only=True):
    """A capability was made: `restriction` is its first one, as in the token."""

    id: str
    kid: str
    restriction: dict[str, Any] = {}


class CapDerive(Entry, tag="cap.derive", kw_only=True):
    """An attenuated capability was seen for the first time."""

    id: str
    parent: str
    restriction: dict[str, Any] = {}


class CapRevoke(Entry, tag="cap.revoke", kw_only=True):
    id: str
    reason: str = ""
    by: str = ""


class Admit(Entry, tag="admit", kw_only=True):
    """A request was allowed and its worst case reserved. For a side effect this is the intent.

    `final`: nothing can differ from the reservation, so no outcome follows and it counts as spent.
    `at`: the time that was judged by, us. `handle`: the answer is kept under this name; `sources` and
    `secrets` are then the label of all that the call was made with. `parts`: pieces of its arguments
    that came from handles; `filled`: the arguments with them. `endorsed`: bits, by name of the rule.
    `also`: the second approval that was used up, where rules and labels both wanted one. `shaped`:
    sources of its arguments less those that the policy trusts there. `hinges`: sources of all that
    decided whether it is made, where recorded fields make these fewer than its parts' labels say.
    """

    effect: str
    resource: str
    stream: int
    n: int
    request: str
    caps: list[str]
    rule: str
    verb: str = ""
    target: str = ""
    arguments: Body | None = None
    reserve: dict[str, int] = {}
    usage: dict[str, UsageDelta] = {}
    numbers: dict[str, int] = {}
    facts: dict[str, Any] = {}
    approval: str = ""
    label_at: int = -1
    final: bool = False
    at: int = 0
    handle: str = ""
    sources: list[str] = []
    secrets: list[str] = []
    parts: list[Part] = []
    filled: Body | None = None
    endorsed: dict[str, int] = {}
    also: str = ""
    shaped: list[str] = []
    hinges: list[str] | None = None


class Outcome(Entry, tag="outcome", kw_only=True):
    """What came of entry `of`. `status`: done, failed (tried), aborted (never performed)."""

    of: int
    status: str
    code: str = ""
    spent: dict[str, int] = {}
    sources: list[str] = []
    secrets: list[str] = []
    result: Body | None = None
    facts: dict[str, Any] = {}


class Chunk(Entry, tag="chunk", kw_only=True):
    """A piece of an effect that goes on (entry `of`): what is sent next (`way` "out"), or delivered
    next ("in"). `charge` is spent beside what `of` reserved; the label is the piece's own."""

    of: int
    way: str
    body: Body
    charge: dict[str, int] = {}
    sources: list[str] = []
    secrets: list[str] = []
    label_at: int = -1


class Tally(Entry, tag="tally", kw_only=True):
    """What a run looked at since its last entry: judgements by effect, each yes and each no
    (`!effect`), and the label of what it saw."""

    counts: dict[str, int]
    sources: list[str] = []
    secrets: list[str] = []


class Denied(Entry, tag="denied", kw_only=True):
    """A request was refused. `number` is the run's own count, which the agent is told.

    What the decision rested on beside: `at`, the time that was judged by; `given`, when the refusal
    was made while reading, before any rule was asked; `reserve`, when the budget was asked; `of` and
    `way`, when a piece of that entry was refused. Of a capability that no entry holds yet, `links`
    are its restrictions from the first unknown id on; `kid` and `bound` its key and run, when its
    root is unknown. `hidden`: it rests on what is behind handles, so nobody was told: the answer is
    `handle`, it has no number of its own, and costs what the call would have cost: `usage`, bits
    (`endorsed`), approvals (`consumed`).
    """

    code: str
    layer: str
    number: int
    reason: str
    effect: str = ""
    resource: str = ""
    verb: str = ""
    target: str = ""
    stream: int = 0
    n: int = 0
    request: str = ""
    caps: list[str] = []
    rule: str = ""
    numbers: dict[str, int] = {}
    facts: dict[str, Any] = {}
    arguments: Body | None = None
    approval: str = ""
    label_at: int = -1
    again: bool = False
    at: int = 0
    given: bool = False
    reserve: dict[str, int] = {}
    of: int = -1
    way: str = ""
    kid: str = ""
    bound: str = ""
    links: list[dict[str, Any]] = []
    hidden: bool = False
    endorsed: dict[str, int] = {}
    consumed: list[str] = []
    shaped: list[str] = []
    hinges: list[str] | None = None
    handle: str = ""
    sources: list[str] = []
    secrets: list[str] = []
    parts: list[Part] = []
    filled: Body | None = None
    usage: dict[str, UsageDelta] = {}


class Input(Entry, tag="input", kw_only=True):
    """A person typed to the run, or piped into it; `body` is sealed under the key named `key`, which is
    not here. Without a key: more came, and is not kept."""

    key: str
    body: Body


class Halt(Entry, tag="halt", kw_only=True):
    """`run` empty: everything. All capabilities concerned are revoked with it. `incident` is the
    entry of the case that it answers."""

    reason: str
    by: str = ""
    incident: int = -1


class Resume(Entry, tag="resume", kw_only=True):
    reason: str
    by: str = ""


class Approval(Entry, tag="approval", kw_only=True):
    """A person's answer to the pending approval `id`: `granted` (once) or refused."""

    id: str
    granted: bool
    by: str = ""


class Definition(Entry, tag="mcp.definition", kw_only=True):
    """What an MCP server says that one of its tools is, by the digest of its text in the store.

    `action`: `seen` (it waits for a person), `approved` or `refused`; `by`: a person, or `policy`.
    `key` stands for the server's program, `before` is the digest that was approved until now.
    """

    server: str
    key: str
    tool: str
    digest: str
    action: str
    by: str = ""
    before: str = ""


class Incident(Entry, tag="incident", kw_only=True):
    """Something that must not be was seen. `wide`: it concerns the gate or its evidence, and so
    everything; otherwise the run that caused it. `of` is the entry that shows it. `noted`: it is
    written down for people, nothing is halted for it and no case is opened."""

    what: str
    detail: str = ""
    wide: bool = False
    of: int = -1
    noted: bool = False


class IncidentStep(Entry, tag="incident.step", kw_only=True):
    """The next step of case `incident`, and what it rests on."""

    incident: int
    step: str
    by: str
    evidence: dict[str, Any] = {}


class Canary(Entry, tag="canary", kw_only=True):
    """A trap that nothing legitimate touches. `action`: plant or remove; `what`: file, host or
    credential; `resource` where it lies; `digest` of a credential's value."""

    action: str
    what: str
    name: str
    resource: str = ""
    digest: str = ""


class Clock(Entry, tag="clock", kw_only=True):
    """`jump`: us that the wall clock ran ahead of the boot clock (0: it is back).

    `confirmed`: a person says that the wall clock is right; `boot_clock` is the new anchor.
    """

    jump: int
    boot_clock: int = 0
    confirmed: bool = False


class Control(Entry, tag="control", kw_only=True):
    """Somebody with an admin capability asked something of the gate."""

    action: str
    by: str
    caps: list[str] = []
    detail: str = ""


class Proof(Entry, tag="proof", kw_only=True):
    """A certificate was recorded, after the gate had checked it again: what it claims of which
    policies (digests), and `verdict`: `proved` or `disproved`, then with its first `witness`."""

    statements: list[str]
    policies: list[str]
    engine: str
    verdict: str
    certificate: str
    witness: str = ""
    by: str = ""


class Snapshot(Entry, tag="snapshot", kw_only=True):
    """The state after entry `at`, kept under `digest`."""

    at: int
    digest: str
    size: int


class Replay(Entry, tag="replay", kw_only=True):
    """A replay began, in a log of its own. `log` and `head` (hash of the run's last entry) name what is
    played, `source` is `state` or the digest of a bundle."""

    log: str
    head: str
    source: str
    first: int
    last: int
    policy: str
    until: int = -1
    build: str = ""


class ReplayEnd(Entry, tag="replay.end", kw_only=True):
    """What replay `of` came to: its verdict, how many requests matched, where it first differed."""

    of: int
    verdict: str
    matched: int
    code: int = 0
    entry: int = -1
    what: str = ""
    limits: list[str] = []


AnyEntry = (
    GateStart | GateStop | Repair | Key | RunStart | RunEnd | CapMint | CapDerive | CapRevoke |
    Admit | Outcome | Chunk | Tally | Denied | Input | Halt | Resume | Approval | Definition |
    Incident | IncidentStep | Canary | Clock | Control | Proof | Snapshot | Replay | ReplayEnd
)  # fmt: skip

KIND_NAMES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyEntry))


class EntryError(ValueError):
    """A stored line that is no entry of these rules."""


_decoder = msgspec.json.Decoder(AnyEntry)


def encode(entry: Entry) -> bytes:
    """Canonical JSON of an entry, without its hash."""
    return canonical.encode(entry)


def decode(line: bytes) -> AnyEntry:
    """The entry of a stored line (with or without `hash`). Raises `EntryError`."""
    try:
        entry: AnyEntry = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EntryError(f"not an entry of rules {RULES}: {error}") from error
    if entry.seq < 0:
        raise EntryError("an entry without seq")
    return entry
