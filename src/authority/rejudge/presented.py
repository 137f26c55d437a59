"""Capabilities as the log knows them: put together again from what was minted and derived.

Rules
- The log holds each link's restriction, never a token or key. So a token that was presented can be
  rebuilt but for its MAC: that the MAC held is taken as given (its ids stand in the entry only then).
- A derived id is the hash of its parent's and its restriction, so whether an entry names the right
  restriction is recomputed, without any key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from authority import tokens
from authority.kernel import entries
from authority.kernel.capabilities import Token
from authority.kernel.restrictions import Link, link
from authority.kernel.state import State
from authority.tokens import Restriction, TokenError, restriction_from_plain

_NOBODY = Token("?", "?", ("?",), (), b"", (), b"")
"""A token that was presented and whose MAC did not hold: nothing of it is recorded."""


class _Known(NamedTuple):
    link: Link
    kid: str
    run: str


class Presented:
    """The capabilities of one log."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._tokens: dict[tuple[str, ...], Token] = {}

    def mint(self, entry: entries.CapMint) -> None:
        """A root. Raises `TokenError` for a restriction that is none."""
        restriction = restriction_from_plain(entry.restriction)
        self._known[entry.id] = _Known(_link(restriction), entry.kid, entry.run)

    def derive(self, entry: entries.CapDerive) -> str:
        """A narrower one. What is wrong with its id, or nothing. Raises `TokenError`."""
        parent = self._known.get(entry.parent)
        if parent is None:
            return f"it derives from {entry.parent}, which no entry holds"
        restriction = restriction_from_plain(entry.restriction)
        if derived_id(entry.parent, restriction) != entry.id:
            return "its id is not the hash of its parent and restriction"
        self._known[entry.id] = _Known(_link(restriction), parent.kid, parent.run)
        return ""

    def token(self, ids: Sequence[str], state: State, denied: entries.Denied | None) -> Token:
        """The token of a chain of ids. Raises `TokenError` when its links are not recorded."""
        if not ids:
            return _NOBODY
        key = tuple(ids)
        known = self._tokens.get(key)
        if known is not None and all(id_ in state.caps for id_ in ids):
            return known
        # An admission records the whole chain, so what is not recorded yet is its end.
        more = denied.links if denied is not None else []
        first = len(ids) - len(more)
        links, kid, run = [], "", ""
        for at, id_ in enumerate(ids):
            if at >= first:
                restriction = restriction_from_plain(more[at - first])
                if at and derived_id(ids[at - 1], restriction) != id_:
                    raise TokenError("a recorded restriction does not belong to its id")
                links.append(_link(restriction))
                if at == 0 and denied is not None:
                    kid, run = denied.kid, denied.bound
                continue
            found = self._known.get(id_)
            if found is None:
                raise TokenError(f"no entry holds the restriction of {id_}")
            links.append(found.link)
            kid, run = (found.kid, found.run) if at == 0 else (kid, run)
        token = Token(kid, run, key, tuple(links), b"", (), b"")
        if all(id_ in state.caps for id_ in ids):
            self._tokens[key] = token
        return token


def derived_id(parent: str, restriction: Restriction) -> str:
    """The id of a restriction below a parent's."""
    part = tokens.encode_restriction(restriction)
    return tokens.next_id(bytes.fromhex(parent), part).hex()


def _link(restriction: Restriction) -> Link:
    return link(tokens.encode_restriction(restriction))
