"""What this program, as it is installed here, says of itself: attacks held off, invariants unbroken."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from authority.errors import AuthorityError
from authority.gate import build

MOST_BYTES = 64 * 1024 * 1024


def self_test(depth: int, junit: Path | None) -> dict[str, Any]:
    """The matrix's attacks, made now; the kernel searched to `depth`, and each of its mutants killed;
    with `junit` a test suite's results too. Raises `AuthorityError`."""
    from authority.matrix.runner import perform
    from authority.proof.kernel.__main__ import MUTANT_DEPTH
    from authority.proof.kernel.mutants import MUTANTS, applied
    from authority.proof.kernel.search import search

    _say("attacking: the matrix")
    results = [result.to_json() for result in perform(lambda _name, _result: None)]
    _say(f"searching the kernel to depth {depth}")
    tests, failed = 1, int(bool(search(depth).violation))
    for mutant in MUTANTS:
        with applied(mutant):
            tests += 1
            failed += not search(MUTANT_DEPTH).violation
    if junit is not None:
        more, broken = _junit(junit)
        tests, failed = tests + more, failed + broken
    return {
        "results": results,
        "version": build.digest(),
        "tests": tests,
        "failed": failed,
    }


def _say(text: str) -> None:
    print(f"  {text} ...", file=sys.stderr, flush=True)


def _junit(path: Path) -> tuple[int, int]:
    """Tests that ran and tests that failed, of a JUnit file. Skipped ones count as neither."""
    data = path.read_bytes()[: MOST_BYTES + 1]
    if len(data) > MOST_BYTES or b"<!DOCTYPE" in data:
        raise AuthorityError(f"{path.name} is no test result", "pytest --junit-xml writes one")
    try:
        cases = list(ElementTree.fromstring(data).iter("testcase"))  # noqa: S314 - no DTD, bounded
    except ElementTree.ParseError as error:
        raise AuthorityError(f"{path.name} is no XML: {error}") from error
    ran = [case for case in cases if case.find("skipped") is None]
    bad = [c for c in ran if c.find("failure") is not None or c.find("error") is not None]
    return len(ran), len(bad)
