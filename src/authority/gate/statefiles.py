"""What the gate keeps in its state directory: the keys of capabilities, and `gate.json`.

Commands look for the directory and never into these, so they load neither this nor the kernel.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from authority.errors import AuthorityError
from authority.gate.statedir import StateDir, StateDirError, write_private
from authority.kernel import budgets, canonical
from authority.kernel.capabilities import MacKey
from authority.kernel.printing import printable

KEY_BYTES = 32


def new_mac_key(state: StateDir) -> MacKey:
    """Make and keep a fresh key for capabilities."""
    kid = secrets.token_hex(4)
    secret = secrets.token_bytes(KEY_BYTES)
    write_private(state.keys / "mac" / kid, secret)
    return MacKey(kid, secret)


def mac_keys(state: StateDir) -> dict[str, MacKey]:
    """All keys that are kept, by kid. Which of them still verifies is for the log to say."""
    found: dict[str, MacKey] = {}
    for path in sorted((state.keys / "mac").iterdir()):
        if path.name.startswith("."):
            continue
        secret = path.read_bytes()
        if len(secret) != KEY_BYTES:
            raise StateDirError(f"keys/mac/{printable(path.name)} is damaged")
        found[path.name] = MacKey(path.name, secret)
    return found


def _settings(state: StateDir) -> dict[str, Any]:
    """`gate.json`; empty when there is no such file. Raises `StateDirError` for anything odd."""
    path = state.root / "gate.json"
    if not path.exists():
        return {}
    try:
        document = canonical.decode(path.read_bytes())
    except AuthorityError as error:
        raise StateDirError(f"gate.json: {error.message}") from error
    if not isinstance(document, dict) or set(document) - _SETTINGS:
        raise StateDirError(f"gate.json may hold only {', '.join(sorted(_SETTINGS))}")
    return document


_SETTINGS = frozenset({"budgets", "two_people", "witnesses"})


def limits(state: StateDir) -> dict[str, int]:
    """Budgets of the whole directory, from `gate.json`."""
    amounts = _settings(state).get("budgets", {})
    try:
        budgets.check(amounts)
    except (budgets.BudgetError, AttributeError) as error:
        raise StateDirError(f"gate.json: {error}") from error
    return dict(amounts)


def two_people(state: StateDir) -> bool:
    """Whether an incident is closed by another person than the one who deployed its patch."""
    wanted = _settings(state).get("two_people", False)
    if type(wanted) is not bool:
        raise StateDirError("gate.json: 'two_people' is true or false")
    return wanted


def witnesses(state: StateDir) -> list[Path]:
    """Folders of further witnesses, from `gate.json`."""
    paths = _settings(state).get("witnesses", [])
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise StateDirError("gate.json: 'witnesses' is a list of folders")
    return [Path(p) for p in paths]
