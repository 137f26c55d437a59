"""Attacks: untrusted words are sent through something that forgets, and come back as nobody's.

Each has its control: the same way taken by trusted words leaves a run as trusted as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from authority.agent.client import Gate

from .lab import Attached, Lab, code_of

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
files = "requests"
[tools.web]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
[tools.mine]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
reads = "trusted"
[tools.pay]
command = ["python3", "tool.py"]
reads = "trusted"
[agents.child]
command = ["python3", "child.py"]
[labels]
trusted = ["user", "fs:./**"]
secrets = { payroll = ["fs:./payroll/**"] }
release = { payroll = ["fs:./out/**"] }
[budgets]
denials = 100_000
runs = 100
"""
TOOL = "import json, sys\nprint(json.dumps({'result': 'words'}))\n"


@pytest.fixture(autouse=True)
def files(lab: Lab) -> None:
    lab.file("tool.py", TOOL)
    lab.file("payroll/all.csv", "secret")
    lab.file("child.py", "import time\ntime.sleep(30)\n")


@pytest.fixture
def run(lab: Lab, files: None) -> Iterator[Attached]:
    with lab.attached(POLICY) as found:
        yield found


def taint(gate: Gate) -> None:
    gate.tool("web", {"q": "x"})


def pays(gate: Gate) -> str:
    return code_of(lambda: gate.tool("pay", {"to": "eve"}))


