"""What a caller sends to have a program started: the policy's text, then what the policy names.

Rules
- Whoever sends it parses no policy. Who does (the gate, or `policyfile`) says which further files the
  policy names and which variables of the caller's environment; `supply` adds those and no others.
- Every file is read once. Its text, under its real path, goes to the gate; a change after that does
  not matter to the run.
- Nothing is asked for twice, so asking ends.
"""

from __future__ import annotations

import errno
import os

from authority.errors import AuthorityError
from authority.kernel.printing import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

LOCALE = ("LANG", "LC_ALL", "TZ", "TERM")
"""Variables that are passed without being named: how to write, and to what kind of terminal."""
MAX_TEXT = 4 * 1024 * 1024
NO_POLICY = "authority-none.toml"
EMPTY = """\
version = 1

[filesystem]
read = [
    # Nothing is called so. With a rule in it the folder is mounted, and what is looked for there known.
    "./.authority-nothing",
]
"""
"""The policy of a run that was given none, and what it is called: it allows nothing that is there."""


class PolicyFileError(AuthorityError):
    """A policy file that can't be read."""


def begin(policy: Path | None, program: Sequence[str], cwd: str) -> dict[str, Any]:
    """The body of a control call that starts `program` under `policy` (none: one that allows nothing),
    without what the policy names. Without a program it attaches.

    The program is looked for in this process's PATH. Raises `PolicyFileError`.
    """
    folder = os.path.realpath(cwd)
    path = os.path.join(folder, NO_POLICY) if policy is None else os.path.realpath(policy)
    argv = list(program)
    text = EMPTY if policy is None else text_of(path)
    if argv:
        argv[0] = _found(argv[0])
    return {
        "argv": argv,
        "cwd": folder,
        "policy_path": path,
        "policy_sources": {path: text},
        "environment": {name: os.environ[name] for name in LOCALE if name in os.environ},
        "looked_for": [],
        "path": os.environ.get("PATH", os.defpath),
    }


def supply(body: dict[str, Any], wanted: Mapping[str, Sequence[str]]) -> None:
    """Add what the policy was found to name: files, and variables where they are set.

    Raises `PolicyFileError`.
    """
    for path in wanted.get("sources", ()):
        if path in body["policy_sources"]:
            raise PolicyFileError(f"the policy {printable(path)} was asked for twice")
        body["policy_sources"][path] = text_of(path)
    for name in wanted.get("environment", ()):
        if name in body["looked_for"]:
            raise PolicyFileError(f"the variable {printable(name)} was asked for twice")
        body["looked_for"].append(name)
        if name in os.environ:
            body["environment"][name] = os.environ[name]


def text_of(path: str) -> str:
    """What a policy file says. Raises `PolicyFileError`."""
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_TEXT + 1)
    except OSError as error:
        raise PolicyFileError(
            f"the policy {printable(path)} can't be read: {error.strerror}",
            "check the name; 'authority init' writes a starter"
            if error.errno == errno.ENOENT
            else "name its file",
        ) from error
    if len(raw) > MAX_TEXT:
        raise PolicyFileError(f"the policy {printable(path)} is larger than 4 MiB")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise PolicyFileError(
            f"the policy {printable(path)} is not UTF-8", "save it as UTF-8, without anything else"
        ) from error


def _found(program: str) -> str:
    """Where a program is, as a shell would look for it. Raises `PolicyFileError`."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in [""] if "/" in program else folders:
        place = os.path.join(folder, program)
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return os.path.abspath(place)
    if "/" in program and os.path.lexists(program):
        what = "is a folder" if os.path.isdir(program) else "is no program that may be executed"
        raise PolicyFileError(
            f"{printable(program)} {what}", "name the program, such as python3 FILE"
        )
    where = "" if "/" in program else " in PATH"
    raise PolicyFileError(f"there is no program {printable(program)}{where}", "check its name")
