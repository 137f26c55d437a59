"""What a policy allows more than another one: for the person who has to accept it.

Works on the canonical documents, so on what the digests cover. It errs towards showing: whatever
can't be seen to be narrower is listed. It is a difference for people; that nothing was widened is
what a proof says.

Rules
- Something added to a list that allows, or taken from a list that denies, asks or holds back (a tool's
  control arguments, secrets), is wider.
- What releases a secret allows, whatever the secret is called.
- A list that a file with bases no longer gives is theirs from then on, so it is wider; one that it
  gives is an opinion of its own, an empty one too.
- A larger number, or one that was taken out, is wider; so is anything else that changed. One that was
  not given before was what holds where none is. What a file is called is no difference: its name
  stands in messages alone.
- A part that is new or gone as a whole is shown by what is in it, and by itself where that shows
  nothing; a price list by its date.
- A line names the place as a policy writes it; for what a base (`extends`) says, that stands before it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from authority.kernel.labels import USER
from authority.kernel.policy_sections import DEFAULT_BUDGETS, Limits

_DENYING = frozenset({"deny", "require", "control", "secret"})
_LIMITING = frozenset({"budgets", "limits"})
_NODE = frozenset({"doc", "base", "name"})
_PAIR = ("parent", "child")
_TRUSTED = "labels.trusted"
"""The list that holds the user where it is not given."""
_USUAL = {
    **{f"budgets.{name}": amount for name, amount in DEFAULT_BUDGETS.items()},
    **{f"limits.{name}": amount for name, amount in msgspec.structs.asdict(Limits()).items()},
}
"""Limits that hold where none is given."""


def widened(old: Any, new: Any) -> list[str]:
    """One line for each part of `new` that may allow more than `old` did; empty when none does."""
    found: list[str] = []
    _node("", old, new, found)
    return found


def _node(before: str, old: Any, new: Any, found: list[str]) -> None:
    """A document with what it extends, or a parent's and a child's."""
    if old == new:
        return
    if _is_pair(old) and _is_pair(new):
        for part in _PAIR:
            _node(f"{before}{part}: ", old[part], new[part], found)
        return
    if not (_is_node(old) and _is_node(new)):
        _compare(before.removesuffix(": "), old, new, found)
        return
    if old["base"] != new["base"]:
        here, there = (str(each["base"]).removeprefix("fs:") for each in (new, old))
        found.append(f"{before}the folder that paths are relative to: {here} (was {there})")
    lines: list[str] = []
    _compare("", old["doc"], new["doc"], lines, inherits=bool(new.get("extends")))
    found += [before + line for line in lines]
    bases, others = (each.get("extends", []) for each in (old, new))
    if len(bases) == len(others):
        for number, pair in enumerate(zip(bases, others, strict=True), 1):
            _node(f"{before}base {number}: ", *pair, found)
    else:
        found.append(f"{before}extends {len(others)} policies (was {len(bases)})")


def _is_pair(tree: Any) -> bool:
    return isinstance(tree, dict) and tree.keys() == set(_PAIR)


def _is_node(tree: Any) -> bool:
    return isinstance(tree, dict) and tree.keys() >= _NODE


def _compare(path: str, old: Any, new: Any, found: list[str], *, inherits: bool = False) -> None:
    if old == new:
        return
    name = path.rsplit(".", 1)[-1]
    if isinstance(old, dict | None) and isinstance(new, dict | None):
        if name == "prices" and (old is None or new is None):
            found.append(f"{path}: {_listed(new)} (was {_listed(old)})")
            return
        before = len(found)
        for key in sorted({*(old or ()), *(new or ())}):
            inner = f"{path}.{key}" if path else key
            pair = (old or {}).get(key), (new or {}).get(key)
            _compare(inner, *pair, found, inherits=inherits)
        if (old is None or new is None) and len(found) == before:
            found.append(f"{path}: {_short(new)} (was {_short(old)})")
        return
    if isinstance(old, list | None) and isinstance(new, list | None) and _plain(old, new):
        left_out = (USER,) if path == _TRUSTED else ()
        had = set(left_out if old is None else old)
        has = set(left_out if new is None else new)
        if name == "content" and old is None and not has:
            found.append(f"{path}: [] (was not set)")
        if _holds_back(path, name):
            found += [f"{path}: no longer {_short(item)}" for item in sorted(had - has)]
        elif new is None and inherits:
            found.append(f"{path}: not set (was {_short(old)})")
        else:
            found += [f"{path}: also {_short(item)}" for item in sorted(has - had)]
        return
    if path.endswith("filesystem.files") and new == "requests":
        return  # nothing is mounted: no way is narrower
    limiting = any(part in _LIMITING for part in path.split("."))
    if limiting and isinstance(old, int) and isinstance(new, int) and new < old:
        return
    usual = _USUAL.get(path)
    if limiting and old is None and isinstance(new, int) and (usual is None or new <= usual):
        return
    if limiting:
        new, old = _amount(name, new), _amount(name, old)
    was = _short(old)
    if old is None and usual is not None and not inherits:  # a base may have said otherwise
        was += f", so {_short(_amount(name, usual))}"
    found.append(f"{path}: {_short(new)} (was {was})")


def _holds_back(path: str, name: str) -> bool:
    if path.startswith("labels.release."):  # what follows is a secret's name
        return False
    return name in _DENYING or path.startswith("labels.secrets.")


def _plain(*lists: Any) -> bool:
    return all(isinstance(item, str) for each in lists for item in each or ())


def _short(value: Any) -> str:
    """As TOML writes it, so that it can be found in the file."""
    if value is None:
        return "not set"
    text = _toml(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _amount(name: str, value: Any) -> Any:
    """A limit as a policy writes it, where that is exact; otherwise as it is."""
    if type(value) is not int:
        return value
    if name == "cost_usd":
        return f"{value // 10**6}.{value % 10**6:06d}".rstrip("0").removesuffix(".")
    units: tuple[tuple[str, int], ...]
    if name == "wall_time":
        units = (("h", 3600 * 10**6), ("m", 60 * 10**6), ("s", 10**6), ("ms", 1000))
    elif name in ("memory", "tmp", "log") or name.endswith("_bytes"):
        units = (("GB", 10**9), ("MB", 10**6), ("KB", 1000))
    else:
        return value
    return next((f"{value // size}{unit}" for unit, size in units if not value % size), value)


def _listed(prices: Any) -> str:
    return f"the list of {prices.get('date')}" if isinstance(prices, dict) else _short(prices)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in sorted(value.items())) + "}"
        )
    return str(value)
