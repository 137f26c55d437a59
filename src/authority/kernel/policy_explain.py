"""For people: what a denial lacked, and what in a policy is wider than it looks.

Pure. The snippet of an explanation allows exactly the request that was denied and nothing else. A
denial by a rule that forbids, or by protection, has none: only a person may take that away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from authority.kernel.addresses import host_text, is_address, judge_address, shown
from authority.kernel.mcp_rules import covering
from authority.kernel.models import EFFECTS as MODEL_EFFECTS
from authority.kernel.pattern_files import escape_file
from authority.kernel.pattern_match import Pattern, literal_prefix
from authority.kernel.pattern_syntax import literal
from authority.kernel.policy_files import READS, WRITES
from authority.kernel.policy_persist import persistent
from authority.kernel.policy_rules import RuleList, Rules, private_key
from authority.kernel.policy_sections import Explanation, Judgement
from authority.kernel.resource_files import file_segments
from authority.kernel.resources import Resource
from authority.kernel.tool_words import description_warnings

if TYPE_CHECKING:
    from authority.kernel.policy import Policy

_SECRET_WORDS = (
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "APIKEY",
    "API_KEY",
    "PRIVATE",
    "CREDENTIAL",
)
_PROXY_VARIABLES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})


def explain(
    policy: Policy, effect: str, resource: Resource, verb: str, judgement: Judgement
) -> Explanation:
    """Why a judgement denies, and the smallest addition that would allow exactly this."""
    if judgement.allowed:
        return Explanation(f"nothing: {judgement.rule} allows it")
    if named_alone(policy, effect, resource, judgement):
        layer = policy.layers[0]
        return Explanation(judgement.reason, _snippet(layer, effect, resource, verb))
    if judgement.rule:
        return Explanation(
            f"{judgement.reason}; no rule can allow it"
            if judgement.rule == "built in"
            else f"{judgement.reason}; a person has to change that rule"
        )
    name = resource.name
    if effect == "tool.call" and (found := policy.mcp_tool(resource)) is not None:
        return Explanation(judgement.reason, f"[mcp.{found[1]}]\nallow = [{toml_text(found[2])}]\n")
    if effect in ("mcp.read", "mcp.prompt") and name in policy.mcp:
        kind, item = resource.segments[1], "/".join(resource.segments[2:])
        return Explanation(judgement.reason, f"[mcp.{name}]\n{kind} = [{toml_text(item)}]\n")
    if effect == "tool.call" and resource.scheme == "tool":
        return Explanation(
            judgement.reason, f'[tools.{_key(name)}]\ncommand = ["path/to/program"]\n'
        )
    if effect == "agent.spawn" and resource.scheme == "agent":
        return Explanation(
            judgement.reason, f'[agents.{_key(name)}]\ncommand = ["path/to/program"]\n'
        )
    if effect == "net.resolve":
        return Explanation(judgement.reason, _name_snippet(policy, resource))
    files = _missing(policy, effect, resource, verb)
    if not files:
        return Explanation(judgement.reason)
    missing = judgement.reason
    if len(policy.layers) > 1:
        missing += "; the rule has to stand in " + ", ".join(shown(each.name) for each in files)
    return Explanation(missing, _snippet(files[0], effect, resource, verb))


def named_alone(policy: Policy, effect: str, resource: Resource, judgement: Judgement) -> bool:
    """Whether this is closed because a trusted tool later acts on it: a rule that names it opens it."""
    return (
        judgement.rule == "built in"
        and resource.scheme == "fs"
        and effect in WRITES
        and persistent(effect, resource.segments) is not None
        and not policy._protection.denies(
            resource.segments, writes=True, moves=effect in ("fs.rename", "fs.delete")
        )
    )


def _missing(policy: Policy, effect: str, resource: Resource, verb: str) -> list[Rules]:
    """The files whose rules do not allow this though they have an opinion."""
    return [
        layer
        for layer in policy.layers
        for rules in [_list_for(layer, effect)]
        if rules is not None
        and not layer.abstains(rules)
        and not rules.find(resource, verb)
        and not (effect in ("fs.list", "fs.stat") and rules.below(resource))
    ]


def _list_for(layer: Rules, effect: str) -> RuleList | None:
    if effect in READS:
        return layer.read
    if effect in WRITES:
        return layer.write
    if effect in MODEL_EFFECTS:
        return layer.model_allow
    return {"http.request": layer.http, "net.connect": layer.tunnel}.get(effect)


def toml_text(text: str) -> str:
    """Text as a basic string of TOML."""
    out = []
    for char in text:
        point = ord(char)
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}")
    return '"' + "".join(out) + '"'


def _key(name: str) -> str:
    return name if "." not in name else toml_text(name)


def _snippet(layer: Rules, effect: str, resource: Resource, verb: str) -> str:
    if resource.scheme == "fs":
        key = "write" if effect in WRITES else "read"
        return f"[filesystem]\n{key} = [{toml_text(file_rule(layer.base, resource))}]\n"
    if resource.scheme == "model":
        return f"[models]\nallow = [{toml_text(resource.name)}]\n"
    if resource.scheme == "tcp":
        target = f"{host_text(resource.host)}:{resource.port}"
        return f"[network]\nallow = [{toml_text(target)}]\n"
    rule = f"{verb} {literal(resource)}" if verb else literal(resource)
    return f"[network]\nhttp = [{toml_text(rule)}]\n"


def _name_snippet(policy: Policy, resource: Resource) -> str:
    """A name is there when a rule uses it; which rule, only a person knows."""
    target = toml_text(f"GET https://{resource.host}/**")
    return f"[network]\nhttp = [{target}]\n"


def file_rule(base: str, resource: Resource) -> str:
    """The rule for exactly this file, in a policy that lies in the folder `base`."""
    exact = literal(resource)
    folder = file_segments(base, None)
    inside = resource.segments[: len(folder)] == folder and len(resource.segments) > len(folder)
    if "%" in exact or not inside:
        return exact
    return "./" + escape_file("/".join(resource.segments[len(folder) :]))


def check_warnings(policy: Policy) -> list[str]:
    """Rules that are broader than they look, or that can have no effect."""
    out: list[str] = []
    for layer in policy.layers:
        out.extend(f"{shown(layer.name)}: {text}" for text in _layer_warnings(layer))
    for name, server in policy.mcp.items():
        if any("*" in view.allow for view in server.views):
            out.append(f'mcp.{name}: allow "*" covers every tool that the server will ever have')
        for view in server.views:
            out.extend(
                f"mcp.{name}.tools.{tool} has no effect: no pattern of allow covers it"
                for tool in view.tools
                if not covering(view.allow, tool)
            )
    out.extend(description_warnings(policy))
    for name, credential in policy.credentials.items():
        out.extend(_credential_warnings(policy, name, credential.hosts))
    if policy.network.proxy:
        out.append(
            f"network.proxy {policy.network.proxy} resolves names and makes the connections: where "
            "they lead is not seen here"
        )
    out.extend(
        f"process.pass_env: {each} is set by the gate in the run; name a company's proxy in "
        "network.proxy"
        for each in policy.process.pass_env
        if each.upper() in _PROXY_VARIABLES and policy.needs_network
    )
    if policy.filesystem.files == "bind":
        out.append("filesystem.files: files are not judged, recorded or counted by the gate")
    out.extend(
        f"process.exec_from: what lies below {shown(each)} runs whatever process.exec says"
        for each in policy.process.exec_from
    )
    out.extend(
        f"process.pass_env: {each} looks like a secret and is shown to the agent; "
        "use [credentials] instead"
        for each in policy.process.pass_env
        if any(word in each.upper() for word in _SECRET_WORDS) or each.upper().endswith("_KEY")
    )
    return out


def _layer_warnings(layer: Rules) -> list[str]:
    out: list[str] = []
    for rules, word in ((layer.read, "readable"), (layer.write, "writable")):
        for number, pattern in enumerate(rules.index.patterns):
            prefix = literal_prefix(pattern.parts)
            where = f'{rules.key}[{number}] "{shown(pattern.text)}"'
            if len(prefix) < 2 and len(prefix) < len(pattern.parts):
                out.append(f"{where} makes nearly the whole machine {word}")
            elif pattern.parts == (*file_segments(layer.base, None), None) and word == "writable":
                out.append(f"{where} makes the policy's whole folder writable")
            if denied := _always_denied(layer, pattern):
                out.append(f"{where} has no effect: {denied} forbids all of it")
    for number, pattern in enumerate(layer.http.index.patterns):
        out.extend(_url_warnings(layer, f'network.http[{number}] "{shown(pattern.text)}"', pattern))
    for number, pattern in enumerate(layer.tunnel.index.patterns):
        where = f'network.allow[{number}] "{shown(pattern.text)}"'
        out.extend(_tunnel_warnings(layer, where, pattern))
    for rules in (layer.read, layer.write, layer.deny, layer.http, layer.tunnel, layer.net_deny):
        twice = (
            {text for text in rules.texts if rules.texts.count(text) > 1}
            if len(rules.texts) < 2000
            else set()
        )
        out.extend(f'{rules.key} holds "{shown(text)}" twice' for text in sorted(twice))
    if not layer.trusts_user:
        out.append(
            'labels.trusted leaves "user" out: each run starts shaped by untrusted words, '
            "and steers nothing"
        )
    for text in sorted(layer.trusted.texts):
        if "*." in text.partition("://")[2][:2] or text == "tool:*":
            out.append(f'labels.trusted "{shown(text)}" trusts whoever can get a name there')
    return out


def _always_denied(layer: Rules, pattern: Pattern) -> str:
    """The denial that covers the literal beginning, and so everything a pattern could."""
    prefix = literal_prefix(pattern.parts)
    probe = Resource("fs", "", prefix)
    return layer.deny.find(probe)


def _tunnel_warnings(layer: Rules, where: str, pattern: Pattern) -> list[str]:
    out = _host_warnings(layer, where, pattern)
    if any(
        rule.port == pattern.port
        and (pattern.covers_host(rule.host) or rule.covers_host(pattern.host))
        for rule in layer.http.index.patterns
    ):
        out.append(
            f"{where} opens no tunnel where http rules judge requests to the same host and port"
        )
    probe = Resource("tcp", "", (), pattern.host, pattern.port)
    if not pattern.subdomains and (denied := layer.net_deny.find(probe)):
        out.append(f"{where} has no effect: {denied} forbids it")
    return out


def _host_warnings(layer: Rules, where: str, pattern: Pattern) -> list[str]:
    out = []
    if pattern.subdomains and "." not in pattern.host:
        out.append(f"{where} covers every host of a top-level domain")
    why = judge_address(pattern.host) if is_address(pattern.host) else None
    if why and not layer.names_private(pattern.host, pattern.port):
        out.append(f"{where} has no effect: the address is {why}; name it in network.private")
    return out


def _url_warnings(layer: Rules, where: str, pattern: Pattern) -> list[str]:
    out = _host_warnings(layer, where, pattern)
    if pattern.parts == ("",):
        out.append(f"{where} covers the root page only; end it in /** for what is below")
    if "http" in pattern.schemes and not layer.names_private(pattern.host, pattern.port):
        out.append(f"{where} is not encrypted: whoever is on the way reads and changes it")
    probe = Resource(
        next(iter(pattern.schemes)),
        "",
        literal_prefix(pattern.parts) or ("",),
        pattern.host,
        pattern.port,
    )
    if denied := layer.net_deny.find(probe, next(iter(pattern.verbs or ("GET",)))):
        out.append(f"{where} has no effect or less than it seems: {denied} forbids it")
    return out


def _credential_warnings(policy: Policy, name: str, hosts: tuple[str, ...]) -> list[str]:
    out = []
    for text in hosts:
        host, port = private_key(text)
        used = any(
            pattern.covers_host(host) and pattern.port == (port or 443)
            for layer in policy.layers
            for pattern in layer.http.index.patterns
        )
        if not used:
            out.append(f'credentials.{name}: no http rule covers "{shown(text)}"')
    return out
