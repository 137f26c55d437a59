"""What a run is granted at its start: the person's request, narrowed before anything is read.

Rules
- A grant is a pattern of resources, as capabilities hold them. The run's own capability covers what the
  grants name and nothing else, whatever the policy allows; so do all that are made of it.
- What a run is in itself stays: its output, the time, its handles and rooms. Messages to other runs,
  children and everything in the world have to be named.
"""

from __future__ import annotations

from typing import Any

from authority.errors import AuthorityError
from authority.kernel.canonical import printable
from authority.kernel.capabilities import Restriction
from authority.kernel.pattern_syntax import parse_pattern
from authority.kernel.requests import EFFECTS

LIMIT = 96
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
    return Restriction(methods=tuple(sorted(EFFECTS)), resources=(*texts, *ITSELF))
