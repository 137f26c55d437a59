"""What a policy says about files: reading, changing, looking, mounting.

Pure. Rules
- Built-in protection first, then every denial, then paths that act later (`policy_persist`), then the
  rules that allow; what no rule allows is denied.
- What Python and its environments load by themselves (`Kind.FOLDER`) is open in a folder of
  `process.exec_from`: the policy says that the run fills it and runs what is there.
- What may be read or changed may be looked at through a mount, and so may the way there (`partial`).
- In the run's named home everything is allowed that no rule denies: no path outside names it, and only
  the mount that answers for it asks with the verb `HOME`.
"""

from __future__ import annotations

from typing import Final

from authority.kernel.addresses import shown
from authority.kernel.pattern_match import literal_prefix
from authority.kernel.policy_persist import HOME, HOME_SEGMENTS, OWN, Kind, persistent
from authority.kernel.policy_protect import PathSet, Protection, path_text
from authority.kernel.policy_rules import RuleList, Rules
from authority.kernel.policy_sections import Judgement, Process
from authority.kernel.resources import Resource

READS: Final = frozenset({"fs.read", "fs.list", "fs.stat", "fs.open"})
WRITES: Final = frozenset(
    {"fs.write", "fs.append", "fs.mkdir", "fs.rename", "fs.delete"}
    | {"fs.modify", "fs.attributes", "fs.symlink", "fs.link"}
)
FILES: Final = READS | WRITES | {"fs.look", "fs.show", "fs.mount"}
LISTS: Final = frozenset({"fs.list", "fs.stat"})
MOVES: Final = frozenset({"fs.rename", "fs.delete"})


class Say:
    """How a judgement names a rule: with its file, where there are several."""

    __slots__ = ("_many",)

    def __init__(self, layers: tuple[Rules, ...]) -> None:
        self._many = len(layers) > 1

    def named(self, rule: str, layer: Rules) -> str:
        return f"{rule} in {shown(layer.name)}" if self._many else rule

    def denied(self, rule: str, layer: Rules, resource: Resource) -> Judgement:
        rule = self.named(rule, layer)
        return Judgement(False, rule, f"{rule} forbids {shown(resource.text)}")

    def not_covered(
        self, rules: RuleList, layer: Rules, resource: Resource, verb: str = ""
    ) -> Judgement:
        what = f"{verb} {resource.text}" if verb else resource.text
        where = self.named(rules.key, layer)
        return Judgement(False, "", f"no rule of {where} covers {shown(what)}")


class FileRules:
    """The file rules of a chain of policies."""

    __slots__ = ("_filled", "_layers", "_process", "_protection", "_say")

    def __init__(
        self, layers: tuple[Rules, ...], protection: Protection, process: Process, say: Say
    ) -> None:
        self._layers = layers
        self._protection = protection
        self._process = process
        self._filled = PathSet(map(path_text, process.exec_from))
        self._say = say

    def judge(self, effect: str, resource: Resource, verb: str = "") -> Judgement:
        """For the effects of `FILES`, on a file."""
        if effect in ("fs.look", "fs.show"):
            return self._look(resource, verb)
        if effect == "fs.mount":
            return self._mount(resource, verb)
        return self._file(effect, resource, verb)

    def _mount(self, resource: Resource, verb: str) -> Judgement:
        """A folder may be mounted if the run may look at it; each use is judged by itself."""
        if path_text(resource.path) in self._filled.texts:
            return Judgement(True, "process.exec_from")
        return self._look(resource, verb)

    def _look(self, resource: Resource, verb: str) -> Judgement:
        """What may be read may be looked at, and so may what may be written, and the way there."""
        judgement = self._file("fs.stat", resource, verb)
        if judgement.allowed or judgement.rule:
            return judgement
        first = ""
        for layer in self._layers:
            if layer.abstains(layer.write):
                continue
            rule = layer.write.find(resource) or layer.write.below(resource)
            if not rule:
                return judgement
            first = first or self._say.named(rule, layer)
        partial = not all(
            layer.abstains(layer.write) or layer.write.find(resource) for layer in self._layers
        )
        return Judgement(True, first, partial=partial)

    def _file(self, effect: str, resource: Resource, verb: str = "") -> Judgement:
        writes = effect in WRITES
        why = self._protection.denies(resource.segments, writes=writes, moves=effect in MOVES)
        if why:
            return Judgement(False, "built in", why)
        for layer in self._layers:
            rule = layer.deny.find(resource)
            if rule:
                return self._say.denied(rule, layer, resource)
            if effect == "fs.rename" and (rule := layer.deny.holds(resource)):
                return self._say.denied(rule, layer, resource)
        if verb == HOME and self._process.home and resource.segments[:2] == HOME_SEGMENTS:
            return Judgement(True, f'process.home "{self._process.home}"')
        if writes and (why := self._persists(effect, resource, verb)):
            return Judgement(False, "built in", why)
        first, partial = "", False
        for layer in self._layers:
            rules = layer.write if writes else layer.read
            if layer.abstains(rules):
                continue
            rule = rules.find(resource)
            if not rule and effect in LISTS:
                rule = rules.below(resource)
                partial = partial or bool(rule)
            if not rule:
                return self._say.not_covered(rules, layer, resource)
            first = first or self._say.named(rule, layer)
        return Judgement(True, first, partial=partial)

    def _persists(self, effect: str, resource: Resource, verb: str) -> str:
        """Why a trusted tool would later act on this, unless every file of rules names it."""
        kept = persistent(effect, resource.segments)
        if kept is None or (verb == OWN and kept.kind != Kind.ALWAYS):
            return ""
        if kept.kind == Kind.FOLDER and self._filled.covers(resource.segments):
            return ""
        for layer in self._layers:
            if layer.abstains(layer.write):
                continue
            if not any(
                len(literal_prefix(pattern.parts)) >= kept.at and pattern.matches(resource)
                for pattern in layer.write.index.patterns
            ):
                return (
                    f"this is {kept.what}, which a trusted tool later executes or obeys;"
                    " a rule has to name it"
                )
        return ""
