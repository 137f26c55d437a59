"""What a policy allows more than another one: for the person who has to accept it.

Works on the canonical documents, so on what the digests cover. It errs towards showing: whatever
can't be seen to be narrower is listed. It is a difference for people; that nothing was widened is
what a proof says.

Rules
- Something added to a list that allows, or taken from a list that denies, asks or holds back (a tool's
  control arguments, secrets), is wider.
- A larger number, or one that was taken out, is wider; so is anything else that changed.
"""

from __future__ import annotations

from typing import Any

_DENYING = frozenset({"deny", "require", "control", "secret"})
_LIMITING = frozenset({"budgets", "limits"})


def widened(old: Any, new: Any) -> list[str]:
    """One line for each part of `new` that may allow more than `old` did; empty when none does."""
    found: list[str] = []
    _compare("", old, new, found)
    return found


def _compare(path: str, old: Any, new: Any, found: list[str]) -> None:
    if old == new:
        return
    name = path.rsplit(".", 1)[-1]
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            _compare(f"{path}.{key}" if path else key, old.get(key), new.get(key), found)
        return
    if isinstance(old, list | None) and isinstance(new, list | None) and _plain(old, new):
        before, after = set(old or ()), set(new or ())
        if name == "content" and old is None and not after:
            found.append(f"{path}: [] (was not set)")
        if name in _DENYING or path.startswith("labels.secrets."):
            found += [f"{path}: no longer {item!r}" for item in sorted(before - after)]
        else:
            found += [f"{path}: {item!r}" for item in sorted(after - before)]
        return
    limiting = any(part in _LIMITING for part in path.split("."))
    if limiting and isinstance(old, int) and isinstance(new, int) and new < old:
        return
    if limiting and old is None and isinstance(new, int):
        return
    found.append(f"{path}: {_short(new)} (was {_short(old)})")


def _plain(*lists: Any) -> bool:
    return all(isinstance(item, str) for each in lists for item in each or ())


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
