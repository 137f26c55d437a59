"""The `[models]` section of a policy: prices, limits and upstreams, alone and put together.

Pure. Rules
- `allow` and `deny` are rules like any other and stand in `policy_rules`; here is the rest.
- Prices come from the list that the policy names or the one that is shipped, and from its own
  `price` tables, which replace a list's entry. Where several files know prices, the dearest counts.
- Upstreams are those that the base defines. A file that extends may leave some out and name fewer
  models for one; another address, key or API is another upstream, so an error.
- A policy that allows models and names no upstream has the two vendors' own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from authority.kernel.model_prices import Price, dearest, find
from authority.kernel.models import DEFAULT_MAX_OUTPUT, Terms, builtin_terms, is_builtin
from authority.kernel.policy_sections import UPSTREAMS, Models, Upstream

_OPENAI: Final = "https://api.openai.com:443/"


class ModelRules:
    """What one file says about models beside its rules. `knows`: it has prices at all."""

    __slots__ = ("_listed", "_own", "count", "default_max_output", "extras", "knows")

    def __init__(self, doc: Mapping[str, Any] | None, *, inherits: bool) -> None:
        doc = doc or {}
        prices = doc.get("prices")
        self._listed = prices.get("model", {}) if isinstance(prices, Mapping) else {}
        self._own = doc.get("price", {})
        self.knows = not inherits or isinstance(prices, Mapping)
        self.default_max_output = doc.get("default_max_output", 0)
        bound = doc.get("input_bound", "" if inherits else "bytes")
        self.count: bool | None = None if not bound else bound == "count"
        vouched = doc.get("extras", None if inherits else ())
        self.extras = None if vouched is None else frozenset(vouched)

    def price(self, name: str) -> Price | None:
        """This file's price of a model."""
        return find(self._own, name) or find(self._listed, name)

    @property
    def names(self) -> frozenset[str]:
        """The models that this file has a price for, by their whole names."""
        return frozenset(name for name in (*self._own, *self._listed) if not name.endswith("-DATE"))

    def mentions(self, name: str) -> bool:
        """Whether a file that leaves prices to its bases has one of its own for this model."""
        return find(self._own, name) is not None


def terms(name: str, files: Sequence[ModelRules]) -> Terms:
    """What all files of a policy together say about a model."""
    limits = [each.default_max_output for each in files if each.default_max_output]
    most = min(limits, default=DEFAULT_MAX_OUTPUT)
    if is_builtin(name):
        return builtin_terms(name, most)
    price = dearest(each.price(name) for each in files if each.knows or each.mentions(name))
    count = all(each.count for each in files if each.count is not None)
    vouched = [each.extras for each in files if each.extras is not None]
    extras = vouched[0].intersection(*vouched[1:]) if vouched else frozenset()
    return Terms(name, price, most, count, extras=extras)


def own_models(doc: Mapping[str, Any] | None) -> Models:
    """The section of a policy that stands alone."""
    doc = doc or {}
    given = doc.get("upstream")
    upstreams = {name: _upstream(one) for name, one in (given or {}).items()}
    if given is None and doc.get("allow"):
        upstreams = dict(UPSTREAMS)
    return Models(
        tuple(doc.get("allow", ())),
        tuple(doc.get("deny", ())),
        doc.get("default_max_output", 0),
        doc.get("input_bound", ""),
        MappingProxyType(upstreams),
    )


def extended(
    doc: Mapping[str, Any] | None, parent: Models, refined: Callable[..., Mapping[str, Any]]
) -> Models:
    """The section of a policy that extends one with `parent`'s, for display; upstreams for use."""
    given = (doc or {}).get("upstream")
    own = own_models({k: v for k, v in (doc or {}).items() if k != "upstream"})
    return Models(
        own.allow if "allow" in (doc or {}) else parent.allow,
        own.deny,
        own.default_max_output,
        own.input_bound or parent.input_bound,
        refined("models.upstream", given, parent.upstream, _tighter),
    )


def tightened(parent: Models, child: Models, common: Callable[..., Mapping[str, Any]]) -> Models:
    """What is left of a child's section under its parent's."""
    limits = [one.default_max_output for one in (parent, child) if one.default_max_output]
    return Models(
        child.allow,
        tuple(dict.fromkeys((*parent.deny, *child.deny))),
        min(limits, default=0),
        "count" if parent.input_bound == child.input_bound == "count" else "bytes",
        common(parent.upstream, child.upstream, _same, _less),
    )


def choose(models: Models, name: str, api: str) -> tuple[str, Upstream] | None:
    """The first upstream, in the order written, that speaks `api` and has the model."""
    for key, one in models.upstream.items():
        if one.api == api and (not one.models or any(_covers(p, name) for p in one.models)):
            return key, one
    return None


def _covers(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _upstream(one: Mapping[str, Any]) -> Upstream:
    long = one["api"] == "openai" and (one["url"] + "/").startswith(_OPENAI)
    return Upstream(
        one["url"],
        one["api"],
        one.get("from_env", ""),
        tuple(one.get("models", ())),
        one.get("limit", "max_completion_tokens" if long else "max_tokens"),
    )


def _tighter(one: Mapping[str, Any], parent: Upstream) -> Upstream | None:
    child = _upstream({**msgspec.structs.asdict(parent), **one})
    return _less(parent, child) if _same(parent, child) else None


def _same(parent: Upstream, child: Upstream) -> bool:
    return all(
        getattr(parent, key) == getattr(child, key) for key in ("url", "api", "from_env", "limit")
    )


def _less(parent: Upstream, child: Upstream) -> Upstream:
    if not parent.models or not child.models:
        return msgspec.structs.replace(parent, models=parent.models or child.models)
    both = tuple(text for text in child.models if text in parent.models)
    # An empty list would mean every model, and no model's name begins with a dash.
    return msgspec.structs.replace(parent, models=both or ("-",))
