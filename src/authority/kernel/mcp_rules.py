"""MCP servers as a policy names them: which of their tools, resources and prompts, with what.

Pure. Rules
- A server's tools are refused until a pattern of `allow` covers them; `deny` beats it. Patterns are
  names in which `*` stands for any characters.
- Every file of a policy chain that speaks of a server is a *view*, and every view must allow.
- A tool is the resource `tool:SERVER.NAME`; a server's lists, resources and prompts are `mcp:`
  resources. Names are plain, so none of them needs an escape and no two look alike: two names that a
  person could take for each other (`skeleton`) are a collision, and both are refused.
- What a server says about itself (annotations, titles, `_meta`) is no argument here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from authority.kernel.addresses import shown
from authority.kernel.canonical import digest, encode
from authority.kernel.mcp_arguments import ArgumentRule, glob, judge
from authority.kernel.resources import MCP_SERVER, Resource
from authority.kernel.tool_rules import ToolRules, less

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})
_LOOKS: Final = str.maketrans({"0": "o", "1": "l", "i": "l", "-": "_", ".": "_", "5": "s"})


class McpTool(msgspec.Struct, frozen=True):
    """`arguments` None: no rule about them. `pin`: the one definition that is approved."""

    arguments: Mapping[str, ArgumentRule] | None = None
    rules: ToolRules = ToolRules()
    pin: str = ""


class McpView(msgspec.Struct, frozen=True):
    """What one file says of a server. `base` is that file's folder."""

    base: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    content: tuple[str, ...] | None = None
    tools: Mapping[str, McpTool] = _EMPTY


class McpServer(msgspec.Struct, frozen=True):
    """A server. `command` empty: it is named on the command line. `policy` empty: it has no rights.

    `approve` is `all` (a definition's first sight and each change wait for a person) or `changes`.
    """

    command: tuple[str, ...]
    base: str
    policy: str = ""
    timeout: int = 30_000_000
    reads: str = "untrusted"
    approve: str = "all"
    pass_env: tuple[str, ...] = ()
    env: Mapping[str, str] = _EMPTY
    views: tuple[McpView, ...] = ()

    def key(self, name: str) -> str:
        """What approvals of its definitions are kept under: the same program, the same key."""
        return digest(encode([name, self.base, list(self.command)]))[:32]

    def tool(self, name: str) -> tuple[str, str]:
        """The rule that allows or forbids a tool, and why it is refused (empty: it is allowed)."""
        rule = ""
        for view in self.views:
            if found := covering(view.deny, name):
                return f'deny "{found}"', f'deny "{found}" forbids it'
            found = covering(view.allow, name)
            if not found:
                return "", "no pattern of allow covers it"
            rule = rule or f'allow "{found}"'
        return rule, "" if self.views else "the policy allows none of its tools"

    def judge_tool(self, server: str, name: str) -> tuple[bool, str, str]:
        """Whether a tool is allowed, by which rule, and why not."""
        rule, why = self.tool(name)
        where = f"mcp.{server}.{rule}" if rule else ""
        return not why, where, f"mcp.{server}: {why}" if why else ""

    def judge_item(self, effect: str, resource: Resource) -> tuple[bool, str, str]:
        """Whether a list, a resource or a prompt is allowed, by which rule, and why not."""
        name, kind, item = parts(resource)
        where = f"mcp.{name}"
        if effect == "mcp.list" and not item:
            given = kind == "tools" or all(getattr(view, kind) for view in self.views)
            return given, where if given else "", "" if given else f"{where} allows no {kind}"
        wanted = {"mcp.read": "resources", "mcp.prompt": "prompts"}.get(effect)
        rule = self.item(kind, item) if item and kind == wanted else ""
        if rule:
            return True, f"{where}.{rule}", ""
        return False, "", f"no pattern of {where}.{kind} covers {shown(item)}"

    def item(self, kind: str, name: str) -> str:
        """The rule that allows a resource's URI or a prompt, or nothing."""
        rule = ""
        for view in self.views:
            found = covering(view.resources if kind == "resources" else view.prompts, name)
            if not found:
                return ""
            rule = rule or f'{kind} "{found}"'
        return rule

    def refuses(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Why a tool may not be called with these arguments, or nothing."""
        for view in self.views:
            tool = view.tools.get(name)
            if tool is None or tool.arguments is None:
                continue
            argument, why = judge(tool.arguments, arguments, view.base)
            if why:
                return f"argument {shown(argument)} {why}"
        return ""

    def content(self, name: str) -> frozenset[str] | None:
        """The arguments of a tool that may carry untrusted text; None: the call wants a trusted run."""
        found: frozenset[str] | None = None
        for number, view in enumerate(self.views):
            tool = view.tools.get(name)
            own = view.content if tool is None or tool.rules.content is None else tool.rules.content
            if own is None:
                return None
            found = frozenset(own) if number == 0 or found is None else found & frozenset(own)
        return found

    def rules(self, name: str) -> ToolRules:
        """What the files say of a tool's values, each only taking away; the server's own `reads` and
        `content` where they say nothing of the tool."""
        found: ToolRules | None = None
        for view in self.views:
            if name in view.tools:
                own = view.tools[name].rules
                own = msgspec.structs.replace(own, reads=own.reads or self.reads)
                found = own if found is None else less(found, own)
        found = found or ToolRules(reads=self.reads)
        content = self.content(name)
        if (
            content is not None
        ):  # what is said to be control of this tool is, whatever the server's is
            content = content - frozenset(found.control)
        return msgspec.structs.replace(found, content=None if content is None else tuple(content))

    def unapproved(self, name: str, approved: str, found: Mapping[str, Any]) -> str:
        """Why a tool may not be called as it is now, or nothing. `approved` is a person's digest.

        `found` is what was seen of it: its `definition`, or what is `missing`.
        """
        digest = found.get("definition", "")
        if not digest:
            return str(found.get("missing", "the server offers no such tool"))
        pins = self.pins(name)
        if pins == (digest,) or (not pins and approved == digest):
            return ""
        return f"a person has to approve its definition ({digest[:12]})"

    def pins(self, name: str) -> tuple[str, ...]:
        """The definitions that the policy itself approves; more than one can't both hold."""
        found = (view.tools[name].pin for view in self.views if name in view.tools)
        return tuple(dict.fromkeys(pin for pin in found if pin))


def covering(patterns: Iterable[str], name: str) -> str:
    """The first pattern that covers a name or URI, or nothing. `**` passes `/`, `*` does not.

    A URI is compared as the text that the server will get, never as a file or an address.
    """
    return next((p for p in patterns if name.isprintable() and glob(p, name)), "")


def skeleton(name: str) -> str:
    """What a person sees of a name at a glance."""
    return re.sub(r"_+", "_", name.lower().translate(_LOOKS))


def split_tool(name: str) -> tuple[str, str]:
    """`server.tool` as its two names; the first is empty when it is no such name."""
    server, dot, tool = name.partition(".")
    return (server, tool) if dot and MCP_SERVER.match(server) else ("", name)


def parts(resource: Resource) -> tuple[str, str, str]:
    """Server, kind (`tools`, `resources`, `prompts`) and the name or URI of an `mcp:` resource."""
    server, kind, *rest = resource.segments
    return server, kind, "/".join(rest)
