"""What programs do in a run alike, whether its files are reached by a mount or call by call."""

from __future__ import annotations

import shutil

import pytest
from tests.gate.lab import Lab, Ran

GIT = """\
set -e; export HOME=/tmp GIT_CONFIG_NOSYSTEM=1
git init -q repo; cd repo
git config user.name a; git config user.email a@example.com
echo one > f; git add f; git commit -qm one
echo two >> f; git commit -qam two; git mv f g; git commit -qm three
git log --oneline | cat; git status -s; cat g; cd ..; mv repo moved
git -C moved config core.fsmonitor ./evil || echo refused
"""
PLANTS = (
    "mkdir -p p; echo x > p/.envrc; echo x > e; mv e p/.bashrc; mkdir p/.vscode; "
    "ln -s e p/.mcp.json; mkdir -p q/workflows; echo x > q/workflows/a.yml; "
    "mv q .github; ls -A p"
)


def git_makes_a_repository(lab: Lab, policy: str, more: str = "") -> Ran:
    """Git makes `moved`, a repository with three commits, and may not set what would run a program.
    `more` is done after that."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    ran = lab.run(["bash", "-c", GIT + more], policy)
    lines = ran.out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines[:3]] == ["three", "two", "one"], ran.err
    assert lines[3:6] == ["one", "two", "refused"], ran.err
    return ran


def plants_what_acts_later(lab: Lab, policy: str) -> None:
    """Whatever program makes, moves or links it: none of it is there afterwards."""
    ran = lab.run(["bash", "-c", PLANTS], policy)
    assert ran.out == "", ran.err
    assert ran.err.count("ermission denied") == 5, ran.err
