"""How many files the gate may have open, and that none of that is a run's."""

from __future__ import annotations

import resource
from pathlib import Path

from .lab import lab_at

PROGRAM = (
    "import resource; print('limits', *resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)"
)
OF_A_RUN = 4096


def test_the_gate_takes_what_it_may_and_a_run_has_its_own_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        with lab_at() as lab:
            ran = lab.run(PROGRAM)
            lines = Path(f"/proc/{lab.pid()}/limits").read_text().splitlines()
            here = Path("/proc/self/limits").read_text().splitlines()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def files(text: list[str]) -> list[str]:
        return next(line for line in text if line.startswith("Max open files")).split()[3:5]

    assert files(here) == [str(low), str(hard)], "control: it was started with less"
    assert files(lines) == [str(hard), str(hard)]
    assert ran.out == f"limits {OF_A_RUN} {OF_A_RUN}\n"
