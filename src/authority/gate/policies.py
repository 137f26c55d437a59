"""Policies at the gate: parsed from what the caller read, kept by digest, compared with the last.

Rules
- The gate judges by the text that it parsed itself, never by a file that may change meanwhile. A policy
  that a run started under is kept in the content store under its digest, durable before the run.
- A caller who does not parse policies is told what this one names: further files, variables. That is
  asked before anything is recorded.
- Authority's own places are protected in every policy: the state directory, the policy files of the
  chain, this installation; tools' commands and the folders of their files, and the certificates that
  `network.ca` trusts, may not be written.
- A policy from a path that is wider than the last one used from there needs the person's word.
- Secrets that `credentials` name come from the caller's environment, stay in memory as long as runs
  under the policy do, and go nowhere but into requests to their hosts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from authority.audit.errors import BodyMissing, LogCorrupt
from authority.audit.store import ContentStore
from authority.gate.control import ControlRefused
from authority.gate.policyfile import format_of, read_sent, shipped_prices, wanted
from authority.gate.statedir import StateDir
from authority.kernel.canonical import decode, printable
from authority.kernel.policy import Policy, for_agent, load
from authority.kernel.policy_change import widened
from authority.kernel.policy_remembered import Remembered
from authority.kernel.policy_sections import Source
from authority.kernel.policy_tree import SHIPPED_PRICES
from authority.kernel.state import State

INSTALLATION = Path(__file__).resolve().parent.parent


class Policies:
    """The policies of running runs, and the secrets they may use."""

    def __init__(self, directory: StateDir, store: ContentStore) -> None:
        self.by_digest: dict[str, Policy] = {}
        self._directory = directory
        self._store = store
        self._sources: dict[str, dict[str, Source]] = {}

    def load(self, body: Mapping[str, Any], state: State) -> Policy:
        """The policy of a request to start a run. Raises `PolicyError`, `ControlRefused`."""
        sources = _sources(body)
        path = str(body.get("policy_path", ""))
        if path not in sources:
            raise ControlRefused(400, "the policy's text is missing")
        if "looked_for" in body:
            found = _complete(sources, path, body["looked_for"])
        else:
            found = _load(sources, path)
        policy = self._protected(found, sources)
        accepted = set(str(body.get("accept", "")).split())
        self._compare(policy, path, state, accepted)
        for server in policy.mcp.values():
            if server.policy:
                its = os.path.realpath(os.path.join(server.base, server.policy))
                if its not in sources:
                    raise ControlRefused(400, f"the policy {printable(its)} was not sent")
                self._compare(self._protected(_load(sources, its), sources), its, state, accepted)
        return policy

    def for_server(self, policy: Policy, name: str) -> Policy:
        """The policy of an MCP server's own run: the file that it names, or one that allows nothing."""
        server = policy.mcp[name]
        if not server.policy:
            empty = Source("version = 1\n", "toml", server.base, f"{server.base}/mcp.{name}")
            return self._protected(_load({empty.name: empty}, empty.name), {})
        sources = self._sources.get(policy.digest, {})
        path = os.path.realpath(os.path.join(server.base, server.policy))
        found = self._protected(_load(sources, path), sources)
        self._sources[found.digest] = sources
        return found

    def _protected(self, policy: Policy, sources: Mapping[str, Source]) -> Policy:
        nowhere = [str(self._directory.root.resolve()), *sources]
        fixed = [str(INSTALLATION)]
        started = [(tool.command, tool.base) for tool in policy.tools.values()]
        started += [(server.command, server.base) for server in policy.mcp.values()]
        for command, base in started:
            for word in command:
                path = os.path.realpath(os.path.join(base, word))
                if os.path.isfile(path):
                    folder = os.path.dirname(path)
                    # Modules beside a tool's file are the tool's; the policy's folder is not.
                    fixed.append(path if folder == base else folder)
        fixed += [os.path.realpath(path) for path in policy.network.ca]
        return Remembered(policy.protect(nowhere, sorted(set(fixed))))

    def _compare(self, policy: Policy, path: str, state: State, accepted: set[str]) -> None:
        before = state.policies.get(path)
        if before is None or policy.digest in {before, *accepted}:
            return
        try:
            old = decode(self._store.get(before))
        except (BodyMissing, LogCorrupt):
            raise ControlRefused(
                409,
                f"the policy used last from {printable(path)} can't be read, to compare",
                "look at the policy, then accept it with --accept-policy",
                accept=policy.digest,
                wider=[],
            ) from None
        wider = widened(old["tree"], decode(policy.canonical)["tree"])
        if wider:
            raise ControlRefused(
                409,
                f"{printable(path)} is wider than the one used last",
                "look at the difference, then accept it with --accept-policy",
                accept=policy.digest,
                wider=wider,
            )

    def remember(self, policy: Policy, body: Mapping[str, Any]) -> None:
        """Keep the texts that came with a run, for the policies of its children."""
        self._sources[policy.digest] = _sources(body)

    def forget(self, digest: str) -> None:
        """Drop the texts of a policy under which nothing runs."""
        self._sources.pop(digest, None)

    async def keep(self, policy: Policy) -> None:
        """Store what the run's first entry will name."""
        await self._store.put_durable(policy.canonical)

    def secrets_of(self, policy: Policy, environment: Mapping[str, str]) -> dict[str, str]:
        """The credentials' values. Raises `ControlRefused` for one that is not there."""
        found: dict[str, str] = {}
        for name, credential in policy.credentials.items():
            value = environment.get(credential.from_env)
            if not value:
                raise ControlRefused(
                    409,
                    f"the policy's credential {name} wants the variable {credential.from_env}",
                    f"export {credential.from_env} before the run",
                )
            found[name] = value
        return found

    def model_keys(self, policy: Policy, environment: Mapping[str, str]) -> dict[str, str]:
        """The upstreams' keys by upstream. One that is not there is missed when it is wanted."""
        wanted = {name: one.from_env for name, one in policy.models.upstream.items()}
        return {name: key for name, env in wanted.items() if env and (key := environment.get(env))}

    def for_child(self, parent: Policy, agent: str) -> Policy | None:
        """The child's policy, narrowed by the parent's; None when the agent section names none."""
        if not parent.agents[agent].policy:
            return None
        sources = self._sources.get(parent.digest, {})
        child = self._protected(for_agent(parent, agent, _reader(sources)), sources)
        self._sources[child.digest] = sources
        return child


