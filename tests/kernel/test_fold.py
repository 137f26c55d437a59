"""The state is the fold of the log: on generated histories a restart reaches the running gate's state.

A history is made the way a gate makes one: every verdict comes from `decide`, every change from
`apply`. Then the encoded entries are decoded and folded from nothing, cut anywhere, and compared.
"""

from __future__ import annotations

import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authority.kernel import budgets, entries, resources
from authority.kernel import decide as kernel
from authority.kernel.capabilities import MacKey, Restriction, attenuate, mint, parse, verify
from authority.kernel.facts import Facts, Request, numbers, request_digest
from authority.kernel.fold import apply
from authority.kernel.policy import Policy, load
from authority.kernel.requests import EFFECTS, FsRead, FsWrite, HttpRequest, MsgSend, Output
from authority.kernel.state import FoldError, State, digest, dump
from authority.kernel.state import load as load_state

POLICY = """
version = 1
[filesystem]
read = ["/data/**"]
write = ["/out/**"]
deny = ["/data/secret/**"]
[network]
http = ["GET,POST https://api.example.com/**"]
[labels]
trusted = ["fs:/data/safe/**"]
[approvals]
require = ["fs:/out/asked/**"]
[budgets]
requests = 60
file_bytes = 4000
denials = 30
"""
KEY = MacKey("k1", b"k" * 32)


def policy() -> Policy:
    def none(base: str, name: str) -> None:
        raise AssertionError(name)

    return load(POLICY, format="toml", base="/", name="p.toml", read_parent=none)  # type: ignore[arg-type]


COMPILED = policy()


class Bench:
    """A gate without I/O: it stamps, folds and keeps the stored lines."""

    def __init__(self) -> None:
        self.state = State()
        self.lines: list[bytes] = []
        self.time = 1_700_000_000_000_000
        self.tokens: dict[str, list[bytes]] = {}
        self.open: list[entries.Admit] = []
        self.n = 0

    def commit(self, *new: entries.AnyEntry) -> None:
        for entry in new:
            entry.seq, entry.batch, entry.time = self.state.seq + 1, self.state.seq + 1, self.time
            apply(self.state, entry)
            self.lines.append(entries.encode(entry))

    def gate(self) -> None:
        self.open.clear()
        self.commit(
            entries.GateStart(
                log="l", rules=1, version="0", boot="b", boot_clock=0, public_key="k",
                limits={"requests": 500},
            )
        )  # fmt: skip
        if not self.state.keys:
            self.commit(entries.Key(kid="k1", action="add"))

    def run(self, name: str, parent: str = "") -> None:
        token = mint(KEY, id=secrets.token_hex(16), run=name, restriction=Restriction(count=40))
        self.tokens[name] = [token]
        self.commit(
            entries.RunStart(
                run=name, capability=parse(token).ids[0], policy=COMPILED.digest, parent=parent,
                cwd="/data", budgets={"requests": 60, "file_bytes": 4000, "denials": 30},
            ),
            entries.CapMint(run=name, id=parse(token).ids[0], kid="k1"),
        )  # fmt: skip

    def request(self, run: str, token: bytes, effect: str, raw: str, arguments: object) -> None:
        parsed = parse(token)
        self.n += 1
        resource = resources.parse(effect, raw, cwd="/data")
        verb = getattr(arguments, "method", "")
        asked = Request(
            run=run, stream=1, n=self.n, effect=effect, shown=resource.text,
            digest=request_digest(effect, resource.text, verb, b""),
            resource=resource, arguments=arguments, verb=verb, token=parsed,
        )  # fmt: skip
        facts = Facts(
            time=self.time,
            mac_ok=verify(parsed, KEY),
            looked_up={"size": 100},
            numbers=numbers(EFFECTS[effect], arguments),
        )
        before = digest(self.state)
        decided = kernel.decide(self.state, COMPILED, asked, facts)
        assert digest(self.state) == before, "decide changed the state"
        self.commit(*decided)
        verdict = decided[-1]
        if isinstance(verdict, entries.Admit) and not verdict.final:
            self.open.append(verdict)

    def settle(self, index: int, status: str) -> None:
        if not self.open:
            return
        admit = self.open.pop(index % len(self.open))
        if admit.seq not in self.state.open:
            return
        used = {} if status == "aborted" else {k: v // 2 for k, v in admit.reserve.items()}
        sources = [admit.resource] if admit.effect == "fs.read" else []
        self.commit(
            entries.Outcome(run=admit.run, of=admit.seq, status=status, spent=used, sources=sources)
        )


REQUESTS = [
    ("fs.read", "/data/a.txt", FsRead()),
    ("fs.read", "/data/safe/a.txt", FsRead(length=7)),
    ("fs.read", "/data/secret/a.txt", FsRead()),
    ("fs.write", "/out/x", FsWrite(b"x" * 900)),
    ("fs.write", "/out/asked/x", FsWrite(b"x")),
    ("http.request", "https://api.example.com/v1", HttpRequest()),
    ("http.request", "https://api.example.com/v1", HttpRequest(method="POST")),
    ("output", "output:stdout", Output(b"hello")),
    ("msg.send", "run:r1", MsgSend(b"hi")),
]
RUNS = ("r1", "r2", "c1")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.sampled_from(RUNS), st.integers(0, len(REQUESTS) - 1),
                  st.integers(0, 3)),
        st.tuples(st.just("settle"), st.integers(0, 9),
                  st.sampled_from(["done", "failed", "aborted"])),
        st.tuples(st.just("attenuate"), st.sampled_from(RUNS), st.integers(0, 2)),
        st.tuples(st.just("revoke"), st.sampled_from(RUNS), st.integers(0, 3)),
        st.tuples(st.just("end"), st.sampled_from(RUNS)),
        st.tuples(st.just("restart")),
        st.tuples(st.just("halt"), st.sampled_from(("", *RUNS))),
        st.tuples(st.just("resume")),
        st.tuples(st.just("approve"), st.booleans()),
        st.tuples(st.just("clock"), st.integers(-10**9, 10**9)),
    ),
    max_size=60,
)  # fmt: skip


