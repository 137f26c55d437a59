"""From what a run was denied to the smallest additions to its policy that would have let it pass.

Pure. Rules
- Only what the policy's own rules did not cover can be suggested. What a rule of `deny` forbids, what
  is protected, and what another layer refused (budget, label, capability, approval) is named with
  the reason and not suggested.
- One rule for one denial, as exact as the policy can say it: this file, this method and URL, this host
  and port. Three or more files in one folder become `FOLDER/*` (unless `exact`), which says that it is
  broad. Nothing ever becomes `/**`, and hosts and methods are never widened.
- What looks like a secret (`looks_secret`) is never suggested: a person may write that rule.
- What a trusted tool later executes or obeys is suggested with a warning that nobody overlooks.
- Every suggestion was tried: the policy with the additions allows what they are for. What it still
  denies (another file of the chain has to say it too) is named as left.
- A name that was looked up and refused gets the narrowest rule by which it exists, unless another rule
  brings it anyway. What was looked for among files counts only where it is there (`Wish.there`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from authority.kernel import resources
from authority.kernel.addresses import ResourceError, shown
from authority.kernel.policy import Policy, PolicyError, add_rules, check_warnings, explain
from authority.kernel.policy_explain import file_rule, named_alone, toml_text
from authority.kernel.policy_files import READS, WRITES
from authority.kernel.resource_files import file_segments, file_text
from authority.kernel.resources import Resource
from authority.kernel.suggest_words import acts_later, looks_secret, warnings_of

REASONS: Final = 5
"""How many reasons of one rule are shown."""
TOGETHER: Final = 3
"""So many files of one folder are suggested as one rule."""

Place = tuple[str, str]
LISTS: Final[tuple[Place, ...]] = (
    ("filesystem", "read"),
    ("filesystem", "write"),
    ("network", "allow"),
    ("network", "http"),
    ("models", "allow"),
)
"""The lists that a rule can be added to, beside those of a server that `mcp` defines; anything else a
person has to define."""


class Wish(msgspec.Struct, frozen=True):
    """Something that was refused: by which layer, in which entry first, how often.

    `looked` is a look without an entry of its own; `there` says whether the file exists, `folder`
    whether it is one.
    """

    effect: str
    resource: str
    verb: str = ""
    target: str = ""
    layer: str = "policy"
    reason: str = ""
    rule: str = ""
    entry: int = -1
    times: int = 1
    looked: bool = False
    there: bool = True
    folder: bool = False

    @property
    def text(self) -> str:
        parts = (self.effect, self.verb, self.resource, self.target and f"to {self.target}")
        return shown(" ".join(part for part in parts if part))

    @property
    def because(self) -> str:
        """For people: what it was, where it stands, how often."""
        where = "looked for" if self.looked else f"entry {self.entry}"
        return f"{self.text}: {where}" + (f", {self.times} times" if self.times > 1 else "")


class Addition(msgspec.Struct, frozen=True):
    """One rule to add to the list `key` of `section`."""

    section: str
    key: str
    rule: str
    because: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        return self.section, self.key


class Left(msgspec.Struct, frozen=True):
    """What is not suggested, and why."""

    wish: Wish
    why: str


class Suggestion(msgspec.Struct, frozen=True):
    """All of it. `warnings` are about the policy as it would be."""

    additions: tuple[Addition, ...] = ()
    left: tuple[Left, ...] = ()
    warnings: tuple[str, ...] = ()


class _Draft(msgspec.Struct):
    """A rule under way: the wishes that want it; the resource when it is a file's."""

    place: Place
    rule: str
    wishes: list[Wish]
    file: Resource | None = None
    broad: str = ""


def suggest(policy: Policy, wishes: Iterable[Wish], *, exact: bool = False) -> Suggestion:
    """The additions to the policy's own file, whatever a run may have asked for.

    Raises `PolicyError` for a policy below a parent's: there the parent decides.
    """
    add_rules(policy, {})
    left: list[Left] = []
    drafts: dict[tuple[Place, str], _Draft] = {}
    names: list[Wish] = []
    for wish in together(wishes):
        if wish.effect == "net.resolve" and wish.layer == "policy":
            names.append(wish)
            continue
        _draft(policy, wish, drafts, left)
    found = _sayable(policy, drafts, left)
    found += _name_drafts(policy, names, found, left)
    if not exact:
        found = _folded(policy, found)
    kept, wider = _tried(policy, found, left)
    before = set(check_warnings(policy))
    news = tuple(line for line in check_warnings(wider) if line not in before)
    additions = tuple(_finished(policy, draft) for draft in kept)
    return Suggestion(additions, tuple(left), news)


