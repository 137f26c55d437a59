"""A compiled policy as formulas: what `Policy` answers, for all paths of a cell at once.

Rules
- `Encoded` reads the rules from the compiled policy itself: its layers, the patterns in their
  indexes, its protection. It parses no text and holds no rules of its own.
- Each method is one question of `policy_compiled` with the same name and the same order of layers;
  the difference is that the path is left open. A property test (`tests/proof/test_encoding.py`)
  holds the two against each other on generated policies and requests, for every effect; a wrong
  encoding is caught there, by name.
- Tools, agents and outputs are settled in their cell, so the policy itself is asked about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from authority.kernel import flows
from authority.kernel.models import EFFECTS as MODEL_EFFECTS
from authority.kernel.pattern_match import Part, Pattern, literal_prefix
from authority.kernel.policy import Policy
from authority.kernel.policy_files import LISTS, MOVES, WRITES
from authority.kernel.policy_persist import HOME, HOME_SEGMENTS, OWN
from authority.kernel.policy_protect import PathSet
from authority.kernel.policy_rules import RuleList, Rules
from authority.kernel.resource_files import file_segments
from authority.kernel.resource_urls import DEFAULT_PORTS
from authority.kernel.resources import Resource, parse_text
from authority.proof import acting
from authority.proof.acting import NEVER, Acting, effect_class
from authority.proof.automata import (
    FALSE,
    TRUE,
    Formula,
    Undecided,
    atom,
    both,
    either,
    negated,
)
from authority.proof.space import Cell, schemes_of

_SETTLED = frozenset({"tool", "agent", "output", "dns", "sys", "handle", "room"})
_TALK = frozenset({"msg.send", "msg.receive", "agent.wait", "mcp.serve"})
_SYSTEM = frozenset({"sys.time", "sys.random", "sys.uuid"})
_VALUES = frozenset({"value.reveal", "value.compute"})
_MCP = frozenset({"mcp.list", "mcp.read", "mcp.prompt"})
_SEEN = frozenset({"fs.look", "fs.show", "fs.mount"})
_FILES = _SEEN | {"fs.read", "fs.list", "fs.stat", "fs.open", "fs.write", "fs.append", "fs.mkdir"}
_FILES |= {"fs.rename", "fs.delete", "fs.modify", "fs.attributes", "fs.symlink", "fs.link"}
# By name: an effect that is new has to be taught here, even if `policy_files` knows it.
_KNOWN = (
    _FILES
    | _TALK
    | _SYSTEM
    | _VALUES
    | _MCP
    | MODEL_EFFECTS
    | {"http.request", "net.connect", "net.resolve", "tool.call", "agent.spawn", "output"}
)


def truth(value: object) -> Formula:
    """The formula of a value that is known already."""
    return TRUE if value else FALSE


def covers(patterns: list[Pattern], cell: Cell, kind: str = "find") -> Formula:
    """Whether one of the patterns covers the path; those that don't cover the cell are left out."""
    here = frozenset(p.parts for p in patterns if cell.covered(p))
    decoded = bool(patterns) and patterns[0].forbids and cell.scheme in DEFAULT_PORTS
    if cell.scheme == "tcp":  # no path: the word has no letter, and each pattern says `**`
        return truth(any(all(part is None for part in parts) for parts in here))
    return atom(kind, decoded, here)


