"""Entries of the log for people: one a line, or one in full with a row for each of its members.

Rules
- Nothing is left out and nothing cut: what is not shown here is the line itself (`--json`).
- What is inside a member has its path before it (`facts.size`); times and amounts are written as people
  write them, everything else as it stands, escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from authority.cli.common import amount, table, when
from authority.kernel.canonical import printable

_HEAD = ("seq", "kind", "time", "run", "hash")
_TIMES = frozenset({"time", "at", "changed", "not_before", "expires"})
_AMOUNTS = frozenset({"reserve", "spent", "charge", "budgets"})


def listed(entries: Iterable[dict[str, Any]], as_json: bool) -> None:
    """One a line."""
    if as_json:
        for entry in entries:
            print(json.dumps(entry, sort_keys=True))
        return
    rows = [
        (e["seq"], when(e["time"])[11:23], e.get("run", "-"), e["kind"], summary(e))
        for e in entries
    ]
    if not rows:
        print("no entry matches")
        return
    table("", ("entry", "time", "run", "kind", "what"), rows, right=("entry",))


def line(entry: dict[str, Any]) -> str:
    """The same for one, with its day, for a list that has no end."""
    return (
        f"{entry['seq']:>7}  {when(entry['time'])}  {entry.get('run', '-'):<12}  "
        f"{entry['kind']:<10}  {summary(entry)}"
    )


def show(entry: dict[str, Any]) -> None:
    """One in full."""
    about = summary(entry)
    print(f"entry {entry['seq']}: {entry['kind']}{f', {about}' if about else ''}")
    print(f"{when(entry['time'])}, run {entry.get('run', '-')}")
    rest = {key: value for key, value in entry.items() if key not in _HEAD}
    table("", ("member", "value"), [*members(rest), ("hash", entry["hash"])])
    if entry["kind"] == "denied":
        print(f"'authority why {entry['seq']}' explains it")


def members(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A row for each member, those inside others with their path."""
    for key, inner in sorted(value.items()):
        name = f"{before}{printable(key)}"
        if isinstance(inner, dict) and inner:
            yield from members(inner, f"{name}.")
        elif isinstance(inner, list) and any(isinstance(each, dict | list) for each in inner):
            yield from members({str(i): each for i, each in enumerate(inner)}, f"{name}.")
        else:
            yield name, _value(before.rpartition(".")[0], key, inner)


def _value(where: str, key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(where, key, each) for each in value) or "none"
    if isinstance(value, bool) or value is None:
        return "-" if value is None else "yes" if value else "no"
    if isinstance(value, int):
        if key in _TIMES and value > 10**12:
            return when(value)
        return amount(key, value) if where in _AMOUNTS else str(value)
    return printable(str(value)) if value != {} else "none"


def summary(entry: dict[str, Any]) -> str:
    """An entry in a few words. Its strings are printable: that is how they are stored."""
    kind = entry["kind"]
    what = " ".join(
        printable(str(entry[k])) for k in ("effect", "verb", "resource") if entry.get(k)
    )
    if kind == "denied":
        return f"{entry['code']} {what}: {printable(entry['reason'])}"
    if kind == "outcome":
        code = f" {entry['code']}" if entry.get("code") else ""
        return f"of {entry['of']}: {entry['status']}{code}"
    if kind == "admit":
        return what
    if kind == "run.start":
        return printable(" ".join(entry.get("program", [])), 80)
    if kind == "tally":
        counts = sorted(entry["counts"].items())
        return ", ".join(
            f"{n} x {printable(effect.lstrip('!'))}{' refused' if effect[:1] == '!' else ''}"
            for effect, n in counts
        )
    if kind == "chunk":
        return f"of {entry['of']}: {entry['body']['size']} bytes {entry['way']}"
    if kind == "approval":
        return f"{'granted' if entry['granted'] else 'refused'}: {printable(entry['id'], 80)}"
    for name in ("reason", "action", "what", "step", "verdict", "id", "kid"):
        if entry.get(name):
            return printable(str(entry[name]), 80)
    return ""