def together(wishes: Iterable[Wish]) -> list[Wish]:
    """Each wish once, with the number of times, in the order of their first entries."""
    found: dict[tuple[str, ...], Wish] = {}
    for wish in wishes:
        key = (wish.layer, wish.effect, wish.resource, wish.verb, wish.target)
        known = found.get(key)
        if known is None:
            found[key] = wish
        else:
            first = known if wish.looked or (0 <= known.entry <= wish.entry) else wish
            found[key] = msgspec.structs.replace(first, times=known.times + wish.times)
    return list(found.values())


def _draft(
    policy: Policy, wish: Wish, drafts: dict[tuple[Place, str], _Draft], left: list[Left]
) -> None:
    """Puts the rules that a wish needs among the drafts, or the wish among what is left."""
    if wish.layer != "policy":
        left.append(Left(wish, _elsewhere(wish)))
        return
    wanted: list[tuple[Place, str, Resource | None]] = []
    for text in (wish.resource, wish.target):
        if not text:
            continue
        try:
            resource = resources.parse_text(text)
        except ResourceError as error:
            left.append(Left(wish, f"has no canonical form: {error.message}"))
            return
        try:
            wanted += _rules(policy, wish, resource)
        except _Cannot as no:
            left.append(Left(wish, str(no)))
            return
    for place, rule, file in wanted:
        draft = drafts.setdefault((place, rule), _Draft(place, rule, [], file))
        draft.wishes.append(wish)


class _Cannot(Exception):
    """Why nothing is suggested for a wish. Never leaves this module."""


def _rules(
    policy: Policy, wish: Wish, resource: Resource
) -> list[tuple[Place, str, Resource | None]]:
    judgement = policy.judge(wish.effect, resource, wish.verb)
    if judgement.allowed:
        return []
    is_file = wish.effect in READS or wish.effect in WRITES or wish.effect == "fs.look"
    if is_file and resource.scheme == "fs":
        if wish.looked and not wish.there:
            raise _Cannot("is not there: nothing would be found with a rule either")
        if looks_secret(resource.segments):
            raise _Cannot("looks like a secret: if a run must have it, a person writes that rule")
        if judgement.rule and not named_alone(policy, wish.effect, resource, judgement):
            raise _Cannot(judgement.reason)
        key = "write" if wish.effect in WRITES else "read"
        return [(("filesystem", key), file_rule(policy.layers[0].base, resource), resource)]
    if judgement.rule:
        raise _Cannot(judgement.reason)
    found = explain(policy, wish.effect, resource, wish.verb, judgement)
    added: list[tuple[Place, str, Resource | None]] = [
        (place, rule, None) for place, rule in _said(found.snippet)
    ]
    if not added:
        raise _Cannot(f"{found.missing}; a person has to say what it is")
    return added


def _said(snippet: str) -> Iterator[tuple[Place, str]]:
    """The rules of a snippet that go into a list. What a person has to define is none."""
    for section, table in tomllib.loads(snippet).items():
        for key, value in table.items():
            if (section, key) in LISTS:
                for rule in value:
                    yield (section, key), rule
            elif section == "mcp":
                # A server that is defined: its tools, prompts and resources by their exact names.
                for name, rules in value.items():
                    for rule in rules if isinstance(rules, list) else ():
                        if "*" not in rule:
                            yield (f"mcp.{key}", name), rule


def _sayable(
    policy: Policy, drafts: dict[tuple[Place, str], _Draft], left: list[Left]
) -> list[_Draft]:
    """The drafts that are rules of a policy; what can't be said in one, or is protected, is left."""
    found = list(drafts.values())
    try:
        add_rules(policy, _lists(found))
    except PolicyError:
        kept = []
        for draft in found:
            try:
                add_rules(policy, _lists([draft]))
            except PolicyError as error:
                left += [Left(wish, error.message) for wish in draft.wishes]
            else:
                kept.append(draft)
        return kept
    return found


def _name_drafts(
    policy: Policy, names: Sequence[Wish], found: Sequence[_Draft], left: list[Left]
) -> list[_Draft]:
    """Rules for names that were asked for and that no other rule brings along."""
    wider = add_rules(policy, _lists(found))
    drafts: dict[str, _Draft] = {}
    for wish in names:
        try:
            resource = resources.parse_text(wish.resource)
        except ResourceError as error:
            left.append(Left(wish, f"has no canonical form: {error.message}"))
            continue
        judgement = wider.judge(wish.effect, resource)
        if judgement.allowed:
            continue
        if judgement.rule:
            left.append(Left(wish, judgement.reason))
            continue
        rule = f"GET https://{resource.host}/"
        drafts.setdefault(rule, _Draft(("network", "http"), rule, [])).wishes.append(wish)
    return list(drafts.values())


