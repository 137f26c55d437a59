"""What both acts stand on: the screen, what must hold, the commands as a person types them, the log.

The log is read without Authority here, as JSON, so that what the demo says about a run does not rest on
what Authority says about itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

HERE = Path(__file__).resolve().parent
SECRET = "copper-lantern-9-orchard"
screen = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)


class Expectations:
    """What must hold; collected, so that one failure does not hide the next."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, holds: bool, what: str) -> None:
        screen.print(f"  {'[green]yes[/]' if holds else '[bold red]NO [/]'}  {escape(what)}")
        if not holds:
            self.failed.append(what)


class Authority:
    """The commands, as a person types them. `isolation` are the words that say where a run lives."""

    def __init__(self, state: Path, isolation: Sequence[str] = ()) -> None:
        self.state = state
        self.isolation = tuple(isolation)
        bin_folder = Path(sys.executable).parent
        found = shutil.which("authority", path=str(bin_folder)) or shutil.which("authority")
        if found is None:
            raise SystemExit("the command 'authority' is not installed: run scripts/setup.sh first")
        self.program = found
        self.environment = {**os.environ, "AUTHORITY_STATE": str(state)}
        self.environment["PATH"] = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"

    def __call__(
        self, *words: str, cwd: Path, state: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "AUTHORITY_STATE": str(state or self.state)}
        return subprocess.run(
            [self.program, *words],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def run(
        self, cwd: Path, *words: str, secrets: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any], str]:
        """`authority run --json`: exit code, the result, and what the program printed. `secrets` are
        variables of the caller beside its own."""
        command = [self.program, "run", "--json", *self.isolation, "--policy", "policy.toml"]
        command += ["--", *words]
        printed = []
        with subprocess.Popen(
            command,
            cwd=cwd,
            env={**self.environment, **(secrets or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            out, err = process.stdout, process.stderr
            assert out is not None
            assert err is not None
            result: list[str] = []
            reader = threading.Thread(target=lambda: result.append(out.read()))
            reader.start()
            for line in err:
                printed.append(line)
                screen.print(colour(line.rstrip("\n")))
            reader.join()
        text = "".join(result).strip()
        try:
            value = json.loads(text) if text else {}
        except ValueError:
            value = {"unreadable": text}
        return process.returncode, value, "".join(printed)

    def could_run(self, code: int, result: Mapping[str, Any]) -> bool:
        """Whether the run took place; what was in the way is printed."""
        if code != 125 and result:
            return True
        screen.print(f"[bold red]Authority could not run it[/] {escape(json.dumps(result))}")
        screen.print("[bold]authority doctor[/] names the cause and the fix.")
        if "vm" in self.isolation and "--emulate" not in self.isolation:
            screen.print(
                "A virtual machine wants KVM, or to be emulated by name, which is slow: "
                "[bold]make demo ISOLATION=vm EMULATE=1[/]\n"
                "[bold]make demo[/] alone runs without one where there is no KVM."
            )
        return False

    def typed(self, *words: str) -> str:
        """The command line of a run, as the screen shows it."""
        return " ".join(["authority run", *self.isolation, "--policy policy.toml --", *words])


def colour(line: str) -> str:
    shown = escape(line)
    if line.startswith("  refused"):
        return f"[yellow]{shown}[/]"
    return f"[bold red]{shown}[/]" if line.startswith("  ALLOWED") else shown


def entries(state: Path) -> list[dict[str, Any]]:
    """The log, read without Authority: it is JSON, a line an entry (docs/log-format.md)."""
    found = []
    for segment in sorted((state / "log").glob("*.jsonl")):
        for line in segment.read_bytes().split(b"\n"):
            if line.strip(b"\0"):
                found.append(json.loads(line))
    return found


def flip_one_byte(state: Path, seq: int) -> None:
    """Changes one character in the middle of entry `seq`."""
    for segment in sorted((state / "log").glob("*.jsonl")):
        data = bytearray(segment.read_bytes())
        position = 0
        for line in bytes(data).split(b"\n"):
            if line.strip(b"\0") and json.loads(line)["seq"] == seq:
                data[position + len(line) // 2] ^= 1
                segment.write_bytes(data)
                return
            position += len(line) + 1
    raise SystemExit(f"entry {seq} was not found")


def step(title: str) -> None:
    screen.print()
    screen.print(Rule(f"[bold]{escape(title)}[/]", align="left"))


def show_verdicts(log: Sequence[dict[str, Any]]) -> None:
    """Effects by verdict, from the log."""
    counts: dict[str, Counter[str]] = {}
    for entry in log:
        if entry["kind"] in {"admit", "denied"}:
            verdict = "allowed" if entry["kind"] == "admit" else entry["code"]
            counts.setdefault(entry.get("effect") or "(unreadable)", Counter())[verdict] += 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("effect", "allowed", "refused"):
        table.add_column(column, justify="right" if column == "allowed" else "left", no_wrap=True)
    for effect, found in sorted(counts.items()):
        refused = ", ".join(f"{n} x {code}" for code, n in sorted(found.items()) if code[0] == "E")
        table.add_row(effect, str(found["allowed"]), f"[yellow]{refused}[/]")
    screen.print(table)


def check_log(expect: Expectations, authority: Authority, place: Path, denial: int) -> None:
    step("The log")
    done = authority("audit", "verify", cwd=place)
    screen.print(escape((done.stdout + done.stderr).strip()))
    expect(done.returncode == 0, "authority audit verify: the chain is whole")

    step(f"authority why {denial}")
    done = authority("why", str(denial), cwd=place)
    screen.print(escape((done.stdout + done.stderr).strip()))
    expect(done.returncode == 0 and "secrets/bank.txt" in done.stdout, "the denial is explained")

    step(f"One bit of entry {denial} is changed, in a copy")
    copy = place / "copy"
    shutil.copytree(authority.state, copy, ignore=only_files)
    control = authority("audit", "verify", cwd=place, state=copy)
    expect(control.returncode == 0, "control: the copy verifies before the change")
    flip_one_byte(copy, denial)
    done = authority("audit", "verify", cwd=place, state=copy)
    screen.print(escape((done.stdout + done.stderr).strip()))
    named = re.search(rf"\b{denial}\b", done.stdout + done.stderr) is not None
    expect(done.returncode != 0 and named, f"the change is detected and entry {denial} is named")


def only_files(folder: str, names: list[str]) -> set[str]:
    """For copytree: a gate's sockets are not part of its state."""
    paths = {name: Path(folder, name) for name in names}
    return {name for name, path in paths.items() if not (path.is_file() or path.is_dir())}
