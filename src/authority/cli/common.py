"""What commands share: options, the state directory, tables that are plain text off a terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from authority.cli.usage import Parser
from authority.errors import AuthorityError
from authority.gate import statedir
from authority.gate.statedir import StateDir
from authority.kernel.printing import harmless, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every command has."""
    made = Parser(prog=f"authority {command}", description=description)
    add_common(made)
    return made


def add_common(made: argparse.ArgumentParser) -> None:
    """`--state` and `--json`."""
    made.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="state directory (default: $AUTHORITY_STATE, or authority in the XDG state directory)",
    )
    made.add_argument("--json", action="store_true", help="one JSON document on standard output")


def state_of(options: argparse.Namespace) -> StateDir:
    """The state directory that was named, checked. Raises `StateDirError`."""
    return statedir.open_existing((options.state or statedir.default_root()).absolute())


def write_new(path: Path, text: str) -> str:
    """Write a file that is not there yet, never through a link; its name. Raises `AuthorityError`.

    Written by root in somebody else's folder, it is theirs.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise AuthorityError(
            f"{printable(str(path))} is there already, and is left as it is", "name another file"
        ) from None
    except OSError as error:
        raise AuthorityError(
            f"can't write {printable(str(path))}: {error.strerror}", "name another file"
        ) from error
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    parent = path.absolute().parent.stat()
    if os.geteuid() == 0 and parent.st_uid != 0:
        os.chown(path, parent.st_uid, parent.st_gid)
    return str(path)


def confirmed(question: str) -> bool:
    """Ask the person at the terminal. Nothing but yes is yes, an interrupt neither."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return False


def print_json(value: Any) -> None:
    """One JSON document, in ASCII, so that nothing in it acts on a terminal."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    file: Any = None,
) -> None:
    """A table: rich on a terminal, tab-free aligned text elsewhere. Nothing in a cell can act there.

    So is one that is too wide for the terminal: no cell is cut, and in a row that does not fit the last
    cell stands below, by itself.
    """
    out = file or sys.stdout
    title, columns = harmless(title), [harmless(column) for column in columns]
    body = [[harmless(str(cell)) for cell in row] for row in rows]
    widths = [
        max(len(column), *(len(row[i]) for row in body)) if body else len(column)
        for i, column in enumerate(columns)
    ]
    room = columns_of(out) if out.isatty() else 0
    if room > sum(widths) + 3 * len(widths):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        made = Table(title=title or None, title_justify="left")
        for column in columns:
            made.add_column(column, justify="right" if column in right else "left")
        for row in body:
            made.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        Console(file=out).print(made)
        return
    if title:
        print(title, file=out)
    for row in [list(columns), *body]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        line = ("  " + "  ".join(cells)).rstrip()
        if room and len(line) > room and row[-1] and len(row) > 1:
            line = ("  " + "  ".join(cells[:-1])).rstrip() + f"\n      {row[-1]}"
        print(line, file=out)


def columns_of(out: Any) -> int:
    """How wide the terminal is; 80 where it does not say."""
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except OSError:
        return 80


def _style(cell: str) -> str:
    if cell in {"ok", "yes", "done", "in force", "allowed", "ALLOWED"}:
        return "green"
    if cell in {"FAILED", "no", "denied", "missing", "DENIED"} or cell.startswith("E_"):
        return "red"
    return ""


def amount(dimension: str, value: int) -> str:
    """A budget's figure as people write it."""
    if dimension == "cost_usd":
        return f"${value / 1_000_000:.4f}"
    if dimension == "wall_time":
        return f"{value / 1_000_000:.1f} s"
    if dimension.endswith("_bytes"):
        for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
            if value >= size:
                return f"{value / size:.1f} {unit}"
        return f"{value} B"
    return f"{value}"


def age(seconds: int) -> str:
    """A span in its largest unit."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def when(time_us: int) -> str:
    """A time as ISO 8601, UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
