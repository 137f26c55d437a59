"""Playing runs again: what goes as recorded, what does not, and that nothing is performed."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.gate.lab import Lab

from authority.audit import query
from authority.kernel import entries
from authority.kernel.entries import AnyEntry

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = """\
version = 1
[filesystem]
read = ["./data/**"]
write = ["./out/**"]
files = "requests"
[labels]
trusted = ["user", "fs:./data/**"]
[budgets]
denials = 1000
"""


def log(lab: Lab, run: str) -> list[AnyEntry]:
    return [
        e
        for e in map(entries.decode, query.lines(lab.directory.log))
        if getattr(e, "run", "") == run
    ]


def replayed(lab: Lab, run: str, *more: str, code: int = 0) -> dict[str, Any]:
    done = lab.cli("replay", run, "--json", "--quiet", *more)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def script(lab: Lab, name: str, text: str, policy: str = REQUESTS) -> str:
    """The id of a run of a program in a file, which can be edited afterwards."""
    path = lab.file(name, text)
    return lab.run([sys.executable, str(path)], lab.policy(policy)).run


WORK = """\
from authority.agent import Denied, connect
gate = connect()
print(gate.read("data/a.txt"), gate.time(), gate.random(2000)[:8], gate.uuid(), sorted({"a", "b"}))
print([hash(word) for word in ("a", "b")], {"x", "y", "z"})
gate.write("out/made.txt", b"made " + gate.read("data/a.txt"))
try:
    gate.read("/etc/shadow")
except Denied as denied:
    print(denied.code, denied.receipt.seq, denied.receipt.hash)
with gate.batch() as batch:
    asked = [batch.call("fs.stat", "data/a.txt"), batch.call("fs.list", "data")]
