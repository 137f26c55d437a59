"""Real programs in real runs without a mount: their calls are answered one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tests.gate.lab
from tests.compat.work import git_makes_a_repository, plants_what_acts_later
from tests.gate.lab import Lab, lab_at

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
files = "calls"
[process]
exec = ["git", "coreutils", "tar", "bash", "python3"]
[limits]
processes = 1500
[labels]
trusted = ["user", "fs:./**"]
[budgets]
denials = 1000
"""
USER = 61_234
AS_USER = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.compat.test_calls_runs import POLICY, TREE
from tests.gate.lab import lab_at
with lab_at() as lab:
    lab.file("in.txt", "input")
    ran = lab.run(["bash", "-c", TREE], POLICY)
    best = lab.run("print(open('in.txt').read())", POLICY.replace('files = "calls"\\n', ""))
    way = best.events[0]["protection"]["files"], best.out
    print(json.dumps([ran.out, ran.err, ran.events[0]["protection"]["ids"], way]))
"""
TREE = """\
set -e
cat in.txt; echo
mkdir -p a/b/c; echo one > a/b/f; cp -r a copy; mv copy moved
find moved | sort
cd moved/b; pwd | sed 's:.*/work::'; echo two >> f; cat f; cd ..; ls -la | wc -l; cd ..
chmod 640 a/b/f; stat -c '%a %F %s' a/b/f; touch -d @86400 a/b/f; stat -c %Y a/b/f
ln -s b/f a/l; cat a/l; readlink a/l; ln a/b/f a/g; stat -c %h a/g
ln -s b a/d; (cd a/d; cat f; ls); cat a/d/../d/f
tar cf t.tar a; mkdir x; tar xf t.tar -C x; cat x/a/b/f
echo there > /tmp/t; mv /tmp/t here; cat here; cp here /tmp/back; cat /tmp/back
chmod 600 /tmp/back; touch -d @86400 /tmp/back; stat -c '%a %Y' /tmp/back
ln -s $PWD/here /tmp/link; cat /tmp/link; ln -s /tmp/back away; cat away
truncate -s 3 here; cat here; echo; test -e none || echo none
rm -r moved x; rmdir a/b/c; ls
"""
SAID = """\
input
moved
moved/b
moved/b/c
moved/b/f
/moved/b
one
two
4
640 regular file 4
86400
one
b/f
2
one
c
f
one
one
there
there
600 86400
there
there
the
none
a
away
data
here
in.txt
out
t.tar
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines for a machine that is very busy."""
    monkeypatch.setattr(tests.gate.lab, "SECONDS", 120.0)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        made.work.chmod(0o777)
        yield made


def without_policies(out: str) -> str:
    return "".join(line for line in out.splitlines(True) if not line.startswith("policy-"))


def test_the_usual_programs(lab: Lab) -> None:
    lab.file("in.txt", "input")
    ran = lab.run(["bash", "-c", TREE], POLICY)
    assert without_policies(ran.out) == SAID, ran.err
    assert ran.events[0]["protection"]["files"] == "calls"
    assert lab.log(kind="admit", run=ran.run, effect="fs.open")
    assert {e["effect"] for e in lab.log(kind="admit", run=ran.run)} >= {
        *("fs.modify", "fs.mkdir", "fs.rename", "fs.delete", "fs.link", "fs.symlink"),
        "fs.attributes",
    }


def test_the_usual_programs_of_an_ordinary_user() -> None:
    """The gate is an ordinary user, and so the owner of what the run has."""
    if os.geteuid():
        pytest.skip("the other tests are by an ordinary user already")
    done = subprocess.run(
        [sys.executable, "-c", AS_USER, str(Path(__file__).parents[2])],
        capture_output=True, text=True, user=USER, group=USER, extra_groups=[], timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, cwd="/", check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr and not done.stdout:
        pytest.skip("this interpreter can't be started by another user")
    assert done.returncode == 0, done.stderr
    out, err, ids, best = json.loads(done.stdout)
    assert "own host user" in ids
    fuse = Path("/dev/fuse")
    mounts = fuse.exists() and fuse.stat().st_mode & 0o006 == 0o006
    assert best == ["mount" if mounts else "calls", "input\n"], "the best that there is"
    assert without_policies(out) == SAID, err


def test_git_makes_and_uses_a_repository(lab: Lab) -> None:
    more = "git clone -q moved copied; git -C copied gc -q; git -C copied fsck; cat copied/g\n"
    ran = git_makes_a_repository(lab, POLICY, more)
    assert ran.out.splitlines()[-2:] == ["one", "two"], ran.err
    assert "fsmonitor" not in (lab.work / "moved/.git/config").read_text()


def test_python_reads_writes_lists_and_removes(lab: Lab) -> None:
    lab.file("in.txt", "input")
    for n in range(4000):  # more than one answer holds
        lab.file(f"many/{n:060}", "")
    (lab.work / "many").chmod(0o777)
    ran = lab.run(
        "import os, pathlib, shutil, tempfile, sqlite3, mmap\n"
        "p = pathlib.Path('made'); p.mkdir()\n"
        "(p / 'a.txt').write_text(open('in.txt').read() * 3)\n"
        "with open(p / 'a.txt', 'a') as f: f.write('!'); os.fchmod(f.fileno(), 0o640)\n"
        "mine = os.stat('in.txt').st_uid == os.getuid()\n"
        "print((p / 'a.txt').read_text(), sorted(os.listdir('made')), mine)\n"
        "print(oct(os.stat(p / 'a.txt').st_mode), os.path.realpath('made/../in.txt')[-11:])\n"
        "f = tempfile.TemporaryFile(dir='.'); f.write(b'x' * 200000); f.seek(0); print(len(f.read()))\n"
        "fd = os.open('made', os.O_RDONLY); print(os.listdir(fd)); os.fchdir(fd); print(os.listdir())\n"
        "print(open('a.txt').read(), os.path.samestat(os.stat('.'), os.fstat(fd))); os.chdir('..')\n"
        "os.utime('made/a.txt', ns=(5 * 10**9, 7 * 10**9)); print(os.stat('made/a.txt').st_mtime)\n"
        "db = sqlite3.connect('x.db'); db.execute('pragma journal_mode=wal')\n"
        "db.execute('create table t (a)')\n"
        "with db: db.executemany('insert into t values (?)', [(n,) for n in range(500)])\n"
        "print(db.execute('select sum(a) from t').fetchone()[0])\n"
        "fd = os.open('fresh', os.O_RDONLY | os.O_CREAT | os.O_SYNC); print(os.read(fd, 9))\n"
        "try: os.write(fd, b'x')\n"
        "except OSError as e: print(e.errno)\n"
        "fd = os.open('fresh', os.O_WRONLY | os.O_APPEND); os.write(fd, b'a'); os.lseek(fd, 0, 0)\n"
        "os.write(fd, b'b'); print(open('fresh').read(), os.get_inheritable(fd), os.get_blocking(fd))\n"
        "names = os.listdir('many'); print(len(names), len(set(names)))\n"
        "seen = 0\n"
        "for entry in os.scandir('many'):\n"
        "    seen += 1\n"
        "    if seen % 100 == 0: os.unlink(entry.path)\n"
        "print(seen, len(os.listdir('many')))\n"
        "shutil.rmtree(p); print(p.exists())\n",
        POLICY,
    )
    assert ran.out.splitlines() == [
        "inputinputinput! ['a.txt'] True",
        "0o100640 work/in.txt",
        "200000",
        "['a.txt']",
        "['a.txt']",
        "inputinputinput! True",
        "7.0",
        "124750",
        "b''",
        "9",
        "ab False True",
        "4000 4000",
        "4000 3960",
        "False",
    ], ran.err


def test_a_denial_is_eacces_and_an_entry(lab: Lab) -> None:
    lab.file("ro/x", "x")
    lab.file("closed/y", "y")
    policy = POLICY.replace('write = ["./**"]', 'write = ["./out/**"]\ndeny = ["./closed/**"]')
    ran = lab.run(
        "import os; fd = os.open('ro/x', os.O_RDONLY)\n"
        "for f in (lambda: open('ro/x', 'w'), lambda: os.remove('ro/x'), lambda: os.mkdir('ro/d'),\n"
        "          lambda: os.chmod('ro/x', 0o777), lambda: os.fchmod(fd, 0o777),\n"
        "          lambda: os.truncate('ro/x', 0), lambda: open('closed/y'),\n"
        "          lambda: os.stat('closed/y')):\n"
        "    try: f()\n"
        "    except OSError as e: print(e.errno)\n"
        "print(open('ro/x').read(), 'closed' in os.listdir())\n",
        policy,
    )
    assert ran.out.splitlines() == [*["13"] * 6, "2", "2", "x False"], ran.err
    assert {e["effect"] for e in lab.denials(run=ran.run)} == {
        *("fs.modify", "fs.delete", "fs.mkdir", "fs.attributes")
    }


def test_what_acts_later_is_refused_to_every_program(lab: Lab) -> None:
    plants_what_acts_later(lab, POLICY)


def test_a_configuration_is_not_renamed_while_somebody_can_write_to_it(lab: Lab) -> None:
    """A descriptor that was handed in is known to the kernel, and the kernel is asked."""
    ran = lab.run(
        "import os\n"
        "os.makedirs('own/.git')\n"
        "f = open('own/.git/c1', 'w'); f.write('[user]\\n\\tname = a\\n'); f.flush()\n"
        "try: os.rename('own/.git/c1', 'own/.git/config')\n"
        "except OSError as e: print('open', e.errno)\n"
        "f.close(); os.rename('own/.git/c1', 'own/.git/config'); print('closed')\n",
        POLICY,
    )
    assert ran.out.splitlines() == ["open 13", "closed"], ran.err


def test_where_writes_are_counted_nothing_is_opened_for_writing(lab: Lab) -> None:
    lab.file("in.txt", "input")
    ran = lab.run(
        "import os\n"
        "print(open('in.txt').read())\n"
        "try: open('new.txt', 'w')\n"
        "except OSError as e: print(e.errno, os.path.exists('new.txt'))\n",
        POLICY + "file_bytes = 100000\n",
    )
    assert ran.out.splitlines() == ["input", "13 False"], ran.err
    assert any("file_bytes" in e["reason"] for e in lab.denials(run=ran.run))
    assert any("counting" in each for each in ran.events[0]["protection"]["not_in_force"])


def test_a_new_secret_is_not_opened_beside_files_that_can_be_written(lab: Lab) -> None:
    lab.file("key", "secret")
    policy = POLICY + '[labels.secrets]\nkey = ["fs:./key"]\n[labels.release]\nkey = []\n'
    read, write = "open('key').read()", "open('w', 'w')"
    for first, then, refused in ((read, write, False), (write, read, True)):
        ran = lab.run(
            f"said = ['begun']\nx = {first}\n"
            f"try: y = {then}\n"
            "except OSError as e: said.append(str(e.errno))\n"
            "print(*said)\n",
            policy,
        )
        reasons = [e["reason"] for e in lab.denials(run=ran.run)]
        assert any("unseen" in each for each in reasons) is refused, (ran.err, reasons)
    twice = lab.run(f"x = {read}; y = {read}; print('twice')", policy)
    assert not any("unseen" in e["reason"] for e in lab.denials(run=twice.run))


def test_what_is_open_for_writing_is_asked_for_when_the_label_rises(lab: Lab) -> None:
    """Before the untrusted words are handed in: so the file keeps their label, for later runs. What was
    closed before is not touched by it."""
    lab.file("foreign/words", "somebody's words")
    trusted = '["user", "fs:.", "fs:./*.txt", "fs:./*.toml"]'
    policy = POLICY.replace('["user", "fs:./**"]', trusted)
    ran = lab.run(
        "import os\n"
        "f = os.open('o.txt', os.O_WRONLY | os.O_CREAT)\n"
        "with open('closed.txt', 'w') as g: g.write('ours')\n"
        "os.rename('o.txt', 'renamed.txt')\n"
        "words = open('foreign/words').read()\n"
        "os.write(f, words.encode())\n",
        policy,
    )
    assert ran.summary["code"] == 0, ran.err
    admitted = [
        (e["effect"], e["resource"].rpartition("/")[2])
        for e in lab.log(kind="admit", run=ran.run)
        if e["effect"] in ("fs.open", "fs.modify")
    ]
    assert admitted == [
        ("fs.modify", "o.txt"),
        ("fs.modify", "closed.txt"),
        ("fs.open", "words"),
        ("fs.modify", "renamed.txt"),
    ]
    for name, refused in (("renamed.txt", True), ("closed.txt", False)):
        # Removing what it did not make is all control: a run that read untrusted words may not.
        lab.file("old.txt", "x")
        later = lab.run(
            f"import os\nopen('{name}').read()\n"
            "try: os.remove('old.txt')\n"
            "except OSError as e: print(e.errno)\n",
            policy,
        )
        assert later.out == ("13\n" if refused else ""), (name, later.err)


def test_what_may_not_be_written_any_more_and_is_open_ends_the_run(lab: Lab) -> None:
    """The secret comes by another way than a file that is handed in."""
    lab.file("key", "secret")
    policy = POLICY + '[labels.secrets]\nkey = ["fs:./key"]\n[labels.release]\nkey = []\n'
    program = (
        "import os, time\n"
        "from authority.agent import connect\n"
        "OPEN\n"
        "connect().read(os.path.abspath('key'))\n"
        "time.sleep(SECONDS)\n"
    )
    held = program.replace("OPEN", "f = open('carrier', 'w')").replace("SECONDS", "100")
    ran = lab.run(held, policy)
    assert "open for writing" in ran.summary["reason"], ran.err
    assert (lab.work / "carrier").read_text() == ""
    closed = program.replace("OPEN", "open('carrier', 'w').close()").replace("SECONDS", "0.5")
    fine = lab.run(closed, policy)
    assert fine.summary["reason"] == "exited", fine.err


def test_a_program_that_may_start_none(lab: Lab) -> None:
    """The listener that answers for files lets the first program start, and no other."""
    lab.file("in.txt", "input")
    policy = POLICY.replace('exec = ["git", "coreutils", "tar", "bash", "python3"]', "exec = []")
    ran = lab.run(
        "import os, sys\n"
        "print(open('in.txt').read(), flush=True)\n"
        "for path in (sys.executable, '/usr/bin/true'):\n"
        "    try: os.execv(path, [path, '-c', 'print(666)'])\n"
        "    except OSError as e: print(e.errno)\n",
        policy,
    )
    assert ran.out.splitlines() == ["input", "38", "38"], ran.err


def test_a_halt_ends_the_run(lab: Lab) -> None:
    ran = lab.start(
        "import time\nf = open('endless', 'wb', 0)\nprint('on', flush=True)\n"
        "while True: f.write(b'x' * 1000); time.sleep(0.001)\n",
        POLICY,
    ).started()
    ran.said("on")
    lab.admin("POST", "/v1/halt", {"run": ran.run, "reason": "tested"})
    ran.end()
    size = (lab.work / "endless").stat().st_size
    (halt,) = lab.log(kind="halt", run=ran.run)
    assert ran.summary["reason"] == "halted"
    assert [e for e in lab.log(kind="admit", run=ran.run) if e["seq"] > halt["seq"]] == []
    assert (lab.work / "endless").stat().st_size == size


def test_a_revocation_ends_the_run(lab: Lab) -> None:
    """What is open can't be taken back, so nothing of the run goes on."""
    ran = lab.start(
        "import time\nf = open('revoked', 'wb', 0)\nprint('on', flush=True)\n"
        "while True: f.write(b'x' * 1000); time.sleep(0.001)\n",
        POLICY,
    ).started()
    ran.said("on")
    (first,) = lab.log(kind="run.start", run=ran.run)
    lab.admin("POST", "/v1/tokens/revoke", {"token": first["capability"]})
    ran.end()
    assert ran.summary["reason"] == "revoked"
    size = (lab.work / "revoked").stat().st_size
    assert size
    assert (lab.work / "revoked").stat().st_size == size


