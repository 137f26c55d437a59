"""`python -m benchmarks`: runs each benchmark in turn, prints one table, writes `results.json`.

- A peer that is not installed is a row that says so. A benchmark that fails is a row that says why;
  the others go on, and the exit code is 1.
- A missed target is shown and written down; it fails the command only with `--strict`, because a
  busy machine misses targets too.
- With `--only` the rows of the others stay in the file as they were.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
MEMBERS = {"name", "value", "unit", "target", "ok", "detail"}
Row = dict[str, Any]


def benchmarks() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def failed(name: str, why: str) -> list[Row]:
    row = {"name": name, "value": None, "unit": "", "target": "runs", "ok": False, "detail": why}
    return [row]


def absent(name: str, module: str) -> list[Row]:
    why = f"{module} is not installed"
    return [{"name": name, "value": None, "unit": "", "target": "", "ok": None, "detail": why}]


def run_one(name: str, quick: bool) -> list[Row]:
    """The rows of one benchmark; a failure of any kind is a row too."""
    try:
        run: Callable[[bool], list[Row]] = importlib.import_module(f"benchmarks.bench_{name}").run
        rows = run(quick)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if missing.split(".")[0] in {"authority", "benchmarks"}:
            return failed(name, str(error))
        return absent(name, missing)
    except Exception as error:  # whatever it was, it is shown, and the exit code says so
        return failed(name, f"{type(error).__name__}: {error}")
    for row in rows:
        if set(row) != MEMBERS or isinstance(row["value"], str):
            return failed(name, f"malformed row: {row!r}")
    return rows


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures; nothing that names the machine."""
    return {
        "system": platform.system(),
        "kernel": platform.release().split("-")[0],
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
    }


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"


def table(results: dict[str, Any]) -> Table:
    out = Table(title="Authority, measured", title_justify="left", pad_edge=False)
    out.add_column("benchmark", no_wrap=True)
    out.add_column("what", ratio=2)
    out.add_column("value", justify="right", no_wrap=True)
    out.add_column("unit", no_wrap=True)
    out.add_column("target", no_wrap=True)
    out.add_column("", no_wrap=True)
    out.add_column("detail", ratio=3)
    signs = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for name, entry in results.items():
        for row in entry["rows"]:
            cells = [name, row["name"], figure(row["value"]), row["unit"], str(row["target"])]
            out.add_row(*map(escape, cells), signs[row["ok"]], escape(str(row["detail"])))
        out.add_section()
    return out


def main() -> int:
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    parser.add_argument("--only", action="append", choices=known, metavar="NAME", default=[])
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    wanted = parser.parse_args()
    if wanted.list:
        print("\n".join(known))
        return 0
    screen, progress = Console(width=None if sys.stdout.isatty() else 150), Console(stderr=True)
    fresh: dict[str, Any] = {}
    for name in wanted.only or known:
        began = time.monotonic()
        with progress.status(f"measuring: {name}"):
            rows = run_one(name, wanted.quick)
        seconds = round(time.monotonic() - began, 1)
        fresh[name] = {"quick": wanted.quick, "seconds": seconds, "rows": rows}
    screen.print(table(fresh))

    kept = {}
    if wanted.only and RESULTS.exists():
        before = json.loads(RESULTS.read_text("utf-8"))["benchmarks"]
        kept = {name: before[name] for name in before if name in known}
    everything = {"machine": machine(), "benchmarks": dict(sorted({**kept, **fresh}.items()))}
    temporary = RESULTS.with_suffix(".json.part")
    temporary.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(RESULTS)

    rows = [row for entry in fresh.values() for row in entry["rows"]]
    missed = [row for row in rows if row["ok"] is False]
    crashed = [row for row in missed if row["target"] == "runs"]
    screen.print(f"{len(rows)} rows, {len(missed)} targets missed, {len(crashed)} failed")
    return 1 if crashed or (wanted.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
