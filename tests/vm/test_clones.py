"""Machines that continue one saved state are not alike where it matters."""

from __future__ import annotations

import json
import time

from .conftest import House

UNLIKE = """
import json, os, uuid
def memory():
    return open("/proc/self/stat").read().rsplit(")", 1)[1].split()[25]
print(json.dumps({
    "urandom": os.urandom(16).hex(),
    "random": os.getrandom(16).hex(),
    "uuid4": str(uuid.uuid4()),
    "kernel": open("/proc/sys/kernel/random/uuid").read(),
    "hash": hash("a text"),
    "stack": memory(),
    "object": id(object()),
}))
"""


def test_two_machines_from_one_saved_state_differ(machines: House) -> None:
    runs = [machines.run(UNLIKE) for _ in range(2)]
    one, other = (json.loads(run.out) for run in runs)
    assert {name for name in one if one[name] == other[name]} == set()
    states = {
        machines.lab.log(kind="run.start", run=run.run)[0]["protection"]["machine"]["saved_state"]
        for run in runs
    }
    (state,) = states
    assert len(state) == 64, state


def test_the_clock_is_set_and_files_of_one_run_are_not_in_the_next(machines: House) -> None:
    program = (
        "import os, time; print(os.path.exists('/tmp/left'), int(time.time()));"
        "open('/tmp/left', 'w').write('x')"
    )
    for _ in range(2):
        before = time.time()
        there, now = machines.run(program).out.split()
        assert there == "False"
        assert before - 2 <= int(now) <= time.time() + 2