def _elsewhere(wish: Wish) -> str:
    match wish.layer:
        case "budget":
            return f"{wish.reason}; a larger {wish.rule or 'budget'} is for a person to decide"
        case "labels":
            return f"{wish.reason}; say in [labels] or the tool's content what may carry it"
        case _:
            return f"refused by the layer {wish.layer}: {wish.reason}"


def _lists(drafts: Iterable[_Draft]) -> dict[Place, list[str]]:
    out: dict[Place, list[str]] = {}
    for draft in drafts:
        out.setdefault(draft.place, []).append(draft.rule)
    return out


def _folded(policy: Policy, drafts: list[_Draft]) -> list[_Draft]:
    """Files of one folder as one rule, where that is not too much."""
    groups: dict[tuple[Place, tuple[str, ...]], list[_Draft]] = {}
    for draft in drafts:
        if draft.file is not None and _foldable(policy, draft):
            groups.setdefault((draft.place, draft.file.segments[:-1]), []).append(draft)
    folded: dict[int, _Draft] = {}
    for (place, folder), members in groups.items():
        if len(members) < TOGETHER:
            continue
        whole = Resource("fs", file_text(folder), folder)
        rule = _below(policy.layers[0].base, whole)
        wishes = [wish for member in members for wish in member.wishes]
        made = _Draft(place, rule, wishes, broad=file_text(folder).removeprefix("fs:"))
        folded |= {id(member): made for member in members}
    out: list[_Draft] = []
    for draft in drafts:
        made = folded.get(id(draft), draft)
        if made not in out:
            out.append(made)
    return out


def _foldable(policy: Policy, draft: _Draft) -> bool:
    assert draft.file is not None
    folder = draft.file.segments[:-1]
    own = file_segments(policy.layers[0].base, None)
    if len(folder) < 2 or folder[0] in _SYSTEM or any(map(_apart, draft.wishes)):
        return False
    return draft.place != ("filesystem", "write") or own[: len(folder)] != folder


_SYSTEM: Final = frozenset({"etc", "root", "proc", "sys", "dev", "run", "boot"})


def _apart(wish: Wish) -> bool:
    """What is never put together with others: a folder, and what acts later."""
    return wish.folder or any(
        acts_later(wish.effect, resources.parse_text(text).segments)
        for text in (wish.resource, wish.target)
        if text
    )


def _below(base: str, folder: Resource) -> str:
    rule = file_rule(base, folder)
    return "./*" if folder.segments == file_segments(base, None) else f"{rule}/*"


def _tried(policy: Policy, drafts: list[_Draft], left: list[Left]) -> tuple[list[_Draft], Policy]:
    """The drafts that help somebody, and the policy with them."""
    wider = add_rules(policy, _lists(drafts))
    helped: set[int] = set()
    said: set[Wish] = set()
    for draft in drafts:
        for wish in draft.wishes:
            why = _still(wider, wish)
            if not why:
                helped.add(id(draft))
            elif wish not in said:
                said.add(wish)
                left.append(Left(wish, why))
    kept = [draft for draft in drafts if id(draft) in helped]
    return kept, wider if len(kept) == len(drafts) else add_rules(policy, _lists(kept))


def _still(policy: Policy, wish: Wish) -> str:
    for text in (wish.resource, wish.target):
        if text:
            judgement = policy.judge(wish.effect, resources.parse_text(text), wish.verb)
            if not judgement.allowed:
                return judgement.reason
    return ""


def _finished(policy: Policy, draft: _Draft) -> Addition:
    warnings = list(warnings_of(policy, draft.place, draft.rule, draft.wishes))
    if draft.broad:
        warnings.insert(0, f"BROAD: also every other file in {shown(draft.broad)}, now and later")
    because = tuple(wish.because for wish in draft.wishes)
    return Addition(*draft.place, draft.rule, because, tuple(warnings))


def toml(suggestion: Suggestion) -> str:
    """The additions as TOML, each with its reasons; what is left as comments."""
    out: list[str] = []
    section = ""
    others = sorted({each.place for each in suggestion.additions} - set(LISTS))
    for place in (*LISTS, *others):
        rules = [each for each in suggestion.additions if each.place == place]
        if not rules:
            continue
        if place[0] != section:
            section = place[0]
            out += ["", f"[{section}]"] if out else [f"[{section}]"]
        out.append(f"{place[1]} = [")
        for each in rules:
            out += [f"    {line}" for line in commented(each)]
        out.append("]")
    return "\n".join(out) + "\n" if out else ""


def commented(addition: Addition) -> list[str]:
    """One rule as lines of a TOML list, its reasons and warnings above it."""
    lines = [f"# {line}" for line in addition.because[:REASONS]]
    if len(addition.because) > REASONS:
        lines.append(f"# and {len(addition.because) - REASONS} more")
    lines += [f"# {line}" for line in addition.warnings]
    return [*lines, f"{toml_text(addition.rule)},"]
