"""The programs of this computer that images are built with.

Rules
- They are looked for where the distribution puts them, never along the caller's search path.
- Who lacks several is told all of them once, with the packages to install.
- They get no environment but that path, a plain language, a folder of the build as their home, and the
  proxies that the caller has set; each has a deadline.
- Of what one says when it fails the last line is passed on, made harmless. Some say nothing of a full
  disk, so the disk is looked at, and it is said where room is wanted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from authority.isolation import IsolationRefused
from authority.isolation.refusal import shown

PATH: Final = "/usr/bin:/usr/sbin:/bin:/sbin"
SECONDS: Final = 300
_LEAST_ROOM: Final = 1 << 20


def need(tool: str, package: str) -> str:
    """The path of a tool that is needed to build. Raises `IsolationRefused` with what to install."""
    return need_all({tool: package})[tool]


def need_all(tools: dict[str, str]) -> dict[str, str]:
    """The paths of all these tools; who lacks several is told once."""
    found = {tool: shutil.which(tool, path=PATH) for tool in tools}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        raise IsolationRefused(
            f"{', '.join(missing)} {are} not installed",
            "apt-get install -y " + " ".join(tools[tool] for tool in missing),
        )
    return {tool: path for tool, path in found.items() if path is not None}


def run(command: list[str], folder: Path) -> str:
    """What the command prints. Raises `IsolationRefused` when it fails."""
    environment = {"PATH": PATH, "LC_ALL": "C", "HOME": str(folder)}
    environment |= {
        name: value
        for name, value in os.environ.items()
        if name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IsolationRefused(f"{command[0]} failed: {shown(str(error))}") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [b"it said nothing"]
        if _full(folder):
            raise IsolationRefused(
                f"{command[0]} failed: no space left on the disk ({shown(last[0])})",
                f"make room in {shown(str(folder.parent))}",
            )
        raise IsolationRefused(f"{command[0]} failed: {shown(last[0])}")
    return done.stdout.decode("utf-8", "replace")


def _full(folder: Path) -> bool:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < _LEAST_ROOM or (
        found.f_files > 0 and found.f_favail == 0
    )
