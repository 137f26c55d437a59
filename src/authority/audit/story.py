"""What happened around an incident, told from the log: a timeline, and how far it reached.

Rules
- Both are computed from entries alone, so anybody with the log gets the same.
- Concerned are the run that caused it with all that descend from it, or, when it concerns everything,
  every run that was running when it was opened.
- *Reached* is what was performed or may have been: an admission without an outcome counts (`in doubt`).
- The first hostile byte of a run is the first answer that carried an untrusted source; what the run did
  before it was not shaped by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from authority.audit.errors import LogError

Entry = dict[str, Any]

_CHANGES = frozenset(
    [
        *("fs.write", "fs.append", "fs.mkdir", "fs.rename", "fs.delete", "fs.modify"),
        *("fs.attributes", "fs.symlink", "fs.link"),
    ]
)
_READS = frozenset({"fs.read", "fs.open", "fs.list", "fs.stat"})
_NETWORK = frozenset({"http.request", "net.connect"})
_OF_A_CASE = frozenset({"incident.step", "resume"})


@dataclass
class Reach:
    """How far it went. Resources with the entries that name them."""

    runs: list[str] = field(default_factory=list)
    read: dict[str, list[int]] = field(default_factory=dict)
    changed: dict[str, list[int]] = field(default_factory=dict)
    hosts: dict[str, list[int]] = field(default_factory=dict)
    tools: dict[str, list[int]] = field(default_factory=dict)
    models: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, list[int]] = field(default_factory=dict)
    in_doubt: list[int] = field(default_factory=list)
    hostile: dict[str, dict[str, Any]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass
class Story:
    """One incident, with the entries that tell it."""

    incident: Entry
    steps: list[Entry]
    timeline: list[Entry]
    reach: Reach


def tell(log: Iterable[Entry], number: int) -> Story:
    """The story of incident `number`. Raises `LogError` when the log holds no such incident."""
    entries = list(log)
    opened = next((e for e in entries if e["seq"] == number and e["kind"] == "incident"), None)
    if opened is None:
        raise LogError(f"entry {number} opens no incident", "'authority incident show' lists them")
    concerned = _concerned(entries, opened)
    steps = [
        e
        for e in entries
        if (e["kind"] in _OF_A_CASE and e.get("incident") == number)
        or (e["kind"] == "halt" and e.get("incident", -1) == number)
    ]
    seen = {e["seq"] for e in steps} | {number}
    timeline = [e for e in entries if e["seq"] in seen or (e.get("run") in concerned and _tells(e))]
    return Story(opened, steps, timeline, reached(entries, concerned))


def _concerned(entries: list[Entry], opened: Entry) -> list[str]:
    """Runs in the order in which they started."""
    found: list[str] = []
    ended: set[str] = set()
    for entry in entries:
        kind = entry["kind"]
        if kind == "run.start":
            if opened.get("wide"):
                if entry["seq"] < opened["seq"]:
                    found.append(entry["run"])
            elif entry["run"] == opened.get("run") or entry.get("parent") in found:
                found.append(entry["run"])
        elif kind == "run.end" and entry["seq"] < opened["seq"]:
            ended.add(entry["run"])
    return [run for run in found if not (opened.get("wide") and run in ended)]


def _tells(entry: Entry) -> bool:
    """Output is the program's own and tells nothing about what it did."""
    return entry.get("effect") != "output" and entry["kind"] != "chunk"


def reached(entries: Iterable[Entry], runs: list[str]) -> Reach:
    """What these runs touched."""
    reach = Reach(runs=list(runs))
    open_: dict[int, Entry] = {}
    for entry in entries:
        run = entry.get("run", "")
        if run not in runs:
            continue
        kind = entry["kind"]
        if kind in {"outcome", "chunk", "tally"} and entry.get("sources"):
            reach.hostile.setdefault(
                run, {"entry": entry["seq"], "sources": sorted(entry["sources"])}
            )
        if kind == "admit" and not entry.get("final"):
            open_[entry["seq"]] = entry
        elif kind == "outcome":
            admitted = open_.pop(entry["of"], None)
            if admitted is not None and entry["status"] != "aborted":
                _note(reach, admitted)
    for seq, entry in open_.items():
        reach.in_doubt.append(seq)
        _note(reach, entry)
    return reach


def _note(reach: Reach, admitted: Entry) -> None:
    effect, resource, seq = admitted["effect"], admitted["resource"], admitted["seq"]
    family = effect.partition(".")[0]
    if effect in _CHANGES:
        _add(reach.changed, resource, seq)
        if admitted.get("target"):
            _add(reach.changed, admitted["target"], seq)
    elif effect in _READS:
        _add(reach.read, resource, seq)
    elif effect in _NETWORK:
        _add(reach.hosts, resource.partition("://")[2].partition("/")[0], seq)
    elif family in {"tool", "mcp"}:
        _add(reach.tools, resource, seq)
    elif family == "model":
        _add(reach.models, resource, seq)
    elif effect == "msg.send":
        _add(reach.messages, resource, seq)


def _add(where: dict[str, list[int]], name: str, seq: int) -> None:
    where.setdefault(name, []).append(seq)
