"""Children and messages: contained in their parent, heard by their family only, gone with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .lab import OPEN, Attached, Lab, code_of, wait_for

CHILD = """\
import sys
from authority.agent import connect, Denied
g = connect()
def code(call):
    try: call(); return "ok"
    except Denied as d: return d.code
def do(words):
    what, rest = words[0], words[1:]
    if what == "read": return code(lambda: g.read(rest[0]))
    if what == "write": return code(lambda: g.write(rest[0], b"x"))
    if what == "spawn": return code(lambda: g.spawn(rest[0]))
    if what == "send": return code(lambda: g.send(rest[0], b"x"))
    if what == "arguments": return " ".join(sys.argv[1:])
    if what == "exit": sys.exit(int(rest[0]))
    return "?"
while (m := g.receive(30_000)) is not None:
    g.send(m.sender, do(m.data.decode().split()))
"""
POLICY = (
    OPEN
    + """
[agents.same]
command = ["python3", "child.py"]
[agents.less]
command = ["python3", "child.py"]
policy = "less.toml"
"""
)
LESS = """\
version = 1
[filesystem]
read = ["/**"]
write = ["./out/child/**"]
[labels]
trusted = ["fs:./**"]
"""


@pytest.fixture
def run(lab: Lab) -> Iterator[Attached]:
    lab.file("child.py", CHILD)
    lab.file("less.toml", LESS)
    with lab.attached(POLICY) as found:
        yield found


def ask(run: Attached, child: str, text: str) -> str:
    gate = run.gate()
    gate.send(child, text.encode())
    answer = gate.receive(20_000)
    assert answer is not None
    assert answer.sender == child
    return answer.data.decode()


def test_messages_go_both_ways_and_a_child_ends(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    child = gate.spawn("same", ["a", "b c"])
    assert ask(run, child, "arguments") == "a b c"
    assert ask(run, child, "read data/a.txt") == "ok"
    assert gate.wait(child) == {"ended": False, "code": None}
    gate.send(child, b"exit 5")
    assert gate.wait(child, 20_000) == {"ended": True, "code": 5}
    assert code_of(lambda: gate.send(child, b"late")) == "E_EFFECT_FAILED"
    (start,) = lab.log(run=child, kind="run.start")
    assert start["parent"] == run.run
    assert gate.receive() is None


def test_a_child_may_do_what_both_policies_allow(run: Attached) -> None:
    child = run.gate().spawn("less")
    assert ask(run, child, "read data/a.txt") == "ok"
    assert ask(run, child, "read /etc/hostname") == "E_POLICY_DENY"  # the parent may not
    assert ask(run, child, "write out/x") == "E_POLICY_DENY"  # the child may not
    assert ask(run, child, "spawn same") == "E_POLICY_DENY"
    assert code_of(lambda: run.gate().write("out/x", b"")) == ""  # the control
    assert code_of(lambda: run.gate().spawn("stranger")) == "E_POLICY_DENY"


def test_a_restriction_narrows_a_childs_capability(run: Attached) -> None:
    gate = run.gate()
    child = gate.spawn("same", restriction={"methods": ["fs.read", "msg.*"]})
    assert ask(run, child, "read data/a.txt") == "ok"
    assert ask(run, child, "write out/x") == "E_CAP_SCOPE"
    for bad in ({"nonsense": 1}, {"methods": 1}):
        assert code_of(lambda b=bad: gate.spawn("same", restriction=b)) != ""


def test_only_the_family_talks(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    one, two = gate.spawn("same"), gate.spawn("same")
    assert ask(run, one, f"send {two}") == "E_POLICY_DENY"  # brother and sister
    with lab.attached() as stranger:
        other = stranger.gate()
        assert code_of(lambda: other.send(one, b"read data/a.txt")) == "E_POLICY_DENY"
        assert code_of(lambda: other.send(run.run, b"x")) == "E_POLICY_DENY"
        assert code_of(lambda: other.wait(one)) == "E_POLICY_DENY"
        assert code_of(lambda: other.call("msg.receive", f"run:{run.run}")) == "E_POLICY_DENY"
        assert ask(run, one, f"send {stranger.run}") == "E_POLICY_DENY"
    assert code_of(lambda: gate.send(run.run, b"myself")) == "E_POLICY_DENY"


def test_a_full_mailbox_refuses(lab: Lab, run: Attached) -> None:
    lab.file("child.py", "import time\ntime.sleep(60)\n")
    gate = run.gate()
    child = gate.spawn("same")
    with gate.batch() as batch:
        sent = [batch.call("msg.send", f"run:{child}", {"data": b"x"}) for _ in range(256)]
    assert [code_of(answer.result) for answer in sent] == [""] * 256
    assert code_of(lambda: gate.send(child, b"one more")) == "E_EFFECT_FAILED"


def test_the_parents_end_is_its_childrens(lab: Lab, run: Attached) -> None:
    child = run.gate().spawn("same")
    assert ask(run, child, "read data/a.txt") == "ok"
    run.close()
    ends = wait_for(lambda: lab.log(run=child, kind="run.end"))
    assert ends[0]["reason"] == "parent ended"
    (parent,) = wait_for(lambda: lab.log(run=run.run, kind="run.end"))
    assert ends[0]["seq"] < parent["seq"]


def test_a_child_gets_no_more_than_the_capability_that_was_presented(run: Attached) -> None:
    """Spawning with a narrowed token is no way to a wide one."""
    gate = run.gate()
    wide = gate.spawn("same")
    assert ask(run, wide, "write out/wide.txt") == "ok"
    narrow = gate.attenuate(methods=("agent.spawn", "msg.send", "msg.receive", "output"))
    child = gate.spawn("same", capability=narrow)
    assert ask(run, child, "write out/narrow.txt") == "E_CAP_SCOPE"
