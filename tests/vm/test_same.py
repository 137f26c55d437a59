"""End-to-end tests of other folders, made once more with every run in a machine.

Each is the very function that runs in name spaces where it is written; here its lab is another one.
They are those that need nothing but a lab, at least one for each thing that a run can do and that
`test_tiers` and `test_tiers_gate` do not show already. What shares a policy's shape shares an image and
a saved state, and so most start at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from authority.gate.client import ensure
from authority.vm import Images
from compat import test_mount_runs as mounts
from compat import test_names_live as names
from compat import test_proxy_live as proxy
from gate import test_budgets as budgets
from gate import test_models as models
from gate import test_output as output
from gate import test_terminal as terminal
from gate.conftest import server
from gate.lab import Lab, lab_at

FIXTURES = {"web": proxy.web, "server": server}
SAME = (
    mounts.test_trees_are_copied_moved_and_removed,
    mounts.test_a_dry_run_writes_nothing_until_a_person_says_so,
    names.test_allowed_names_have_addresses_of_the_runs_own_loopback,
    names.test_other_ways_out_do_not_exist,
    proxy.test_a_websocket,
    proxy.test_a_credential_is_nowhere_but_at_its_host,
    models.test_the_same_through_the_channel,
    models.test_a_halt_cuts_a_stream,
    budgets.test_output_beyond_its_budget_is_withheld,
    output.test_nothing_that_a_terminal_acts_on_gets_through,
    output.test_five_megabytes_come_whole,
    terminal.test_control_c_and_d_act_inside,
)
globals().update(FIXTURES, **{test.__name__: test for test in SAME})


@pytest.fixture(scope="module")
def lab(built: Images) -> Iterator[Lab]:
    with lab_at() as made:
        made.machines = True
        made.work.chmod(0o777)
        ensure(made.directory)
        yield made


@pytest.fixture
def own(built: Images) -> Iterator[Lab]:
    with lab_at() as made:
        made.machines = True
        ensure(made.directory)
        yield made
