"""Where a run's files lie: from a policy's rules to the folders that are mounted, or bound.

Rules
- Every rule that allows begins with literal names. A rule with wildcards stands for the folder of those
  names, one without for a single file or folder and so for the folder around it. Below the working
  folder every rule stands for the working folder: a program expects it as a whole.
- Of a chain of policies the first that has a list is looked at: nothing that it does not cover is
  allowed, whatever the others say.
- Folders inside others vanish, but those with execution, which are mounts of their own.
- What a run is made of is never mounted, and a folder that much else lies in (`/var`, a home) only when
  a rule names it. What is left out is said, with the reason.
- How the program reaches them is the policy's word (`filesystem.files`), or the best that this machine
  has: a mount, else call by call. What is weaker than these is never taken by itself. Whoever starts
  the run may choose what is narrower than the policy's word; where it has none, any (`WAYS` stand in
  that order).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from authority.isolation import Host, IsolationRefused
from authority.isolation.places import HOME, Bind, Mount, inside, obstacle
from authority.kernel.canonical import printable
from authority.kernel.pattern_match import literal_prefix
from authority.kernel.policy import Policy
from authority.kernel.policy_rules import RuleList, Rules

_WIDE: Final = """
/var /var/lib /var/tmp /root /opt /srv /mnt /media /boot /run /usr/share /usr/local /usr/local/share
"""
_SHARED: Final = frozenset(_WIDE.split())
"""Folders that hold what many need: for one file in them they are not mounted."""


WAYS: Final = ("requests", "mount", "calls", "bind")
"""How files can be reached, from the narrowest to the widest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Folders by what the rules say of them, and what can't be had, with the reason."""

    folders: tuple[str, ...]
    written: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """How a run reaches its files. `way` is one of `WAYS`; with `calls` the mounts are the folders."""

    way: str
    mounts: tuple[Mount, ...] = ()
    binds: tuple[Bind, ...] = ()
    notes: tuple[str, ...] = ()


def wanted(policy: Policy, cwd: str) -> Wanted:
    """The least folders that hold everything that the policy's file rules can cover."""
    left_out: dict[str, str] = {}
    read = _places(_first(policy, lambda layer: layer.read), cwd, left_out)
    written = _places(_first(policy, lambda layer: layer.write), cwd, left_out)
    return Wanted(
        _outermost((*read, *written)),
        _outermost(written),
        tuple(f"{printable(path)} is not mounted: it {why}" for path, why in left_out.items()),
    )


def reach(
    policy: Policy,
    cwd: str,
    host: Host,
    home: str,
    *,
    served: bool,
    asked: str = "",
    watch: bool = False,
) -> Reach:
    """How a run under this policy reaches its files. `home` is the folder behind a named home, or
    nothing; `served` says whether this gate answers for mounts; `asked` is the way that whoever starts
    the run wants; a run to `watch` starts without
    mounts where there can be none, and reaches no files but through the gate. Raises
    `IsolationRefused`."""
    found = wanted(policy, cwd)
    needed = bool(found.folders or home or policy.process.exec_from)
    own = _way(policy.filesystem.files, asked)
    way = own or ("mount" if served else "requests")
    if way == "requests" or not needed:
        return Reach("requests")
    if way == "bind":
        return _bound(policy, found, home)
    if way == "mount" and not own and served and host.fuse_problem[0] and not host.calls_problem[0]:
        way = "calls"
    cause, fix = host.calls_problem if way == "calls" else host.fuse_problem
    if watch and (cause or not served) and not own:
        note = f"what the program looks for among files can't be seen: {cause or 'nobody answers'}"
        return Reach("requests", notes=(note,))
    if cause or not served:
        raise _not_served(way, cause, fix, host)
    executable = policy.process.exec_from
    mounts = [Mount(path, path in executable) for path in (*found.folders, *executable)]
    if home:
        mounts.append(Mount(HOME, source=home))
    unique = {mount.path: mount for mount in mounts}
    return Reach(way, tuple(unique.values()), notes=found.left_out)


def _not_served(way: str, cause: str, fix: str, host: Host) -> IsolationRefused:
    if way == "calls":
        hints = [fix, 'write files = "mount" or "requests" in [filesystem]']
        return IsolationRefused(
            f"files can't be mediated call by call: {cause or 'nobody answers'}",
            "; or ".join(hint for hint in hints if hint),
        )
    hints = [fix] if not host.calls_problem[0] else [fix, host.calls_problem[1]]
    hints.append(
        'write in [filesystem] files = "requests" (the program asks the gate itself) or files = "bind" '
        "(files are bound plainly, and nobody judges or records what is done with them)"
    )
    also = host.calls_problem[0]
    return IsolationRefused(
        f"the policy's files can't be mounted through the gate: {cause or 'nobody answers'}"
        + (f"; nor can they be mediated call by call: {also}" if also else ""),
        "; or ".join(hint for hint in hints if hint),
    )


def _way(own: str, asked: str) -> str:
    if own and asked and WAYS.index(asked) > WAYS.index(own):
        raise IsolationRefused(
            f'files = "{asked}" was asked for, and the policy says files = "{own}", which is narrower',
            "leave it to the policy, or change the policy",
        )
    return asked or own


def _bound(policy: Policy, found: Wanted, home: str) -> Reach:
    if home:
        raise IsolationRefused(
            'a named home can\'t be had with files = "bind"', "take process.home out, or mount"
        )
    executable = policy.process.exec_from
    paths = dict.fromkeys((*found.folders, *found.written, *executable))
    there = [path for path in paths if os.path.isdir(path) and os.path.realpath(path) == path]
    binds = tuple(
        Bind(path, any(inside(path, folder) for folder in found.written), path in executable)
        for path in there
    )
    notes = [
        f"{printable(path)} is no folder, and is not bound" for path in paths if path not in there
    ]
    if binds:
        notes.append(
            "sockets in bound folders can be reached: whoever listens there is asked directly"
        )
    return Reach("bind", binds=binds, notes=(*found.left_out, *notes))


def _first(policy: Policy, pick: Callable[[Rules], RuleList]) -> RuleList | None:
    for layer in policy.layers:
        if not layer.abstains(pick(layer)):
            return pick(layer)
    return None


def _places(rules: RuleList | None, cwd: str, left_out: dict[str, str]) -> list[str]:
    found = []
    for pattern in rules.index.patterns if rules is not None else ():
        prefix = literal_prefix(pattern.parts)
        exact = len(prefix) == len(pattern.parts)
        path = "/" + "/".join(prefix[:-1] if exact else prefix)
        if inside(path, cwd) or inside("/" + "/".join(prefix), cwd):
            path = cwd
        why = "is the run's own home" if path == HOME else obstacle(path)
        if not why and exact and path in _SHARED:
            why = "holds what many need; a rule for a folder below it, or for all of it, is mounted"
        if why:
            left_out.setdefault(path, why)
        else:
            found.append(path)
    return found


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda one: (len(one), one)):
        if not any(inside(path, other) for other in kept):
            kept.append(path)
    return tuple(sorted(kept))
