"""`make bench-agentdojo`: the table, results.json, and an exit code that says whether all holds.

    python -m benchmarks.agentdojo [--quick] [--processes N]
    python -m benchmarks.agentdojo --suites travel,slack --declared FILE [--plans FILE]
    python -m benchmarks.agentdojo --suites travel --show tools|prompts
    python -m benchmarks.agentdojo --objects

`--quick` takes every user task and one in seven of its pairs. Other suites want somebody's declarations
(`brought`); without plans for them plain agents run alone. `--show` prints what these are to be
written from: declarations from the tools' documents, plans from the prompts as well, and no truth.
`--objects` is the attack outside AgentDojo (`objects`), whose table has no target.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.agentdojo import brought, declared, planner, plans, table
from benchmarks.agentdojo.runs import Score, play_all
from benchmarks.agentdojo.stage import stage

SUITES = ("workspace", "banking")
RESULTS = Path(__file__).parent / "results.json"
QUICK = 7


def tasks_of(suites: Sequence[str]) -> dict[str, Any]:
    """The tasks and tools of each suite."""
    with stage() as made:
        return {name: made.world.ask("tasks", suite=name) for name in suites}


def documents(suites: Sequence[str], what: str) -> dict[str, Any]:
    """The tools' documents, or the prompts, of each suite."""
    asked = "documents" if what == "tools" else what
    with stage() as made:
        return {name: made.world.ask(asked, suite=name) for name in suites}


def pairs(tasks: Mapping[str, Any], quick: bool) -> list[tuple[str, str, str]]:
    """Each user task alone, and with each injection task."""
    found = []
    for suite, names in tasks.items():
        for n, user in enumerate(names["users"]):
            found.append((suite, user, ""))
            for m, injection in enumerate(names["injections"]):
                if not quick or (n + m) % QUICK == 0:
                    found.append((suite, user, injection))
    return found


def measure(
    variants: Sequence[table.Variant], wanted: table.Pairs, processes: int | None
) -> dict[table.Variant, list[Score]]:
    """Run everything."""
    found: dict[table.Variant, list[Score]] = {}
    asked: set[tuple[str, str]] = set()
    for variant in variants:
        start = time.monotonic()
        if variant in table.PLANNED[1:] and table.PLANNED[0] in found:
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
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--declared", type=Path)
    parser.add_argument("--plans", type=Path)
    parser.add_argument("--show", choices=("tools", "prompts"))
    parser.add_argument("--objects", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    suites = tuple(options.suites.split(","))
    if options.show:
        print(json.dumps(documents(suites, options.show), indent=1))
        return 0
    if options.objects and set(suites) - set(SUITES):
        parser.error(f"--objects knows {' and '.join(SUITES)} alone")
    tasks = tasks_of(suites)
    plan_digest = plans.digest()
    try:
        if options.declared is not None or set(suites) - set(SUITES):
            wanted = {name: found["tools"] for name, found in tasks.items()}
            brought.declarations(options.declared or declared.FILE, wanted)
        if options.plans is not None:
            plan_digest = brought.plans(options.plans, suites)
    except brought.Unusable as why:
        print(f"benchmarks.agentdojo: {why}", file=sys.stderr)
        return 2
    all_pairs = pairs(tasks, options.quick)
    planned = all((suite, user) in plans.PLANS for suite, user, _ in all_pairs)
    ours = suites == SUITES and options.declared is options.plans is None
    digests = {"declarations": declared.digest(), "plans": "-", "planner": "-"}
    if planned:
        digests |= {"plans": plan_digest, "planner": planner.digest()}
    for what, digest in digests.items():
        print(f"{what:12} sha256 {digest}", file=sys.stderr, flush=True)
    variants = table.variants(planned=planned, objects=options.objects)
    found = measure(variants, all_pairs, options.processes)
    rows = [
        table.row(variant, suite, scores)
        for variant, scores in found.items()
        for suite in (*suites, "all")
    ]
    show([table.HEAD, *map(table.cells, rows)])
    scores = [score for some in found.values() for score in some]
    verdicts = (
        [] if options.objects else table.verdicts(rows, scores, targets=ours, planned=planned)
    )
    for claim, holds, figure in verdicts:
        print(f"{'holds' if holds else 'FAILS'}  {claim}: {figure}")
    seconds = round(time.monotonic() - began)
    for what, digest in digests.items():
        print(f"{what:12} sha256 {digest}")
    print(f"{len(scores)} runs, {seconds} s")
    options.results.write_text(
        json.dumps(
            {
                "package": "agentdojo 0.1.35",
                "benchmark": "v1.2.2",
                "suites": suites,
                **digests,
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
