"""Where labels come from and where they may go: the source and sink rules, coarse form.

Rules
- A read from a place that the policy does not list as trusted carries that place as a source.
  A file or directory carries its own name, an answer from the network its host, a tool's result the
  tool, anything of an MCP server the server (`mcp:NAME`), unless the policy trusts it. Failing
  counts too: an error text is an answer.
- What a run is handed when it is started (arguments, environment, standard input) is the person's
  word, unless the policy lists what is trusted and leaves the `user` out. Then the run starts with that
  label: nobody knows which of its words were handed to it.
- What a model answers has the label of what it was asked, so of the run: it adds no source. Where the
  request has its vendor bring words from elsewhere (`models.elsewhere`: its own tools, what it stored,
  an address) the model is one, unless the policy trusts it; and since the vendor may act there, all
  that the request says is control then, until the policy lists the model as content. What the same
  model brought before steers no more in a further request than it did in the one that brought it.
- Sinks. Reading, writing in the workspace, the program's own output, messages to the parent or a
  child, prompts to allowed models, GET and HEAD, and an MCP server's lists and resources take
  untrusted content. Everything else wants a trusted run: other HTTP methods, spawning, deleting what
  the run did not make, and tools, except for those arguments that the policy lists as content.
- A tunnel is opaque: all that a run says into one is control, until the policy lists the tunnel
  itself (`tcp://host:443`) as content. Asking for a name says nothing to anybody: it is answered
  from the policy alone.
- A secret goes only where the policy releases it. Reading something else is no release; whatever
  leaves the run (the network, tools, messages, children, the output, files) needs one by name.
- The program has seen every answer it got, so an answer's label joins the run's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from authority.kernel import models
from authority.kernel.file_labels import recorded
from authority.kernel.labels import ANY_SOURCE, CLEAN, USER, Label, Sink
from authority.kernel.mcp_rules import parts
from authority.kernel.models import EFFECTS
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource
from authority.kernel.state import Run, State

_READS = frozenset({"fs.read", "fs.list", "fs.stat", "fs.open", "fs.look", "fs.show"})
_SYSTEM = frozenset({"sys.time", "sys.random", "sys.uuid"})
_INWARD = _READS | _SYSTEM | {"msg.receive", "agent.wait", "fs.mount", "net.resolve"}
_INWARD |= {"value.reveal", "value.compute"}
_WRITES = frozenset(
    {"fs.write", "fs.append", "fs.mkdir", "fs.rename"}
    | {"fs.modify", "fs.attributes", "fs.symlink", "fs.link"}
)
_OPEN_SINKS = (
    _INWARD
    | _WRITES
    | EFFECTS
    | {"output", "msg.send", "mcp.serve", "value.reveal", "value.compute"}
)
CONTROL = Sink()
"""What a control argument takes: trusted and public words."""
_NETWORK = frozenset({"http.request", "net.connect"})
_MCP = frozenset({"mcp.list", "mcp.read", "mcp.prompt"})
_ANY = frozenset({ANY_SOURCE})
FAILED: Final[Mapping[str, Any]] = MappingProxyType({"failed": True})
"""What is known of a read that came to nothing."""


def failed(target: Resource | None) -> Mapping[str, Any]:
    """What is known of a call that came to nothing, and of where it would have led."""
    return FAILED if target is None else {**FAILED, "target": target.text}


def argument_names(effect: str, arguments: Any) -> frozenset[str]:
    """The names of the arguments that a request really gives."""
    if effect in {"tool.call", "mcp.prompt"}:
        return frozenset(arguments.arguments)
    return frozenset(arguments.__struct_fields__)


def sink(
    policy: Policy,
    effect: str,
    resource: Resource,
    verb: str,
    given: frozenset[str],
    secrets: frozenset[str],
    *,
    own: bool,
    elsewhere: bool = False,
) -> Sink:
    """What may flow into this request. `own`: the run made the file that it wants to delete.
    `elsewhere`: see `models.elsewhere`."""
    untrusted = (
        policy.lists_content(resource, verb)
        if elsewhere
        else _takes_untrusted(policy, effect, resource, verb, given, own=own)
    )
    own_words = frozenset({resource.text} if elsewhere else ())
    return Sink(
        _ANY if untrusted else own_words,
        secrets
        if effect in _INWARD
        else frozenset(s for s in secrets if policy.releases(s, effect, resource, verb)),
    )


def _takes_untrusted(
    policy: Policy,
    effect: str,
    resource: Resource,
    verb: str,
    given: frozenset[str],
    *,
    own: bool,
) -> bool:
    if takes_anything(effect, verb):
        return True
    if effect == "fs.delete":
        return own
    content = policy.content(effect, resource, verb)
    if content is not None and "*" in content:
        return True
    rules = policy.tool_rules(resource) if effect == "tool.call" else None
    if rules is not None and rules.changes:
        return False
    return content is not None and given <= content


def takes_anything(effect: str, verb: str) -> bool:
    """Whether an effect takes untrusted content in all that it is given, whatever the policy says."""
    if effect in _OPEN_SINKS or effect in {"mcp.list", "mcp.read"}:
        return True
    return effect == "http.request" and verb in {"GET", "HEAD"}


def started(policy: Policy, label: Label) -> Label:
    """The label that a run starts with: what it has from elsewhere, and who hands it its task."""
    return label if policy.trusts_user else label.join(Label(frozenset({USER})))


def answer_label(
    state: State,
    policy: Policy,
    effect: str,
    resource: Resource,
    verb: str,
    carried: Label = CLEAN,
    facts: Mapping[str, Any] = {},
) -> Label:
    """The label of an answer: what the policy says of its source, and what was recorded of a file."""
    kept = recorded(state.files, effect, resource.text, facts)
    if effect == "msg.receive" and (own := state.runs.get(resource.name)) is not None:
        kept = kept.join(own.hints)
    return result_label(policy, effect, resource, verb, carried).join(kept)


def elsewhere(
    policy: Policy | None, effect: str, resource: Resource, facts: Mapping[str, Any]
) -> bool:
    """Whether a request has a model's vendor reach further than the request: see `models`."""
    if policy is None or effect not in EFFECTS:
        return False
    return models.elsewhere(facts, policy.model(resource.name))


