"""The table at the end of a run: what was done and denied, budgets, the log's head, protection."""

from __future__ import annotations

import sys
import textwrap

from authority.cli.common import amount, columns_of, table
from authority.kernel.printing import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO


def show(end: dict[str, Any]) -> None:
    """Print it to standard error."""
    out = sys.stderr
    effects = sorted({*end["done"], *end["denied"], *end["failed"]})
    title = f"run {end['run']}: {end['reason']}, code {end['code']}"
    print(file=out)
    if effects:
        counts = [end["done"], end["denied"], end["failed"]]
        rows = [(effect, *(each.get(effect, 0) for each in counts)) for effect in effects]
        columns = ("effect", "done", "denied", "failed")
        table(title, columns, rows, right=columns[1:], file=out)
    else:
        print(f"{harmless(title)}; it asked for nothing", file=out)
    budgets = _budgets(end["budgets"])
    if budgets:
        table("budgets", ("budget", "used", "left", "limit"), budgets,
              right=("used", "left", "limit"), file=out)  # fmt: skip
    if end["first_denials"]:
        table(
            "denied ('authority why ENTRY' explains)",
            ("entry", "code", "effect", "resource"),
            [(d["seq"], d["code"], d["effect"], d["resource"]) for d in end["first_denials"]],
            right=("entry",),
            file=out,
        )
    if end["acts_later"]:
        table(
            "written in its own repositories and folders, and acts later: look before you use it",
            ("what it is", "resource"),
            [(what, name) for name, what in sorted(end["acts_later"].items())],
            file=out,
        )
    sources = end["label"]["sources"]
    if sources or end["label"]["secrets"]:
        named = ", ".join([*sources[:3], *end["label"]["secrets"]])
        more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
        print(f"label: shaped by {harmless(named)}{more}", file=out)
    print(f"protection: {_fitted(_protection(end['protection']), out)}", file=out)
    print(f"log head: entry {end['head']['seq']} {end['head']['hash']}", file=out)


def _budgets(budgets: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, limit in sorted(budgets["limit"].items()):
        used = budgets["spent"].get(name, 0)
        rows.append(
            (name, amount(name, used), amount(name, max(limit - used, 0)), amount(name, limit))
        )
    return rows


def _fitted(parts: list[str], out: TextIO) -> str:
    """On a terminal as many to a line as it has room for, each line after the first indented."""
    text = harmless(", ".join(parts))
    if not out.isatty():
        return text
    return textwrap.fill(
        text, max(columns_of(out) - 1, 40), initial_indent=" " * len("protection: "),
        subsequent_indent="  ", break_long_words=False, break_on_hyphens=False,
    ).lstrip()  # fmt: skip


def _protection(found: dict[str, Any]) -> list[str]:
    if not found.get("contained"):
        return ["NOT CONTAINED (attached)"]
    parts = []
    for key, value in sorted(found.items()):
        if key in {"contained", "runtime"}:
            continue
        if isinstance(value, bool):
            parts.append(key if value else f"NO {key}")
        elif isinstance(value, str | int):
            parts.append(f"{key} {value}")
    return parts
