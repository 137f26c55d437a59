"""What the readers of patterns share: bounds, and the parts that a pattern is made of.

Pure. Rules
- A pattern is short, has few segments and few wildcards, and holds no invisible character, so that a
  person who reads it sees what it is.
- A rule that forbids covers everything below what it names (`below`).
- What is no pattern is `PatternError`, with what to write instead.
"""

from __future__ import annotations

import re
from typing import Final

from authority.kernel.addresses import shown
from authority.kernel.pattern_match import Part, PatternError

MAX_PATTERN: Final = 4096
MAX_PARTS: Final = 256
MAX_STARS: Final = 16
UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def check_source(text: str) -> None:
    """Refuse what no pattern may be: too long, invisible characters, a bare wildcard.

    Raises `PatternError`.
    """
    if not text or len(text) > MAX_PATTERN:
        raise PatternError(f"a pattern has 1 to {MAX_PATTERN} characters")
    if UNSAFE.search(text):
        raise PatternError(
            f"the pattern {shown(text)!r} holds a control or invisible character",
            "write it in the fs: form with percent escapes if a file is really called so",
        )
    if text in ("*", "**"):
        raise PatternError(f"a bare {text} would cover everything", "say what is meant")


def double(text: str) -> PatternError:
    """What to say of `**` that does not stand alone."""
    return PatternError(
        f"{shown(text)!r} holds ** beside something else",
        "** stands alone between slashes, as in a/**/b",
    )


def below(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts, with everything below what they name; a slash at the end changes nothing."""
    if parts and parts[-1] == "":
        parts = parts[:-1]
    return parts if parts and parts[-1] is None else (*parts, None)


def limited(parts: tuple[Part, ...], text: str) -> tuple[Part, ...]:
    """The parts, `**` never twice in a row. Raises `PatternError` when they are too many."""
    stars = sum(part is None for part in parts)
    widest = max((len(part) for part in parts if isinstance(part, tuple)), default=0)
    if len(parts) > MAX_PARTS or stars > MAX_STARS or widest > MAX_STARS:
        raise PatternError(
            f"{shown(text)!r} is too complicated",
            f"use at most {MAX_PARTS} segments and {MAX_STARS} wildcards",
        )
    # Two `**` in a row mean what one means.
    return tuple(
        part
        for index, part in enumerate(parts)
        if part is not None or parts[index - 1 : index] != (None,)
    )