def brought(
    policy: Policy | None, effect: str, resource: Resource, facts: Mapping[str, Any]
) -> Label:
    """What a vendor brings from elsewhere."""
    if policy is None or not elsewhere(policy, effect, resource, facts) or policy.trusted(resource):
        return CLEAN
    return Label(frozenset({resource.text}))


def missing(state: State, run: Run, effect: str, resource: Resource) -> Label:
    """What it would bring that a file, or a message, is not there."""
    if effect == "msg.receive":
        label = run.hints
        for name in (run.parent, *run.children):
            if (other := state.runs.get(name)) is not None:
                label = label.join(other.label)
        return label
    if effect == "msg.send":
        receiver = state.runs.get(resource.name)
        return receiver.label.join(receiver.hints) if receiver is not None else CLEAN
    return recorded(state.files, effect, resource.text, FAILED)


def result_label(
    policy: Policy, effect: str, resource: Resource, verb: str, carried: Label = CLEAN
) -> Label:
    """The label of an answer. `carried` is what came with it: a message's or a child's label."""
    label = carried
    if effect in _READS:
        # A look answers for a name that the program chose; a listing or a link's text is words. What a
        # run is known to have written it is a look at words, too: `recorded`.
        silent = effect == "fs.look" or policy.trusted(resource, verb)
        sources = frozenset() if silent else frozenset({resource.text})
        label = label.join(Label(sources, policy.secrets(resource)))
    elif effect in _NETWORK and not policy.trusted(resource, verb):
        label = label.join(Label(frozenset({f"{resource.scheme}://{resource.host}"})))
    elif effect == "tool.call":
        server = policy.mcp_tool(resource)
        source = f"mcp:{server[1]}" if server else resource.text
        untrusted = not policy.trusted(resource, verb)
        sources = frozenset({source} if untrusted else ())
        label = label.join(Label(sources, policy.secrets(resource)))
    elif effect in _MCP and not policy.trusted(resource, verb):
        server_name, kind, _ = parts(resource)
        if kind != "tools":  # these were approved, word by word; a change of them is `carried`
            label = label.join(Label(frozenset({f"mcp:{server_name}"})))
    return label
