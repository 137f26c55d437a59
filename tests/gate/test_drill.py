"""The drill: a whole incident through the command line, from a planted canary to its end."""

from __future__ import annotations

import json
import os
import subprocess

from authority.kernel.incidents import STEPS

from .lab import CLI

LIMIT_SECONDS = 280.0


def test_the_drill_passes_and_takes_every_step_in_order() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "AUTHORITY_STATE"}
    done = subprocess.run(
        [str(CLI), "drill", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)
    case = found["incident"]
    assert case["what"] == "canary"
    assert list(STEPS) == sorted(case["at"], key=lambda step: (case["at"][step], STEPS.index(step)))
    refused = [step for step in found["steps"] if step["code"] == 125]
    assert len(refused) == 1, "skipping to the end was tried, and refused"
    assert "resume" in refused[0]["command"]
