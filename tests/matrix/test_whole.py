"""The matrix as people run it: thirteen of thirteen, as whoever runs the tests and as an ordinary user.

One run each, with the real gate, sandbox and log. The ordinary user needs an interpreter that it may
read: a virtual environment of the system's Python, when the one of the tests is private.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from authority.matrix.runner import GROUPS

SPECIFIED = [
    ("INV-1", "direct socket"),
    ("INV-1", "execve"),
    ("INV-1", "network namespace escape"),
    ("INV-2", "random HMAC forgery"),
    ("INV-2", "expired capability"),
    ("INV-2", "scope violation"),
    ("INV-2", "revoked token"),
    ("INV-3", "budget exhaustion"),
    ("INV-3", "concurrent budget race"),
    ("INV-3", "negative budget"),
    ("INV-4", "log bit flip"),
    ("INV-4", "entry deletion"),
    ("INV-4", "response before fsync"),
]
NOBODY = 65534
LIMIT_SECONDS = 240


def matrix(command: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*command, "-m", "authority.cli.main", "matrix", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        cwd="/",
    )
    assert done.stdout, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    failed = [f"{r['test']}: {r['observed']}" for r in results if not r["ok"]]
    assert not failed, "\n".join(failed)
    assert done.returncode == 0
    return results


def test_thirteen_of_thirteen() -> None:
    results = matrix([sys.executable], dict(os.environ))
    assert [(r["invariant"], r["test"]) for r in results] == SPECIFIED
    for result in results:
        assert set(result) == {"invariant", "test", "expected", "observed", "ok", "evidence"}
        assert all(isinstance(result[name], str) and result[name].isprintable()
                   for name in set(result) - {"ok"})  # fmt: skip
        assert "control:" in result["evidence"]
        assert result["observed"].startswith("0 of ")


def test_the_table_holds_what_the_specification_lists() -> None:
    assert [(test.invariant, test.name) for group in GROUPS for test, _ in group] == SPECIFIED


@pytest.mark.skipif(os.geteuid() != 0, reason="the test above ran as an ordinary user already")
def test_thirteen_of_thirteen_as_an_ordinary_user(readable_python: Path) -> None:
    setpriv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    clean = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    results = matrix([*setpriv, str(readable_python)], clean)
    assert len(results) == len(SPECIFIED)
    escape = next(r for r in results if r["test"] == "network namespace escape")
    assert f"this process has uid {NOBODY}" in escape["evidence"]
