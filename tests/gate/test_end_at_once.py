"""`authority run` ends without taking its interpreter apart: nothing that it had to say is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import IO

import pytest

from .lab import CLI, OPEN, Lab

SIZE = 1_000_000
PROGRAM = f"""\
import sys
sys.stdout.write('o' * {SIZE}); sys.stdout.flush()
sys.stderr.write('e' * {SIZE}); sys.stderr.flush()
sys.exit(7)
"""


def started(lab: Lab, out: int | IO[bytes], err: int | IO[bytes]) -> subprocess.Popen[bytes]:
    policy = str(lab.policy(OPEN))
    return subprocess.Popen(
        [str(CLI), "run", "--policy", policy, "--quiet", "--", sys.executable, "-c", PROGRAM],
        cwd=lab.work,
        env={"PATH": os.environ["PATH"], "AUTHORITY_STATE": str(lab.directory.root)},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
    )


def slowly(fd: int) -> bytes:
    """All of a pipe, a pause before each piece of the first ones."""
    parts: list[bytes] = []
    with os.fdopen(fd, "rb", buffering=0) as file:
        while part := file.read(1 << 15):
            parts.append(part)
            if len(parts) < 10:
                time.sleep(0.03)
    return b"".join(parts)


@pytest.mark.parametrize("which", ["out", "err"])
def test_who_reads_slowly_gets_everything_and_the_code(lab: Lab, which: str) -> None:
    read, write = os.pipe()
    process = started(
        lab,
        write if which == "out" else subprocess.DEVNULL,
        write if which == "err" else subprocess.DEVNULL,
    )
    os.close(write)
    said = slowly(read)
    assert said == which[0].encode() * SIZE
    assert process.wait(60) == 7


def test_a_file_has_everything_when_the_command_is_over(lab: Lab) -> None:
    both = lab.work / "both"
    with open(both, "wb") as file:
        assert started(lab, file, file).wait(60) == 7
    data = both.read_bytes()
    assert (data.count(b"o"), data.count(b"e"), len(data)) == (SIZE, SIZE, 2 * SIZE)


def test_a_reader_that_leaves_ends_the_command_and_not_in_silence(lab: Lab) -> None:
    read, write = os.pipe()
    process = started(lab, write, subprocess.DEVNULL)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    assert process.wait(60) not in (0, 7)
