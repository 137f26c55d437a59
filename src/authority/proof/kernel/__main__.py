"""`python -m authority.proof.kernel [--depth N]`: search the kernel, then kill every mutant."""

from __future__ import annotations

import argparse
import json
import sys

from authority.proof.kernel.mutants import MUTANTS, applied
from authority.proof.kernel.search import Found, search

DEPTH = 6
MUTANT_DEPTH = 5


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="python -m authority.proof.kernel", description=__doc__)
    made.add_argument("--depth", type=int, default=DEPTH, help=f"steps to walk (default: {DEPTH})")
    made.add_argument("--mutant-depth", type=int, default=MUTANT_DEPTH)
    made.add_argument("--json", action="store_true")
    options = made.parse_args(arguments)
    found = search(options.depth)
    killed = []
    if not options.json:
        _say_search(found)
    for mutant in MUTANTS:
        with applied(mutant):
            seen = search(options.mutant_depth)
        killed.append((mutant, seen))
        if not options.json:
            word = "killed  " if seen.violation else "SURVIVED"
            where = f"in {seen.depth} steps" if seen.violation else f"{seen.worlds} worlds"
            print(f"  {word} {mutant.name} ({where})", flush=True)
    good = not found.violation and all(s.invariant == m.invariant for m, s in killed)
    if options.json:
        print(json.dumps(_plain(found, killed, good), indent=2, sort_keys=True))
    else:
        caught = sum(bool(seen.violation) for _, seen in killed)
        print(f"{caught} of {len(killed)} mutants killed")
        for mutant, seen in killed:
            if seen.violation and seen.invariant != mutant.invariant:
                print(f"  '{mutant.name}' broke another invariant: {seen.invariant}")
    return 0 if good else 1


def _say_search(found: Found) -> None:
    print(
        f"{found.worlds} worlds, {found.steps} steps to depth {found.depth} "
        f"in {found.seconds:.1f} s",
        flush=True,
    )
    if found.violation:
        print(f"VIOLATED {found.invariant}: {found.violation}")
        for name in found.trace:
            print(f"    {name}")
    else:
        print("no invariant was broken")


def _plain(found: Found, killed: list, good: bool) -> dict:  # type: ignore[type-arg]
    return {
        "ok": good,
        "depth": found.depth,
        "worlds": found.worlds,
        "steps": found.steps,
        "seconds": round(found.seconds, 1),
        "violation": found.violation,
        "trace": list(found.trace),
        "mutants": [
            {
                "name": mutant.name,
                "invariant": mutant.invariant,
                "killed": bool(seen.violation),
                "broke": seen.invariant,
                "trace": list(seen.trace),
            }
            for mutant, seen in killed
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