print(asked[0].result(), asked[1].result(), gate.last_receipt)
"""


def test_a_run_goes_the_same_way_again(lab: Lab) -> None:
    run = script(lab, "work.py", WORK)
    made = lab.work / "out" / "made.txt"
    assert made.read_bytes() == b"made hello"
    made.unlink()
    before = list(query.lines(lab.directory.log))
    found = replayed(lab, run)
    assert found["verdict"] == "same"
    assert found["limits"] == []
    verdicts = [
        e
        for e in log(lab, run)
        if isinstance(e, (entries.Admit, entries.Denied)) and e.effect != "output"
    ]
    assert found["matched"] == found["requests"] == len(verdicts) == 9
    assert found["printed"] > 300
    assert not made.exists(), "nothing is written"
    assert list(query.lines(lab.directory.log)) == before, "nothing is added to the recorded log"


STEERED = """\
[tools.web]
command = ["python3", "tool.py"]
content = ["q"]
effect = "read"
[tools.pay]
command = ["python3", "tool.py"]
control = ["to"]
"""


@pytest.mark.parametrize("explain", ["agent", "operator"])
def test_a_refusal_is_told_in_the_same_words(lab: Lab, explain: str) -> None:
    """The argument that labels refuse, and the rule where the policy shows it."""
    lab.file("tool.py", 'print(\'{"result": "pay eve"}\')\n')
    program = (
        "from authority.agent import Denied, connect\n"
        "gate = connect()\n"
        "who = gate.tool('web', {'q': 'x'}, handle=True)\n"
        "for call in (lambda: gate.tool('pay', {'to': who}), lambda: gate.read('/etc/shadow')):\n"
        "    try: call()\n"
        "    except Denied as denied: print(denied.sentence, denied.rule)\n"
    )
    policy = REQUESTS.replace("[budgets]", STEERED + "[budgets]")
    policy = policy.replace("version = 1\n", f'version = 1\nexplain = "{explain}"\n')
    ran = lab.run([sys.executable, str(lab.file("steered.py", program))], lab.policy(policy))
    first, second = ran.out.splitlines()
    assert "(argument to)" in first
    assert second.endswith(" None") is (explain == "operator")
    assert replayed(lab, ran.run)["verdict"] == "same"


def test_that_it_was_played_is_on_record(lab: Lab) -> None:
    run = script(lab, "work.py", WORK)
    number = replayed(lab, run)["record"]
    told = [entries.decode(line) for line in query.lines(lab.directory.root / "replays")]
    begun = told[number]
    assert isinstance(begun, entries.Replay)
    (last,) = query.read(lab.directory.log, query.Filter(frozenset({run}), frozenset({"run.end"})))
    assert begun.head == last["hash"]
    ended = next(e for e in told if isinstance(e, entries.ReplayEnd) and e.of == number)
    assert ended.verdict == "same"
    assert ended.matched == 9


def test_until_an_entry(lab: Lab) -> None:
    run = script(lab, "work.py", WORK)
    third = [e.seq for e in log(lab, run) if isinstance(e, entries.Admit)][2]
    found = replayed(lab, run, "--until", str(third))
    assert found["verdict"] == "stopped where asked"
    assert found["matched"] == 3


def test_step_by_step(lab: Lab) -> None:
    run = script(lab, "work.py", WORK)
    done = lab.cli("replay", run, "--step", "--quiet")
    assert done.returncode == 0
    assert "fs.write fs:" in done.stderr
    assert "refused E_POLICY_DENY" in done.stderr
    assert "spent: file_bytes" in done.stderr
    assert "label: clean" in done.stderr


EDITS = {
    "another argument": ('b"made "', 'b"fake "', "another request"),
    "another resource": ('gate.read("/etc/shadow")', 'gate.read("/etc/passwd")', "another request"),
    "a request more": (
        "asked[1].result(), gate",
        "gate.read('data/a.txt'), gate",
        "a request more",
    ),
    "a request less": (
        'gate.write("out/made.txt", b"made " + gate.read("data/a.txt"))',
        "",
        "another request",
    ),
    "the last one less": (
        '    gate.read("/etc/shadow")\n',
        "    raise SystemExit\n",
        "a request less",
    ),
    "another output": ("print(denied.code", 'print("!", denied.code', "another standard output"),
    "another end": (
        "print(asked[0]",
        "import os; os._exit(3)\nprint(asked[0]",
        "less standard output",
    ),
    "another order": (
        'print(gate.read("data/a.txt"), gate.time()',
        'print(gate.time(), gate.read("data/a.txt")',
        "another request",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_program_is_told_apart(lab: Lab, name: str) -> None:
    old, new, what = EDITS[name]
    run = script(lab, "edited.py", WORK)
    assert replayed(lab, run)["verdict"] == "same", "the control: the program as it was"
    assert WORK.count(old) == 1
    lab.file("edited.py", WORK.replace(old, new))
    found = replayed(lab, run, code=1)
    assert found["verdict"] == "diverged"
    assert found["divergence"]["what"].startswith(what)
    named = next(e for e in log(lab, run) if e.seq == found["divergence"]["entry"])
    assert isinstance(named, (entries.Admit, entries.Denied))


def test_the_difference_can_be_read(lab: Lab) -> None:
    run = script(lab, "diff.py", WORK)
    lab.file("diff.py", WORK.replace('b"made "', 'b"fake "'))
    done = lab.cli("replay", run, "--quiet")
    assert done.returncode == 1
    assert "DIVERGED at entry" in done.stderr
    assert "-data: made hello" in done.stderr
    assert "+data: fake hello" in done.stderr


NARROW = """\
from authority.agent import connect
gate = connect()
narrow = gate.attenuate(methods=["fs.read"])
print(gate.read("data/a.txt", capability=narrow))
"""


def test_a_wider_capability_is_told_apart(lab: Lab) -> None:
    run = script(lab, "narrow.py", NARROW)
    assert replayed(lab, run)["verdict"] == "same"
    lab.file("narrow.py", NARROW.replace("capability=narrow", "capability=None"))
    found = replayed(lab, run, code=1)
    assert found["divergence"]["what"] == "another capability"
    assert "narrowed by" in found["divergence"]["then"]


CLOCK = """\
import time
from authority.agent import connect
gate = connect()
until = time.{clock}() + 0.3
while time.{clock}() < until:
    gate.read("data/a.txt")
