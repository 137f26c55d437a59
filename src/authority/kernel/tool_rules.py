"""What a policy says of one tool's values: what its answers carry, what its arguments may.

Pure. Rules
- Said by whoever writes the policy, from the tool's documentation; never by the tool.
- `control` and `content` say which arguments steer what happens and which are only carried. One that
  is in neither list is control. A tool that nobody described has control arguments alone, changes
  something, and answers with untrusted words.
- `effect` is `write` (calling it changes something, so the call itself is control), `read` or `none`.
  Left out, it is `write` where `control` is given; with `content` alone whoever listed it accepts
  calls that carry nothing else.
- `fields` are parts of an answer that are trusted though the rest is not. `issues` are parts that are
  names of things: a value of the kind that is named, issued by a lookup whose own arguments were all
  trusted, may be used for the argument of the tool that is named, and for nothing else.
- `shape` says that it is no more than a fact either whether the tool answers, how much it lists, and
  which of these fields there are (`shapes`). `untrusted` if it is left out.
- Of several files of a chain each may only take away: `less`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from authority.kernel import pointers

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class Issue(msgspec.Struct, frozen=True):
    """`to` holds `tool:NAME ARGUMENT`; `kind` is one of `value_types.KINDS`."""

    to: tuple[str, ...]
    kind: str = "id"


class ToolRules(msgspec.Struct, frozen=True):
    """See above. `content` None: every argument is control."""

    control: tuple[str, ...] = ()
    content: tuple[str, ...] | None = None
    effect: str = ""
    reads: str = ""
    secret: tuple[str, ...] = ()
    receives: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    shape: str = "untrusted"
    issues: Mapping[str, Issue] = _EMPTY

    @property
    def changes(self) -> bool:
        """Whether the call itself is control."""
        return self.effect == "write" or (not self.effect and bool(self.control))

    def trusts(self, pointer: str) -> bool:
        """Whether the field is trusted though its tool is not."""
        return any(pointers.covers(pattern, pointer) for pattern in self.fields)

    def issued(self, pointer: str, tool: str, argument: str) -> str:
        """The kind of value that the field may be to be used for a tool's argument, or nothing."""
        for pattern, issue in self.issues.items():
            exact = len(pointers.steps(pattern)) == len(pointers.steps(pointer))
            if exact and pointers.covers(pattern, pointer) and f"{tool} {argument}" in issue.to:
                return issue.kind
        return ""


def made(one: Mapping[str, Any]) -> ToolRules:
    """The rules of a tool's table in a policy."""
    return ToolRules(
        control=tuple(one.get("control", ())),
        content=tuple(one["content"]) if one.get("content") is not None else None,
        effect=one.get("effect", ""),
        reads=one.get("reads", ""),
        secret=tuple(one.get("secret", ())),
        receives=tuple(one.get("receives", ())),
        fields=tuple(one.get("fields", {})),
        shape=one.get("shape", "untrusted"),
        issues=MappingProxyType(
            {
                pattern: Issue(tuple(issue["to"]), issue.get("type", "id"))
                for pattern, issue in one.get("issues", {}).items()
            }
        ),
    )


def less(one: ToolRules, other: ToolRules) -> ToolRules:
    """What both allow."""
    content = None
    if one.content is not None and other.content is not None:
        content = tuple(name for name in other.content if name in one.content)
    effects = {one.effect, other.effect} - {""}
    strictest = next((e for e in ("write", "read", "none") if e in effects), "")
    return ToolRules(
        control=tuple(dict.fromkeys((*one.control, *other.control))),
        content=content,
        effect="write" if one.changes or other.changes else strictest,
        reads="trusted" if one.reads == other.reads == "trusted" else "untrusted",
        secret=tuple(dict.fromkeys((*one.secret, *other.secret))),
        receives=tuple(name for name in other.receives if name in one.receives),
        fields=tuple(pattern for pattern in other.fields if pattern in one.fields),
        shape="trusted" if one.shape == other.shape == "trusted" else "untrusted",
        issues=MappingProxyType(
            {
                pattern: Issue(
                    tuple(to for to in issue.to if to in one.issues[pattern].to), issue.kind
                )
                for pattern, issue in other.issues.items()
                if pattern in one.issues and one.issues[pattern].kind == issue.kind
            }
        ),
    )
