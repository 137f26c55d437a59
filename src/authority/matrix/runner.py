"""All thirteen tests, in the specification's order, and their verdict; in machines a section beside.

Rules
- Tests of one invariant share a gate, so that they meet a log and a state that are not fresh.
- A test that breaks, or whose gate does not answer within its time, has failed; the others go on.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from authority.matrix import (
    budget_attacks,
    capability_attacks,
    containment,
    guest_attacks,
    log_attacks,
    overcome,
    sync_attacks,
)
from authority.matrix.live import NAMESPACES, House, Live, live
from authority.matrix.verdict import Result, Row

Progress = Callable[[str, Result | None], None]
"""Called with a test's name before it begins, and again with its result."""
Perform = Callable[[Live], Result]
Step = tuple[Row, Perform]


def _on_copies(attack: Callable[[Live, Path], Result]) -> Perform:
    def perform(gate: Live) -> Result:
        with tempfile.TemporaryDirectory(prefix="authority-matrix-") as folder:
            return attack(gate, Path(folder))

    return perform


GROUPS: Sequence[Sequence[Step]] = (
    (
        (containment.SOCKET, containment.direct_socket),
        (containment.EXECVE, containment.execve),
        (containment.ESCAPE, containment.namespace_escape),
    ),
    (
        (capability_attacks.FORGERY, capability_attacks.forgery),
        (capability_attacks.EXPIRED, capability_attacks.expired),
        (capability_attacks.SCOPE, capability_attacks.scope),
        (capability_attacks.REVOKED, capability_attacks.revoked),
    ),
    (
        (budget_attacks.EXHAUSTED, budget_attacks.exhaustion),
        (budget_attacks.RACE, budget_attacks.race),
        (budget_attacks.NEGATIVE, budget_attacks.negative),
    ),
    (
        (log_attacks.FLIP, _on_copies(log_attacks.bit_flip)),
        (log_attacks.DELETION, _on_copies(log_attacks.deletion)),
        (sync_attacks.RESPONSE, sync_attacks.response_before_sync),
    ),
)
GUEST_GROUPS: Sequence[tuple[str, Sequence[Step]]] = (
    (
        overcome.ROOT,
        (
            (guest_attacks.NETWORK, guest_attacks.devices),
            (guest_attacks.KERNEL, guest_attacks.kernel),
            (guest_attacks.CHANNEL, guest_attacks.channel),
        ),
    ),
    (
        overcome.UNLOCKED,
        (
            (guest_attacks.DISK, guest_attacks.disk),
            (guest_attacks.HARDWARE, guest_attacks.hardware),
            (guest_attacks.END, guest_attacks.end),
        ),
    ),
)
"""What a machine is attacked with beside the thirteen, by the guest that does it."""
PREPARE = {log_attacks.FLIP.name: log_attacks.prepare}
"""What a group's first test needs to have been done before."""


def perform(
    progress: Progress | None = None,
    groups: Sequence[Sequence[Step]] = GROUPS,
    house: House = NAMESPACES,
) -> list[Result]:
    """Do them all; a result each, whatever happens. Takes some twenty seconds."""
    results: list[Result] = []
    for group in groups:
        results += _group(group, progress or (lambda _name, _result: None), house)
    return results


def perform_in_guest(
    progress: Progress | None = None,
    house: House = NAMESPACES,
) -> list[Result]:
    """Root in the guest: for machines alone, and a result each as above. Minutes, when emulated."""
    results: list[Result] = []
    for guest, group in GUEST_GROUPS:
        overcome_house = dataclasses.replace(house, guest=guest)
        results += _group(group, progress or (lambda _name, _result: None), overcome_house)
    return results


def _group(group: Sequence[Step], progress: Progress, house: House) -> list[Result]:
    results: list[Result] = []
    try:
        with live(house) as gate:
            prepare = PREPARE.get(group[0][0].name)
            if prepare is not None:
                with gate.deadline():
                    prepare(gate)
            for test, attack in group:
                progress(test.name, None)
                results.append(one(gate, test, attack))
                progress(test.name, results[-1])
    except Exception as error:  # no gate, or one that does not stop: what was not tried has failed
        if len(results) == len(group):
            results[-1] = group[-1][0].failed(error)
        for test, _ in group[len(results) :]:
            results.append(test.failed(error))
            progress(test.name, results[-1])
    return results


def one(gate: Live, test: Row, attack: Perform) -> Result:
    """One test at a gate that is there."""
    try:
        with gate.deadline():
            return attack(gate)
    except Exception as error:
        return test.failed(error)
