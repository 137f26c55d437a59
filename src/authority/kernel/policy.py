"""Policy: what a run may do, decided by rules that people wrote.

Pure. Rules
- The order of a judgement: built-in protection, then every denial, then the rules that allow, and
  what no rule allows is denied. Denial beats allowance, the first rule written is the one named.
- A policy is a tree of files: a file may extend others, and a spawned run has its own policy
  *under* its parent's (`narrow`). Every file that has an opinion must allow; any one denies. So
  neither extending nor spawning can widen, whatever the files say.
- `canonical` holds the whole tree, resolved, and the protection; `from_canonical` makes the same
  policy of it, without any file. Its SHA-256 is the digest.
- The program's own output, and messages between runs, need no rule: budgets bound them, and the
  gate checks how the runs are related.
- An unknown effect, or one on a resource of another kind, is denied.

Reading: `policy_text`, `policy_schema` (made of `policy_checkers`), `policy_values`, `policy_tree`.
Rules: `policy_rules`, `patterns`. The compiled form: `policy_compiled`. Sections: `policy_sections`,
`policy_merge`. Protection: `policy_protect`. For people: `policy_explain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from authority.kernel import canonical
from authority.kernel.addresses import ResourceError, shown
from authority.kernel.policy_compiled import FORMAT, Policy
from authority.kernel.policy_explain import check_warnings, explain
from authority.kernel.policy_protect import Protection
from authority.kernel.policy_sections import (
    Agent,
    Approvals,
    Credential,
    Explanation,
    Filesystem,
    Judgement,
    Labels,
    Limits,
    Network,
    PolicyError,
    Process,
    Sections,
    Source,
    Tool,
)
from authority.kernel.policy_tree import (
    MAX_CHAIN,
    Node,
    ReadParent,
    load_tree,
    tree_depth,
    unpack,
)

__all__ = [
    "Agent",
    "Approvals",
    "Credential",
    "Explanation",
    "Filesystem",
    "Judgement",
    "Labels",
    "Limits",
    "Network",
    "Policy",
    "PolicyError",
    "Process",
    "Sections",
    "Source",
    "Tool",
    "add_rules",
    "check_warnings",
    "explain",
    "for_agent",
    "from_canonical",
    "load",
    "narrow",
]


def load(
    text: str,
    *,
    format: str,
    base: str,
    name: str,
    read_parent: ReadParent,
) -> Policy:
    """The policy that a text says. Raises `PolicyError`.

    `format` is `toml` or `json`, `base` the real path of the folder that relative patterns are
    joined to, `name` what people call the file. `read_parent(base, reference)` gives the texts that
    it extends.
    """
    node = load_tree(Source(text, format, base, name), read_parent)
    return Policy(node, Protection())


def narrow(parent: Policy, child: Policy) -> Policy:
    """The child's policy under its parent's: what both allow, and the smaller of every limit."""
    depth = tree_depth(parent._node) + tree_depth(child._node)
    if depth > 2 * MAX_CHAIN:
        raise PolicyError(child.name, "", 0, "runs are spawned too deep below each other")
    node = Node({}, child._node.base, child.name, under=(parent._node, child._node))
    mine, theirs = child._protection, parent._protection
    return Policy(
        node,
        Protection(
            (*mine.no_access.texts, *theirs.no_access.texts),
            (*mine.no_write.texts, *theirs.no_write.texts),
        ),
    )


def add_rules(policy: Policy, rules: Mapping[tuple[str, str], Sequence[str]]) -> Policy:
    """The policy with more rules in its own file: texts for each (section, list). A section may be
    one of several (`mcp.NAME`), and is there then.

    What is protected stays so. Raises `PolicyError`, for a run's policy below another one too.
    """
    node = policy._node
    if node.under:
        raise PolicyError(policy.name, "", 0, "rules can't be added below a parent's policy")
    doc = _copied(node.doc)
    for (section, key), texts in rules.items():
        table = doc
        for part in section.split("."):
            table = table.setdefault(part, {})
        table[key] = [*table.get(key, []), *texts]
    return Policy(msgspec.structs.replace(node, doc=doc, source=None), policy._protection)


def _copied(value: Any) -> Any:
    """Tables anew, all the way down; what they hold as it is."""
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def for_agent(parent: Policy, name: str, read_parent: ReadParent) -> Policy:
    """The policy of a child agent that `[agents.NAME]` defines. Raises `PolicyError`."""
    agent = parent.agents.get(name)
    if agent is None:
        raise PolicyError(parent.name, f"agents.{shown(name)}", 0, "is not defined")
    if not agent.policy:
        return parent
    source = read_parent(agent.base, agent.policy)
    return narrow(parent, Policy(load_tree(source, read_parent), Protection()))


def from_canonical(data: bytes) -> Policy:
    """The policy whose `canonical` bytes these are. Raises `PolicyError`."""
    try:
        value = canonical.decode(data)
        if value["policy"] != FORMAT or canonical.encode(value) != data:
            raise PolicyError("policy", "", 0, "not the canonical form of a policy")
        node = unpack(value["tree"], 0)
        return Policy(node, Protection(value["no_access"], value["no_write"]))
    except (canonical.CanonicalError, ResourceError) as error:
        raise PolicyError("policy", "", 0, error.message, error.hint) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise PolicyError("policy", "", 0, "not the canonical form of a policy") from None
