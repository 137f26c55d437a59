"""Reading a policy and everything that it names: what is read here is what the gate parses.

Rules
- Every file is read once. Its text, under its real path, goes to the gate; a change after that does
  not matter to the run.
- Only those variables of the caller's environment are passed that the policy names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from authority.errors import AuthorityError
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy, load
from authority.kernel.policy_sections import Source
from authority.kernel.policy_tree import SHIPPED_PRICES

LOCALE = ("LANG", "LC_ALL", "TZ", "TERM")
"""Variables that are passed without being named: how to write, and to what kind of terminal."""
MAX_TEXT = 4 * 1024 * 1024
NO_POLICY = "authority-none.toml"
EMPTY = """\
version = 1

[filesystem]
read = [
    # Nothing is called so. With a rule in it the folder is mounted, and what is looked for there known.
    "./.authority-nothing",
]
"""
"""The policy of a run that was given none, and what it is called: it allows nothing that is there."""


class PolicyFileError(AuthorityError):
    """A policy file that can't be read."""


@dataclass
class Read:
    """A policy, the texts that it was made of, and the policies of its MCP servers."""

    path: str
    policy: Policy
    sources: dict[str, str] = field(default_factory=dict)
    servers: list[Policy] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """The named variables of this process's environment, where they are set."""
        names = set(self.policy.process.pass_env)
        names.update(c.from_env for c in self.policy.credentials.values())
        names.update(u.from_env for u in self.policy.models.upstream.values() if u.from_env)
        for tool in self.policy.tools.values():
            names.update(tool.pass_env)
        for server in self.policy.mcp.values():
            names.update(server.pass_env)
        for other in self.servers:
            names.update(other.process.pass_env)
            names.update(c.from_env for c in other.credentials.values())
        return {name: os.environ[name] for name in sorted(names) if name in os.environ}


def format_of(path: str) -> Literal["toml", "json"]:
    """JSON by its ending, TOML otherwise."""
    return "json" if path.endswith(".json") else "toml"


def shipped_prices() -> Source:
    """The price list of this installation."""
    place = Path(__file__).resolve().parent.parent / "prices.toml"
    text = place.read_text("utf-8")
    return Source(text=text, format="toml", base=str(place.parent), name=str(place))


def read(path: Path) -> Read:
    """Load a policy file with all that it extends. Raises `PolicyError`, `PolicyFileError`."""
    sources: dict[str, str] = {}

    def source(name: str) -> Source:
        real = os.path.realpath(name)
        try:
            with open(real, "rb") as f:
                raw = f.read(MAX_TEXT + 1)
        except OSError as error:
            raise PolicyFileError(
                f"the policy {printable(str(name))} can't be read: {error.strerror}",
                "'authority init' writes a starter",
            ) from error
        if len(raw) > MAX_TEXT:
            raise PolicyFileError(f"the policy {printable(str(name))} is larger than 4 MiB")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise PolicyFileError(f"the policy {printable(str(name))} is not UTF-8") from error
        sources[real] = text
        return Source(text=text, format=format_of(real), base=os.path.dirname(real), name=real)

    def read_parent(base: str, name: str) -> Source:
        return shipped_prices() if name == SHIPPED_PRICES else source(os.path.join(base, name))

    def parse(name: str) -> Policy:
        first = source(name)
        return load(
            first.text,
            format=first.format,
            base=first.base,
            name=first.name,
            read_parent=read_parent,
        )

    policy = parse(str(path))
    for agent in policy.agents.values():
        if agent.policy:
            parse(os.path.join(agent.base, agent.policy))
    servers = [
        parse(os.path.join(server.base, server.policy))
        for server in policy.mcp.values()
        if server.policy
    ]
    return Read(os.path.realpath(path), policy, sources, servers)


def empty(folder: str) -> Read:
    """The policy that allows nothing, as if it lay in this folder."""
    path = os.path.join(os.path.realpath(folder), NO_POLICY)

    def read_parent(_base: str, name: str) -> Source:
        raise PolicyFileError(f"the empty policy extends {name}")

    policy = load(
        EMPTY, format="toml", base=os.path.dirname(path), name=path, read_parent=read_parent
    )
    return Read(path, policy, {path: EMPTY})


def start_request(policy: Path | None, program: Sequence[str], cwd: str) -> dict[str, Any]:
    """The body of a control call that starts `program` under `policy` (none: one that allows nothing).

    Without a program it attaches.

    The program is looked for in this process's PATH. Raises `PolicyError`, `PolicyFileError`.
    """
    found = empty(cwd) if policy is None else read(policy)
    argv = list(program)
    if argv:
        place = shutil.which(argv[0])
        if place is None:
            raise PolicyFileError(
                f"there is no program {printable(argv[0])} in PATH", "check its name"
            )
        argv[0] = os.path.abspath(place)
    return {
        "argv": argv,
        "cwd": os.path.realpath(cwd),
        "policy_path": found.path,
        "policy_sources": found.sources,
        "environment": {
            **{name: os.environ[name] for name in LOCALE if name in os.environ},
            **found.environment(),
        },
        "path": os.environ.get("PATH", os.defpath),
    }
