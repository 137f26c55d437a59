"""The capability that a run starts with: its parent's or the gate's, narrowed before anything is read.

Rules
- A child's capability is its parent's, attenuated: contained by construction, and revoked with it. A
  deputy's (an MCP server) is its own, as that of a run without a parent.
- A grant is a pattern of resources, as capabilities hold them. The run's own capability covers what the
  grants name and nothing else, whatever the policy allows; so do all that are made of it.
- What a run is in itself stays: its output, the time, its handles and rooms. Messages to other runs,
  children and everything in the world have to be named.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container
from typing import Any

from authority.errors import AuthorityError
from authority.gate.run import Start
from authority.kernel import capabilities, entries
from authority.kernel.canonical import printable
from authority.kernel.capabilities import MacKey, Restriction
from authority.kernel.pattern_syntax import parse_pattern
from authority.kernel.requests import EFFECTS

LIMIT = 96
METHODS = tuple(sorted(EFFECTS))
ITSELF = (
    *("output:stdout", "output:stderr", "sys:time", "sys:random", "sys:uuid"),
    *("handle:h*", "room:python"),
)


def granted(texts: Any) -> Restriction | None:
    """The restriction that grants make; None where there are none. Raises `AuthorityError`."""
    if not texts:
        return None
    if not isinstance(texts, list) or len(texts) > LIMIT:
        raise AuthorityError(f"a run is granted at most {LIMIT} patterns of resources")
    for text in texts:
        if not isinstance(text, str) or len(text) > 1024:
            raise AuthorityError("a grant is text, at most 1024 characters")
        try:
            parse_pattern(text)
        except AuthorityError as error:
            raise AuthorityError(
                f"the grant {printable(text, 100)} can't be read: {error.message}", error.hint
            ) from None
    return Restriction(methods=METHODS, resources=(*texts, *ITSELF))


def capability_of(
    spec: Start, run: str, minting: Callable[[], MacKey], known: Container[str]
) -> tuple[bytes, list[entries.AnyEntry]]:
    """The token of a run that starts, and the entries that make it known; `known` are ids that are."""
    if spec.parent and not spec.own:
        narrower = spec.restriction or Restriction()
        token = capabilities.attenuate(spec.capability, narrower, nonce=secrets.token_bytes(16))
        parsed = capabilities.parse(token)
        return token, [
            entries.CapDerive(
                run=run,
                id=id_,
                parent=parsed.ids[at],
                restriction=parsed.restrictions[at + 1].plain(),
            )
            for at, id_ in enumerate(parsed.ids[1:])
            if id_ not in known
        ]
    restriction = spec.restriction or Restriction(methods=METHODS)
    token = capabilities.mint(minting(), id=secrets.token_hex(16), run=run, restriction=restriction)
    parsed = capabilities.parse(token)
    return token, [
        entries.CapMint(run=run, id=parsed.id, kid=parsed.kid, restriction=restriction.plain())
    ]