def _sources(body: Mapping[str, Any]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    sources = body.get("policy_sources")
    if not isinstance(sources, dict) or not sources:
        raise ControlRefused(400, "a run needs its policy's text", "name one with --policy")
    for path, text in sources.items():
        if not isinstance(text, str) or not path.startswith("/"):
            raise ControlRefused(400, "policy_sources maps absolute paths to texts")
        found[path] = Source(
            text=text, format=format_of(path), base=os.path.dirname(path), name=path
        )
    return found


def _complete(sources: Mapping[str, Source], path: str, looked_for: Any) -> Policy:
    """The policy that a caller sent unread; what is missing is asked for. Raises `ControlRefused`."""
    if not isinstance(looked_for, list) or not all(isinstance(n, str) for n in looked_for):
        raise ControlRefused(400, "looked_for lists names of variables")
    texts = {name: source.text for name, source in sources.items()}
    if needed := wanted(texts, path, looked_for):
        raise ControlRefused(
            409,
            "the policy names what was not sent with it",
            "send the call again with what is wanted",
            wanted=needed,
        )
    return read_sent(texts, path).policy


def _reader(sources: Mapping[str, Source]) -> Callable[[str, str], Source]:
    """Finds what a policy extends among the texts that came with the request."""

    def read_parent(base: str, name: str) -> Source:
        if name == SHIPPED_PRICES:
            return shipped_prices()
        wanted = os.path.realpath(os.path.join(base, name))
        if wanted not in sources:
            raise ControlRefused(409, f"the policy {printable(wanted)} was not sent with the run")
        return sources[wanted]

    return read_parent


def _load(sources: Mapping[str, Source], path: str) -> Policy:
    source = sources[path]
    return load(
        source.text,
        format=source.format,
        base=source.base,
        name=source.name,
        read_parent=_reader(sources),
    )
