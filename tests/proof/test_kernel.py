"""The exhaustive search of the kernel at a smaller depth, and every mutant that it has to kill."""

from __future__ import annotations

from collections import Counter

import pytest

from authority.kernel import decide
from authority.proof.kernel import mutants
from authority.proof.kernel.__main__ import MUTANT_DEPTH, main
from authority.proof.kernel.invariants import INVARIANTS
from authority.proof.kernel.mutants import MUTANTS, Mutant, applied
from authority.proof.kernel.search import search


def test_no_invariant_is_broken_to_depth_four() -> None:
    found = search(4)
    assert not found.violation, found
    assert found.worlds > 5000


def test_each_invariant_has_three_mutants_and_names_are_unique() -> None:
    assert all(count >= 3 for count in Counter(m.invariant for m in MUTANTS).values())
    assert {m.invariant for m in MUTANTS} == set(INVARIANTS)
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_mutant_is_killed(mutant: Mutant) -> None:
    right = decide.recheck, decide._capability
    with applied(mutant):
        found = search(MUTANT_DEPTH)
    assert found.invariant == mutant.invariant, found
    assert found.trace
    assert (decide.recheck, decide._capability) == right  # and it is gone again


def test_a_mutant_that_no_longer_fits_the_kernel_is_an_error() -> None:
    edit = mutants.Edit(decide, "recheck", "no such piece of the kernel", "")
    with pytest.raises(LookupError), applied(Mutant("x", INVARIANTS[0], (edit,))):
        raise AssertionError("it was applied")


def test_the_command_says_no_when_a_mutant_survives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--depth", "2", "--mutant-depth", "1"]) == 1
    assert "SURVIVED" in capsys.readouterr().out
