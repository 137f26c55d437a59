"""INV-3, a budget is enforced: spent to the end, raced for, asked for in negative amounts.

What was spent is read from the log, not from the attacker: each `admit` reserves, each `outcome`
settles, and the sum is taken after every entry.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from authority.errors import AuthorityError
from authority.matrix import forging
from authority.matrix.capability_attacks import mint, read, tried
from authority.matrix.live import POLICY, Attached, Live
from authority.matrix.verdict import Attempt, Result, Row
from authority.matrix.wire import Ask, Said

EXHAUSTED = Row("INV-3", "budget exhaustion", "at the limit the answer is no")
RACE = Row("INV-3", "concurrent budget race", "never more than the limit, however many ask at once")
NEGATIVE = Row("INV-3", "negative budget", "no amount below zero, none that is no integer")

LIMIT = 25
ASKED = 60
CHANNELS = 12
EACH = 30
RACED = 100
OUTPUT = 2020
PRINTER = """\
import time
for _ in range(10):
    print("x" * 604, flush=True)
    time.sleep(0.03)
"""


def with_budget(**budgets: int | str) -> str:
    """The usual policy and these budgets."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in budgets.items())
    return POLICY + lines


def spending(entries: Sequence[dict[str, Any]], dimension: str) -> tuple[int, int, int, bool]:
    """From a run's entries: the highest sum of spent and reserved at any time, the sum spent at the
    end, the most requests in flight at one time, and whether what was spent ever went down."""
    reserved: dict[int, int] = {}
    flying: set[int] = set()
    spent = highest = most = 0
    fell = False
    for entry in entries:
        before = spent
        if entry["kind"] == "admit":
            amount = entry.get("reserve", {}).get(dimension, 0)
            if entry.get("final"):
                spent += amount
            else:
                reserved[entry["seq"]] = amount
                flying.add(entry["seq"])
        elif entry["kind"] == "outcome":
            reserved.pop(entry["of"], None)
            flying.discard(entry["of"])
            spent += entry.get("spent", {}).get(dimension, 0)
        fell = fell or spent < before
        highest = max(highest, spent + sum(reserved.values()))
        most = max(most, len(flying))
    return highest, spent, most, fell


def part(length: int, capability: bytes) -> Ask:
    """So many bytes of a file of 1,000."""
    return Ask("fs.read", "data/big.txt", {"length": length}, capability)


def beyond(name: str, said: Sequence[Said], limit: int) -> list[Attempt]:
    """Attempts from answers of which only `limit` may be done."""
    done = [s for s in said if s.done]
    late = [s for s in said if not s.done]
    return [
        *[Attempt(name, True, f"entry {s.seq}") for s in done[limit:]],
        *[Attempt(name, False, s.code) for s in late],
    ]


def exactly(name: str, said: Sequence[Said], limit: int) -> Attempt:
    """The control: what fits was done."""
    count = sum(s.done for s in said)
    return Attempt(name, count == limit, f"{count} of {limit}")


def exhaustion(live: Live) -> Result:
    """Test 8."""
    live.file("data/big.txt", "x" * 1000)
    attempts: list[Attempt] = []
    controls: list[Attempt] = []
    with live.attached(with_budget(requests=LIMIT)) as run:
        said = run.wire().ask(*[read(run.token)] * ASKED)
        attempts += beyond("request", said, LIMIT)
        controls.append(exactly("requests within the limit", said, LIMIT))
    highest, spent, _, _ = spending(live.entries(run.run), "requests")
    attempts.append(Attempt("spend beyond, by the log", highest > LIMIT, f"{spent} spent"))
    with live.attached(with_budget(file_bytes=2500)) as run:
        wire = run.wire()
        big = wire.ask(*[part(1000, run.token)] * 5)
        rest = wire.one(part(500, run.token))
        attempts += beyond("file bytes", big, 2)
        attempts += tried(["one byte more"], [wire.one(part(1, run.token))])
        controls += [exactly("file bytes within the limit", big, 2), *tried(["the rest"], [rest])]
    with live.attached() as run:
        counted = mint(live, run.run, count=5)
        said = run.wire().ask(*[read(counted)] * 12)
        attempts += beyond("use of a counted capability", said, 5)
        controls.append(exactly("uses of a counted capability", said, 5))
        said = run.wire().ask(*[read(run.token)] * ASKED)
        controls.append(exactly("without a budget", said, ASKED))
    printed = live.run_argv([sys.executable, "-c", PRINTER], with_budget(output_bytes=OUTPUT))
    size = len(printed.text)
    attempts.append(Attempt("print beyond output_bytes", size > OUTPUT, f"{size} bytes came"))
    controls.append(Attempt("print within output_bytes", size > 0, f"{size} bytes"))
    slept = live.run_argv(
        [sys.executable, "-c", "import time; print('began', flush=True); time.sleep(60)"],
        POLICY.replace('"2m"', '"1s"'),
    )
    wall = int(slept.end.get("budgets", {}).get("spent", {}).get("wall_time", 0))
    attempts.append(
        Attempt("outlive wall_time", wall > 20_000_000, f"ended after {wall // 1000} ms")
    )
    controls.append(Attempt("a run within wall_time", "began" in slept.text, slept.end["reason"]))
    return EXHAUSTED.judge(
        attempts,
        controls,
        at_least=ASKED - LIMIT,
        evidence=f"{spent} of {LIMIT} requests spent by the log",
    )