class Encoded:
    """One policy, asked about all the requests of a cell."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._by_host: dict[tuple[int, str, str], list[Pattern]] = {}
        protection = policy._protection
        self._no_access = _folders(protection.no_access)
        self._no_write = _folders(protection.no_write)

    def patterns(self) -> Iterator[Pattern]:
        """Every pattern of every layer: what tells cells apart."""
        for layer in self.policy.layers:
            for rules in lists(layer):
                yield from rules.index.patterns

    def judge(self, effect: str, cell: Cell, *, without: RuleList | None = None) -> Formula:
        """`Policy.judge(...).allowed`. Raises `Undecided` for an effect that is not known here.

        `without`: a list of denials that is left out, to see what it does.
        """
        if effect not in _KNOWN:
            raise Undecided(f"nothing is known here about the effect {effect!r}")
        if cell.scheme not in schemes_of(effect):
            return FALSE
        if self.policy.mcp and (effect in _MCP or effect == "tool.call"):
            raise Undecided(
                "the policy names MCP servers, and what they offer is not encoded here",
                "ask about other effects, or about the policy without [mcp]",
            )
        if cell.scheme in _SETTLED:
            return truth(self.policy.judge(effect, settled(cell), cell.verb).allowed)
        if cell.scheme == "fs":
            return self._judge_file(effect, cell, without)
        if effect == "http.request":
            return self._judge_network(cell, lambda layer: layer.http, without)
        if effect == "net.connect":
            if cell.port in self.policy.reach.http_ports(cell.host):
                return FALSE
            return self._judge_network(cell, lambda layer: layer.tunnel, without)
        if effect in MODEL_EFFECTS:
            return self._judge_model(cell)
        return truth(effect in _TALK)

    def approval(self, cell: Cell) -> Formula:
        """Whether `Policy.approval` names a rule."""
        return either(*(self.find(layer.approvals, cell) for layer in self.policy.layers))

    def trusted(self, cell: Cell) -> Formula:
        """`Policy.trusted`."""
        if cell.scheme in _SETTLED:
            return truth(self.policy.trusted(settled(cell), cell.verb))
        return self._all_say(cell, lambda layer: layer.trusted)

    def secret(self, name: str, cell: Cell) -> Formula:
        """Whether `Policy.secrets` holds the name."""
        if cell.scheme == "tool":
            return truth(name in self.policy.secrets(settled(cell)))
        return either(
            *(
                self.find(layer.secrets[name], cell)
                for layer in self.policy.layers
                if name in layer.secrets
            )
        )

    def releases(self, secret: str, cell: Cell) -> Formula:
        """`Policy.releases`."""
        if cell.scheme == "tool":
            rules = self.policy.tool_rules(settled(cell))
            if rules is not None and secret in rules.receives:
                return TRUE
        needed = []
        for layer in self.policy.layers:
            released = layer.release.get(secret)
            if released is not None:
                needed.append(self.find(released, cell))
            elif not layer.inherits:
                return FALSE
        return both(*needed)

    def takes(self, effect: str, cell: Cell) -> Formula:
        """Whether a run that is not trusted may do this with some arguments (`flows.sink`).

        Deleting is left out of it: what the run made itself it may delete.
        """
        if effect in flows._OPEN_SINKS or (
            effect == "http.request" and cell.verb in ("GET", "HEAD")
        ):
            return TRUE
        if effect == "fs.delete":
            return FALSE
        if effect in ("mcp.list", "mcp.read"):
            return TRUE
        if cell.scheme in _SETTLED:
            place = settled(cell)
            rules = self.policy.tool_rules(place) if effect == "tool.call" else None
            content = self.policy.content(effect, place, cell.verb)
            changes = rules is not None and rules.changes
            return truth(content is not None and ("*" in content or not changes))
        return self._all_say(cell, lambda layer: layer.content)

    def lets_out(self, secret: str, effect: str, cell: Cell) -> Formula:
        """Whether a run that holds the secret may do this, seen by `flows.sink` alone."""
        if effect in flows._INWARD:
            return TRUE
        return self.releases(secret, cell)

    def find(self, rules: RuleList, cell: Cell, kind: str = "find") -> Formula:
        """A list's `find`, `below` (as `RuleList.below`) or `leads` (as `RuleList.holds`)."""
        if cell.scheme in _SETTLED:
            return truth(rules.find(settled(cell), cell.verb))
        key = (id(rules), cell.scheme, cell.host)
        patterns = self._by_host.get(key)
        if patterns is None:
            patterns = self._by_host[key] = [
                p
                for p in rules.index.patterns
                if cell.scheme in p.schemes and p.covers_host(cell.host)
            ]
        return covers(patterns, cell, kind)

    def _judge_file(self, effect: str, cell: Cell, without: RuleList | None) -> Formula:
        if effect not in _SEEN:
            return self._file(effect, cell, without)
        # What may be read may be looked at, and so may what may be written, and the way there.
        writable = [
            either(self.find(layer.write, cell), self.find(layer.write, cell, "below"))
            for layer in self.policy.layers
            if not layer.abstains(layer.write)
        ]
        seen = either(
            self._file("fs.stat", cell, without),
            both(negated(self._refused("fs.stat", cell, without)), *writable),
        )
        if effect != "fs.mount":
            return seen
        libraries = frozenset(file_segments(p, None) for p in self.policy.process.exec_from)
        return either(atom("find", False, libraries), seen)

    def _file(self, effect: str, cell: Cell, without: RuleList | None) -> Formula:
        writes = effect in WRITES
        allowed = []
        for layer in self.policy.layers:
            rules = layer.write if writes else layer.read
            if layer.abstains(rules):
                continue
            covered = self.find(rules, cell)
            if effect in LISTS:
                covered = either(covered, self.find(rules, cell, "below"))
            allowed.append(covered)
        if writes:
            allowed.append(negated(self._acts_later(effect, cell)))
        at_home = FALSE
        if cell.verb == HOME and self.policy.process.home:
            at_home = atom("find", False, frozenset({(*HOME_SEGMENTS, None)}))
        return both(negated(self._refused(effect, cell, without)), either(at_home, both(*allowed)))

    def _refused(self, effect: str, cell: Cell, without: RuleList | None) -> Formula:
        """What protection or a denial says no to, whatever the other rules say."""
        denied = [atom("find", False, self._no_access)]
        if effect in WRITES:
            denied.append(atom("find", False, self._no_write))
        if effect in MOVES:
            denied += [
                atom("leads", False, self._no_access),
                atom("leads", False, self._no_write),
            ]
        for layer in self.policy.layers:
            if layer.deny is without:
                continue
            denied.append(self.find(layer.deny, cell))
            if effect == "fs.rename":
                denied.append(self.find(layer.deny, cell, "leads"))
        return either(*denied)

    def _acts_later(self, effect: str, cell: Cell) -> Formula:
        """A path that acts later. What Python loads by itself does not count in a folder that the
        policy says the run fills."""
        if cell.verb == OWN:
            return self._closed(effect, acting.OWN)
        anywhere = self._closed(effect, acting.NOTHING)
        folders = self.policy.process.exec_from
        filled = frozenset((*file_segments(path, None), None) for path in folders)
        if not filled:
            return anywhere
        below = atom("find", False, filled)
        return either(
            both(negated(below), anywhere), both(below, self._closed(effect, acting.FILLED))
        )

    def _closed(self, effect: str, but: str) -> Formula:
        """A path that acts later, unless every file with an opinion names it: a rule that covers it
        begins with literal names which reach as far as what makes it one."""
        kind = effect_class(effect)
        closed = []
        for layer in self.policy.layers:
            if layer.abstains(layer.write):
                continue
            by_reach: dict[int, set[tuple[Part, ...]]] = {}
            for pattern in layer.write.index.patterns:
                by_reach.setdefault(len(literal_prefix(pattern.parts)), set()).add(pattern.parts)
            named = [
                both(atom("find", False, frozenset(parts)), ("atom", Acting(kind, but, reach)))
                for reach, parts in by_reach.items()
                if reach
            ]
            closed.append(negated(either(*named)))
        return both(("atom", Acting(kind, but, NEVER)), either(*closed))

    def _judge_model(self, cell: Cell) -> Formula:
        denied = either(*(self.find(layer.model_deny, cell) for layer in self.policy.layers))
        return both(negated(denied), self._all_say(cell, lambda layer: layer.model_allow))

    def _judge_network(
        self, cell: Cell, pick: Callable[[Rules], RuleList], without: RuleList | None
    ) -> Formula:
        allowed = self._all_say(cell, pick)
        if allowed == FALSE:
            return FALSE
        denied = either(
            *(
                self.find(layer.net_deny, cell)
                for layer in self.policy.layers
                if layer.net_deny is not without
            )
        )
        return both(negated(denied), allowed)

    def _all_say(self, cell: Cell, pick: Callable[[Rules], RuleList]) -> Formula:
        needed = []
        for layer in self.policy.layers:
            rules = pick(layer)
            if not layer.abstains(rules):
                needed.append(self.find(rules, cell))
        return both(*needed)


def settled(cell: Cell) -> Resource:
    """The one resource of a cell that has a name."""
    return parse_text(f"{cell.scheme}:{cell.name}")


def lists(layer: Rules) -> Iterator[RuleList]:
    """Every list of rules of a policy file."""
    yield from (layer.read, layer.write, layer.deny, layer.http, layer.tunnel, layer.net_deny)
    yield from (layer.model_allow, layer.model_deny)
    yield from (layer.content, layer.approvals, layer.trusted, layer.approve)
    yield from layer.secrets.values()
    yield from layer.release.values()


def _folders(paths: PathSet) -> frozenset[tuple[str | None, ...]]:
    """The paths of a set, each with all that lies below it."""
    return frozenset((*file_segments(text, None), None) for text in paths.texts)
