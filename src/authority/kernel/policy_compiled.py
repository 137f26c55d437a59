"""A compiled policy: the questions that the kernel asks of it, and how they are answered.

Pure. The order of a judgement, and what a chain of files means, stand in `policy`, which makes
policies of text; here is only what is asked of one that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from authority.kernel import canonical, handles
from authority.kernel.addresses import ResourceError, is_address, shown
from authority.kernel.mcp_rules import McpServer, split_tool
from authority.kernel.models import EFFECTS as MODEL_EFFECTS
from authority.kernel.models import Terms
from authority.kernel.pattern_match import Pattern, literal_prefix
from authority.kernel.policy_files import FILES, READS, WRITES, FileRules, Say
from authority.kernel.policy_models import terms
from authority.kernel.policy_network import NetworkRules, Reach
from authority.kernel.policy_protect import Protection, path_text
from authority.kernel.policy_rules import RuleList, Rules, private_key
from authority.kernel.policy_sections import (
    DEFAULT_BUDGETS,
    Agent,
    Approvals,
    Credential,
    Filesystem,
    Judgement,
    Labels,
    Limits,
    Models,
    Network,
    PolicyError,
    Process,
    Sections,
    Tool,
)
from authority.kernel.policy_tree import (
    Node,
    assemble,
)
from authority.kernel.resources import Resource
from authority.kernel.tool_rules import ToolRules

FORMAT: Final = 1
_OPEN_SINKS: Final = frozenset(
    {"output", "msg.send", "msg.receive", "agent.wait", "net.resolve", "fs.look", "fs.show",
     "fs.mount", "sys.time", "sys.random", "sys.uuid", "value.reveal", "value.compute"}
    | READS
    | MODEL_EFFECTS
    | WRITES - {"fs.delete"}
)  # fmt: skip
_ALL: Final = frozenset({"*"})
_URLS: Final = frozenset({"http", "https"})


class Policy:
    """A compiled policy. Immutable; made by `load`, `narrow`, `from_canonical`.

    `layers` are the rules of every file in the chain, its own first; `parents` the names of the
    others. `reach` says which hosts and ports they leave open.
    """

    __slots__ = (
        "_files",
        "_network",
        "_node",
        "_protection",
        "_say",
        "_sections",
        "canonical",
        "digest",
        "layers",
        "reach",
    )

    def __init__(self, node: Node, protection: Protection) -> None:
        layers: list[Rules] = []
        self._sections = assemble(node, layers)
        self.layers = tuple(layers)
        self.reach = Reach(self.layers)
        self._node = node
        self._protection = protection
        self._say = Say(self.layers)
        self._files = FileRules(self.layers, protection, self._sections.process, self._say)
        self._network = NetworkRules(self.layers, self.reach, self._say)
        try:
            self.canonical = canonical.encode(
                {
                    "policy": FORMAT,
                    "tree": node.plain(),
                    "no_access": protection.no_access.texts,
                    "no_write": protection.no_write.texts,
                }
            )
        except canonical.CanonicalError as error:
            raise PolicyError(node.name, "", 0, error.message, error.hint) from None
        self.digest = canonical.digest(self.canonical)
        for layer in self.layers:
            self._refuse_protected(layer.name, layer.read, writes=False)
            self._refuse_protected(layer.name, layer.write, writes=True)
        self._refuse_hidden_credentials()

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers[1:])

    @property
    def sections(self) -> Sections:
        return self._sections

    @property
    def explain(self) -> str:
        """`agent` when the agent may be told which rule refused, else `operator`."""
        return self._sections.explain

    @property
    def filesystem(self) -> Filesystem:
        return self._sections.filesystem

    @property
    def network(self) -> Network:
        return self._sections.network

    @property
    def process(self) -> Process:
        return self._sections.process

    @property
    def limits(self) -> Limits:
        return Limits(**self._sections.limits)

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._sections.tools

    @property
    def mcp(self) -> Mapping[str, McpServer]:
        return self._sections.mcp

    @property
    def agents(self) -> Mapping[str, Agent]:
        return self._sections.agents

    @property
    def credentials(self) -> Mapping[str, Credential]:
        return self._sections.credentials

    @property
    def budgets(self) -> dict[str, int]:
        """Limits by dimension; one that is not here is counted and not limited."""
        return {**DEFAULT_BUDGETS, **self._sections.budgets}

    @property
    def models(self) -> Models:
        return self._sections.models

    @property
    def labels(self) -> Labels:
        return self._sections.labels

    @property
    def approvals(self) -> Approvals:
        return self._sections.approvals

    @property
    def trusts_user(self) -> bool:
        """Whether what a run is handed (arguments, environment, standard input) is the person's word:
        each file that lists what is trusted has to list `user`."""
        return all(layer.trusts_user for layer in self.layers)

    def judge(self, effect: str, resource: Resource, verb: str = "") -> Judgement:
        """Whether the policy allows the effect on the resource. Never raises."""
        scheme = resource.scheme
        if effect in FILES:
            if scheme == "fs":
                return self._files.judge(effect, resource, verb)
        elif effect == "http.request":
            if scheme in _URLS:
                return self._network.request(resource, verb)
        elif effect == "net.connect":
            if scheme == "tcp":
                return self._network.tunnel(resource)
        elif effect == "net.resolve":
            if scheme == "dns":
                return self._network.name(resource)
        elif effect == "tool.call":
            if scheme == "tool":
                found = self.mcp_tool(resource)
                if found is not None:
                    return Judgement(*found[0].judge_tool(found[1], found[2]))
                return _defined("tools", resource.name, self.tools)
        elif effect in ("mcp.list", "mcp.read", "mcp.prompt"):
            if scheme == "mcp":
                server = self.mcp.get(resource.name)
                if server is not None:
                    return Judgement(*server.judge_item(effect, resource))
                return _defined("mcp", resource.name, self.mcp)
        elif effect in MODEL_EFFECTS:
            if scheme == "model":
                return self._network.model(resource)
        elif effect == "agent.spawn":
            if scheme == "agent":
                return _defined("agents", resource.name, self.agents)
        elif effect in ("value.reveal", "value.compute"):
            return handles.judge(effect, scheme, compute=self.labels.compute)
        elif effect in ("msg.send", "msg.receive", "agent.wait", "mcp.serve"):
            if scheme == "run":
                return Judgement(True, "built in", "runs may talk to their parent and children")
        elif effect == "output" and scheme == "output":
            return Judgement(True, "built in", "a program may print; the budget bounds it")
        elif effect in ("sys.time", "sys.random", "sys.uuid") and scheme == "sys":
            return Judgement(True, "built in", "a program has a clock and chance anyway")
        return Judgement(False, "", f"no policy covers {shown(effect)} on {shown(resource.text)}")

    def refuses_arguments(self, effect: str, resource: Resource, arguments: Any) -> str:
        """Why the arguments of a tool's call are not allowed, or nothing."""
        if effect != "tool.call":
            return ""
        server, tool = split_tool(resource.name)
        named = self.mcp.get(server)
        return named.refuses(tool, arguments.arguments) if named is not None else ""

    def mcp_tool(self, resource: Resource) -> tuple[McpServer, str, str] | None:
        """The server of a `tool:` resource, its name and the tool's; None for a process tool."""
        server, tool = split_tool(resource.name)
        named = self.mcp.get(server)
        return (named, server, tool) if named is not None else None

    def model(self, name: str) -> Terms:
        """What the policy says about a model: its price, the dearest of all files that know it."""
        return terms(name, [layer.models for layer in self.layers])

    def approval(self, effect: str, resource: Resource, verb: str = "") -> str:
        """The rule by which a person has to approve this, or nothing."""
        for layer in self.layers:
            if rule := layer.approvals.find(resource, verb):
                return self._say.named(rule, layer)
        return ""

    def trusted(self, resource: Resource, verb: str = "") -> bool:
        """Whether what comes from the resource is trusted."""
        if resource.scheme == "tool":
            if (rules := self.tool_rules(resource)) is not None and rules.reads == "trusted":
                return True
        elif resource.scheme == "mcp":
            server = self.mcp.get(resource.name)
            if server is not None and server.reads == "trusted":
                return True
        return self._all_say(resource, verb, lambda layer: layer.trusted)

    def tool_rules(self, resource: Resource) -> ToolRules | None:
        """What is said of a tool's values; None for a tool that nobody defined."""
        if (found := self.mcp_tool(resource)) is not None:
            return found[0].rules(found[2])
        tool = self.tools.get(resource.name)
        return tool.rules if tool is not None else None

    def approves(self, resource: Resource, verb: str = "") -> bool:
        """Whether a person may approve what untrusted words would steer here."""
        return self._all_say(resource, verb, lambda layer: layer.approve)

    def secrets(self, resource: Resource) -> frozenset[str]:
        """The secrets that reading the resource may reveal."""
        rules = self.tool_rules(resource) if resource.scheme == "tool" else None
        return frozenset(rules.secret if rules is not None else ()) | frozenset(
            name
            for layer in self.layers
            for name, rules in layer.secrets.items()
            if rules.find(resource)
        )

    def content(self, effect: str, resource: Resource, verb: str = "") -> frozenset[str] | None:
        """Which arguments may carry untrusted content: names, `*` for all, None for none.

        None also says that the effect itself wants a trusted run; the empty set is a tool that
        anybody may call, with trusted arguments.
        """
        if effect in _OPEN_SINKS or (effect == "http.request" and verb in ("GET", "HEAD")):
            return _ALL
        if self.lists_content(resource, verb):
            return _ALL
        if effect == "tool.call" and (rules := self.tool_rules(resource)) is not None:
            return None if rules.content is None else frozenset(rules.content)
        return None

    def lists_content(self, resource: Resource, verb: str = "") -> bool:
        """Whether every file lists the resource itself as taking untrusted content."""
        return self._all_say(resource, verb, lambda layer: layer.content)

    def releases(self, secret: str, effect: str, resource: Resource, verb: str = "") -> bool:
        """Whether the secret may flow into this: every file has to release it, but for one that
        extends others and leaves it to them."""
        tool = self.tool_rules(resource) if effect == "tool.call" else None
        if tool is not None and secret in tool.receives:
            return True
        for layer in self.layers:
            rules = layer.release.get(secret)
            if rules is None and layer.inherits:
                continue
            if rules is None or not rules.find(resource, verb):
                return False
        return True

    def names_private(self, host: str, port: int, why: str = "") -> bool:
        """Whether host and port may be at an address that is not public.

        `why` is what `judge_address` said: a metadata service must be named by its address, so
        that no name that somebody else resolves can lead to it.
        """
        if "metadata" in why and not is_address(host):
            return False
        return all(layer.names_private(host, port) for layer in self.layers)

    @property
    def needs_network(self) -> bool:
        """Whether a run under this policy has a loopback of its own, and services on it."""
        return self.reach.anything

    def protect(
        self, paths_no_access: Iterable[str | bytes], paths_no_write: Iterable[str | bytes] = ()
    ) -> Policy:
        """This policy with more built-in denials (absolute real paths).

        Raises `PolicyError` when a rule begins at or below one of them.
        """
        try:
            return Policy(
                self._node,
                Protection(
                    (*self._protection.no_access.texts, *map(path_text, paths_no_access)),
                    (*self._protection.no_write.texts, *map(path_text, paths_no_write)),
                ),
            )
        except ResourceError as error:
            raise PolicyError(self.name, "", 0, error.message, error.hint) from None

    def _all_say(self, resource: Resource, verb: str, pick: Callable[[Rules], RuleList]) -> bool:
        return all(
            layer.abstains(pick(layer)) or bool(pick(layer).find(resource, verb))
            for layer in self.layers
        )

    def _refuse_hidden_credentials(self) -> None:
        """A credential is put into requests; in an opaque tunnel nobody sees one."""
        for name, credential in self.credentials.items():
            for number, text in enumerate(credential.hosts):
                host, port = private_key(text)
                port = port or 443
                hidden = port in self.reach.tunnel_ports(host)
                if hidden and port not in self.reach.http_ports(host):
                    raise PolicyError(
                        self.name,
                        f"credentials.{name}.hosts[{number}]",
                        0,
                        f'"{shown(text)}" is only an opaque tunnel (network.allow), so no '
                        "credential can be put in",
                        f'write http = ["GET https://{shown(host)}/**"] instead of the tunnel',
                    )

    def _refuse_protected(self, name: str, rules: RuleList, *, writes: bool) -> None:
        for number, pattern in enumerate(rules.index.patterns):
            if why := _protected(self._protection, pattern, writes=writes):
                raise PolicyError(
                    name,
                    f"{rules.key}[{number}]",
                    0,
                    f'"{shown(pattern.text)}" names a protected path: {why}',
                    "take the rule out",
                )


def _protected(protection: Protection, pattern: Pattern, *, writes: bool) -> str:
    return protection.denies(literal_prefix(pattern.parts), writes=writes, moves=False)


def _defined(key: str, name: str, table: Mapping[str, Any]) -> Judgement:
    if name in table:
        return Judgement(True, f"{key}.{name}")
    return Judgement(False, "", f"the policy defines no {key}.{shown(name)}")
