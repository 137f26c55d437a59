"""`authority rejudge --policy NEW [RUN...]`: what recorded runs would have looked like under NEW.

Nothing is run and nothing is written. Exit codes: 0 every request would be answered as it was, 1 some
would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from authority.audit.store import ContentStore
from authority.cli.common import amount, parser, print_json, state_of, table
from authority.gate import policyfile
from authority.kernel.canonical import printable
from authority.rejudge.sources import Sources
from authority.rejudge.whatif import WhatIf, what_if


def main(arguments: Sequence[str]) -> int:
    made = parser("rejudge", "Ask recorded runs of another policy.")
    made.add_argument(
        "--policy", type=Path, required=True, metavar="NEW", help="the policy to ask (TOML or JSON)"
    )
    made.add_argument("run", nargs="*", metavar="RUN", help="runs of the log (default: all)")
    options = made.parse_args(arguments)
    directory = state_of(options)
    sealed = directory.keys / "sealed"
    store = ContentStore(directory.store, keys=sealed if sealed.is_dir() else None)
    found = what_if(
        directory.log,
        policyfile.read(options.policy).policy,
        options.run,
        Sources(store, sealed=sealed.is_dir()),
    )
    if options.json:
        print_json(found.to_json())
    else:
        _say(found)
    return 1 if found.changed else 0


def _say(found: WhatIf) -> None:
    print(
        f"{found.asked} requests of {len(found.runs)} runs asked again: {found.same} as they were"
    )
    if found.unasked:
        print(f"  {found.unasked} could not be asked again")
    if found.changed:
        table(
            "",
            ("change", "run", "request", "times", "entry", "why"),
            [
                (
                    c.change,
                    c.run,
                    printable(" ".join(filter(None, (c.effect, c.verb, c.resource))), 80),
                    str(c.count),
                    str(c.first),
                    printable(c.why, 80),
                )
                for c in found.changed
            ],
            right=("times", "entry"),
        )
    if found.budgets:
        table(
            "budgets that differ",
            ("run", "dimension", "limit", "under NEW", "spent"),
            [
                (b.run, b.dimension, _limit(b.dimension, b.before), _limit(b.dimension, b.after),
                 amount(b.dimension, b.spent) + (" (too much)" if _over(b.after, b.spent) else ""))
                for b in found.budgets
            ],
        )  # fmt: skip


def _limit(dimension: str, value: int | None) -> str:
    return "none" if value is None else amount(dimension, value)


def _over(limit: int | None, spent: int) -> bool:
    return limit is not None and spent > limit
