"""Two changes of files at one time: whatever their order on the disk, no words lose their label.

Every order of admission, deed and outcome of two calls is carried out on a small disk of names and
words, and by the fold. The control: what is done alone takes off what it replaced, moved or removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import NamedTuple

import pytest

from authority.kernel import entries
from authority.kernel.file_labels import recorded
from authority.kernel.fold import apply
from authority.kernel.labels import CLEAN, Label
from authority.kernel.state import State

WEB = Label(frozenset({"tool:web"}))
A, B = "fs:/w/a", "fs:/w/b"


class Does(NamedTuple):
    """A call: who makes it (`dirty` has read words), and on what."""

    run: str
    effect: str
    name: str = A
    target: str = ""
    handle: str = ""


class World:
    """A disk and the gate's state. `disk` holds the label of the words of each file that is there."""

    def __init__(self) -> None:
        self.state = State()
        self.disk: dict[str, Label] = {}
        self.open: dict[Does, int] = {}
        self.got: Label | None = None
        self.told = CLEAN
        self.enter(entries.GateStart(log="l", rules=entries.RULES, version="0", boot="b",
                                     boot_clock=0, public_key="k"))  # fmt: skip
        for run, sources in (("clean", []), ("dirty", ["tool:web"])):
            self.enter(entries.RunStart(run=run, capability=run, policy="p", sources=sources))

    def enter(self, entry: entries.AnyEntry) -> int:
        entry.seq = self.state.seq + 1
        apply(self.state, entry)
        return entry.seq

    def admit(self, one: Does) -> None:
        shaped = ["tool:web"] if one.handle else []
        self.open[one] = self.enter(
            entries.Admit(
                run=one.run, effect=one.effect, resource=one.name, target=one.target, stream=0,
                n=1, request="x", caps=[], rule="", at=0, handle=one.handle, sources=shaped,
            )
        )  # fmt: skip

    def perform(self, one: Does) -> None:
        words = WEB if one.run == "dirty" or one.handle else CLEAN
        if one.effect == "fs.write":
            self.disk[one.name] = words
        elif one.effect == "fs.append":
            self.disk[one.name] = self.disk.get(one.name, CLEAN).join(words)
        elif one.effect == "fs.delete":
            self.disk.pop(one.name, None)
        elif one.effect == "fs.rename" and one.name in self.disk:
            self.disk[one.target] = self.disk.pop(one.name)
        elif one.effect == "fs.read":
            self.got = self.disk.get(one.name)

    def answer(self, one: Does) -> None:
        if one.effect == "fs.read":
            self.told = recorded(self.state.files, one.effect, one.name, {})
        self.enter(entries.Outcome(run=one.run, of=self.open[one], status="done", spent={}))

    def alone(self, one: Does) -> World:
        for step in (self.admit, self.perform, self.answer):
            step(one)
        return self

    def label(self, name: str) -> Label:
        return recorded(self.state.files, "fs.read", name, {})


def orders(one: Does, other: Does) -> Iterator[list[tuple[str, Does]]]:
    """Every order of the six steps in which each call is admitted, performed and answered."""
    for mine in sorted(set(permutations([0, 0, 0, 1, 1, 1]))):
        steps = [iter(("admit", "perform", "answer")) for _ in range(2)]
        yield [(next(steps[who]), (one, other)[who]) for who in mine]


def after(before: tuple[Does, ...], order: list[tuple[str, Does]]) -> World:
    world = World()
    for one in before:
        world.alone(one)
    for step, one in order:
        getattr(world, step)(one)
    return world


THEIRS: Mapping[str, tuple[tuple[Does, ...], Does]] = {
    "a tainted run adds": ((), Does("dirty", "fs.append")),
    "a tainted run writes": ((), Does("dirty", "fs.write")),
    "a handle is added": ((), Does("clean", "fs.append", handle="h1")),
    "words are moved there": ((Does("dirty", "fs.write", B),), Does("clean", "fs.rename", B, A)),
}
MINE = {
    "write": Does("clean", "fs.write"),
    "delete": Does("clean", "fs.delete"),
    "move away": Does("clean", "fs.rename", A, "fs:/w/c"),
    "move there": Does("clean", "fs.rename", "fs:/w/own", A),
}


@pytest.mark.parametrize("mine", MINE)
@pytest.mark.parametrize("theirs", THEIRS)
def test_two_changes_in_any_order(theirs: str, mine: str) -> None:
    before, one = THEIRS[theirs]
    before = (*before, Does("clean", "fs.write", "fs:/w/own"))
    for order in orders(one, MINE[mine]):
        world = after(before, order)
        for name, words in world.disk.items():
            assert words <= world.label(name), order


@pytest.mark.parametrize("mine", MINE)
def test_who_reads_what_is_replaced_has_read_it(mine: str) -> None:
    before = (Does("dirty", "fs.write"), Does("clean", "fs.write", "fs:/w/own"))
    for order in orders(Does("clean", "fs.read"), MINE[mine]):
        world = after(before, order)
        assert (world.got or CLEAN) <= world.told, order


@pytest.mark.parametrize("mine", MINE)
def test_control_what_is_done_alone_takes_off_what_was_there(mine: str) -> None:
    world = World().alone(Does("clean", "fs.write", "fs:/w/own")).alone(Does("dirty", "fs.write"))
    assert world.label(A) == WEB
    world.alone(MINE[mine])
    assert world.label(A) == CLEAN


def test_whether_a_call_on_a_handle_was_made_shows_in_no_label() -> None:
    seen = []
    for hidden in (False, True):
        world = World()
        call = Does("clean", "fs.append", handle="h1")
        if hidden:
            world.enter(entries.Denied(run="clean", code="E_TAINT", layer="labels", number=0,
                                       reason="", effect=call.effect, resource=A, handle="h1",
                                       hidden=True, sources=["tool:web"]))  # fmt: skip
        else:
            world.admit(call)
        world.alone(MINE["write"])
        if not hidden:
            world.answer(call)
        seen.append(world.label(A))
    assert seen == [WEB, WEB]
