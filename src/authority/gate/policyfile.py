"""Reading a policy and everything that it names.

What it names is found by one function, whoever provides the texts: the disk here, at the gate what a
caller sent (`starting`). So both ask for the same files and the same variables.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from authority.errors import AuthorityError
from authority.gate import starting
from authority.kernel.policy import Policy, load
from authority.kernel.policy_sections import Source
from authority.kernel.policy_tree import SHIPPED_PRICES
from authority.kernel.printing import printable

_USUAL = 256 * 1024
"""Characters of a policy and all that it names: what a policy takes compiled is many times its text."""


@dataclass
class Read:
    """A policy, the texts that it was made of, and the policies of its MCP servers."""

    path: str
    policy: Policy
    sources: dict[str, str] = field(default_factory=dict)
    servers: list[Policy] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    """Where each name led that was looked for."""

    def variables(self) -> set[str]:
        """The variables of the caller's environment that it names."""
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
        return names


class MissingText(AuthorityError):
    """A text that a caller has not sent; the message is its path."""


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
    place = os.path.realpath(path)
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise starting.PolicyFileError(
            f"the policy's path {printable(place)} is not UTF-8", "rename what is not"
        ) from error
    return _gathered(place, starting.text_of)


def wanted(
    sources: Mapping[str, str], path: str, looked_for: Collection[str]
) -> dict[str, list[str]]:
    """What a caller who sent these texts has still to `supply`: a file, else variables, else nothing.

    Raises `PolicyError`.
    """
    try:
        names = read_sent(sources, path).variables() - set(looked_for)
    except MissingText as missing:
        return {"sources": [missing.message]}
    return {"environment": sorted(names)} if names else {}


def read_sent(sources: Mapping[str, str], path: str) -> Read:
    """The policy at a path that a caller sent, with all that it extends. The same texts, read again,
    are the same object: the last ones of usual length, and the last of any. Raises `PolicyError`,
    `MissingText`."""
    remembered = _usual if sum(map(len, sources.values())) <= _USUAL else _long
    texts = tuple(sorted(sources.items()))
    found = remembered(path, texts)
    if all(os.path.realpath(name) == real for name, real in found.links.items()):
        return found
    return _read_sent(path, texts)


def _read_sent(path: str, texts: tuple[tuple[str, str], ...]) -> Read:
    sources = dict(texts)

    def text(name: str) -> str:
        if name not in sources:
            raise MissingText(name)
        return sources[name]

    return _gathered(path, text)


_usual = functools.lru_cache(maxsize=16)(_read_sent)
_long = functools.lru_cache(maxsize=1)(_read_sent)


def start_request(policy: Path | None, program: Sequence[str], cwd: str) -> dict[str, Any]:
    """What `starting.begin` makes, with everything that the policy names. Raises `PolicyError` too."""
    body = starting.begin(policy, program, cwd)
    path, sources = body["policy_path"], body["policy_sources"]
    while needed := wanted(sources, path, body["looked_for"]):
        starting.supply(body, needed)
    del body["looked_for"]  # with it the gate would ask the same
    return body


def _gathered(path: str, text: Callable[[str], str]) -> Read:
    """The policy at a real path, and those of its agents and servers, from texts by real path."""
    sources: dict[str, str] = {}
    links: dict[str, str] = {}

    def source(name: str) -> Source:
        real = links[name] = os.path.realpath(name)
        sources[real] = text(real)
        base = os.path.dirname(real)
        return Source(text=sources[real], format=format_of(real), base=base, name=real)

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

    policy = parse(path)
    for agent in policy.agents.values():
        if agent.policy:
            parse(os.path.join(agent.base, agent.policy))
    servers = [
        parse(os.path.join(server.base, server.policy))
        for server in policy.mcp.values()
        if server.policy
    ]
    return Read(path, policy, sources, servers, links)
