"""Real programs in real runs over a real mount: each act is judged, and the program notices nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator

import pytest
import tests.gate.lab
from tests.compat.work import git_makes_a_repository, plants_what_acts_later
from tests.gate.lab import Lab, lab_at

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
[process]
exec = ["git", "cp", "mv", "rm", "cat", "sh", "bash", "mkdir", "ln", "ls"]
[labels]
trusted = ["user", "fs:./**"]
[budgets]
denials = 1000
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        made.work.chmod(0o777)
        yield made


def test_python_reads_writes_lists_and_removes(lab: Lab) -> None:
    lab.file("in.txt", "input")
    ran = lab.run(
        "import os, pathlib, shutil, tempfile\n"
        "p = pathlib.Path('made'); p.mkdir()\n"
        "(p / 'a.txt').write_text(open('in.txt').read() * 3)\n"
        "with open(p / 'a.txt', 'a') as f: f.write('!')\n"
        "mine = os.stat('in.txt').st_uid == os.getuid()\n"
        "print((p / 'a.txt').read_text(), sorted(os.listdir('made')), mine)\n"
        "os.symlink('a.txt', p / 'l'); print(open(p / 'l').read()[-1], os.readlink(p / 'l'))\n"
        "f = tempfile.TemporaryFile(dir='.'); f.write(b'x' * 200000); f.seek(0); print(len(f.read()))\n"
        "shutil.rmtree(p); print(p.exists())\n",
        POLICY,
    )
    assert ran.out.splitlines() == [
        "inputinputinput! ['a.txt'] True",
        "! a.txt",
        "200000",
        "False",
    ], ran.err
    assert lab.log(kind="admit", run=ran.run, effect="fs.open")


def test_what_is_made_has_the_mode_that_was_asked_for(lab: Lab) -> None:
    ran = lab.run(
        "import os\n"
        "os.umask(0o022); os.mkdir('d'); open('f', 'w').close()\n"
        "os.umask(0); os.mkdir('wide', 0o777); os.close(os.open('x', os.O_CREAT | os.O_RDWR, 0o754))\n"
        "os.umask(0o077); os.mkdir('own')\n",
        POLICY,
    )
    assert ran.summary["code"] == 0, ran.err
    modes = {
        name: (lab.work / name).stat().st_mode & 0o7777 for name in ["d", "f", "wide", "x", "own"]
    }
    assert modes == {"d": 0o755, "f": 0o644, "wide": 0o777, "x": 0o754, "own": 0o700}


def test_a_denial_is_eacces_and_an_entry(lab: Lab) -> None:
    lab.file("ro/x", "x")
    policy = POLICY.replace('write = ["./**"]', 'write = ["./out/**"]')
    ran = lab.run(
        "import os\n"
        "for f in (lambda: open('ro/x', 'w'), lambda: os.remove('ro/x'), lambda: os.mkdir('ro/d')):\n"
        "    try: f()\n"
        "    except OSError as e: print(e.errno)\n"
        "print(open('ro/x').read())\n",
        policy,
    )
    assert ran.out.splitlines() == ["13", "13", "13", "x"], ran.err
    assert {e["effect"] for e in lab.denials(run=ran.run)} == {"fs.modify", "fs.delete", "fs.mkdir"}


def test_git_makes_and_uses_a_repository(lab: Lab) -> None:
    ran = git_makes_a_repository(lab, POLICY)
    config = (lab.work / "moved/.git/config").read_text()
    assert "fsmonitor" not in config
    assert "name = a" in config
    hooks = list((lab.work / "moved/.git/hooks").glob("*"))
    assert not [hook for hook in hooks if hook.stat().st_mode & 0o111]
    listed = ran.summary["acts_later"]
    assert any(name.endswith("/repo/.git/config") for name in listed), listed


def test_an_environment_is_made_and_filled_in_a_folder_with_execution(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.gate.lab, "SECONDS", 300.0)  # pip itself is installed, file by file
    signal.alarm(300)
    wheel = lab.work / "made_here-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("made_here.py", "def main(): print('from the environment')\n")
        folder = "made_here-1.dist-info"
        file.writestr(f"{folder}/METADATA", "Metadata-Version: 2.1\nName: made-here\nVersion: 1\n")
        file.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(
            f"{folder}/entry_points.txt", "[console_scripts]\nmade-here = made_here:main\n"
        )
        file.writestr(f"{folder}/RECORD", "")
    (lab.work / ".venv").mkdir()
    (lab.work / ".venv").chmod(0o777)
    policy = POLICY.replace('"ls"]', '"ls", "python3"]\nexec_from = ["./.venv"]')
    script = (
        "set -e; python3 -m venv .venv\n"
        f".venv/bin/pip install -q --no-index --disable-pip-version-check ./{wheel.name}\n"
        ".venv/bin/made-here; echo 'import os' > .venv/a.pth; echo still\n"
        "mkdir -p .venv/x/.git/hooks; echo x > .venv/x/.envrc || echo refused\n"
        "echo x > a.pth || echo refused\n"
    )
    ran = lab.run(["bash", "-c", script], policy)
    assert ran.out.splitlines() == ["from the environment", "still", "refused", "refused"], ran.err


def test_sqlite_works_with_a_journal_and_with_a_shared_mapping(lab: Lab) -> None:
    ran = lab.run(
        "import sqlite3\n"
        "for mode in ('delete', 'wal'):\n"
        "    db = sqlite3.connect(f'{mode}.db')\n"
        "    print(db.execute(f'pragma journal_mode={mode}').fetchone()[0])\n"
        "    db.execute('create table t (a)')\n"
        "    with db: db.executemany('insert into t values (?)', [(n,) for n in range(500)])\n"
        "    print(db.execute('select sum(a) from t').fetchone()[0]); db.close()\n",
        POLICY,
    )
    kernel = tuple(map(int, os.uname().release.split(".")[:2]))
    assert ran.out.splitlines()[:2] == ["delete", "124750"], ran.err
    if kernel >= (6, 6):
        assert ran.out.splitlines()[2:] == ["wal", "124750"], ran.err
    done = subprocess.run(
        [sys.executable, "-c", "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute("
         "'select count(*) from t').fetchone()[0])", str(lab.work / "delete.db")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "500"


def test_trees_are_copied_moved_and_removed(lab: Lab) -> None:
    for n in range(40):
        lab.file(f"tree/d{n % 5}/f{n}", f"content {n}" * n)
    (lab.work / "tree/link").symlink_to("d0")
    ran = lab.run(
        [
            "bash",
            "-c",
            "cp -r tree copy && mv copy turned && mv turned/d1/f1 turned/f1 && rm -r tree/d2; echo $?",
        ],
        POLICY,
    )
    # Deleting what the run did not make is all control: the files are trusted, so it may.
    assert ran.out == "0\n", ran.err
    assert (lab.work / "turned/d3/f38").read_text() == "content 38" * 38
    assert (lab.work / "turned/f1").exists()
    assert os.readlink(lab.work / "turned/link") == "d0"
    assert not (lab.work / "tree/d2").exists()


def test_what_acts_later_is_refused_to_every_program(lab: Lab) -> None:
    plants_what_acts_later(lab, POLICY)


def test_a_halt_ends_a_run_that_writes(lab: Lab) -> None:
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
    later = [e for e in lab.log(kind="admit", run=ran.run) if e["seq"] > halt["seq"]]
    assert later == []
    assert (lab.work / "endless").stat().st_size == size


def test_a_dry_run_writes_nothing_until_a_person_says_so(lab: Lab) -> None:
    lab.file("plan.txt", "before\n")
    path = lab.policy(POLICY)
    program = (
        "open('plan.txt', 'w').write('after\\n')\n"
        "open('fresh.txt', 'w').write('fresh\\n')\n"
        "print(open('plan.txt').read())\n"
    )
    run = lab.cli("run", "--dry-run", "--policy", str(path), "--", sys.executable, "-c", program)
    assert run.returncode == 0, run.stderr
    assert "after" in run.stdout
    assert "-before" in run.stdout
    assert "new file fresh.txt" in run.stdout
    assert (lab.work / "plan.txt").read_text() == "before\n"
    assert not (lab.work / "fresh.txt").exists()
    (name,) = lab.cli("dry", "list").stdout.split()
    assert "+after" in lab.cli("dry", "show", name).stdout
    done = lab.cli("dry", "apply", name)
    assert done.stdout.startswith("2 changes were applied"), done.stderr
    assert (lab.work / "plan.txt").read_text() == "after\n"
    assert (lab.work / "fresh.txt").read_text() == "fresh\n"
    assert lab.cli("dry", "list").stdout.strip() == "nothing is kept"
    assert lab.cli("dry", "apply", name).returncode == 125


def test_a_dry_run_is_discarded_and_changes_files_in_no_other_way(lab: Lab) -> None:
    lab.file("kept.txt", "kept\n")
    path = lab.policy(POLICY)
    program = (
        "import os; open('kept.txt', 'w').write('lost')\n"
        "from authority.agent import connect\n"
        "try: connect().write(os.path.abspath('kept.txt'), b'around')\n"
        "except Exception as e: print(type(e).__name__)\n"
    )
    run = lab.cli("run", "--dry-run", "--policy", str(path), "--", sys.executable, "-c", program)
    assert "Denied" in run.stdout, run.stderr
    (name,) = lab.cli("dry", "list").stdout.split()
    assert lab.cli("dry", "discard", name).returncode == 0
    assert (lab.work / "kept.txt").read_text() == "kept\n"
    assert lab.cli("dry", "show", name).returncode == 125


def test_what_changes_outside_is_seen_at_once(lab: Lab) -> None:
    """The kernel may go through names that it was told of; what it finds there is what is there now."""
    for name in ("gone", "again", "folder", "new", "link", "d/f", "l/f", "other/f"):
        lab.file(f"seen/{name}", f"old {name}")
    ran_out = lab.work / "seen"

    def change() -> None:
        deadline = time.monotonic() + 60
        while not (ran_out / "looked").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        for name in ("gone", "again", "folder"):
            (ran_out / name).unlink()
        lab.file("seen/new.part", "new new").replace(ran_out / "new")
        (ran_out / "link").unlink()
        (ran_out / "link").symlink_to("other/f")
        for name in ("d", "l"):
            shutil.rmtree(ran_out / name)
        lab.file("seen/d/f", "new d/f")
        (ran_out / "l").symlink_to("other")
        (ran_out / "go").touch()

    outside = threading.Thread(target=change)
    outside.start()
    ran = lab.run(
        "import os, time\n"
        "os.chdir('seen')\n"
        "names = ['gone', 'again', 'folder', 'new', 'link', 'd/f', 'l/f', 'other/f']\n"
        "print([open(n).read() == 'old ' + n for n in names].count(True))\n"
        "for n in names: os.stat(n)\n"
        "os.mkdir('looked')\n"
        "while not os.path.exists('go'): time.sleep(0.001)\n"
        "with open('again', 'w') as f: f.write('made')\n"
        "os.mkdir('folder')\n"
        "for n in ['again', 'new', 'link', 'd/f', 'l/f', 'other/f']: print(open(n).read())\n"
        "print(os.path.exists('gone'), os.path.islink('link'), os.path.islink('l'))\n",
        POLICY,
    )
    outside.join()
    assert ran.out.splitlines() == [
        "8",
        *("made", "new new", "old other/f", "new d/f", "old other/f", "old other/f"),
        "False True True",
    ], ran.err
    assert (ran_out / "folder").is_dir()
