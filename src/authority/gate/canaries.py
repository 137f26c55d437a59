"""Canaries: files, hosts and credentials that nothing legitimate touches.

Rules
- Which there are is in the log (`Canary` entries), so in the state: the kernel refuses whatever names
  a planted file or host, and the refusal opens an incident about the run.
- A planted credential is a random value that looks like one. Its value lies with the keys (0600); the
  log has its digest alone. The gate looks for it in what a run sends: arguments and outgoing pieces.
- A canary file is a real file, so a program that lists its folder finds it. Removing a canary does not
  remove the file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from authority.errors import AuthorityError
from authority.gate.statedir import StateDir, write_private
from authority.kernel import canonical, entries, resources
from authority.kernel.canonical import printable
from authority.kernel.state import State

MOST = 256
SHORTEST = 16


class CanaryError(AuthorityError):
    """A canary can't be planted or removed."""


class Canaries:
    """The planted credentials' values; everything else is in the state."""

    def __init__(self, directory: StateDir, state: State) -> None:
        self._folder = directory.keys / "canary"
        self._state = state
        self._values: dict[str, bytes] = {}
        for name, resource in state.canaries.items():
            if resource.startswith("credential:"):
                self._values[name] = (self._folder / name).read_bytes().strip()

    def found_in(self, data: bytes) -> str:
        """The name of a planted credential that stands in `data`, or nothing."""
        for name, value in self._values.items():
            if value in data:
                return name
        return ""

    def entry(self, asked: dict[str, Any]) -> entries.Canary:
        """The entry for planting or removing one. Raises `CanaryError`, `OSError`."""
        action, name = str(asked.get("action", "")), str(asked.get("name", ""))
        if not name.isidentifier() or len(name) > 64:
            raise CanaryError("a canary has a plain name", "letters, digits and underscores")
        if action == "remove":
            if name not in self._state.canaries:
                raise CanaryError(f"no canary {printable(name, 64)!r} is planted")
            self._values.pop(name, None)
            (self._folder / name).unlink(missing_ok=True)
            return entries.Canary(action="remove", what="", name=name)
        if action != "plant":
            raise CanaryError("plant or remove")
        if name in self._state.canaries:
            raise CanaryError(f"a canary {printable(name, 64)!r} is planted already")
        if len(self._state.canaries) >= MOST:
            raise CanaryError(f"there are {MOST} canaries already")
        what, where = str(asked.get("what", "")), str(asked.get("where", ""))
        match what:
            case "file":
                resource = resources.parse("fs.read", where).text
                return entries.Canary(action="plant", what=what, name=name, resource=resource)
            case "host":
                host = resources.parse("net.connect", f"{where}:443").host
                return entries.Canary(action="plant", what=what, name=name, resource=f"host:{host}")
            case "credential":
                return self._credential(name, where)
        raise CanaryError("a canary is a file, a host or a credential")

    def _credential(self, name: str, value: str) -> entries.Canary:
        if len(value) < SHORTEST:
            raise CanaryError(
                f"a planted credential has at least {SHORTEST} characters, or it would be found "
                "where it is not",
                "leave it out, and one is made",
            )
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        write_private(Path(self._folder / name), value.encode() + b"\n")
        self._values[name] = value.encode()
        return entries.Canary(
            action="plant",
            what="credential",
            name=name,
            resource=f"credential:{name}",
            digest=canonical.digest(value.encode()),
        )


def made() -> str:
    """A value for a planted credential."""
    return f"sk-{secrets.token_hex(24)}"
