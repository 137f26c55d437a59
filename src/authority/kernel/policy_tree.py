"""The tree of policy files: read, packed into the canonical form, and put together.

Pure. A node is a file with what it extends, or a child's tree under its parent's. At most
`MAX_CHAIN` files extend each other in a row and `MAX_FILES` in all, so that a circle ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from authority.kernel import policy_merge, policy_schema_models
from authority.kernel.addresses import ResourceError
from authority.kernel.policy_checkers import Context
from authority.kernel.policy_protect import path_text
from authority.kernel.policy_rules import Rules, private_key
from authority.kernel.policy_schema import normalise
from authority.kernel.policy_sections import PolicyError, Sections, Source
from authority.kernel.policy_text import read
from authority.kernel.resource_files import file_segments

ReadParent = Callable[[str, str], Source]
"""`(base, reference)` to the policy that a file extends; raises `PolicyError` itself."""

SHIPPED_PRICES: Final = "authority:prices"
"""What `ReadParent` is asked for where a policy that allows models names no price list."""
MAX_CHAIN: Final = 8
MAX_FILES: Final = 32


class Node(msgspec.Struct, frozen=True):
    """The tree: a file with what it extends, or a child under its parent (`under`)."""

    doc: Mapping[str, Any]
    base: str
    name: str
    extends: tuple[Node, ...] = ()
    under: tuple[Node, ...] = ()
    source: Source | None = None

    def plain(self) -> dict[str, Any]:
        if self.under:
            return {"parent": self.under[0].plain(), "child": self.under[1].plain()}
        out: dict[str, Any] = {"doc": self.doc, "base": path_text(self.base), "name": self.name}
        if self.extends:
            out["extends"] = [node.plain() for node in self.extends]
        return out


def load_tree(source: Source, read_parent: ReadParent) -> Node:
    """The tree of a text and of everything that it extends. Raises `PolicyError`."""
    return _load(source, read_parent, 0, [0])


def _load(source: Source, read_parent: ReadParent, depth: int, files: list[int]) -> Node:
    context = Context(source)
    files[0] += 1
    if depth >= MAX_CHAIN or files[0] > MAX_FILES:
        raise context.error(
            ("extends",), "extends too many policies, or itself", "let one base say it"
        )
    if not source.base.startswith("/"):
        raise PolicyError(source.name, "", 0, "the folder of the policy is not an absolute path")
    try:
        path_text(source.base)
    except ResourceError as error:
        raise PolicyError(source.name, "", 0, error.message, error.hint) from None
    doc = normalise(context, read(source))
    policy_schema_models.check(context, doc)
    _read_prices(doc, source, read_parent)
    parents = tuple(
        _load(read_parent(source.base, reference), read_parent, depth + 1, files)
        for reference in doc.get("extends", ())
    )
    return Node(doc, source.base, source.name, parents, source=source)


def _read_prices(doc: dict[str, Any], source: Source, read_parent: ReadParent) -> None:
    """Put the price list that a policy names, or the one that is shipped, into its document."""
    models = doc.get("models")
    if models is None or ("prices" not in models and ("extends" in doc or not models.get("allow"))):
        return
    found = read_parent(source.base, models.get("prices", SHIPPED_PRICES))
    models["prices"] = policy_schema_models.price_list(Context(found), read(found))


def unpack(value: Mapping[str, Any], depth: int) -> Node:
    """The tree of a canonical form."""
    if depth > 4 * MAX_CHAIN:
        raise PolicyError("policy", "", 0, "nested too deep")
    if "parent" in value:
        both = (unpack(value["parent"], depth + 1), unpack(value["child"], depth + 1))
        return Node({}, both[1].base, both[1].name, under=both)
    base = "/" + "/".join(file_segments(value["base"], None))
    extends = tuple(unpack(each, depth + 1) for each in value.get("extends", ()))
    return Node(value["doc"], base, value["name"], extends)


def tree_depth(node: Node) -> int:
    """How many policies stand above each other."""
    return 1 + max((tree_depth(each) for each in (*node.extends, *node.under)), default=0)


def assemble(node: Node, layers: list[Rules]) -> Sections:
    """Rules of the whole tree into `layers`, own ones first; the sections they leave."""
    if node.under:
        parent, child = node.under
        below = assemble(child, layers)
        return policy_merge.tighten(assemble(parent, layers), below)
    source = node.source or Source("", "toml", node.base, node.name)
    context = Context(source)
    layers.append(Rules(node.doc, node.base, node.name, context, inherits=bool(node.extends)))
    try:
        if not node.extends:
            sections = policy_merge.own_sections(node.doc, node.base)
        else:
            parents = [assemble(each, layers) for each in node.extends]
            sections = policy_merge.extend(node.doc, node.base, parents)
    except policy_merge.MergeError as error:
        raise context.error(error.path, error.message, error.hint) from None
    for name, credential in sections.credentials.items():
        for number, text in enumerate(credential.hosts):
            try:
                private_key(text)
            except ResourceError as error:
                path = ("credentials", name, "hosts", number)
                raise context.error(path, error.message, error.hint, text) from None
        if credential.from_env in sections.process.env:
            raise context.error(
                ("credentials", name, "from_env"),
                "is set by process.env, but the run finds a placeholder under this name",
                "take it out of process.env",
            )
    holders: dict[tuple[str, ...], str] = {
        ("credentials", name): one.from_env for name, one in sections.credentials.items()
    }
    holders |= {
        ("models", "upstream", name): one.from_env for name, one in sections.models.upstream.items()
    }
    for where, variable in holders.items():
        if variable and variable in sections.process.pass_env:
            raise context.error(
                (*where, "from_env"),
                "is passed into the run by process.pass_env, which shows the secret to the agent",
                "take it out of pass_env",
            )
    return sections
