"""The checkers of `[models]` and of a price list.

Pure. Rules
- Every number is whole and not negative; what is left out is not known (`model_prices`).
- An upstream's address has no query; what is written stands in canonical form, port included.
- Patterns of an upstream hold names of models and `*`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from authority.kernel import policy_checkers as kit
from authority.kernel import policy_values as values
from authority.kernel.addresses import ResourceError, shown
from authority.kernel.model_prices import KEYS, MODEL_NAME
from authority.kernel.policy_checkers import Checker, Context, Path
from authority.kernel.resources import parse_text


def section(context: Context, path: Path, value: Any) -> dict[str, Any]:
    """The checker of the section. Raises `PolicyError`."""
    return kit.table(context, path, value, _SECTION)


def check(context: Context, doc: Mapping[str, Any]) -> None:
    """What the section has to be beside the rest of a policy. Raises `PolicyError`."""
    for name, upstream in doc.get("models", {}).get("upstream", {}).items():
        path = ("models", "upstream", name)
        kit.need(context, path, upstream, () if "extends" in doc else ("url", "api"))
        if upstream.get("from_env") in doc.get("process", {}).get("pass_env", ()):
            raise context.error(
                (*path, "from_env"),
                "is passed into the run by process.pass_env, which shows the secret to the agent",
                "take it out of pass_env",
            )


def price_list(context: Context, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A whole price list: `date` and `model` tables. Raises `PolicyError`."""
    found = kit.table(context, (), raw, {"date": _date, "model": _prices})
    kit.need(context, (), found, ("date", "model"))
    return found


def _prices(context: Context, path: Path, value: Any) -> dict[str, dict[str, int]]:
    if not isinstance(value, dict):
        raise context.error(path, f"must be a table of models, not {values.kind(value)}")
    found = {}
    for name, item in value.items():
        if not MODEL_NAME.match(name):
            raise context.error((*path, name), "is not the name of a model")
        entry = kit.table(context, (*path, name), item, _PRICE)
        kit.need(context, (*path, name), entry, ("input", "output"))
        found[name] = entry
    return found


def _date(context: Context, path: Path, value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise context.error(path, "must be a day", "write 2025-11-20")
    return text


def _patterns(context: Context, path: Path, value: Any) -> list[str]:
    found: list[str] = kit.texts(context, path, value)
    for index, item in enumerate(found):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+*-]{0,127}", item):
            raise context.error((*path, index), f"{shown(item)!r} is no pattern of model names")
    return found


def _url(context: Context, path: Path, value: Any) -> str:
    text: str = kit.text(context, path, value)
    try:
        found = parse_text(text)
    except ResourceError as error:
        raise context.error(path, error.message, error.hint) from None
    if found.scheme not in ("http", "https") or found.query is not None:
        raise context.error(path, "must be an http or https address without a query")
    return found.text.rstrip("/")


def _upstreams(context: Context, path: Path, value: Any) -> dict[str, Any]:
    return {
        name: kit.table(context, (*path, name), item, _UPSTREAM)
        for name, item in kit.named(context, path, value).items()
    }


_PRICE: Final[dict[str, Checker]] = {name: kit.quantity(values.count) for name in KEYS}
_UPSTREAM: Final[dict[str, Checker]] = {
    "url": _url,
    "api": kit.one_of("openai", "anthropic"),
    "from_env": kit.env_name,
    "models": _patterns,
    "limit": kit.one_of("max_tokens", "max_completion_tokens"),
}
_SECTION: Final[dict[str, Checker]] = {
    "allow": kit.texts,
    "deny": kit.texts,
    "extras": kit.texts,
    "default_max_output": kit.quantity(values.count, positive=True),
    "input_bound": kit.one_of("bytes", "count"),
    "prices": kit.text,
    "price": _prices,
    "upstream": _upstreams,
}
