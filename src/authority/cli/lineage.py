"""Lineage for a person: a small tree, from an argument back to the bytes that shaped it.

    to = "eve@attacker.example"
      <- entry 85: fs.read fs:/srv/office/docs/letter.md, bytes 1004 to 1024 of /data
           ...use office/send_mail {"to": ">>eve@attacker.example<<", "subject"...

Rules
- One argument, its value, and below it the places that hold most of it: the entry in which the bytes
  came, the call that brought them, where they stand, and the bytes, marked, with what is around.
- Below a part that a handle stands for stand the arguments of that handle's own call, further in.
- What was read before and shares less, or nothing, is named last: it may have steered all the same.
- All of it is somebody else's words: printable ASCII, one line each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from authority.audit.lineage import Lineage, Step
from authority.audit.store import ContentStore
from authority.gate.statedir import StateDir
from authority.kernel.canonical import printable
from authority.kernel.pointers import Malformed, Unfit, project

EXCERPT = 120
VALUE = 60
NAMED = 4
"""How many of the places that share no words are named."""


def lineage(directory: StateDir, seq: int) -> list[Step]:
    """The way from a request's arguments back to the bytes that shaped them."""
    sealed = directory.keys / "sealed"
    store = ContentStore(directory.store, keys=sealed if sealed.is_dir() else None)
    return Lineage(directory.log, store, seq).of(seq)


def tree(steps: Sequence[Step], arguments: Any = None) -> list[str]:
    """The lines. `arguments` are the request's own, so that their values can be shown."""
    if not steps:
        return ["no untrusted words: everything that it was given is the program's own"]
    nearest, less = _nearest(steps)
    lines: list[str] = []
    shown = ("", -1)
    for step in nearest:
        pad = "    " * step.depth
        if (step.at, step.depth) != shown or step.handle:
            lines.append(
                f"{pad}{printable(step.argument, 60) or 'the call'}{_value(step, arguments)}"
            )
            shown = (step.at, step.depth)
        lines += [f"{pad}  {line}" for line in _place(step)]
    return lines + list(_also(less, bool(lines)))


def _nearest(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The steps that say most of their arguments, by argument, and one for each other place."""
    said = [step for step in steps if step.handle or step.start >= 0]
    most: dict[tuple[int, str], int] = {}
    for step in said:
        key = (step.depth, step.at)
        most[key] = max(most.get(key, 0), step.end - step.start)
    kept = [
        step for step in said if step.handle or step.end - step.start == most[step.depth, step.at]
    ]
    if not any(step.handle for step in kept):
        kept.sort(key=lambda step: step.at)
    places = {step.entry for step in kept}
    others = {step.entry: step for step in steps if step.entry not in places}
    return kept, list(others.values())


def _value(step: Step, arguments: Any) -> str:
    if step.depth or not step.at or arguments is None:
        return ""
    try:
        found = project(arguments, step.at)
    except (Unfit, Malformed):
        return ""
    return f" = {shown_value(found)}"


def shown_value(value: Any, most: int = VALUE) -> str:
    """A value as one line. A text can't seem to end before it does; what is cut says so."""
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    whole = printable(text)
    cut = f" ({len(text)} characters)" if len(whole) > most else ""
    shown = printable(text, most)
    if not isinstance(value, str):
        return shown + cut
    quoted = shown.replace('"', '\\"')
    return f'"{quoted}"{cut}'


def _place(step: Step) -> Iterator[str]:
    what = printable(f"{step.effect} {step.resource}".strip(), 200)
    by = f" ({step.handle}{printable(step.path, 80)})" if step.handle else ""
    where = "all of it"
    if step.start >= 0:
        inside = f" of {printable(step.field, 40)}" if step.field else ""
        where = f"bytes {step.start} to {step.end}{inside}"
    yield f"<- entry {step.entry}: {what}{by}, {where}"
    if step.start >= 0:
        before = f"...{printable(step.before)}" if step.before else ""
        after = f"{printable(step.after)}..." if step.after else ""
        yield f"     {before}>>{printable(step.text, EXCERPT)}<<{after}"


def _also(silent: Sequence[Step], more: bool) -> Iterator[str]:
    """What was read and shares less with the arguments, or nothing."""
    if not silent:
        return
    yield ("read before as well:" if more else "the call: what was read before it may steer it")
    for step in silent[:NAMED]:
        yield f"  <- entry {step.entry}: {printable(f'{step.effect} {step.resource}'.strip(), 200)}"
    if len(silent) > NAMED:
        yield f"  and {len(silent) - NAMED} more (--json has them all)"
