"""What a run may see of the host: read-only, path by path, each with the reason why.

Rules
- A path keeps its name inside. Symbolic links on the way to it are rebuilt as links, and what is
  mounted is what they lead to, so a program finds itself where it expects to be.
- A folder that is too wide to be anybody's runtime (`/`, `/etc`, a home, the run's own working
  folder or one above it) is never shown as a whole; of those only modules are (`modules_of`).
- Of a folder with code in it, modules are: files with the language's endings and packages, not
  links and no data files. Data goes through the gate.
- What was looked for and not found, and what the run's user will not be able to read, is said in
  `missing`, not passed over.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Final

from authority.isolation.refusal import IsolationRefused, shown

_TOO_WIDE: Final = frozenset(
    [
        "/",
        "/etc",
        "/usr",
        "/var",
        "/home",
        "/root",
        "/opt",
        "/srv",
        "/mnt",
        "/media",
        "/run",
        "/tmp",  # noqa: S108
        "/boot",
        "/proc",
        "/sys",
        "/dev",
        "/var/tmp",  # noqa: S108
        "/usr/share",
        "/usr/local",
        "/usr/bin",
        "/usr/sbin",
        "/bin",
        "/sbin",
    ]
)
_MAX_LINKS: Final = 40
_MAX_MODULES: Final = 512
_MAX_COPIED_BYTES: Final = 1 << 20


@dataclass(slots=True)
class View:
    """Collects what is shown. `cwd` is the run's working folder, `home` the caller's home."""

    cwd: str
    home: str
    root: bool
    trees: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    copies: dict[str, bytes] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def covered(self, path: str) -> bool:
        """Whether a folder that is shown as a whole holds this path."""
        return any(path == tree or path.startswith(tree + "/") for tree in self.trees)

    def too_wide(self, path: str) -> bool:
        around_cwd = path == self.cwd or self.cwd.startswith(path.rstrip("/") + "/")
        return path in _TOO_WIDE or path == self.home or around_cwd

    def follow(self, path: str) -> str:
        """Rebuilds the links on the way to `path`; where they lead. `OSError` for a loop."""
        rest = [part for part in os.path.normpath(path).split("/") if part]
        here, links = "/", 0
        while rest:
            step = os.path.join(here, rest.pop(0))
            if not os.path.islink(step):
                here = step
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(f"too many links on the way to {shown(path)}")
            target = os.readlink(step)
            self.links.setdefault(step, target)
            onward = os.path.normpath(os.path.join(here, target))
            rest = [part for part in onward.split("/") if part] + rest
            here = "/"
        return here

    def tree(self, path: str, why: str) -> bool:
        """Shows a folder and all below it; False, and said in `missing`, when it is too wide."""
        real = os.path.realpath(path)
        if self.covered(path) and self.covered(real):
            return True
        if self.too_wide(real):
            self.missing.append(f"{shown(path)} ({why}) is too wide to be shown as a whole")
            return False
        if not os.path.isdir(real):
            self.missing.append(f"{shown(path)} ({why}) is no folder")
            return False
        self._check_readable(real, why, 0o005)
        self.trees.setdefault(self.follow(path), why)
        return True

    def file(self, path: str, why: str) -> bool:
        """Shows one file, as a copy if its owner alone may read it and we are root."""
        real = os.path.realpath(path)
        if not os.path.isfile(real):
            self.missing.append(f"{shown(path)} ({why}) is no file")
            return False
        real = self.follow(path)
        if self.covered(real):
            self._check_readable(real, why, 0o004)
        elif self.root and not os.stat(real).st_mode & 0o004:
            if os.path.getsize(real) > _MAX_COPIED_BYTES:
                self._check_readable(real, why, 0o004)
                return False
            with open(real, "rb") as source:
                self.copies[real] = source.read()
        else:
            self.files.setdefault(real, why)
        return True

    def _check_readable(self, path: str, why: str, bits: int) -> None:
        if self.root and os.stat(path).st_mode & bits != bits:
            self.missing.append(
                f"{shown(path)} ({why}) can't be read by the run's user: chmod o+rX it"
            )

    def modules_of(self, folder: str, endings: tuple[str, ...], packages: str, why: str) -> None:
        """Shows the modules that lie directly in a folder: files by their ending, and folders
        that hold the file `packages`. Links are left out and named."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.missing.append(f"{shown(folder)} ({why}): {error.strerror}")
            return
        count = 0
        for entry in entries:
            package = entry.is_dir(follow_symlinks=False) and os.path.isfile(
                os.path.join(entry.path, packages)
            )
            module = entry.is_file(follow_symlinks=False) and entry.name.endswith(endings)
            if entry.is_symlink() and entry.name.endswith(endings):
                self.missing.append(f"{shown(entry.path)} is a link and is not shown")
            elif package or module:
                count += 1
                if count > _MAX_MODULES:
                    raise IsolationRefused(
                        f"{shown(folder)} holds more than {_MAX_MODULES} modules",
                        "move the program into a folder or package of its own",
                    )
                if package:
                    self.tree(entry.path, why)
                else:
                    self.file(entry.path, why)

    def settle(self) -> None:
        """Takes out what lies inside a shown folder anyway."""
        trees = sorted(self.trees, key=len)
        for tree in trees:
            if any(tree != other and tree.startswith(other + "/") for other in self.trees):
                del self.trees[tree]
        for path in [path for path in self.files if self.covered(path)]:
            del self.files[path]
        for path in [path for path in self.links if self.covered(path)]:
            del self.links[path]

    def refuse_forbidden(self, forbidden: tuple[str, ...]) -> None:
        """Raises `IsolationRefused` when something shown holds, or lies in, a forbidden path."""
        shown_paths = [*self.trees, *self.files, *self.copies]
        for place in forbidden:
            real = os.path.realpath(place)
            for path in shown_paths:
                inside = path == real or path.startswith(real + "/")
                around = path in self.trees and real.startswith(path + "/")
                if inside or around:
                    raise IsolationRefused(
                        f"the run would see {shown(real)}, which no run may reach, through "
                        f"{shown(path)}",
                        "keep the program and its runtime apart from Authority's state",
                    )

    def described(self) -> list[str]:
        """For the run's first entry: every path that is shown, and why."""
        both = {**self.trees, **self.files, **dict.fromkeys(self.copies, "copied")}
        return [f"{shown(path)} ({why})" for path, why in sorted(both.items())]


def is_program(path: str) -> bool:
    """A regular file that somebody may execute."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)
