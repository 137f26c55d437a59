"""The network a policy leaves open: what it says about requests, tunnels, names and models, and which
hosts and ports that comes to.

Pure. Rules
- Every denial of the chain first; then each file that has rules of the kind must allow.
- No tunnel leads around the rules that judge requests to the same host and port.
- `Reach` answers which ports of a host some rule could allow. It errs towards yes: an http rule for
  one path makes the port count, and the request is still judged. A host that a file of the chain
  does not name, or that a denial covers, has none. So the names that a run may learn to be there
  are those that its policy names, exactly or by `*.`.
- It is asked with names from the run, so it costs the same at ten rules and ten thousand: a look-up
  for the name and one for each of its endings.
- `network.ca` is read against the folder of its file. `network.proxy` and `network.ca` say whom to
  trust with all traffic, so a policy below another one never adds to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from authority.kernel.addresses import shown
from authority.kernel.pattern_match import Pattern
from authority.kernel.policy_files import Say
from authority.kernel.policy_rules import RuleList, Rules
from authority.kernel.policy_sections import Judgement, Network
from authority.kernel.resources import Resource

MAX_PORTS: Final = 64
"""Ports of one host that are ever answered for; listeners are not free."""


def network(table: Mapping[str, Any], base: str) -> Network:
    """The section of one file."""
    plain: dict[str, Any] = {key: tuple(table.get(key, ())) for key in _LISTS if key in table}
    files = tuple(_joined(base, name) for name in table.get("ca", ()))
    return Network(**plain, proxy=table.get("proxy", ""), ca=files)


def _joined(base: str, name: str) -> str:
    """The absolute path of a file that a policy in the (real) folder `base` names."""
    parts: list[str] = []
    for part in (name if name.startswith("/") else f"{base}/{name}").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


_LISTS: Final = ("allow", "http", "deny", "private")


def narrowed(parent: Network, child: Network) -> Network:
    """The child's section under its parent's."""
    return msgspec.structs.replace(
        child,
        deny=tuple(dict.fromkeys((*parent.deny, *child.deny))),
        proxy=parent.proxy,
        ca=tuple(name for name in child.ca if name in parent.ca),
    )


class _Hosts:
    """Ports by host, from the rules of one list: exact hosts and endings."""

    __slots__ = ("_below", "_exact")

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self._exact: dict[str, set[int]] = {}
        self._below: dict[str, set[int]] = {}
        for pattern in patterns:
            table = self._below if pattern.subdomains else self._exact
            table.setdefault(pattern.host, set()).add(pattern.port)

    def ports(self, host: str) -> set[int]:
        found = set(self._exact.get(host, ()))
        rest = host
        while rest:
            _, _, rest = rest.partition(".")
            found |= self._below.get(rest, set())
        return found

    def names(self) -> list[str]:
        return sorted({*self._exact, *self._below})


class Reach:
    """What hosts and ports the files of a policy leave open; `layers` are its rules."""

    def __init__(self, layers: Sequence[Rules]) -> None:
        self._layers = layers
        self._http = [_Hosts(rules.index.patterns) for rules in _opinions(layers, "http")]
        self._tunnel = [_Hosts(rules.index.patterns) for rules in _opinions(layers, "tunnel")]

    @property
    def anything(self) -> bool:
        """Whether there is a network at all for the run."""
        return any(any(hosts.names() for hosts in each) for each in (self._http, self._tunnel))

    def ports(self, host: str) -> tuple[int, ...]:
        """The ports of a (canonical) host that some rule could allow, at most `MAX_PORTS`."""
        found = _common(self._http, host) | _common(self._tunnel, host)
        return tuple(sorted(port for port in found if not self._denied(host, port))[:MAX_PORTS])

    def http_ports(self, host: str) -> frozenset[int]:
        """Ports where requests are judged one by one."""
        return frozenset(_common(self._http, host))

    def tunnel_ports(self, host: str) -> frozenset[int]:
        """Ports to which opaque tunnels may lead."""
        return frozenset(_common(self._tunnel, host))

    def judged_hosts(self) -> tuple[str, ...]:
        """Hosts, and names whose subdomains, are in http rules: what the run's CA vouches for."""
        named = {name for hosts in self._http for name in hosts.names()}
        return tuple(
            sorted(
                name
                for name in named
                if all(hosts.ports(name) or hosts.ports(f"*.{name}") for hosts in self._http)
            )
        )

    def _denied(self, host: str, port: int) -> bool:
        probe = Resource("tcp", "", (), host, port)
        return any(layer.net_deny.find(probe) for layer in self._layers)


class NetworkRules:
    """The rules of a chain of policies about what is elsewhere; asked about canonical resources."""

    __slots__ = ("_layers", "_reach", "_say")

    def __init__(self, layers: tuple[Rules, ...], reach: Reach, say: Say) -> None:
        self._layers = layers
        self._reach = reach
        self._say = say

    def request(self, resource: Resource, verb: str) -> Judgement:
        """One HTTP request, by method and URL."""
        return self._listed(resource, verb, lambda layer: layer.http)

    def model(self, resource: Resource) -> Judgement:
        """A model, by its name."""
        return self._listed(
            resource, "", lambda layer: layer.model_allow, lambda layer: layer.model_deny
        )

    def tunnel(self, resource: Resource) -> Judgement:
        """No tunnel leads around the rules that judge requests to the same host and port."""
        judgement = self._listed(resource, "", lambda layer: layer.tunnel)
        if judgement.allowed and resource.port in self._reach.http_ports(resource.host):
            where = f"{shown(resource.host)}:{resource.port}"
            return Judgement(
                False, "network.http", f"network.http judges requests to {where}: no tunnel there"
            )
        return judgement

    def name(self, resource: Resource) -> Judgement:
        """A name is there for the run when some rule could allow something at its host."""
        for layer in self._layers:
            if rule := layer.net_deny.find(msgspec.structs.replace(resource, scheme="tcp")):
                return self._say.denied(rule, layer, resource)
        if ports := self._reach.ports(resource.host):
            return Judgement(True, f"network names it on port {', '.join(map(str, ports[:8]))}")
        return Judgement(
            False, "", f"no rule of network.allow or network.http names {shown(resource.host)}"
        )

    def _listed(
        self,
        resource: Resource,
        verb: str,
        pick: Callable[[Rules], RuleList],
        deny: Callable[[Rules], RuleList] = lambda layer: layer.net_deny,
    ) -> Judgement:
        for layer in self._layers:
            if rule := deny(layer).find(resource, verb):
                return self._say.denied(rule, layer, resource)
        first = ""
        for layer in self._layers:
            rules = pick(layer)
            if layer.abstains(rules):
                continue
            rule = rules.find(resource, verb)
            if not rule:
                return self._say.not_covered(rules, layer, resource, verb)
            first = first or self._say.named(rule, layer)
        return Judgement(True, first)


def _opinions(layers: Sequence[Rules], key: str) -> list[RuleList]:
    lists: list[tuple[Rules, RuleList]] = [(layer, getattr(layer, key)) for layer in layers]
    return [rules for layer, rules in lists if not layer.abstains(rules)]


def _common(lists: Sequence[_Hosts], host: str) -> set[int]:
    found = [hosts.ports(host) for hosts in lists]
    return set.intersection(*found) if found else set()