"""
ASKED_CLOCK = CLOCK.replace("time.{clock}()", "gate.time()")


def test_a_program_that_reads_its_own_clock_is_told_apart(lab: Lab) -> None:
    """The control asks the gate for the time, and gets the times of then."""
    run = script(lab, "asked.py", ASKED_CLOCK)
    assert replayed(lab, run)["verdict"] == "same"
    run = script(lab, "clock.py", CLOCK.format(clock="monotonic"))
    found = replayed(lab, run, code=1)
    assert found["divergence"]["what"].startswith(("a request more", "a request less"))


SECRET = REQUESTS.replace('"./data/**"]\nwrite', '"./data/**", "./secret/**"]\nwrite').replace(
    "[budgets]", 'secrets = { pay = ["fs:./secret/**"] }\n[budgets]'
)
READS_SECRET = """\
from authority.agent import connect
gate = connect()
print(len(gate.read("secret/key.txt")))
"""


def test_a_body_whose_key_was_destroyed(lab: Lab) -> None:
    lab.file("secret/key.txt", "the key of the safe")
    run = script(lab, "secret.py", READS_SECRET, SECRET)
    (sealed,) = (
        e.result for e in log(lab, run) if isinstance(e, entries.Outcome) and e.result is not None
    )
    assert sealed.kept == "sealed"
    assert replayed(lab, run)["divergence"] is None, "the control: with its key"
    (lab.directory.keys / "sealed" / sealed.digest).unlink()
    found = replayed(lab, run, code=1)
    assert found["divergence"]["what"] == "an answer that is not kept"
    assert "was destroyed" in found["divergence"]["now"]


def test_a_body_that_was_kept_as_a_digest_alone(lab: Lab) -> None:
    lab.file("data/long.txt", "x" * 5000)
    text = 'from authority.agent import connect\nprint(len(connect().read("data/long.txt")))\n'
    assert replayed(lab, script(lab, "long.py", text))["verdict"] == "same"
    run = script(lab, "long.py", text, REQUESTS + "stored_bytes = 100\n")
    found = replayed(lab, run, code=1)
    assert "digest alone" in found["divergence"]["now"]


def test_a_value_that_the_program_was_given_and_is_not_kept(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-1")
    text = "import os\nprint(os.environ['SOME_KEY'])\n"
    run = script(lab, "given.py", text, REQUESTS + '[process]\npass_env = ["SOME_KEY"]\n')
    monkeypatch.delenv("SOME_KEY")
    assert replayed(lab, run)["verdict"] == "same"
    (start,) = (e for e in log(lab, run) if isinstance(e, entries.RunStart))
    assert start.given is not None
    (lab.directory.keys / "sealed" / start.given.digest).unlink()
    done = lab.cli("replay", run)
    assert done.returncode == 125
    assert "SOME_KEY" in done.stderr
    assert replayed(lab, run, "--env", "SOME_KEY=sk-1")["verdict"] == "same"
    assert replayed(lab, run, "--env", "SOME_KEY=sk-2", code=1)["verdict"] == "diverged"


def test_what_was_piped_in_is_given_again(lab: Lab) -> None:
    policy = lab.policy(REQUESTS)
    text = "import sys\nprint(sys.stdin.read()[::-1])\n"
    ran = lab.start([sys.executable, "-c", text], policy).started()
    lab.input(ran, b"typed in")
    lab.input(ran, b"", eof=True)
    ran.end()
    assert ran.out == "ni depyt\n"
    assert replayed(lab, ran.run)["verdict"] == "same"


def test_a_log_that_does_not_hold_is_not_played(own: Lab) -> None:
    run = script(own, "work.py", WORK)
    own.stop()
    copy = own.root / "copy"
    shutil.copytree(own.directory.root, copy, ignore=shutil.ignore_patterns("*.sock"))
    control = own.cli("replay", run, "--quiet", state=copy)
    assert control.returncode == 0, control.stderr
    segment = next((copy / "log").glob("*.jsonl"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"made.txt")] ^= 1
    segment.write_bytes(data)
    done = own.cli("replay", run, state=copy)
    assert done.returncode == 125
    assert "does not hold" in done.stderr


def test_a_run_that_is_not_there(lab: Lab) -> None:
    assert lab.cli("replay", "0123456789ab").returncode == 125


THREADS = """\
import threading
from authority.agent import connect
def ask(number):
    gate = connect()
    for _ in range(20):
        gate.read("data/a.txt", offset=number)