def test_folders_with_execution_need_a_mount(lab: Lab) -> None:
    (lab.work / ".venv").mkdir(exist_ok=True)
    policy = POLICY.replace('"python3"]', '"python3"]\nexec_from = ["./.venv"]')
    ran = lab.start("print(1)", policy)
    with pytest.raises(Exception, match="can't be executed"):
        ran.started()


def test_a_named_home(lab: Lab) -> None:
    policy = POLICY.replace("[limits]", 'home = "kept"\n[limits]')
    said = "import os; p = os.path.expanduser('~/login'); "
    first = lab.run(
        said + "open(p, 'w').write('token'); print(os.listdir(os.path.dirname(p)))", policy
    )
    assert first.out == "['login']\n", first.err
    again = lab.run(said + "print(open(p).read())", policy)
    assert again.out == "token\n", again.err


def test_the_way_is_chosen_at_the_command_line(lab: Lab) -> None:
    """What is narrower than the policy's word, and nothing wider; suggestions come all the same."""
    lab.file("in.txt", "input")
    program = "print(open('in.txt').read())\ntry: open('missing/x')\nexcept OSError: pass\n"
    silent = lab.policy(POLICY.replace('files = "calls"\n', ""))
    command = ("--", sys.executable, "-c", program)
    ran = lab.cli("run", "--files", "calls", "--json", "--policy", str(silent), *command)
    assert ran.returncode == 0, ran.stderr
    run = json.loads(ran.stdout)["run"]
    (first,) = lab.log(kind="run.start", run=run)
    assert first["protection"]["files"] == "calls"
    mount = lab.policy(POLICY.replace('"calls"', '"mount"'))
    refused = lab.cli("run", "--files", "calls", "--policy", str(mount), *command)
    assert refused.returncode == 125
    assert "narrower" in refused.stderr
    nothing = lab.policy('version = 1\n[filesystem]\nread = ["./data/**"]\nfiles = "calls"\n')
    look = "try: open('in.txt')\nexcept OSError: pass"
    watched = lab.cli(
        "run", "--suggest", "--policy", str(nothing), "--", sys.executable, "-c", look
    )
    assert '"./in.txt"' in watched.stderr
