"""`make bench-agentdojo`: the table, results.json, and an exit code that says whether all holds.

    python -m benchmarks.agentdojo [--quick] [--processes N]

`--quick` takes every user task and one in seven of its pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.agentdojo import declared, plans, table
from benchmarks.agentdojo.runs import Score, play_all
from benchmarks.agentdojo.stage import stage

SUITES = ("workspace", "banking")
RESULTS = Path(__file__).parent / "results.json"
QUICK = 7


def pairs(quick: bool) -> list[tuple[str, str, str]]:
    """Each user task alone, and with each injection task."""
    with stage() as made:
        tasks = {name: made.world.ask("tasks", suite=name) for name in SUITES}
    found = []
    for suite, names in tasks.items():
        for n, user in enumerate(names["users"]):
            found.append((suite, user, ""))
            for m, injection in enumerate(names["injections"]):
                if not quick or (n + m) % QUICK == 0:
                    found.append((suite, user, injection))
    return found


def measure(wanted: table.Pairs, processes: int | None) -> dict[table.Variant, list[Score]]:
    """Run everything."""
    found: dict[table.Variant, list[Score]] = {}
    asked: set[tuple[str, str]] = set()
    for variant in [*table.PLAIN, *table.PLANNED, *table.ADAPTIVE, *table.CONTROLS]:
        start = time.monotonic()
        again = variant.mode == "planned" and variant.attack == "static"
        if again and variant is not table.PLANNED[0]:
            before = found[table.PLANNED[0]]
            some = [pair for pair in wanted if pair[:2] in asked]
            kept = table.taken_over(before, variant.person, asked)
            found[variant] = kept + play_all(variant.jobs(some), processes)
        else:
            found[variant] = play_all(variant.jobs(wanted), processes)
        if variant is table.PLANNED[0]:
            asked = table.asked_tasks(found[variant])
        took = time.monotonic() - start
        print(f"{variant.name}: {took:.0f} s", file=sys.stderr, flush=True)
    table.settle(score for scores in found.values() for score in scores)
    return found


def show(lines: list[tuple[str, ...]]) -> None:
    """Columns of text."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.agentdojo")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    began = time.monotonic()
    found = measure(pairs(options.quick), options.processes)
    rows = [
        table.row(variant, suite, scores)
        for variant, scores in found.items()
        for suite in (*SUITES, "all")
    ]
    show([table.HEAD, *map(table.cells, rows)])
    scores = [score for some in found.values() for score in some]
    verdicts = table.verdicts(rows, scores)
    for claim, holds, figure in verdicts:
        print(f"{'holds' if holds else 'FAILS'}  {claim}: {figure}")
    seconds = round(time.monotonic() - began)
    print(f"declarations sha256 {declared.digest()}")
    print(f"plans        sha256 {plans.digest()}")
    print(f"{len(scores)} runs, {seconds} s")
    RESULTS.write_text(
        json.dumps(
            {
                "package": "agentdojo 0.1.35",
                "benchmark": "v1.2.2",
                "declarations": declared.digest(),
                "plans": plans.digest(),
                "quick": options.quick,
                "seconds": seconds,
                "rows": rows,
                "verdicts": [{"claim": c, "holds": h, "figure": f} for c, h, f in verdicts],
                "runs": [score.plain() for score in scores],
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    return 0 if all(holds for _, holds, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