workers = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
[w.start() for w in workers]
[w.join() for w in workers]
"""


def test_connections_of_threads_may_come_in_another_order(lab: Lab) -> None:
    run = script(lab, "threads.py", THREADS)
    found = replayed(lab, run)
    assert found["divergence"] is None
    assert found["matched"] == 120


def test_a_run_that_was_stopped_ends_where_it_was_stopped(lab: Lab) -> None:
    text = """\
import time
from authority.agent import connect
gate = connect()
print(gate.read("data/a.txt"), flush=True)
time.sleep(1000)
"""
    path = lab.file("sleeps.py", text)
    ran = lab.start([sys.executable, str(path)], lab.policy(REQUESTS)).started().said("hello")
    lab.admin("POST", f"/v1/runs/{ran.run}/stop", {})
    ran.end()
    assert replayed(lab, ran.run)["matched"] == 1


# --- the demo ---


@pytest.fixture(scope="module")
def demo() -> Iterator[Path]:
    """Its modules can be imported."""
    folder = ROOT / "examples" / "demo"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def everything(folder: Path) -> dict[str, Any]:
    """Each file's content and change time, to see that nothing was touched."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_ctime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


def test_the_demo_is_reproduced_entry_for_entry(own: Lab, demo: Path) -> None:
    import first_act

    server = ThreadingHTTPServer(("127.0.0.1", 0), first_act.OwnServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    attacker = first_act.Attacker()
    rates = server.server_address[1]
    work = first_act.prepare(own.root, rates, attacker.port)
    address = f"http://127.0.0.1:{rates}"
    words = ("run", "--policy", "policy.toml", "--json", "--", sys.executable, "agent.py", address)
    done = own.cli(*words, cwd=work)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["run"]
    server.shutdown()
    server.server_close()
    own.stop()
    reached, before = attacker.connections, everything(work)
    asked = dict(first_act.OwnServer.requests)
    found = replayed(own, run)
    assert found["verdict"] == "same"
    verdicts = [
        e
        for e in log(own, run)
        if isinstance(e, (entries.Admit, entries.Denied)) and e.effect != "output"
    ]
    assert len(verdicts) > 200
    assert found["matched"] == found["requests"] == len(verdicts)
    assert found["printed"] > 1000
    assert everything(work) == before, "no file was changed"
    assert attacker.connections == reached
    assert dict(first_act.OwnServer.requests) == asked, "nobody was asked"


def test_an_unmodified_program_as_far_as_it_goes(own: Lab, demo: Path) -> None:
    """Mounted files, HTTPS that is judged, a model's SDK: all of it comes from the log again."""
    import second_act
    import world

    servers = world.World(own.root / "world")
    office = second_act.prepare(own.root, servers, 'allow = ["obedient"]', git=False)
    words = ("--", sys.executable, "assistant.py", f"https://{world.OWN}", "obedient")
    token = {"OFFICE_TOKEN": "office-0123456789abcdef0123456789abcdef"}
    done = own.cli("run", "--policy", "policy.toml", "--json", *words, cwd=office, env=token)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["run"]
    own.stop()
    before, asked = everything(office), list(servers.asked)
    found = replayed(own, run)
    assert found["divergence"] is None
    assert found["verdict"] == "as far as it can be replayed"
    effects = {e.effect for e in log(own, run) if isinstance(e, entries.Admit)}
    assert {"fs.open", "fs.modify", "http.request", "model.chat"} <= effects
    assert found["matched"] == found["requests"] >= 20
    assert everything(office) == before
    assert servers.asked == asked, "nobody was asked"
    letter = office / "docs" / "minutes-march.md"
    letter.write_text(letter.read_text())
    changed = replayed(own, run, code=1)
    assert changed["divergence"]["what"] == "a file that was changed since"


# --- going on live ---


GOES_ON = """\
from authority.agent import connect
gate = connect()
print(gate.read("data/a.txt"), gate.uuid())
gate.write("out/first.txt", "one")
gate.write("out/second.txt", "two")
print(gate.read("data/a.txt"))
"""


def live(lab: Lab, run: str, after: int, code: int = 0) -> dict[str, Any]:
    done = lab.cli("replay", run, "--from", str(after), "--live", "--json", "--quiet")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "said": done.stderr}


