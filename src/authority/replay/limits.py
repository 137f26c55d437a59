"""What of a run can't be controlled or compared, told before it is played.

Nothing here stops a replay; it keeps one that went the same way from being called the same.
"""

from __future__ import annotations

from authority.kernel import entries
from authority.kernel.policy import Policy
from authority.recorded.recording import Recording


def limits_of(recording: Recording, policy: Policy) -> list[str]:
    """One line a limit."""
    start = recording.start
    found = []
    if not start.seed:
        found.append("no hash seed was recorded: what rests on the order of hashes may differ")
    elif start.seed == "random":
        found.append("the policy asks for random hashes: what rests on their order may differ")
    if recording.end is None:
        found.append("the run has no last entry: it was going on, or its gate died")
    effects = {asked.verdict.effect for asked in recording.own}
    opened = [a for a in recording.own if a.verdict.effect == "fs.open" and not a.denied]
    if any(a.outcome is None or a.outcome.result is None for a in opened):
        found.append("files that it opened through a mount are read where they lie now, unchanged")
    if any(isinstance(row, entries.Tally) for row in recording.rows):
        found.append("names and attributes that it looked at in mounts are those of now")
    if start.protection.get("files") == "bind":
        found.append("files were bound plainly: they are those of now, and can't be written")
    if "net.connect" in effects:
        found.append(
            "tunnels are opaque: what rests on their own randomness (TLS) can't be repeated"
        )
    if policy.mcp:
        found.append("MCP servers are not started: only calls that came through the channel answer")
    if start.parent:
        found.append("it was a child: what its parent did meanwhile is answered, not played")
    return found