def raced(run: Attached, capability: bytes) -> list[Said]:
    """Every channel sends its requests at the same moment; all answers."""
    start = threading.Barrier(CHANNELS)
    said: list[Said] = []
    broken: list[BaseException] = []

    def one() -> None:
        try:
            wire = run.wire()
            start.wait(30)
            said.extend(wire.ask(*[read(capability)] * EACH))
        except BaseException as error:
            broken.append(error)
            start.abort()

    threads = [threading.Thread(target=one, daemon=True) for _ in range(CHANNELS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return said


def race(live: Live) -> Result:
    """Test 9."""
    attempts: list[Attempt] = []
    controls: list[Attempt] = []
    facts = []
    total = CHANNELS * EACH
    for what in ("requests", "count", "quota"):
        policy = with_budget(requests=RACED) if what == "requests" else POLICY
        with live.attached(policy) as run:
            fields: dict[str, Any] = {}
            if what == "count":
                fields = {"count": RACED}
            capability = mint(live, run.run, **fields)
            if what == "quota":
                attempts += quota_race(live, run, controls)
                continue
            said = raced(run, capability)
        done = sum(s.done for s in said)
        highest, spent, most, _ = spending(live.entries(run.run), "requests")
        attempts += [
            *beyond(f"more than {RACED} ({what})", said, RACED),
            Attempt(
                "spent and reserved above the limit", max(highest, spent) > RACED, f"{spent} spent"
            ),
        ]
        controls += [
            exactly(f"{what}: exactly the limit", said, RACED),
            Attempt(f"{what}: the log agrees", spent == done == RACED, f"{spent} spent"),
            Attempt(f"{what}: they were in flight together", most > 1, f"{most} at once"),
        ]
        facts.append(f"{what}: {done} of {total}, {most} in flight at once")
    with live.attached() as run:
        controls.append(exactly("without a limit", raced(run, run.token), total))
    return RACE.judge(
        attempts,
        controls,
        at_least=2 * (total - RACED),
        evidence=f"{CHANNELS} channels; " + "; ".join(facts),
    )


def quota_race(live: Live, run: Attached, controls: list[Attempt]) -> list[Attempt]:
    """A cumulative quota over an argument: 30 reads of 7 bytes at once against a limit of 100."""
    live.file("data/big.txt", "x" * 1000)
    capability = mint(live, run.run, quotas=[{"argument": "length", "limit": 100}])
    said = run.wire().ask(*[part(7, capability)] * 30)
    controls.append(exactly("quota: exactly the limit", said, 14))
    return beyond("more than the quota", said, 14)


def map_of(key: str, raw: bytes) -> bytes:
    """MessagePack of one key with a hand-made value."""
    return b"\x81" + msgspec.msgpack.encode(key) + raw


NEGATIVES: dict[str, bytes] = {
    "-1": b"\xff",
    "-2^53": b"\xd3" + (-(2**53)).to_bytes(8, "big", signed=True),
    "-2^63": b"\xd3" + (-(2**63)).to_bytes(8, "big", signed=True),
    "2^53": b"\xcf" + (2**53).to_bytes(8, "big"),
    "2^63": b"\xcf" + (2**63).to_bytes(8, "big"),
    "2^64-1": b"\xcf" + b"\xff" * 8,
    "1.5": b"\xcb" + bytes.fromhex("3ff8000000000000"),
    "-0.0": b"\xcb\x80" + bytes(7),
    "NaN": b"\xcb" + bytes.fromhex("7ff8000000000000"),
    "-Infinity": b"\xcb" + bytes.fromhex("fff0000000000000"),
    "'-1'": b"\xa2-1",
    "true": b"\xc3",
    "[-1]": b"\x91\xff",
    "-1 in eight bytes": b"\xd3" + b"\xff" * 8,
}
"""What is no amount, as bytes on the channel."""


def negative(live: Live) -> Result:
    """Test 10."""
    live.file("data/big.txt", "x" * 1000)
    attempts: list[Attempt] = []
    with live.attached(with_budget(file_bytes=100_000, network_bytes=1000)) as run:
        wire = run.wire()
        quota = mint(live, run.run, quotas=[{"argument": "length", "limit": 20}])
        asks: list[tuple[str, Ask]] = []
        for name, raw in NEGATIVES.items():
            for argument in ("length", "offset"):
                asks += [
                    (f"{argument} {name}", Ask("fs.read", "data/big.txt", map_of(argument, raw), t))
                    for t in (run.token, quota)
                ]
            asks.append((
                f"max_bytes {name}",
                Ask("http.request", "http://127.0.0.1/", map_of("max_bytes", raw), run.token),
            ))  # fmt: skip
            for link in (
                map_of("count", raw),
                map_of("expires", raw),
                map_of("quotas", b"\x91\x82" + msgspec.msgpack.encode("argument")
                       + msgspec.msgpack.encode("length") + msgspec.msgpack.encode("limit") + raw),
                map_of("rate", b"\x82" + msgspec.msgpack.encode("count") + raw
                       + msgspec.msgpack.encode("per") + b"\x01"),
            ):  # fmt: skip
                asks.append((
                    f"restriction {name}", read(forging.attenuated_raw(quota, link), "data/big.txt")
                ))  # fmt: skip
        attempts += tried([name for name, _ in asks], wire.ask(*[ask for _, ask in asks]))
        controls = tried(
            ["length 7", "length 7 of a quota of 20", "length 13 of it"],
            wire.ask(part(7, run.token), part(7, quota), part(13, quota)),
        )
        attempts += tried(["one more of the quota"], [wire.one(part(1, quota))])
        attempts += mints(live, run)
    attempts += policies(live)
    with live.attached(with_budget(requests=0)) as zero:
        attempts += tried(["a budget of 0"], [zero.wire().one(read(zero.token))])
    _, spent, _, fell = spending(live.entries(run.run), "file_bytes")
    attempts.append(Attempt("spent goes down", fell, f"file_bytes {spent} at the end"))
    below = lowest(live.entries())
    attempts.append(Attempt("an amount below zero in the log", below < 0, f"lowest {below}"))
    controls.append(Attempt("file_bytes were spent", spent == 27, f"{spent} of 27"))
    kinds = Counter(a.name.split(" ")[0] for a in attempts)
    return NEGATIVE.judge(
        attempts,
        controls,
        at_least=6 * len(NEGATIVES),
        evidence=f"run {run.run}: " + ", ".join(f"{k} {n}" for k, n in kinds.most_common(5)),
    )


def mints(live: Live, run: Attached) -> list[Attempt]:
    """Capabilities with impossible amounts, asked of the control API."""
    attempts = []
    for value in (-1, -(2**53), 2**53, 2**63, 1.5, "5", True, [-1]):
        for fields in (
            {"count": value},
            {"expires": value},
            {"quotas": [{"argument": "length", "limit": value}]},
            {"rate": {"count": value, "per": 1_000_000}},
        ):
            try:
                mint(live, run.run, **fields)
            except AuthorityError as error:
                attempts.append(Attempt(f"mint {value!r}", False, error.message.split(":")[0]))
            else:
                attempts.append(Attempt(f"mint {value!r}", True, f"{sorted(fields)}"))
    return attempts


def policies(live: Live) -> list[Attempt]:
    """Policies with impossible budgets and limits."""
    attempts = []
    for section, key in (
        ("budgets", "requests"), ("budgets", "cost_usd"), ("budgets", "network_bytes"),
        ("budgets", "wall_time"), ("limits", "memory"), ("limits", "processes"),
    ):  # fmt: skip
        for value in (
            "-1",
            '"-1"',
            '"-1MB"',
            '"-2m"',
            str(2**53),
            str(2**63),
            "1.5e3",
            "nan",
            "-inf",
        ):
            if key == "cost_usd" and value.lstrip("-").isdigit() and int(value) > 0:
                continue
            text = f"version = 1\n[{section}]\n{key} = {value}\n"
            try:
                with live.attached(text) as run:
                    detail = f"run {run.run} began"
            except AuthorityError as error:
                attempts.append(Attempt(f"policy {key}", False, type(error).__name__))
            else:
                attempts.append(Attempt(f"policy {key} = {value}", True, detail))
    return attempts


def lowest(entries: Sequence[dict[str, Any]]) -> int:
    """The lowest amount that any entry reserves or spends."""
    amounts = [
        value for entry in entries for part in ("reserve", "spent", "numbers", "budgets")
        for value in entry.get(part, {}).values()
    ]  # fmt: skip
    return min(amounts, default=0)