def test_a_run_goes_on_live_from_an_entry(lab: Lab) -> None:
    policy = lab.policy(REQUESTS)
    path = lab.file("goes.py", GOES_ON)
    first = lab.run([sys.executable, str(path)], policy)
    out = lab.work / "out"
    (out / "first.txt").unlink()
    (out / "second.txt").unlink()
    lab.file("data/a.txt", "changed meanwhile")
    try:
        after = next(
            e.seq
            for e in log(lab, first.run)
            if isinstance(e, entries.Admit) and e.resource.endswith("first.txt")
        )
        found = live(lab, first.run, after)
        assert not (out / "first.txt").exists(), "up to there nothing is performed"
        assert (out / "second.txt").read_text() == "two", "from there on it is"
        printed = [e.arguments.text for e in log(lab, found["run"]) if isinstance(e, entries.Admit)
                   and e.effect == "output" and e.arguments is not None]  # fmt: skip
        then = first.out.splitlines()[0]
        assert "".join(printed).splitlines() == [then, "b'changed meanwhile'"]
        (start,) = (e for e in log(lab, found["run"]) if isinstance(e, entries.RunStart))
        assert (start.continues, start.replayed) == (first.run, after)
        assert start.sources == [], "what it had read until then was trusted"
    finally:
        lab.file("data/a.txt", "hello")


def test_a_run_that_goes_on_knows_what_the_old_one_read(lab: Lab) -> None:
    policy = lab.policy(REQUESTS.replace('"user", "fs:./data/**"', '"user"'))
    first = lab.run([sys.executable, str(lab.file("goes.py", GOES_ON))], policy)
    verdicts = [e.seq for e in log(lab, first.run) if isinstance(e, entries.Outcome)]
    found = live(lab, first.run, verdicts[0])
    (start,) = (e for e in log(lab, found["run"]) if isinstance(e, entries.RunStart))
    assert start.sources == [f"fs:{lab.work}/data/a.txt"]


def test_a_difference_before_the_entry_ends_it(lab: Lab) -> None:
    policy = lab.policy(REQUESTS)
    path = lab.file("goes.py", GOES_ON)
    first = lab.run([sys.executable, str(path)], policy)
    (lab.work / "out" / "second.txt").unlink()
    last = [e.seq for e in log(lab, first.run) if isinstance(e, entries.Admit)][-2]
    lab.file("goes.py", GOES_ON.replace('"one"', '"another"'))
    found = live(lab, first.run, last, code=137)
    assert found["reason"] == "diverged"
    assert not (lab.work / "out" / "second.txt").exists()


