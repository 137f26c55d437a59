"""Which files a run made itself, so that it may delete them also when it read untrusted words.

Pure. What it made is its own under the name that it gives it since; a name that something else gets is
not, nor what a call on handles made. Bounded: beyond `LIMIT` names further ones are not its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMIT = 10_000


def follow(
    created: set[str], effect: str, resource: str, target: str, facts: Mapping[str, Any]
) -> None:
    """What a done effect changes in the names that the run made, in place."""
    room = len(created) < LIMIT
    if facts.get("created") and room:
        created.add(resource)
    elif effect == "fs.delete":
        created.discard(resource)
    elif effect == "fs.rename":
        created.discard(target)
        moved = {resource} & created
        if facts.get("type") == "directory":
            moved |= {made for made in created if made.startswith(f"{resource}/")}
        created -= moved
        created |= {target + made[len(resource) :] for made in moved}
    elif effect == "fs.link" and resource in created and room:
        created.add(target)
