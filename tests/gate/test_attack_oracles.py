"""Attacks: a trusted run learns, by asking for something harmless, what hidden or untrusted words did.

Each query changes a file, sends a message or uses a handle, and shows by its success, its refusal or a
length what is there. Whoever was told has read it; or both worlds are answered alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from authority.agent.client import Gate

from .lab import Lab, code_of
from .test_attack_laundering import POLICY, pays, taint

ASK: dict[str, Callable[[Gate, str], object]] = {
    "delete": lambda g, n: g.delete(n),
    "rename": lambda g, n: g.rename(n, f"{n}-2"),
    "mkdir": lambda g, n: g.mkdir(n),
    "create": lambda g, n: g.write(n, b"", create_only=True),
    "append": lambda g, n: g.append(n, b""),
}


@pytest.fixture(autouse=True)
def files(lab: Lab) -> None:
    answers(lab, "words")
    lab.file("child.py", "import time\ntime.sleep(30)\n")


def answers(lab: Lab, result: object) -> None:
    """What the tool says from now on."""
    answer = json.dumps({"result": result})
    lab.file("tool.py", f"print({answer!r})\n")


@pytest.mark.parametrize("there", [False, True], ids=["not there", "there"])
@pytest.mark.parametrize("how", ASK)
def test_a_change_tells_whether_a_hidden_one_was_made(lab: Lab, how: str, there: bool) -> None:
    answers(lab, {"a": "x"} if there else {})
    name = f"out/hidden-{how}-{there}"
    with lab.attached(POLICY) as run:
        gate = run.gate()
        words = gate.tool("web", {"q": "x"}, handle=True)
        gate.write(name, words["/a"])
        assert pays(gate) == ""
        code_of(lambda: ASK[how](gate, name))
        assert pays(gate) == "E_TAINT"


@pytest.mark.parametrize("how", ASK)
def test_control_a_change_among_trusted_files(lab: Lab, how: str) -> None:
    folder = f"out/own-{how}"
    with lab.attached(POLICY) as run:
        gate = run.gate()
        gate.mkdir(folder)
        for name in ("there", "not-there"):
            if name == "there":
                gate.write(f"{folder}/{name}", b"x")
            code_of(lambda n=name: ASK[how](gate, f"{folder}/{n}"))
        assert pays(gate) == ""


def test_replacing_what_there_may_be_tells_nothing(lab: Lab) -> None:
    with lab.attached(POLICY) as run:
        gate = run.gate()
        gate.write("out/replaced", gate.tool("web", {"q": "x"}, handle=True))
        gate.write("out/replaced", b"mine")
        assert pays(gate) == ""


def test_a_length_is_no_number_for_a_later_run(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        first.gate().write("out/clean", b"x" * 5)
        taint(first.gate())
        first.gate().write("out/long", b"x" * 12345)
    for name, size, code in (("clean", 5, ""), ("long", 12345, "E_TAINT")):
        with lab.attached(POLICY) as later:
            assert later.gate().append(f"out/{name}", b"") == size
            assert pays(later.gate()) == code


def test_which_of_two_files_has_a_name_is_words(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        gate = first.gate()
        gate.write("out/bob", b"bob")
        gate.write("out/eve", b"eve")
        gate.rename("out/bob", "out/payee-trusted")
        taint(gate)
        gate.rename("out/eve", "out/payee")
    for name, code in (("payee-trusted", ""), ("payee", "E_TAINT")):
        with lab.attached(POLICY) as later:
            later.gate().read(f"out/{name}")
            assert pays(later.gate()) == code


def test_when_a_folder_was_changed_is_words(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        for name in ("kept", "changed"):
            first.gate().mkdir(f"out/times/{name}", parents=True)
        taint(first.gate())
        first.gate().write("out/times/changed/x", b"")
    for name, code in (("kept", ""), ("changed", "E_TAINT")):
        with lab.attached(POLICY) as later:
            later.gate().stat(f"out/times/{name}")
            assert pays(later.gate()) == code


def test_which_files_were_read_does_not_show_in_them(lab: Lab) -> None:
    """A later look would count them: a file has the time of its last access, and no label by it."""
    old = (10**18, 2 * 10**18)  # read last before it was changed last: where reading would be noted
    files = [lab.file(f"data/read-{n}.txt", "x") for n in range(2)]
    for file in files:
        os.utime(file, ns=old)
    with lab.attached(POLICY) as run:
        run.gate().read("data/read-0.txt")
    assert [file.stat().st_atime_ns for file in files] == [old[0], old[0]]
    files[1].read_text()  # the control: by any other way it is noted (unless the disk never does)
    if not os.statvfs(files[1]).f_flag & os.ST_NOATIME:
        assert files[1].stat().st_atime_ns != old[0]


def test_a_folder_that_is_there_is_words(lab: Lab) -> None:
    with lab.attached(POLICY) as first:
        first.gate().mkdir("out/clean-folder")
        taint(first.gate())
        first.gate().mkdir("out/bit/one", parents=True)
    for name, code in (("clean-folder", ""), ("bit", "E_TAINT"), ("bit/one", "E_TAINT")):
        with lab.attached(POLICY) as later:
            later.gate().stat(f"out/{name}")
            assert pays(later.gate()) == code


@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_what_a_handle_may_steer_does_not_say_whether_a_file_is_there(lab: Lab, gone: bool) -> None:
    folder = f"out/choice-{gone}"
    with lab.attached(POLICY) as first:
        gate = first.gate()
        gate.mkdir(folder)
        for name in ("bit", "other"):
            gate.write(f"{folder}/{name}", b"x")
        taint(gate)
        gate.delete(f"{folder}/{'bit' if gone else 'other'}")
    with lab.attached(POLICY) as later:
        gate = later.gate()
        held = gate.read(f"{folder}/bit", handle=True)
        assert code_of(lambda: gate.tool("pay", {"to": held})) == "E_TAINT"
        clean = gate.read("data/a.txt", handle=True)
        assert code_of(lambda: gate.tool("pay", {"to": clean})) == ""


CHILD = """\
from authority.agent import connect
gate = connect()
gate.receive(20_000)
gate.tool("web", {"q": "x"})
if BIT:
    gate.send(PARENT, b"x")