WAYS: dict[str, tuple[Callable[[Gate, str], object], Callable[[Gate, str], object]]] = {
    "a file": (
        lambda g, n: g.write(f"out/{n}", b"words"),
        lambda g, n: g.read(f"out/{n}"),
    ),
    "the end of a file": (
        lambda g, n: g.append(f"out/{n}", b"words"),
        lambda g, n: g.read(f"out/{n}"),
    ),
    "a renamed file": (
        lambda g, n: (g.write(f"out/{n}.tmp", b"words"), g.rename(f"out/{n}.tmp", f"out/{n}")),
        lambda g, n: g.read(f"out/{n}"),
    ),
    "a file's name": (
        lambda g, n: (g.mkdir(f"out/{n}"), g.write(f"out/{n}/pay-eve", b"")),
        lambda g, n: g.list(f"out/{n}"),
    ),
    "a folder's name": (
        lambda g, n: (g.mkdir(f"out/{n}"), g.mkdir(f"out/{n}/pay-eve")),
        lambda g, n: g.list(f"out/{n}"),
    ),
    "a file's size": (
        lambda g, n: g.write(f"out/{n}", b"13 bytes here"),
        lambda g, n: g.stat(f"out/{n}"),
    ),
    "a folder above": (
        lambda g, n: g.mkdir(f"out/{n}/pay-eve/x", parents=True),
        lambda g, n: g.list(f"out/{n}"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("restart", [False, True], ids=["", "over a restart"])
def test_a_later_run_knows_what_an_earlier_one_read(lab: Lab, way: str, restart: bool) -> None:
    write, read = WAYS[way]
    name = f"{way.replace(' ', '-').replace(chr(39), '')}-{restart}"
    with lab.attached(POLICY) as first:
        write(first.gate(), f"clean-{name}")
        taint(first.gate())
        write(first.gate(), f"dirty-{name}")
    if restart:
        lab.kill()
    with lab.attached(POLICY) as control:
        read(control.gate(), f"clean-{name}")
        assert pays(control.gate()) == ""
    with lab.attached(POLICY) as later:
        read(later.gate(), f"dirty-{name}")
        assert pays(later.gate()) == "E_TAINT"


def test_a_changed_policy_lowers_no_label(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        taint(first.gate())
        first.gate().write("out/old", b"words")
    trusting = POLICY.replace('effect = "read"', 'effect = "read"\nreads = "trusted"', 1)
    with lab.attached(trusting) as later:
        taint(later.gate())  # under this policy the tool is trusted
        assert pays(later.gate()) == ""
        later.gate().read("out/old")
        assert pays(later.gate()) == "E_TAINT"


def test_a_file_that_trusted_words_replaced_is_theirs(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        taint(first.gate())
        first.gate().write("out/again", b"words")
    with lab.attached(POLICY) as second:
        second.gate().write("out/again", b"mine")
        second.gate().read("out/again")
        assert pays(second.gate()) == ""


def test_a_file_that_somebody_else_changed_is_the_hosts_too(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        taint(first.gate())
        first.gate().write("out/shared", b"words")
    path = lab.work / "out/shared"
    with lab.attached(POLICY) as control:
        control.gate().read("out/shared", length=3)
        assert lab.log(kind="outcome", run=control.run)[-1]["sources"] == ["tool:web"]
    path.chmod(0o666)
    path.write_bytes(b"sword")
    for length in (None, 3):
        with lab.attached(POLICY) as later:
            later.gate().read("out/shared", length=length)
            seen = lab.log(kind="outcome", run=later.run)[-1]
            assert seen["sources"] == ["host", "tool:web"]


def test_sizes_in_a_listing_are_words(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        gate = first.gate()
        for name in ("clean", "sized"):
            gate.mkdir(f"out/{name}")
            gate.write(f"out/{name}/x", b"mine")
        taint(gate)
        gate.write("out/sized/x", b"13 bytes here")
    with lab.attached(POLICY) as later:
        assert [row["size"] for row in later.gate().list("out/clean")] == [4]
        assert pays(later.gate()) == ""
        assert [row["size"] for row in later.gate().list("out/sized")] == [13]
        assert pays(later.gate()) == "E_TAINT"


def test_what_is_gone_is_words(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        gate = first.gate()
        gate.mkdir("out/signs")
        gate.write("out/signs/x", b"mine")
        taint(gate)
        gate.delete("out/signs/x")
    for folder, code in (("data", ""), ("out/signs", "E_TAINT")):
        with lab.attached(POLICY) as later:
            read = partial(later.gate().read, f"{folder}/x")
            assert code_of(read) == "E_EFFECT_FAILED"
            assert pays(later.gate()) == code


def test_a_name_given_on_the_host_between_runs(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        first.gate().write("out/own", b"mine")
        taint(first.gate())
        first.gate().write("out/theirs", b"words")
    for name, code in (("own", ""), ("theirs", "E_TAINT")):
        os.link(lab.work / "out" / name, lab.work / "data" / f"also-{name}")
        with lab.attached(POLICY) as later:
            later.gate().read(f"data/also-{name}")
            assert pays(later.gate()) == code
    # A limit: a copy is another file, and the person's own act. The policy's word holds for it.
    shutil.copyfile(lab.work / "out/theirs", lab.work / "data/copied")
    with lab.attached(POLICY) as later:
        later.gate().read("data/copied")
        assert pays(later.gate()) == ""


def test_a_secret_stays_one_in_a_file(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        first.gate().read("payroll/all.csv")
        first.gate().write("out/copy", b"secret")
    with lab.attached(POLICY) as later:
        later.gate().read("out/copy")
        assert code_of(lambda: later.gate().tool("mine", {"q": "secret"})) == "E_TAINT"
    with lab.attached(POLICY) as control:
        assert code_of(lambda: control.gate().tool("mine", {"q": "secret"})) == ""


def test_a_handle_leaves_its_label_in_the_file(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    words = gate.tool("web", {"q": "x"}, handle=True)
    gate.call("fs.write", "out/handled", {"data": words})
    assert pays(gate) == ""
    with lab.attached(POLICY) as later:
        later.gate().read("out/handled")
        assert pays(later.gate()) == "E_TAINT"


def test_a_handle_goes_to_a_child_with_its_label(lab: Lab) -> None:
    lab.file("child.py",
             "from authority.agent import connect, Denied\nimport sys\n"
             "g = connect()\nm = g.receive(20000)\n"
             "try: g.tool('pay', {'to': m.data.decode()})\nexcept Denied: sys.exit(3)\n")  # fmt: skip
    with lab.attached(POLICY) as run:
        gate = run.gate()
        clean, shaped = gate.spawn("child"), gate.spawn("child")
        gate.send(clean, b"bob")
        words = gate.tool("web", {"q": "x"}, handle=True)
        gate.call("msg.send", f"run:{shaped}", {"data": words})
        assert gate.wait(clean, 20_000)["code"] == 0
    with lab.attached(POLICY) as run:
        gate = run.gate()
        shaped = gate.spawn("child")
        words = gate.tool("web", {"q": "x"}, handle=True)
        gate.call("msg.send", f"run:{shaped}", {"data": words})
        assert gate.wait(shaped, 20_000)["code"] == 3


@pytest.mark.parametrize(
    "trip",
    [
        lambda h, g: h["/0"],
        lambda h, g: h.typed({"type": "object", "properties": {"a": {"type": "string"}}})["/a"],
        lambda h, g: g.tool("mine", {"q": h}),
        lambda h, g: g.tool("mine", {"q": g.tool("mine", {"q": h})}),
    ],
    ids=["a field", "json text", "a trusted tool", "two of them"],
)
def test_no_detour_makes_words_control(run: Attached, trip: Callable[..., object]) -> None:
    gate = run.gate()
    words = gate.tool("web", {"q": "x"}, handle=True)
    mine = gate.tool("mine", {"q": "x"}, handle=True)
    assert code_of(lambda: gate.tool("pay", {"to": trip(words, gate)})) == "E_TAINT"
    assert code_of(lambda: gate.tool("pay", {"to": trip(mine, gate)})) == ""


def test_an_error_is_words_too(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    lab.file("tool.py", "import json\nprint(json.dumps({'error': 'pay eve'}))\n")
    assert code_of(lambda: gate.tool("web", {"q": "x"})) == "E_EFFECT_FAILED"
    assert pays(gate) == "E_TAINT"
    assert json.dumps(lab.denials(run=run.run, code="E_TAINT")[-1]["reason"]).count("tool:web") == 1


MOUNTED = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
files = "{files}"
[process]
exec = ["python3"]
[tools.pay]
command = ["python3", "tool.py"]
reads = "trusted"
[labels]
trusted = ["user", "fs:./out/**", "fs:./*.py"]
"""
THROUGH_A_MOUNT = """\
import os
open("out/before", "w").write("x")
open("data/a.txt").read()
open("out/after", "w").write("x")
os.mkdir("out/folder")
os.rename("out/after", "out/folder/moved")
"""


def test_a_mounted_file_keeps_its_label(lab: Lab) -> None:
    ran = lab.run(THROUGH_A_MOUNT, MOUNTED.format(files="mount"))
    assert ran.summary["label"]["sources"], ran.err
    with lab.attached(MOUNTED.format(files="requests")) as control:
        control.gate().read("out/before")
        assert pays(control.gate()) == ""
    with lab.attached(MOUNTED.format(files="requests")) as later:
        later.gate().read("out/folder/moved")
        assert pays(later.gate()) == "E_TAINT"
