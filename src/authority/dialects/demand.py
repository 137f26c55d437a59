"""What a model request can cost at most, as far as the request itself says: its `Demand`.

Pure. Rules
- Tokens of text are bounded by bytes: tokenizers that begin with bytes (all that the vendors use)
  never make more tokens than the text has bytes in UTF-8, and a text's JSON is never shorter than
  the text. So the forwarded body's length bounds all text in it, names and punctuation included,
  and the syntax around each message and tool pays for the few tokens that the vendor adds there.
  What it adds once a request is the price list's `overhead`.
- What the body's length does not bound is counted by kind (`images`, `documents`, `choices`), or
  listed in `extras` by name. Everything that is not known here is an extra: a key, a kind of part, a
  tool that the vendor runs, a header that switches on a feature.
- `fetched`: a picture or file stands at an address, from which the vendor gets it.
- `media` are the bytes of pictures and files that lie inside the body; a bound by kind stands in
  their place.
- A limit of output, a stream flag or a number of choices of the wrong type is an error, not an
  extra: nobody knows how the vendor would read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from authority.dialects import json_text

CHAT: Final = "openai.chat"
RESPONSES: Final = "openai.responses"
EMBEDDINGS: Final = "openai.embeddings"
MESSAGES: Final = "anthropic.messages"
COUNT: Final = "anthropic.count"

LONG_LIMIT: Final = "max_completion_tokens"
SHORT_LIMIT: Final = "max_tokens"
MAX_LIMIT: Final = 2**31 - 1
"""The largest number of output tokens that a request may name, and the widest that is filled in."""


class DemandError(ValueError):
    """A request that no vendor defines: why, as one sentence for the program."""


class Demand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`size` is the forwarded body's length at the widest limit; `max_output` 0: not given."""

    size: int
    max_output: int = 0
    choices: int = 1
    media: int = 0
    images: int = 0
    documents: int = 0
    tools: int = 0
    cache: bool = False
    stream: bool = False
    extras: tuple[str, ...] = ()
    fetched: bool = False


class Tally:
    """Collects while a request is walked through."""

    def __init__(self) -> None:
        self.media = 0
        self.images = 0
        self.documents = 0
        self.tools = 0
        self.cache = False
        self.fetched = False
        self._extras: set[str] = set()

    def note(self, kind: str, name: object = "") -> None:
        """Note something that bytes do not bound. `name` may be the program's own text."""
        shown = name if isinstance(name, str) else type(name).__name__
        plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in shown[:40])
        self._extras.add(f"{kind}:{plain}" if plain else kind)

    def image(self, data: object = None, address: object = None) -> None:
        self.images += 1
        self.fetched = self.fetched or address is not None
        self._inside(data)

    def document(self, data: object = None, address: object = None) -> None:
        self.documents += 1
        self.fetched = self.fetched or address is not None
        self._inside(data)

    def _inside(self, data: object) -> None:
        # A longer JSON form would only leave more to pay for, so the plain length is safe.
        if isinstance(data, str) and data.isascii():
            self.media += len(data)

    def keys(self, table: Mapping[str, Any], known: Iterable[str], kind: str = "key") -> None:
        """Every key that is not known is an extra."""
        for key in table.keys() - set(known):
            if table[key] is not None:
                self.note(kind, key)

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(sorted(self._extras)[:32])


class Prepared:
    """A request that was read: its tree, and what it takes. `body` gives what is forwarded."""

    def __init__(
        self,
        api: str,
        model: str,
        tree: dict[str, Any],
        tally: Tally,
        *,
        max_output: int,
        choices: int,
        stream: bool,
        limit: Callable[[dict[str, Any], int, str], None],
    ) -> None:
        self.api = api
        self.model = model
        self.tree = tree
        self._limit = limit
        self.demand = Demand(
            size=len(self.body(MAX_LIMIT, LONG_LIMIT)),
            max_output=max_output,
            choices=choices,
            media=tally.media,
            images=tally.images,
            documents=tally.documents,
            tools=tally.tools,
            cache=tally.cache,
            stream=stream,
            extras=tally.extras,
            fetched=tally.fetched,
        )

    def body(self, limit: int, field: str) -> bytes:
        """The body to forward, with at most `limit` output tokens.

        `field` is what the upstream calls that limit in a chat which gives none.
        """
        tree = dict(self.tree)
        self._limit(tree, limit, field)
        return json_text.encode(tree)


def number(tree: Mapping[str, Any], key: str) -> int:
    """A limit that the request gives, 0 where it gives none. Raises `DemandError`."""
    value = tree.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 1 <= value <= MAX_LIMIT:
        raise DemandError(f"{key} must be a whole number from 1 to {MAX_LIMIT}.")
    return value


def flag(tree: Mapping[str, Any], key: str) -> bool:
    """A switch. Raises `DemandError` for what is neither true nor false."""
    value = tree.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise DemandError(f"{key} must be true or false.")


def table(value: object, what: str) -> dict[str, Any]:
    """A JSON object. Raises `DemandError`."""
    if not isinstance(value, dict):
        raise DemandError(f"{what} must be an object.")
    return value


def items(value: object, what: str) -> list[Any]:
    """A JSON array. Raises `DemandError`."""
    if not isinstance(value, list):
        raise DemandError(f"{what} must be an array.")
    return value


def model_name(tree: Mapping[str, Any]) -> str:
    """The model that is asked for. Raises `DemandError`."""
    name = tree.get("model")
    if not isinstance(name, str) or not 1 <= len(name) <= 128 or not name.isascii():
        raise DemandError("model must be a name of 1 to 128 plain characters.")
    return name