gate.receive(20_000)
"""


@pytest.mark.parametrize("bit", [False, True], ids=["silent", "sends"])
def test_what_a_handle_may_steer_does_not_say_whether_a_message_came(lab: Lab, bit: bool) -> None:
    with lab.attached(POLICY) as run:
        lab.file("child.py", CHILD.replace("BIT", str(bit)).replace("PARENT", repr(run.run)))
        gate = run.gate()
        child = gate.spawn("child")
        gate.send(child, b"go")
        run_of = {"run": child, "kind": "outcome"}
        while not any("tool:web" in one.get("sources", ()) for one in lab.log(**run_of)):
            gate.receive(20, handle=True)
        held = gate.receive(300, handle=True)
        assert code_of(lambda: gate.tool("pay", {"to": held["/from"]})) == "E_TAINT"
        assert pays(gate) == ""  # it has read nothing


@pytest.mark.parametrize("there", [False, True], ids=["none came", "all came"])
def test_a_full_mailbox_counts_hidden_messages(lab: Lab, there: bool) -> None:
    answers(lab, {"a": "x"} if there else {})
    room = POLICY.replace("runs = 100", 'runs = 100\nstored_bytes = "4GB"')
    with lab.attached(room) as run:
        gate = run.gate()
        child = gate.spawn("child")
        words = gate.tool("web", {"q": "x"}, handle=True)
        for _ in range(256):
            gate.send(child, words["/a"])
        assert pays(gate) == ""
        assert code_of(lambda: gate.send(child, b"x")) == ("E_EFFECT_FAILED" if there else "")
        assert pays(gate) == ("E_TAINT" if there else "")


@pytest.mark.parametrize("there", [False, True], ids=["not there", "there"])
def test_what_a_run_may_remove_does_not_tell_what_a_hidden_call_made(lab: Lab, there: bool) -> None:
    answers(lab, {"a": "x"} if there else {})
    with lab.attached(POLICY.replace('"fs:./**"', '"fs:./out/**", "fs:./out"')) as run:
        gate = run.gate()
        words = gate.tool("web", {"q": "x"}, handle=True)
        gate.read("data/a.txt")  # other words than those behind the handle
        gate.write("out/open", b"mine")
        gate.delete("out/open")  # what it made it may remove
        gate.write(f"out/own-{there}", words["/a"])
        assert code_of(lambda: gate.delete(f"out/own-{there}")) == "E_TAINT"


@pytest.mark.parametrize("wanted", ["bob", "eve"])
def test_a_call_for_each_value_costs_what_the_choice_among_them_tells(
    lab: Lab, wanted: str
) -> None:
    """Whether a value is the one that fits is a bit, also where the type has one value."""
    answers(lab, json.dumps(wanted))
    endorsed = (
        '[labels.endorse.names]\nfrom = ["tool:web"]\ntype = "enum"\nto = ["tool:pay to"]\nbits = 3'
    )
    with lab.attached(POLICY.replace("[budgets]", f"{endorsed}\n[budgets]")) as run:
        gate = run.gate()
        quoted = gate.tool("web", {"q": "x"}, handle=True)
        for one in ("ann", "bob", "eve"):
            gate.tool("pay", {"to": quoted.typed({"enum": [one]})})
        made = [json.loads(e["filled"]["text"])["arguments"] for e in
                lab.log(kind="admit", run=run.run, resource="tool:pay")]  # fmt: skip
        assert made == [{"to": wanted}]
        one_more = {"to": quoted.typed({"enum": [wanted]})}
        assert code_of(lambda: gate.tool("pay", one_more)) == "E_TAINT"


def test_words_that_are_carried_may_keep_their_call_from_being_made(lab: Lab) -> None:
    """A known limit: no bits are counted where nothing of the words steers."""
    answers(lab, json.dumps("bob"))
    with lab.attached(POLICY.replace("[tools.pay]", '[tools.pay]\ncontent = ["note"]')) as run:
        gate = run.gate()
        quoted = gate.tool("web", {"q": "x"}, handle=True)
        for one in ("ann", "bob"):
            gate.tool("pay", {"to": one, "note": quoted.typed({"enum": [one]})})
        made = [json.loads(e["filled"]["text"])["arguments"]["to"] for e in
                lab.log(kind="admit", run=run.run, resource="tool:pay")]  # fmt: skip
        assert made == ["bob"]


@pytest.mark.parametrize("wrote", [False, True], ids=["not there", "there"])
def test_in_which_folders_a_run_wrote_shows_in_what_handles_may_steer(
    lab: Lab, wrote: bool
) -> None:
    """A known limit: labels themselves are seen. Within one folder they are the same."""
    folder = f"out/which-{wrote}"
    with lab.attached(POLICY) as first:
        gate = first.gate()
        for name in ("here", "there"):
            gate.mkdir(f"{folder}/{name}", parents=True)
            gate.write(f"{folder}/{name}/a", b"x")
        taint(gate)
        gate.write(f"{folder}/{'there' if wrote else 'here'}/b", b"x")
    with lab.attached(POLICY) as later:
        gate = later.gate()
        seen = [
            code_of(lambda n=n: gate.tool("pay", {"to": gate.read(f"{folder}/{n}/a", handle=True)}))
            for n in ("here", "there")
        ]
        assert seen == (["", "E_TAINT"] if wrote else ["E_TAINT", ""])


ASKED = """\
import sys
from authority.agent import Denied, connect
gate = connect()
words = gate.read_text("data/mail.txt") if READ else sys.stdin.read()
try: gate.tool("pay", {"to": words})
except Denied as no: print(no.code)
else: print("paid", words)
"""


@pytest.mark.parametrize(
    ("way", "trusted", "said"),
    [
        ("piped", '"user"', "paid eve"),
        ("piped", '"fs:./**"', "E_TAINT"),
        ("read", '"user"', "E_TAINT"),
        ("read", '"user", "fs:./**"', "paid eve"),
    ],
)
def test_what_is_piped_in_is_the_persons_word_if_the_policy_says_so(
    lab: Lab, way: str, trusted: str, said: str
) -> None:
    """Nobody knows who wrote it: whoever leaves the `user` out is believed."""
    lab.file("data/mail.txt", "eve")
    policy = POLICY.replace('"user", "fs:./**"', trusted)
    ran = lab.start(ASKED.replace("READ", str(way == "read")), policy).started()
    lab.input(ran, b"eve", eof=True)
    assert ran.end().out.strip() == said
    assert ("user" in lab.log(kind="run.start", run=ran.run)[0].get("sources", ())) == (
        '"user"' not in trusted
    )


def test_a_user_who_is_not_trusted_is_so_in_files_and_under_a_later_policy(lab: Lab) -> None:
    """A run that was handed a stranger's words says nothing of its own, from its first request on."""
    untrusted = POLICY.replace('"user", ', "")
    with lab.attached(untrusted) as first:
        gate = first.gate()
        assert pays(gate) == "E_TAINT"
        mine = gate.tool("mine", {"q": "x"}, handle=True)
        assert code_of(lambda: gate.tool("pay", {"to": mine})) == "E_TAINT"
        gate.write("out/handed", b"eve")
    with lab.attached(POLICY) as later:
        gate = later.gate()
        assert pays(gate) == ""  # the control
        assert code_of(lambda: gate.tool("pay", {"to": gate.read("out/handed", handle=True)})) == (
            "E_TAINT"
        )
        gate.read("out/handed")
        assert pays(gate) == "E_TAINT"
