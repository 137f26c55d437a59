"""The rules of one policy file, put into indexes, each able to name the rule that matched.

Pure. Rules
- A list that is left out allows nothing, except in a file that extends another: there it has no
  opinion (`abstains`), and the files that it extends decide. A list that is given, also an empty
  one, is this file's own opinion.
- Rules that permit are read narrowly and rules that forbid widely; `patterns` says how.
- An `http` rule without a verb covers GET and HEAD. In every other list a rule without a verb
  covers every verb.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from authority.kernel.addresses import ResourceError, shown, split_host_port
from authority.kernel.labels import USER
from authority.kernel.pattern_parts import check_source
from authority.kernel.patterns import (
    Index,
    Pattern,
    PatternError,
    file_pattern,
    host_pattern,
    parse_pattern,
    tcp_pattern,
    url_pattern,
)
from authority.kernel.policy_checkers import Context, Path
from authority.kernel.policy_models import ModelRules
from authority.kernel.resources import Resource

_SAFE_VERBS = ("GET", "HEAD")


class RuleList:
    """One list of a policy: an index that remembers the key and the texts."""

    __slots__ = ("given", "index", "key", "texts")

    def __init__(self, key: str, texts: Sequence[str], index: Index, *, given: bool) -> None:
        self.key = key
        self.texts = tuple(texts)
        self.index = index
        self.given = given

    def find(self, resource: Resource, verb: str = "") -> str:
        """The rule that covers the resource, as `filesystem.read[2] "./docs/**"`, or nothing."""
        return self._name(self.index.find(resource, verb))

    def below(self, resource: Resource) -> str:
        """A rule that may cover something below the directory, or nothing."""
        return self._name(self.index.below(resource))

    def holds(self, resource: Resource) -> str:
        """A rule about something whose literal path leads through the resource, or nothing."""
        return self._name(self.index.leads(resource))

    def _name(self, found: int | None) -> str:
        return "" if found is None else f'{self.key}[{found}] "{shown(self.texts[found])}"'


class Rules:
    """One policy file. `inherits`: it extends others, so lists that it leaves out abstain."""

    __slots__ = (
        "approvals",
        "approve",
        "base",
        "content",
        "deny",
        "http",
        "inherits",
        "model_allow",
        "model_deny",
        "models",
        "name",
        "net_deny",
        "private",
        "private_given",
        "read",
        "release",
        "secrets",
        "trusted",
        "trusts_user",
        "tunnel",
        "write",
    )

    def __init__(
        self, doc: Mapping[str, Any], base: str, name: str, context: Context, *, inherits: bool
    ) -> None:
        self.base = base
        self.name = name
        self.inherits = inherits

        def rules(path: Path, reader: Callable[[str], Pattern], source: Any = None) -> RuleList:
            texts = _at(doc, path) if source is None else source
            return _read(context, path, texts, reader)

        def file(text: str) -> Pattern:
            return file_pattern(text, base=base)

        def file_deny(text: str) -> Pattern:
            return file_pattern(text, base=base, forbids=True)

        def permit(text: str) -> Pattern:
            return parse_pattern(text, base=base)

        def forbid(text: str) -> Pattern:
            return parse_pattern(text, base=base, forbids=True)

        self.read = rules(("filesystem", "read"), file)
        self.write = rules(("filesystem", "write"), file)
        self.deny = rules(("filesystem", "deny"), file_deny)
        self.http = rules(
            ("network", "http"), lambda text: url_pattern(text, default_verbs=_SAFE_VERBS)
        )
        self.tunnel = rules(("network", "allow"), lambda text: tcp_pattern(text, text))
        self.net_deny = rules(("network", "deny"), lambda text: _net_deny(text, base))
        self.content = rules(("labels", "content"), permit)
        self.approve = rules(("labels", "approve"), permit)
        self.approvals = rules(("approvals", "require"), forbid)
        self.models = ModelRules(doc.get("models"), inherits=inherits)
        self.model_allow = rules(("models", "allow"), lambda text: permit(_model(text)))
        self.model_deny = rules(("models", "deny"), lambda text: forbid(_model(text)))
        trusted = _at(doc, ("labels", "trusted"))
        self.trusts_user = trusted is None or USER in trusted
        self.trusted = rules(("labels", "trusted"), lambda text: _word(text, permit, USER))
        labels = doc.get("labels", {})
        self.secrets = {
            name: rules(("labels", "secrets", name), forbid, texts)
            for name, texts in labels.get("secrets", {}).items()
        }
        self.release = {
            name: rules(
                ("labels", "release", name),
                lambda text: _word(text, permit, "output", "run"),
                texts,
            )
            for name, texts in labels.get("release", {}).items()
        }
        private = _at(doc, ("network", "private"))
        self.private_given = private is not None
        self.private = frozenset(
            _private(context, ("network", "private", index), text)
            for index, text in enumerate(private or ())
        )

    def abstains(self, rules: RuleList) -> bool:
        """Whether this file leaves the matter to the files that it extends."""
        return self.inherits and not rules.given

    def names_private(self, host: str, port: int) -> bool:
        """Whether this file names the host and port as allowed to be private."""
        if not self.private_given and self.inherits:
            return True
        return (host, port) in self.private or (host, 0) in self.private


def private_key(text: str) -> tuple[str, int]:
    """Host and port (0: any) of a `private` or `hosts` entry. Raises `ResourceError`."""
    if "*" in text or "/" in text:
        raise ResourceError(
            f"{shown(text)!r} is not one host", "write host or host:port, without wildcards"
        )
    host, port = split_host_port(text)
    return host, port or 0


def _at(doc: Mapping[str, Any], path: Path) -> list[str] | None:
    value: Any = doc
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, list) else None


def _read(
    context: Context, path: Path, texts: Sequence[str] | None, reader: Callable[[str], Pattern]
) -> RuleList:
    patterns = []
    for number, text in enumerate(texts or ()):
        try:
            patterns.append(reader(text))
        except PatternError as error:
            raise context.error((*path, number), error.message, error.hint, text) from None
    key = ".".join(str(part) for part in path)
    return RuleList(key, texts or (), Index(patterns), given=texts is not None)


def _net_deny(text: str, base: str) -> Pattern:
    check_source(text)
    if "://" in text:
        return parse_pattern(text, base=base, forbids=True)
    if "/" in text:
        raise PatternError(
            f"{shown(text)!r} is neither a host nor a URL",
            "address ranges need no rule: what is not public is refused unless private names it",
        )
    return host_pattern(text)


def _model(text: str) -> str:
    if text.strip("*") == "":
        raise PatternError("a bare * would cover everything", 'name the models, as "gpt-*"')
    return f"model:{text}"


def _word(text: str, reader: Callable[[str], Pattern], *words: str) -> Pattern:
    """A pattern, or one of the words that stand for a place that is no resource."""
    if text not in words:
        return reader(text)
    schemes = frozenset({"run"} if text == "run" else {"output"} if text == "output" else ())
    return Pattern(text, schemes, (None,))


def _private(context: Context, path: Path, text: str) -> tuple[str, int]:
    try:
        return private_key(text)
    except ResourceError as error:
        raise context.error(path, error.message, error.hint, text) from None
