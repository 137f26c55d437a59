"""The demo with its programs in virtual machines, and what it says where there can be none."""

from __future__ import annotations

import pytest

from authority.vm import Images
from clients.test_demo import play


def test_an_act_in_a_machine_is_as_expected(built: Images) -> None:
    """The second, whose program is a vendor's SDK; what the first does, `test_tiers` does too."""
    done = play(2, isolation=("--isolation", "vm", "--emulate"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything was as expected" in done.stdout
    assert "warning: the machine is emulated" in done.stdout
    assert "NO " not in done.stdout


def test_without_kvm_it_is_said_what_to_do(built: Images) -> None:
    done = play(1, isolation=("--isolation", "vm"))
    if done.returncode == 0:
        pytest.skip("KVM works here")
    assert done.returncode == 125, done.stdout + done.stderr
    assert "no working acceleration" in done.stdout
    assert "make demo ISOLATION=vm EMULATE=1" in done.stdout
