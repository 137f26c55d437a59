"""What Debian's packages say about each other: pure, over the texts that dpkg keeps.

Rules
- A package needs what it depends on, before and after it is unpacked, and what that needs in turn.
  Of alternatives and of whatever provides a name, all that is installed counts.
- Essential packages are needed by every other, without being named.
- What a program's own package recommends is needed too: a compiler without its C library's headers, a
  git without certificates is there and does not work.
- A path belongs to those packages that list it. What belongs to an installed package that is not
  needed, and to none that is, is left out. What belongs to nobody (made at installation, put there by
  hand) stays: nobody can say who needs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_FIELD = re.compile(r"^([A-Za-z-]+): ?(.*)", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")

Alternatives = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package: what it needs, each need as its alternatives."""

    name: str
    essential: bool
    depends: Alternatives
    recommends: Alternatives
    provides: tuple[str, ...]


def parse(status: str) -> dict[str, Package]:
    """dpkg's `status`. One name stands for all of its architectures."""
    found: dict[str, Package] = {}
    for paragraph in status.split("\n\n"):
        fields = dict(_FIELD.findall(paragraph))
        state = fields.get("Status", "").split()
        if "Package" not in fields or state[-1:] in ([], ["not-installed"], ["config-files"]):
            continue
        name = fields["Package"]
        before = found.get(name)
        depends = _needs(fields.get("Pre-Depends", "")) + _needs(fields.get("Depends", ""))
        found[name] = Package(
            name,
            fields.get("Essential") == "yes",
            depends + (before.depends if before else ()),
            _needs(fields.get("Recommends", "")) + (before.recommends if before else ()),
            tuple(one for each in _needs(fields.get("Provides", "")) for one in each),
        )
    return found


def _needs(text: str) -> Alternatives:
    """`a (>= 1), b:any | c` without versions and architectures."""
    found = []
    for need in text.split(","):
        names = (_NAME.match(one.strip()) for one in need.split("|"))
        found.append(tuple(one.group() for one in names if one))
    return tuple(one for one in found if one)


def needed(
    packages: Mapping[str, Package], programs: Iterable[str], others: Iterable[str] = ()
) -> set[str]:
    """What the packages of `programs` need, with what they recommend, and those of `others`."""
    provided: dict[str, list[str]] = {}
    for package in packages.values():
        for name in (package.name, *package.provides):
            provided.setdefault(name, []).append(package.name)

    def met(needs: Alternatives) -> list[str]:
        return [by for names in needs for name in names for by in provided.get(name, ())]

    seen: set[str] = set()
    waiting = [*others, *(one.name for one in packages.values() if one.essential)]
    for name in programs:
        waiting.append(name)
        if name in packages:
            waiting += met(packages[name].recommends)
    while waiting:
        name = waiting.pop()
        if name in packages and name not in seen:
            seen.add(name)
            waiting += met(packages[name].depends)
    return seen


class Paths:
    """Who lists which path. `aliases`: a folder that is a link (`/lib`), and the one that it is."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._aliases = {os.fsencode(name): os.fsencode(to) for name, to in aliases.items()}
        self._owners: dict[bytes, tuple[str, ...]] = {}

    def add(self, package: str, listing: bytes) -> None:
        """A package's list, as dpkg keeps it: a path a line."""
        for line in listing.split(b"\n"):
            top = b"/" + line[1:].partition(b"/")[0]
            path = self._aliases.get(top, top) + line[len(top) :]
            before = self._owners.get(path, ())
            if package not in before:
                self._owners[path] = (*before, package)

    def owners(self, path: str) -> tuple[str, ...]:
        """The packages that list this path."""
        return self._owners.get(os.fsencode(path), ())

    def below(self, folder: str) -> set[str]:
        """The packages that list something in a folder."""
        start = os.fsencode(folder) + b"/"
        return {
            name for path, names in self._owners.items() if path.startswith(start) for name in names
        }

    def without(self, wanted: set[str]) -> Unneeded:
        """What belongs to others than these packages."""
        others = {p for p, names in self._owners.items() if wanted.isdisjoint(names)}
        around: set[bytes] = set()
        for path in others:
            folder = os.path.dirname(path)
            while folder not in around and folder != b"/":
                around.add(folder)
                folder = os.path.dirname(folder)
        return Unneeded(frozenset(others), frozenset(around))


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Paths that are left out, and the folders around them."""

    paths: frozenset[bytes]
    around: frozenset[bytes]

    def __contains__(self, path: str) -> bool:
        return os.fsencode(path) in self.paths

    def lie_below(self, folder: str) -> bool:
        """Whether anything in this folder is left out."""
        return os.fsencode(folder) in self.around
