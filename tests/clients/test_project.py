"""A developer's morning in one run: clone a project, install what it needs, run its tests.

The project is a real one: two rooms of this one, with the tests of its protocol. Files are mounted,
git and pip go through the proxy, pytest runs on what was cloned.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gate.lab
from gate.lab import Lab

from .site import BACKEND, Site, git_backend
from .test_packages import index_of, wheel

ROOT = Path(__file__).resolve().parents[2]
TAKEN = (
    *("src/authority/__init__.py", "src/authority/errors.py", "src/authority/tokens.py"),
    *("tests/conftest.py", "tests/test_protocol.py", "docs/protocol.md"),
)
POLICY = """version = 1
[filesystem]
read = ["./**"]
write = ["./work/**"]
[network]
http = [
    "GET https://git.test/repositories.git/info/refs?*",
    "POST https://git.test/repositories.git/git-upload-pack",
    "GET https://index.test/**",
]
SITE
[process]
exec = ["bash", "git", "coreutils", "python3"]
env = { GIT_CONFIG_GLOBAL = "/dev/null", PIP_INDEX_URL = "https://index.test/simple/" }
[limits]
memory = "2GB"
processes = 200
[labels]
trusted = ["user", "fs:./**", "https://git.test/**", "https://index.test/**"]
content = ["POST https://git.test/**"]
"""
SCRIPT = """set -e
cd work
git clone -q https://git.test/repositories.git project
python3 -m pip install -q --no-cache-dir --disable-pip-version-check --target needed demo-pkg
cd project
export PYTHONPATH=src:../needed PYTHONDONTWRITEBYTECODE=1
python3 -c 'import demo_pkg; print("answer", demo_pkg.answer())'
python3 -m pytest -q -p no:cacheprovider -o addopts= --rootdir=. -k "vectors or arguments" tests
"""


def repository(folder: Path) -> None:
    """The project as a bare repository in `folder`."""
    seed = folder / "seed"
    for name in TAKEN:
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, seed / name)
    for room in ("protocol", "kernel"):
        part = f"src/authority/{room}"
        shutil.copytree(ROOT / part, seed / part, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    named = ("-c", "user.name=t", "-c", "user.email=t@example.test")
    for words in (
        ("init", "-q", "-b", "main", str(seed)),
        ("-C", str(seed), "add", "."),
        ("-C", str(seed), *named, "commit", "-qm", "one"),
        ("clone", "-q", "--bare", str(seed), str(folder / "repositories.git")),
    ):
        subprocess.run(["git", *words], env=environment, check=True, capture_output=True)


@pytest.mark.skipif(not BACKEND.exists(), reason="git is not installed")
def test_clone_install_and_test(
    lab: Lab, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate.lab, "SECONDS", 300.0)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    repository(tmp_path)
    site.handlers["git.test"] = git_backend(tmp_path)
    site.handlers["index.test"] = index_of(wheel())
    (lab.work / "work").mkdir()
    (lab.work / "work").chmod(0o777)
    ran = lab.run(["bash", "-c", SCRIPT], POLICY.replace("SITE", site.network))
    assert ran.summary["code"] == 0, ran.out + ran.err
    assert "answer 42" in ran.out
    assert " passed" in ran.out
    assert " failed" not in ran.out
    effects = {e["effect"] for e in lab.log(kind="admit", run=ran.run)}
    assert {"fs.open", "fs.modify", "fs.mkdir", "http.request"} <= effects
    assert (lab.work / "work/project/src/authority/protocol").is_dir()


def test_a_test_that_fails_fails_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what pytest says is what the run says."""
    monkeypatch.setattr(gate.lab, "SECONDS", 300.0)
    lab.file("bad/test_bad.py", "def test_bad():\n    assert open('bad/word.txt').read() == 'no'\n")
    lab.file("bad/word.txt", "yes")
    words = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "bad"]
    ran = lab.run(words, 'version = 1\n[filesystem]\nread = ["./bad/**"]\n')
    assert ran.summary["code"] == 1, ran.out + ran.err
    assert "1 failed" in ran.out