def play(bench: Bench, step: tuple) -> None:  # type: ignore[type-arg]
    state = bench.state
    kind = step[0]
    running = {n for n, r in state.runs.items() if r.running}
    if kind == "request" and step[1] in bench.tokens:
        tokens = bench.tokens[step[1]]
        bench.request(step[1], tokens[step[3] % len(tokens)], *REQUESTS[step[2]])
    elif kind == "settle":
        bench.settle(step[1], step[2])
    elif kind == "attenuate" and step[1] in bench.tokens:
        limits = [Restriction(count=3), Restriction(methods=("fs.*",)), Restriction(expires=1)]
        token = bench.tokens[step[1]][-1]
        if len(bench.tokens[step[1]]) < 5:
            bench.tokens[step[1]].append(
                attenuate(token, limits[step[2]], nonce=secrets.token_bytes(16))
            )
    elif kind == "revoke" and step[1] in running:
        tokens = bench.tokens[step[1]]
        id_ = parse(tokens[step[2] % len(tokens)]).ids[-1]
        bench.commit(entries.CapRevoke(run=step[1], id=id_))
    elif kind == "end" and step[1] in running and not (step[1] == "r1" and "c1" in running):
        bench.commit(entries.RunEnd(run=step[1], reason="exited", wall_time=5))
    elif kind == "restart":
        bench.gate()
        start(bench)
    elif kind == "halt" and (not step[1] or step[1] in state.runs):
        bench.commit(entries.Halt(run=step[1], reason="t"))
    elif kind == "resume" and state.halted >= 0:
        bench.commit(entries.Resume(reason="t"))
    elif kind == "approve":
        waiting = [k for k, p in state.approvals.items() if not p.answer]
        if waiting:
            bench.commit(entries.Approval(id=waiting[0], granted=step[1]))
    elif kind == "clock":
        bench.time += step[1]


def start(bench: Bench) -> None:
    for name, parent in (("r1", ""), ("r2", ""), ("c1", "r1")):
        if name not in bench.state.runs:
            bench.run(name, parent)


def check_invariants(state: State) -> None:
    for account in state.accounts.values():
        for dimension, limit in account.limit.items():
            if dimension in {"denials", "requests", "wall_time"}:
                continue  # denials are charged after the fact
            used = account.spent.get(dimension, 0) + account.reserved.get(dimension, 0)
            assert used <= limit
        assert all(v >= 0 for v in (*account.spent.values(), *account.reserved.values()))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.data())
def test_a_restart_reaches_the_running_state(history: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    bench = Bench()
    bench.gate()
    start(bench)
    digests = []
    for step in history:
        play(bench, step)
        check_invariants(bench.state)
        digests.append((len(bench.lines), digest(bench.state)))
    cut = data.draw(st.integers(0, len(digests) - 1)) if digests else -1
    folded = State()
    for line in bench.lines[: digests[cut][0] if digests else None]:
        apply(folded, entries.decode(line))
    if digests:
        assert digest(folded) == digests[cut][1]
    else:
        assert digest(folded) == digest(bench.state)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_a_snapshot_and_the_tail_are_the_whole_fold(history: list) -> None:  # type: ignore[type-arg]
    bench = Bench()
    bench.gate()
    start(bench)
    middle, at = dump(bench.state), len(bench.lines)
    for index, step in enumerate(history):
        play(bench, step)
        if index == len(history) // 2:
            middle, at = dump(bench.state), len(bench.lines)
    tail = load_state(middle)
    for line in bench.lines[at:]:
        apply(tail, entries.decode(line))
    assert digest(tail) == digest(bench.state)


def test_an_entry_out_of_order_is_refused_and_a_next_one_is_not() -> None:
    bench = Bench()
    bench.gate()
    late = entries.Halt(reason="x", seq=7, batch=7, time=1)
    with pytest.raises(FoldError):
        apply(bench.state, late)
    bench.commit(entries.Halt(reason="x"))
    assert bench.state.halted == bench.state.seq


def test_outcomes_need_their_admission() -> None:
    bench = Bench()
    bench.gate()
    start(bench)
    with pytest.raises(FoldError):
        bench.commit(entries.Outcome(run="r1", of=3, status="done"))


def test_in_doubt_is_spent() -> None:
    bench = Bench()
    bench.gate()
    start(bench)
    bench.request("r1", bench.tokens["r1"][0], "fs.write", "/out/x", FsWrite(b"x" * 900))
    spent = bench.state.accounts["state"].spent.get("requests", 0)
    assert bench.state.accounts["state"].reserved["requests"] == 1
    bench.gate()
    assert bench.state.accounts["state"].spent["requests"] == spent + 1
    assert not bench.state.accounts["state"].reserved


def test_amounts_without_a_limit_never_outgrow_the_states_form() -> None:
    accounts = {"unlimited": budgets.Account(), "limited": budgets.Account({"file_bytes": 10})}
    for _ in range(2**11 + 1):  # beyond 2^64 together
        budgets.settle(accounts, ["unlimited"], {}, {"file_bytes": budgets.MAX_AMOUNT})
    budgets.settle(accounts, ["limited"], {}, {"file_bytes": 7})
    state = State(accounts=accounts)
    assert load_state(dump(state)) == state
    assert accounts["unlimited"].spent == {"file_bytes": budgets.MAX_AMOUNT}
    assert accounts["limited"].left("file_bytes") == 3