def test_what_did_not_come_through_the_channel_is_not_gone_on_with(lab: Lab) -> None:
    policy = lab.policy(REQUESTS.replace('files = "requests"\n', ""))
    text = "print(open('data/a.txt').read())\nfrom authority.agent import connect\n"
    text += "connect().read('data/a.txt')\n"
    ran = lab.run([sys.executable, str(lab.file("opens.py", text))], policy)
    assert ran.out == "hello\n"
    opened, read = (
        next(
            e.seq for e in log(lab, ran.run) if isinstance(e, entries.Admit) and e.effect == effect
        )
        for effect in ("fs.open", "fs.read")
    )
    assert opened < read
    done = lab.cli("replay", ran.run, "--from", str(read), "--live")
    assert done.returncode == 125
    assert "did not come through the channel" in done.stderr
    for odd in ("0", "99999999"):
        assert lab.cli("replay", ran.run, "--from", odd, "--live").returncode == 125
    assert lab.cli("replay", ran.run, "--live").returncode == 2


def test_files_that_are_bound_are_not_written(lab: Lab) -> None:
    """The control: in the run itself they are."""
    policy = REQUESTS.replace('files = "requests"', 'files = "bind"')
    run = script(lab, "bound.py", "open('out/bound.txt', 'a').write('x')\nprint(1)\n", policy)
    path = lab.work / "out" / "bound.txt"
    assert path.read_text() == "x"
    found = replayed(lab, run, code=1)
    assert path.read_text() == "x"
    assert any("bound plainly" in limit for limit in found["limits"])


OPENS = """\
import os
print(open("data/kept/a.txt").read())
print(open("data/kept/large.txt").read()[-5:])
"""


def test_what_was_read_through_a_mount_is_kept_where_the_policy_asks_for_it(lab: Lab) -> None:
    """The control is a policy that does not: then a file that was changed ends the replay."""
    mounted = REQUESTS.replace('files = "requests"\n', "")
    lab.file("data/kept/a.txt", "as it was")
    lab.file("data/kept/large.txt", "x" * 5000 + "large")
    usual = script(lab, "opens.py", OPENS, mounted)
    generous = script(lab, "opens.py", OPENS, mounted + 'stored_bytes = "300MB"\n')
    for run in (usual, generous):
        assert replayed(lab, run)["divergence"] is None
    lab.file("data/kept/a.txt", "as it is now, and longer")
    (lab.work / "data/kept/large.txt").unlink()
    assert replayed(lab, usual, code=1)["divergence"] is not None
    assert replayed(lab, generous)["divergence"] is None
    assert (lab.work / "data/kept/a.txt").read_text() == "as it is now, and longer"
    shutil.rmtree(lab.work / "data/kept")
    assert replayed(lab, generous)["divergence"] is None
    assert not (lab.work / "data/kept").exists()


PARENT = """\
from authority.agent import connect
gate = connect()
child = gate.spawn("worker", ["said"])
print(gate.wait(child, 60_000)["code"])
gate.write("out/parent.txt", "done")
"""
CHILD = """\
import sys
from authority.agent import connect
gate = connect()
print(gate.read("data/a.txt"))
gate.write("out/child.txt", sys.argv[1])
"""


def test_a_parent_is_played_without_its_child_and_the_child_by_itself(lab: Lab) -> None:
    child = lab.file("child.py", CHILD)
    agents = f'[agents.worker]\ncommand = ["{sys.executable}", "{child}"]\n[budgets]'
    parent = script(lab, "parent.py", PARENT, REQUESTS.replace("[budgets]", agents))
    starts = [
        e
        for e in map(entries.decode, query.lines(lab.directory.log))
        if isinstance(e, entries.RunStart) and e.parent == parent
    ]
    assert len(starts) == 1
    for name in ("parent.txt", "child.txt"):
        (lab.work / "out" / name).unlink()
    assert replayed(lab, parent)["verdict"] == "same"
    found = replayed(lab, starts[0].run)
    assert found["divergence"] is None
    assert any("it was a child" in limit for limit in found["limits"])
    for name in ("parent.txt", "child.txt"):
        assert not (lab.work / "out" / name).exists()
