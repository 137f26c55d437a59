"""How the sections of a policy become narrower by those of another: extending and spawning.

Pure. Rules
- Lists of rules are not merged: each policy of the chain judges for itself (`policy`). Here they
  are put together for display: a list that was left out shows the base's, denials add up.
- `exec`, `exec_from` and `pass_env`: only what both name. `env`: a name that both set must have one
  value. A home, and files that are bound plainly, only where both say so.
- Tools, agents and credentials: only those that the base defines. A table that is left out keeps
  all of them, a table that is given keeps those it names. What it says of one may leave anything
  out; a command, variable, header or format that differs is another program or secret, so that
  extending with it is an error, and a child that was written with it does not have it.
- The company's proxy and the certificates that are trusted: the base's, or fewer certificates.
- Numbers: the smaller. `explain = "agent"` only where both say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from authority.kernel import policy_mcp, tool_rules
from authority.kernel.addresses import ResourceError
from authority.kernel.policy_models import extended, own_models, tightened
from authority.kernel.policy_network import narrowed, network
from authority.kernel.policy_sections import (
    Agent,
    Approvals,
    Credential,
    Endorse,
    Filesystem,
    Labels,
    Network,
    Process,
    Sections,
    Tool,
)
from authority.kernel.resource_files import file_segments


class MergeError(Exception):
    """What can't be said in a policy that extends: `path` and why."""

    def __init__(self, path: tuple[str | int, ...], message: str, hint: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message
        self.hint = hint


def own_sections(doc: Mapping[str, Any], base: str) -> Sections:
    """The sections of a policy that stands alone."""
    labels = doc.get("labels", {})
    process = doc.get("process", {})
    return Sections(
        explain=doc.get("explain", "operator"),
        filesystem=_filesystem(doc.get("filesystem", {})),
        network=network(doc.get("network", {}), base),
        process=Process(
            exec=tuple(process.get("exec", ())),
            exec_from=_absolute(process.get("exec_from", ()), base),
            home=process.get("home", ""),
            pass_env=tuple(process.get("pass_env", ())),
            env=_frozen(process.get("env", {})),
        ),
        limits=_frozen(doc.get("limits", {})),
        tools=_frozen({name: _tool(one, base) for name, one in doc.get("tools", {}).items()}),
        mcp=_frozen({name: policy_mcp.made(one, base) for name, one in doc.get("mcp", {}).items()}),
        agents=_frozen({name: _agent(one, base) for name, one in doc.get("agents", {}).items()}),
        credentials=_frozen(
            {name: _credential(one) for name, one in doc.get("credentials", {}).items()}
        ),
        models=own_models(doc.get("models")),
        budgets=_frozen(doc.get("budgets", {})),
        labels=Labels(
            trusted=tuple(labels.get("trusted", ())),
            content=tuple(labels.get("content", ())),
            secrets=_frozen(_tuples(labels.get("secrets", {}))),
            release=_frozen(_tuples(labels.get("release", {}))),
            approve=tuple(labels.get("approve", ())),
            endorse=_frozen({n: _endorse(one) for n, one in labels.get("endorse", {}).items()}),
            compute=labels.get("compute", False),
        ),
        approvals=Approvals(tuple(doc.get("approvals", {}).get("require", ()))),
    )


def extend(doc: Mapping[str, Any], base: str, parents: list[Sections]) -> Sections:
    """The sections of a policy that extends `parents`. Raises `MergeError`."""
    defined = ("tools", "mcp", "agents", "credentials")
    tools, mcp, agents, credentials = (doc.get(key) for key in defined)
    plain = {k: v for k, v in doc.items() if k not in {*defined, "models"}}
    result = own_sections(plain, base)
    first = parents[0]
    result = msgspec.structs.replace(
        result,
        explain=doc.get("explain", first.explain),
        tools=_refined("tools", tools, first.tools, lambda one, b: _tighter_tool(one, b, base)),
        mcp=_refined("mcp", mcp, first.mcp, lambda one, b: policy_mcp.tighter(one, b, base)),
        agents=_refined(
            "agents", agents, first.agents, lambda one, b: _tighter_agent(one, b, base)
        ),
        credentials=_refined("credentials", credentials, first.credentials, _tighter_credential),
        models=extended(doc.get("models"), first.models, _refined),
        process=_shown(doc.get("process", {}), result.process, first.process, ("env",)),
        filesystem=_shown(doc.get("filesystem", {}), result.filesystem, first.filesystem),
        network=_shown(doc.get("network", {}), result.network, first.network),
        labels=_shown(doc.get("labels", {}), result.labels, first.labels),
    )
    for index, parent in enumerate(parents):
        _same_way_out(doc.get("network", {}), result.network, parent.network)
        clash = [k for k, v in parent.process.env.items() if result.process.env.get(k, v) != v]
        if clash:
            raise MergeError(
                ("process", "env", clash[0]), "has another value in the base", "leave it out"
            )
        _refuse_wider(result, parent)
        result = tighten(parent, result, shown=index == 0)
    return result


def tighten(parent: Sections, child: Sections, *, shown: bool = False) -> Sections:
    """What is left of `child` under `parent`. Definitions that differ are left out.

    `shown`: the child's lists already show the parent's where they were left out.
    """
    env = dict(child.process.env)
    for name, value in parent.process.env.items():
        if shown:
            env.setdefault(name, value)
    return Sections(
        explain="agent" if parent.explain == child.explain == "agent" else "operator",
        filesystem=msgspec.structs.replace(
            child.filesystem,
            deny=_union(parent.filesystem.deny, child.filesystem.deny),
            files=_mediated(parent.filesystem.files, child.filesystem.files),
        ),
        network=narrowed(parent.network, child.network),
        process=Process(
            exec=_both(child.process.exec, parent.process.exec),
            exec_from=_both(child.process.exec_from, parent.process.exec_from),
            home=child.process.home if child.process.home == parent.process.home else "",
            pass_env=_both(child.process.pass_env, parent.process.pass_env),
            env=_frozen(env),
        ),
        limits=smaller(parent.limits, child.limits),
        tools=_common(parent.tools, child.tools, _same_tool, _less_tool),
        mcp=_common(parent.mcp, child.mcp, policy_mcp.same, policy_mcp.less),
        agents=_common(parent.agents, child.agents, _same_agent, _less_agent),
        credentials=_common(
            parent.credentials, child.credentials, _same_credential, _less_credential
        ),
        models=tightened(parent.models, child.models, _common),
        budgets=smaller(parent.budgets, child.budgets),
        labels=_less_labels(parent.labels, child.labels),
        approvals=Approvals(_union(parent.approvals.require, child.approvals.require)),
    )


def smaller(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    """Each limit of either, the smaller where both have it."""
    out = dict(one)
    for name, value in other.items():
        out[name] = min(value, out.get(name, value))
    return _frozen(out)


def _frozen(table: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(table))


def _tuples(table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(value) for key, value in table.items()}


def _both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item for item in one if item in other)


def _union(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def _shown(given: Mapping[str, Any], own: Any, parent: Any, merged: tuple[str, ...] = ()) -> Any:
    """A section for display: what was left out shows the base's, but for what is merged later."""
    fields = {
        n: getattr(parent, n) for n in own.__struct_fields__ if n not in given and n not in merged
    }
    return msgspec.structs.replace(own, **fields)


def _filesystem(section: Mapping[str, Any]) -> Filesystem:
    lists = {key: value for key, value in section.items() if key != "files"}
    return Filesystem(**_tuples(lists), files=section.get("files", ""))


def _absolute(folders: Sequence[str], base: str) -> tuple[str, ...]:
    """Folders as absolute paths; relative ones belong to the policy's folder."""
    found = []
    for index, folder in enumerate(folders):
        try:
            found.append("/" + "/".join(file_segments(folder, base)))
        except ResourceError as error:
            raise MergeError(("process", "exec_from", index), error.message, error.hint) from None
    return tuple(dict.fromkeys(found))


def _mediated(parent: str, child: str) -> str:
    """Plain binds only where both say so."""
    if "bind" not in (parent, child) or parent == child:
        return child
    return parent if child == "bind" else child


def _refuse_wider(own: Sections, parent: Sections) -> None:
    """What a policy that extends says of its own and its base does not: an error, not silence."""
    if own.process.home not in ("", parent.process.home):
        raise MergeError(("process", "home"), "is not the base's", "define it in the base")
    if own.filesystem.files == "bind" != parent.filesystem.files:
        raise MergeError(
            ("filesystem", "files"),
            "would take the files from the gate, which the base does not",
            "define it in the base",
        )


def _same_way_out(given: Mapping[str, Any], own: Network, parent: Network) -> None:
    """Refuse a way out, or trust in it, that the base does not have."""
    if "proxy" in given and own.proxy != parent.proxy:
        raise MergeError(
            ("network", "proxy"), "is not the proxy of the base", "leave it out, or change the base"
        )
    if "ca" in given and not set(own.ca) <= set(parent.ca):
        raise MergeError(
            ("network", "ca"), "trusts what the base does not", "name it in the base as well"
        )


def _endorse(one: Mapping[str, Any]) -> Endorse:
    return Endorse(tuple(one["from"]), one["type"], tuple(one["to"]), one["bits"])


def _less_labels(parent: Labels, child: Labels) -> Labels:
    """Lists of places are asked file by file (`Policy`); what stands here both have to say alike."""
    endorse = {
        name: msgspec.structs.replace(one, bits=min(one.bits, parent.endorse[name].bits))
        for name, one in child.endorse.items()
        if name in parent.endorse
        and msgspec.structs.replace(one, bits=0)
        == msgspec.structs.replace(parent.endorse[name], bits=0)
    }
    return msgspec.structs.replace(
        child, endorse=_frozen(endorse), compute=parent.compute and child.compute
    )


def _tool(one: Mapping[str, Any], base: str) -> Tool:
    rules = one.get("rules") or tool_rules.made(one)
    return Tool(
        command=tuple(one["command"]),
        base=base,
        timeout=one.get("timeout", 30_000_000),
        rules=msgspec.structs.replace(rules, reads=rules.reads or "untrusted"),
        pass_env=tuple(one.get("pass_env", ())),
        env=_frozen(one.get("env", {})),
    )


def _agent(one: Mapping[str, Any], base: str) -> Agent:
    return Agent(
        tuple(one["command"]), base, one.get("policy", ""), _frozen(one.get("budgets", {}))
    )


def _credential(one: Mapping[str, Any]) -> Credential:
    return Credential(
        one["from_env"],
        tuple(one["hosts"]),
        one.get("header", "Authorization"),
        one.get("format", "Bearer {}"),
    )


def _refined(
    key: str,
    given: Mapping[str, Mapping[str, Any]] | None,
    parent: Mapping[str, Any],
    refine: Callable[[Mapping[str, Any], Any], Any],
) -> Mapping[str, Any]:
    if given is None:
        return parent
    out = {}
    for name, one in given.items():
        if name not in parent:
            raise MergeError(
                (key, name),
                "is not in the policy that this one extends",
                "a policy that extends another can only tighten it; define it in the base",
            )
        refined = refine(one, parent[name])
        if refined is None:
            raise MergeError(
                (key, name),
                "differs from what the base says",
                "leave out what is the base's: command, policy, variables, header, format",
            )
        out[name] = refined
    return _frozen(out)


def _tighter_tool(one: Mapping[str, Any], parent: Tool, base: str) -> Tool | None:
    said = {name: one[name] for name in tool_rules.ToolRules.__struct_fields__ if name in one}
    own = tool_rules.made(said)
    left_out = {
        name: getattr(parent.rules, name)
        for name in tool_rules.ToolRules.__struct_fields__
        if name not in said
    }
    filled = {
        "command": parent.command,
        "timeout": parent.timeout,
        "pass_env": parent.pass_env,
        "env": parent.env,
        **one,
        "rules": msgspec.structs.replace(own, **left_out),
    }
    tool = _tool(filled, base if "command" in one else parent.base)
    return _less_tool(parent, tool) if _same_tool(parent, tool) else None


def _same_tool(parent: Tool, child: Tool) -> bool:
    same_place = parent.base == child.base or _placeless(child.command)
    return parent.command == child.command and same_place and parent.env == child.env


def _placeless(command: tuple[str, ...]) -> bool:
    """Whether a command means the same in every folder: nothing in it can be a relative path."""
    first_fixed = command[0].startswith("/") or "/" not in command[0]
    return first_fixed and all(word.startswith(("/", "-")) for word in command[1:])


def _less_tool(parent: Tool, child: Tool) -> Tool:
    return Tool(
        command=parent.command,
        base=parent.base,
        timeout=min(parent.timeout, child.timeout),
        rules=tool_rules.less(parent.rules, child.rules),
        pass_env=_both(child.pass_env, parent.pass_env),
        env=parent.env,
    )


def _tighter_agent(one: Mapping[str, Any], parent: Agent, base: str) -> Agent | None:
    filled = {"command": parent.command, "policy": parent.policy, "budgets": {}, **one}
    agent = _agent(filled, base if "command" in one or "policy" in one else parent.base)
    return _less_agent(parent, agent) if _same_agent(parent, agent) else None


def _same_agent(parent: Agent, child: Agent) -> bool:
    words = (*child.command, child.policy) if child.policy else child.command
    same_place = parent.base == child.base or _placeless(words)
    return parent.command == child.command and parent.policy == child.policy and same_place


def _less_agent(parent: Agent, child: Agent) -> Agent:
    budgets = smaller(parent.budgets, child.budgets)
    return Agent(parent.command, parent.base, parent.policy, budgets)


def _tighter_credential(one: Mapping[str, Any], parent: Credential) -> Credential | None:
    filled = {**msgspec.structs.asdict(parent), **one}
    child = _credential(filled)
    return _less_credential(parent, child) if _same_credential(parent, child) else None


def _same_credential(parent: Credential, child: Credential) -> bool:
    return (parent.from_env, parent.header.lower(), parent.format) == (
        child.from_env,
        child.header.lower(),
        child.format,
    )


def _less_credential(parent: Credential, child: Credential) -> Credential:
    hosts = _both(child.hosts, parent.hosts)
    return Credential(parent.from_env, hosts, parent.header, parent.format)


def _common(
    parent: Mapping[str, Any],
    child: Mapping[str, Any],
    same: Callable[[Any, Any], bool],
    less: Callable[[Any, Any], Any],
) -> Mapping[str, Any]:
    return _frozen(
        {
            name: less(parent[name], one)
            for name, one in child.items()
            if name in parent and same(parent[name], one)
        }
    )
