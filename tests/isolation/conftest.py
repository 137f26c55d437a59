"""Who runs the sandboxes: root with the tests' interpreter, an ordinary user with the system's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
NOBODY = 61_234
SYSTEM_PYTHON = "/usr/bin/python3"
AUTHORITY = ("errors.py", "__init__.py", "isolation", "agent")
WITH_FUSE = """
mknod "$1/fuse" c 10 229 2>/dev/null; chmod 666 "$1/fuse" && mount --bind "$1/fuse" /dev/fuse &&
user=$2 && shift 2 &&
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""


@dataclass(frozen=True)
class Caller:
    """A user that starts sandboxes, from a folder that this user owns and can read."""

    name: str
    python: str
    folder: Path
    drop: int | None

    def own(self, folder: Path) -> None:
        """Give this user a folder and all that lies in it."""
        if self.drop is not None:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, self.drop, self.drop, follow_symlinks=False)

    def popen(
        self, program: str, *arguments: str, fuse: bool = False, **options: Any
    ) -> subprocess.Popen[bytes]:
        """With `fuse` an ordinary user finds a /dev/fuse that it may open, as on most desktops: in
        a mount name space of its own, so that the machine's stays as it is."""
        ids: dict[str, Any] = {}
        command = [self.python, str(self.folder / program), *arguments]
        if self.drop is not None and fuse:
            command = ["sh", "-c", WITH_FUSE, "sh", str(self.folder), str(self.drop), *command]
            command = ["unshare", "--mount", *command]
        elif self.drop is not None:
            ids = {"user": self.drop, "group": self.drop, "extra_groups": []}
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONPATH": str(self.folder / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.folder,
            close_fds=True,
            **ids,
            **options,
        )

    def sandboxes(self, *cases: dict[str, Any]) -> list[dict[str, Any]]:
        made = [{"cwd": str(self.folder / "work"), **case} for case in cases]
        with self.popen(
            "harness.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            out, err = process.communicate(json.dumps(made).encode(), timeout=60)
        assert process.returncode == 0, err.decode()
        answer: list[dict[str, Any]] = json.loads(out)
        return answer

    def sandbox(self, **case: Any) -> dict[str, Any]:
        return self.sandboxes(case)[0]

    def mounted(self, *cases: dict[str, Any], timeout: int = 60) -> list[dict[str, Any]]:
        """Runs with mounts, answered for by `toyfs`."""
        made = [{"cwd": str(self.folder / "work"), "processes": 64, **case} for case in cases]
        with self.popen(
            "mounted.py",
            fuse=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            out, err = process.communicate(json.dumps(made).encode(), timeout=timeout)
        assert process.returncode == 0, err.decode()
        answer: list[dict[str, Any]] = json.loads(out)
        return answer

    def script(self, text: str, **case: Any) -> dict[str, Any]:
        """Runs Python source in a sandbox."""
        return self.sandbox(argv=[self.python, "-I", "-c", text], **case)


def callers() -> list[str]:
    return ["root", "user"] if os.geteuid() == 0 else ["user"]


@pytest.fixture(scope="session")
def make_caller() -> Iterator[Callable[[str], Caller]]:
    made: dict[str, Caller] = {}

    def make(name: str) -> Caller:
        if name in made:
            return made[name]
        # Not below pytest's own folder, which only its owner can enter.
        folder = Path(tempfile.mkdtemp(prefix=f"authority-{name}-", dir="/var/tmp"))
        folder.chmod(0o755)
        for part in AUTHORITY:
            source, target = SOURCE / "authority" / part, folder / "src" / "authority" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        (folder / "work").mkdir()
        for file in (
            *("harness.py", "inside.py", "parent.py", "mounted.py", "toyfs.py", "on_terminal.py"),
        ):
            shutil.copy(HERE / file, folder / file)
        shutil.copy(HERE / "inside.py", folder / "work" / "inside.py")
        (folder / "work" / "data.txt").write_text("not a module")
        drop = NOBODY if name == "user" and os.geteuid() == 0 else None
        if drop is not None:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, drop, drop)
        python = sys.executable if drop is None else SYSTEM_PYTHON
        made[name] = Caller(name, python, folder, drop)
        return made[name]

    yield make
    for one in made.values():
        shutil.rmtree(one.folder)


@pytest.fixture(scope="session", params=callers())
def caller(request: pytest.FixtureRequest, make_caller: Callable[[str], Caller]) -> Caller:
    return make_caller(request.param)
