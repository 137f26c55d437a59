"""The matrix must be able to fail: guards are broken on purpose, and the test that watches says so.

Where the guard can be taken out for real (no sandbox, a ledger that does not wait, a verifier that
does not hash, a gate that hangs) it is; elsewhere what was observed is doctored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from authority.audit.verification import Report
from authority.gate.client import GateError
from authority.matrix import (
    budget_attacks,
    capability_attacks,
    containment,
    forging,
    log_attacks,
    runner,
    sync_attacks,
    syscalls,
)
from authority.matrix.live import Live, Ran, live, outside
from authority.matrix.verdict import Attempt, Row, finished, from_lines
from authority.matrix.wire import Said, WireError

TEST = Row("INV-0", "a test", "nothing works")
BLOCKED = Attempt("try", False, "EPERM")
THROUGH = Attempt("try", True)


@pytest.fixture(scope="module")
def gate() -> Iterator[Live]:
    with live() as made:
        yield made


# --- the verdict ---


def test_the_verdict_holds_only_when_all_of_it_does() -> None:
    assert TEST.judge([BLOCKED], [THROUGH]).ok
    assert not TEST.judge([BLOCKED, THROUGH], [THROUGH]).ok
    assert not TEST.judge([BLOCKED], [THROUGH, BLOCKED]).ok
    assert not TEST.judge([BLOCKED], []).ok
    assert not TEST.judge([], [THROUGH]).ok
    assert not TEST.judge([BLOCKED] * 3, [THROUGH], at_least=4).ok
    assert not TEST.failed(OSError("x")).ok


def test_what_a_program_says_is_made_printable_and_short() -> None:
    nasty = [{"name": "a\x1b[2J" + "b" * 5000, "worked": True, "detail": "\u202e\n\x00"}]
    result = TEST.judge(from_lines(nasty), [THROUGH])
    assert result.observed.isprintable()
    assert result.observed.isascii()
    assert len(result.observed) < 400


def test_an_attempt_that_does_not_say_that_it_failed_counts_as_one_that_worked() -> None:
    assert from_lines([{"name": "x"}])[0].worked
    assert from_lines([{"name": "x", "worked": "no"}])[0].worked
    assert not from_lines([{"name": "x", "worked": False}])[0].worked


def test_a_program_that_died_early_is_noticed() -> None:
    line = {"name": "x", "worked": False}
    assert finished([line, {"done": 1}], "p").worked
    assert not finished([line], "p").worked
    assert not finished([line, line, {"done": 1}], "p").worked
    assert not finished([{"done": 0}], "p").worked


# --- INV-1: the same attacks, and no sandbox ---


@pytest.fixture
def no_sandbox(gate: Live, monkeypatch: pytest.MonkeyPatch) -> Live:
    """A gate whose runs are started as ordinary processes."""

    def run(
        program: str,
        given: Mapping[str, Any],
        *,
        policy: str = "",
        watch: Callable[[], None] | None = None,
    ) -> Ran:
        return Ran({"code": 0}, {"run": "none"}, outside(program, given, watch=watch))

    monkeypatch.setattr(gate, "run", run)
    return gate


@pytest.mark.parametrize(
    "attack", [containment.direct_socket, containment.execve, containment.namespace_escape]
)
def test_without_a_sandbox_the_first_invariant_fails(no_sandbox: Live, attack: Any) -> None:
    result = attack(no_sandbox)
    assert not result.ok
    assert "WORKED" in result.observed


# --- INV-2 and INV-3: a gate that says yes ---


def yes(seq: int) -> Said:
    return Said(True, {"data": b"hello"}, "", "", seq, bytes(32))


def no(seq: int, code: str = "E_CAP_INVALID") -> Said:
    return Said(False, None, code, "capability", seq, bytes(32))


def test_one_accepted_forgery_among_many_is_enough() -> None:
    said = [no(n) for n in range(3000)]
    assert not any(a.worked for a in capability_attacks.tried(["f"] * 3000, said))
    said[1234] = yes(1234)
    attempts = capability_attacks.tried(["f"] * 3000, said)
    result = capability_attacks.FORGERY.judge(attempts, [THROUGH], at_least=3000)
    assert not result.ok
    assert "entry 1234" in result.observed


def test_forgeries_are_none_that_the_gate_made(gate: Live) -> None:
    with gate.attached() as run:
        other = forging.attenuated_raw(run.token, {})
        made = list(forging.forgeries(other, run.token, randoms=50, seed=1))
        head, parts, _, mac = forging.tokens.split(run.token)
        kid = forging.tokens.decode_head(head)[0]
        key = (gate.directory.keys / "mac" / kid).read_bytes()
        # With the key the forger's own arithmetic gives the genuine MAC: its forgeries are well made.
        assert forging.chained(key, head, parts) == mac
        assert {run.token, other}.isdisjoint(token for _, token in made)
        stolen = forging.built(head, parts, forging.chained(key, head, parts))
        assert capability_attacks.passes(run.wire(), stolen, "made with the stolen key").worked
    assert len({name for name, _ in made}) > 15


def test_one_request_too_many_is_seen() -> None:
    said = [yes(n) for n in range(5)] + [no(5, "E_BUDGET_EXCEEDED")]
    assert not any(a.worked for a in budget_attacks.beyond("r", said, 5))
    assert any(a.worked for a in budget_attacks.beyond("r", said, 4))
    assert budget_attacks.exactly("r", said, 5).worked
    assert not budget_attacks.exactly("r", said, 6).worked


def admit(seq: int, amount: int) -> dict[str, Any]:
    return {"kind": "admit", "seq": seq, "reserve": {"requests": amount}}


def outcome(of: int, amount: int) -> dict[str, Any]:
    return {"kind": "outcome", "of": of, "spent": {"requests": amount}}


def test_spending_is_read_from_the_log() -> None:
    entries = [admit(1, 1), admit(2, 1), outcome(1, 1), admit(4, 1), outcome(2, 1), outcome(4, 1)]
    assert budget_attacks.spending(entries, "requests") == (3, 3, 2, False)
    # An overshoot that lasted a moment: reserved beyond the limit, and given back.
    entries = [admit(1, 5), outcome(1, 1), admit(3, 2), outcome(3, 2)]
    assert budget_attacks.spending(entries, "requests")[0] == 5
    # What was spent goes down.
    entries = [admit(1, 1), outcome(1, 5), admit(3, 1), outcome(3, -2)]
    assert budget_attacks.spending(entries, "requests")[3]
    assert budget_attacks.lowest(entries) == -2


def test_a_gate_without_the_budget_fails_the_test(
    gate: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_attacks, "with_budget", lambda **_: budget_attacks.POLICY)
    result = budget_attacks.race(gate)
    assert not result.ok
    assert "more than 100 (requests)" in result.observed


# --- INV-4: a verifier that does not hash, a gate that does not wait ---


def test_a_verifier_that_misses_one_flip_fails_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    genuine = log_attacks.verify
    count = 0

    def blind(directory: Any, **given: Any) -> Report:
        nonlocal count
        count += 1
        report = genuine(directory, **given)
        return report if count != 10 else genuine_clean

    with live() as short:
        log_attacks.prepare(short)
        genuine_clean = genuine(short.directory.log)
        assert genuine_clean.ok
        monkeypatch.setattr(log_attacks, "verify", blind)
        result = log_attacks.bit_flip(short, tmp_path)
    assert not result.ok
    assert "not noticed" in result.observed


def test_blaming_another_entry_is_not_enough() -> None:
    def report(first_bad: int | None) -> Report:
        ok = first_bad is None
        return Report(ok, 5, "", "", first_bad, "", "", 5, 0, 1, "", False)

    assert not log_attacks.found("flip", report(3), 3).worked
    assert log_attacks.found("flip", report(4), 3).worked
    assert log_attacks.found("flip", report(None), 3).worked


def test_a_gate_that_does_not_wait_for_the_disk_fails_the_test(
    gate: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(sync_attacks.HeldGate):
        def __init__(self, live: Live, *, hasty: bool) -> None:
            super().__init__(live, hasty=True)

    monkeypatch.setattr(sync_attacks, "HeldGate", Hasty)
    monkeypatch.setattr(syscalls, "watch", lambda _live: ([], [], ""))
    result = sync_attacks.response_before_sync(gate)
    assert not result.ok
    assert "it came early" in result.observed
    assert "it was there early" in result.observed


HASH = bytes(range(32))
HEXED = "".join(f"\\x{ord(c):02x}" for c in HASH.hex())
RAW = "".join(f"\\x{b:02x}" for b in HASH)
ENTRY = f'7 pwrite64(4, "{HEXED}", 64, 0) = 64'
SYNC = ["7 fdatasync(4 <unfinished ...>", "8 epoll_wait() = 0", "7 <... fdatasync resumed>) = 0"]
SENT = f'8 sendmsg(9, {{msg_iov=[{{iov_base="{RAW}"}}]}}, 0) = 32'


@pytest.mark.parametrize(
    ("trace", "is_early"),
    [
        ([ENTRY, *SYNC, SENT], False),
        ([ENTRY, "7 fdatasync(4) = 0", SENT], False),
        ([ENTRY, SENT, *SYNC], True),
        ([ENTRY, SYNC[0], SENT, SYNC[2]], True),
        ([ENTRY, SENT], True),
        ([*SYNC, ENTRY, SENT], True),
        ([SYNC[0], ENTRY, SYNC[2], SENT], True),
        ([ENTRY, "7 fdatasync(5) = 0", SENT], True),
        ([ENTRY, "7 fdatasync(4) = -1 EIO (Input/output error)", SENT], True),
        ([ENTRY, *SYNC], True),
        ([*SYNC, SENT], True),
    ],
)
def test_the_order_of_system_calls_is_judged(trace: Sequence[str], is_early: bool) -> None:
    said = [Said(True, None, "", "", 1, HASH)]
    assert syscalls.early(syscalls.parse(trace), said)[0].worked is is_early


# --- the whole ---


def test_a_test_that_breaks_has_failed_and_the_others_go_on() -> None:
    def breaks(_live: Live) -> Any:
        raise WireError("the gate closed the channel")

    def holds(_live: Live) -> Any:
        return TEST.judge([BLOCKED], [THROUGH])

    results = runner.perform(groups=[[(TEST, breaks), (TEST, holds)]])
    assert [r.ok for r in results] == [False, True]
    assert "the gate closed the channel" in results[0].observed


def test_a_gate_that_hangs_ends_the_test_with_an_error() -> None:
    with live() as hanging:
        hanging.admin("GET", "/v1/status")
        starts = [e for e in hanging.entries() if e["kind"] == "gate.start"]
        os.kill(starts[-1]["identity"]["pid"], signal.SIGSTOP)
        with hanging.deadline(0.5), pytest.raises(GateError, match="went away"):
            hanging.admin("GET", "/v1/status")
