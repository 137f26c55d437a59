"""A person at a terminal: full-screen programs work, and nothing but their pictures comes through."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from authority.audit.errors import BodyMissing
from authority.audit.store import ContentStore
from authority.cli.terminal import STOP_SECONDS, StopKey
from authority.gate.run import FRAME_SECONDS

from .lab import OPEN, SECONDS, GateError, Lab, wait_for
from .person import Person, person
from .test_screen import DROPPED, problems

PYTHON = [sys.executable, "-c"]


def kept(lab: Lab) -> ContentStore:
    return ContentStore(lab.directory.store, keys=lab.directory.keys / "sealed")


def typed(lab: Lab) -> bytes:
    """Everything that was typed to the last run, unsealed as its owner can."""
    last = lab.log(kind="run.start")[-1]["run"]
    store = kept(lab)
    return b"".join(
        store.opener(e["key"]).open(base64.b64decode(e["body"]["text"]))
        for e in lab.log(kind="input", run=last)
    )


def ended(lab: Lab) -> dict[str, object]:
    return lab.log(kind="run.end")[-1]


# --- programs ---


@pytest.mark.skipif(not shutil.which("vim"), reason="no vim here")
def test_vim(lab: Lab) -> None:
    with person(lab, ["vim", "-u", "NONE", "-N"], OPEN, "--quiet") as p:
        p.sees("VIM - Vi IMproved").sees("\x1b[?1049h")
        p.type("ihello world\x1b").sees("hello world")
        at = len(p.seen)
        p.resize(12, 60)
        p.sees("\x1b[12;1H", after=at)
        p.type(":q!\r")
        assert p.leaves() == 0
        assert b"\x1b[?1049l" in p.seen[at:]
        assert p.modes() == p.first
    assert typed(lab) == b"ihello world\x1b:q!\r"


@pytest.mark.skipif(not shutil.which("less"), reason="no less here")
def test_less(lab: Lab) -> None:
    with person(lab, ["less", "/etc/passwd"], OPEN, "--quiet") as p:
        p.sees("agent:x:1000").sees("(END)")
        p.type("q")
        assert p.leaves() == 0


@pytest.mark.skipif(not shutil.which("top"), reason="no top here")
def test_top(lab: Lab) -> None:
    with person(lab, ["top"], OPEN, "--quiet") as p:
        p.sees("load average").sees("PID")
        p.type("q")
        assert p.leaves() == 0
        assert p.modes() == p.first


def test_a_curses_program_draws_and_hears_its_size(lab: Lab) -> None:
    source = (
        "import curses\n"
        "def main(s):\n"
        "    curses.curs_set(0); curses.start_color(); curses.mousemask(curses.ALL_MOUSE_EVENTS)\n"
        "    s.border(); s.addstr(2, 4, 'size %dx%d' % s.getmaxyx()); s.refresh()\n"
        "    while (key := s.getch()) != ord('q'):\n"
        "        if key == curses.KEY_RESIZE:\n"
        "            s.clear(); s.addstr(1, 1, 'now %dx%d' % s.getmaxyx()); s.refresh()\n"
        "        elif key == curses.KEY_UP: s.addstr(0, 0, 'cursor up'); s.refresh()\n"
        "curses.wrapper(main)\n"
    )
    with person(lab, [*PYTHON, source], OPEN, "--quiet", term="xterm-256color") as p:
        p.sees("size 30x100").sees("\x1b(0")
        p.type("\x1bOA").sees("cursor up")
        p.resize(20, 70)
        p.sees("now 20x70")
        p.type("q")
        assert p.leaves() == 0
        for undone in (b"\x1b[?1049l", b"\x1b[?1006;1000l", b"\x1b[?25h"):
            assert p.seen.rfind(undone) > p.seen.rfind(b"now 20x70")


def test_a_shell_with_children(lab: Lab) -> None:
    """Job control inside: Ctrl-C ends the child alone, Ctrl-D the shell."""
    policy = OPEN + '[process]\nexec = ["sleep", "cat"]\n'
    with person(lab, ["bash", "--norc"], policy, "--quiet") as p:
        p.sees("$ ")
        p.type("echo $((40+2)); sleep 60\r").sees("42\r\n")
        time.sleep(0.2)
        p.type("\x03").sees("^C")
        p.type("echo after=$?\r").sees("after=130")
        at = len(
            p.type("echo re'ady'; cat\r").sees("ready\r\n").seen
        )  # the terminal is the child's
        p.type("one line\r").sees("one line\r\none line", after=at)
        p.type("\x04")
        p.type("exit 9\r")
        assert p.leaves() == 9


# --- keys ---


def test_control_c_and_d_act_inside(lab: Lab) -> None:
    source = (
        "import sys, time\n"
        "try: print('waiting', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: print('caught', flush=True)\n"
        "print('read', repr(sys.stdin.read())); sys.exit(4)\n"
    )
    with person(lab, [*PYTHON, source], OPEN) as p:
        p.sees("waiting").type("\x03")
        p.sees("caught").type("text\r\x04")
        assert p.leaves() == 4
        assert b"read 'text\\n'" in p.seen
        assert b"exited, code 4" in p.seen  # the table comes when the terminal is ours again
    assert ended(lab)["reason"] == "exited"


DEAF = (
    "import os, signal, sys, tty, time\n"
    "for n in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP):\n"
    "    signal.signal(n, signal.SIG_IGN)\n"
    "tty.setraw(0)\n"
    "os.write(1, b'\\x1b[?1049h\\x1b[?25l\\x1b[?1000;1006h\\x1b[?2004h\\x1b=\\x1b[31mdeaf')\n"
    "while True: time.sleep(60)\n"
)
UNDONE = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?1006l", b"\x1b[?2004l", b"\x1b>",
          b"\x1b[0m")  # fmt: skip


def is_as_before(p: Person, since: int) -> None:
    assert p.modes() == p.first
    assert [part for part in UNDONE if part not in p.seen[since:]] == []


def test_three_times_the_stop_key_ends_a_program_that_hears_nothing(lab: Lab) -> None:
    with person(lab, [*PYTHON, DEAF], OPEN) as p:
        at = len(p.sees("deaf").seen)
        p.type("\x03\x1a\x1c\x1cx")
        p.read(0.4)
        assert p.process.poll() is None
        p.type("\x1c")
        p.type("\x1c\x1c")
        assert p.leaves() == 137
        is_as_before(p, at - 60)
    assert ended(lab)["reason"] == "stopped"


def test_the_stop_key_is_three_in_a_row_in_time() -> None:
    key = StopKey()
    assert not key.pressed(b"\x1c\x1c", 0.0)
    assert not key.pressed(b"a\x1c", 0.1)
    assert not key.pressed(b"\x1c", 0.2)
    assert key.pressed(b"\x1c", 0.3)
    slow = StopKey()
    assert not slow.pressed(b"\x1c", 0.0)
    assert not slow.pressed(b"\x1c", 0.1)
    assert not slow.pressed(b"\x1c", STOP_SECONDS + 0.05)
    assert StopKey().pressed(b"\x1c\x1c\x1c", 0.0)


# --- every way out gives the terminal back ---


def test_a_halt_gives_the_terminal_back(lab: Lab) -> None:
    with person(lab, [*PYTHON, DEAF], OPEN) as p:
        at = len(p.sees("deaf").seen)
        assert p.raw()
        run = lab.log(kind="run.start")[-1]["run"]
        lab.admin("POST", "/v1/halt", {"run": run, "reason": "tested"})
        assert p.leaves() == 137
        is_as_before(p, at - 60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(lab: Lab, number: int) -> None:
    with person(lab, [*PYTHON, DEAF], OPEN) as p:
        at = len(p.sees("deaf").seen)
        wait_for(p.raw)
        p.process.send_signal(number)
        assert p.leaves() == (137 if number == signal.SIGINT else 128 + number)
        is_as_before(p, at - 60)
    wait_for(lambda: ended(lab)["run"] == lab.log(kind="run.start")[-1]["run"])


def test_the_gates_death_gives_the_terminal_back(own: Lab) -> None:
    with person(own, [*PYTHON, DEAF], OPEN) as p:
        at = len(p.sees("deaf").seen)
        wait_for(p.raw)
        own.kill()
        assert p.leaves() == 125
        is_as_before(p, at - 60)
        assert b"the gate went away" in p.seen


@pytest.mark.parametrize("gone", [False, True], ids=["reads no more", "is gone"])
def test_who_should_show_the_picture_does_not_keep_the_terminal(lab: Lab, gone: bool) -> None:
    """Standard output is a pipe that fills, or loses its reader. One signal after the other, also while
    the program's modes are undone, which nobody takes."""
    shows, out = os.pipe()
    with person(lab, [*PYTHON, DEAF], OPEN, "--tty", "--quiet", out=out) as p:
        shown = b""
        while b"deaf" not in shown:
            assert select.select([shows], [], [], SECONDS)[0], shown
            shown += os.read(shows, 4096)
        assert p.raw()
        os.set_blocking(out, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(out, bytes(4096))
        os.set_blocking(out, True)
        os.close(out)
        if gone:
            os.close(shows)
        deadline = time.monotonic() + SECONDS
        while p.process.poll() is None:
            p.process.send_signal(signal.SIGTERM)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert p.modes() == p.first
    if not gone:
        os.close(shows)


def test_what_was_typed_ahead_does_not_reach_the_shell(lab: Lab) -> None:
    """Nothing that arrives while the program has the terminal is left for whoever reads next."""
    with person(lab, [*PYTHON, DEAF], OPEN, "--quiet") as p:
        p.sees("deaf")
        wait_for(p.raw)
        os.kill(p.process.pid, signal.SIGSTOP)
        p.type("rm -rf ~\r")
        os.kill(p.process.pid, signal.SIGCONT)
        os.kill(p.process.pid, signal.SIGTERM)
        p.leaves()
        os.set_blocking(p._theirs, False)
        with pytest.raises(BlockingIOError):
            os.read(p._theirs, 100)


# --- what comes through, and what stands in the log ---


def test_nothing_but_pictures_comes_through(lab: Lab) -> None:
    evil = b"".join(b"<%s>" % t.encode() for t in DROPPED.values())
    source = (
        "import os, tty, time\n"
        "tty.setraw(1)\n"
        f"data = {evil!r}\n"
        "for at in range(0, len(data), 7): os.write(1, data[at:at+7])\n"
        "os.write(1, b'\\x1b]52;c;' + b'QQ==' * 500_000 + b'\\x07\\x9b31m\\x9d0;t\\x9c')\n"
        "os.write(1, b'\\x1b[32mgreen\\x1b[0m')\n"
    )
    with person(lab, [*PYTHON, source], OPEN, "--quiet") as p:
        assert p.leaves() == 0
        text = p.seen.decode()
        assert "\x1b[32mgreen\x1b[0m" in text  # the neighbour passes
        assert text.count("<>") == len(DROPPED)
        assert problems(text) == []


def test_nothing_answers_into_the_input(lab: Lab) -> None:
    """A terminal that answers everything it is asked: the program waits in vain."""
    source = (
        "import os, select, tty\n"
        "tty.setraw(0)\n"
        "os.write(1, b'\\x1b[c\\x1b[6n\\x1b[>c\\x1bP$qm\\x1b\\\\\\x1b]11;?\\x07')\n"
        "os.write(1, b'\\x1b[?25$p\\x1b[21tasked')\n"
        "print('heard', select.select([0], [], [], 0.5)[0] and os.read(0, 99))\n"
    )
    with person(lab, [*PYTHON, source], OPEN, "--quiet") as p:
        p.sees("asked")
        assert b"\x1b[6n" not in p.seen
        assert b"\x1b[c" not in p.seen
        p.sees("heard []")


def test_a_password_is_sealed_and_can_be_forgotten(lab: Lab) -> None:
    source = "import getpass; print(len(getpass.getpass('Password: ')))"
    with person(lab, [*PYTHON, source], OPEN, "--quiet") as p:
        p.sees("Password: ").type("correct horse\r")
        p.sees("13")
        assert p.leaves() == 0
        assert b"correct" not in p.seen
    assert typed(lab) == b"correct horse\r"
    everything = subprocess.run(
        ["grep", "-rlaF", "correct horse", str(lab.directory.root)],
        capture_output=True,
        check=False,
    )
    assert everything.stdout == b""
    (entry,) = lab.log(kind="input", run=lab.log(kind="run.start")[-1]["run"])
    assert json.dumps(entry).count("correct") == 0
    (lab.directory.keys / "sealed" / entry["key"]).unlink()
    with pytest.raises(BodyMissing):
        kept(lab).opener(entry["key"])
    assert lab.cli("audit", "verify").returncode == 0


def test_what_was_typed_is_durable_before_the_program_reads_it(lab: Lab) -> None:
    """The program is shown its input only behind the entry, so its answer comes behind it too."""
    with person(lab, [*PYTHON, "print('got', input())"], OPEN, "--quiet") as p:
        p.type("abc\r")
        assert p.leaves() == 0
    run = lab.log(kind="run.start")[-1]["run"]
    entries = [e for e in lab.log(run=run) if e["kind"] in {"input", "admit"}]
    answer = next(e for e in entries if "got abc" in (e.get("arguments") or {}).get("text", ""))
    assert all(e["seq"] < answer["seq"] for e in entries if e["kind"] == "input")


def test_a_megabyte_in_pictures(lab: Lab) -> None:
    source = (
        "import os, tty\n"
        "tty.setraw(1)\n"
        "for n in range(10_000): os.write(1, b'%099d|' % n)\n"
        "os.write(1, b'the end')\n"
    )
    with person(lab, [*PYTHON, source], OPEN, "--quiet") as p:
        assert p.leaves() == 0
        assert b"".join(b"%099d|" % n for n in range(10_000)) + b"the end" in p.seen
    run = lab.log(kind="run.start")[-1]["run"]
    pieces = lab.log(kind="admit", effect="output", run=run)
    assert sum(e["arguments"]["size"] for e in pieces) == 1_000_007
    assert len(pieces) < 60  # 10,000 writes
    assert all(e["arguments"]["text"] for e in pieces)


def test_small_writes_become_one_entry_a_picture(lab: Lab) -> None:
    source = (
        "import os, time\n"
        "end = time.monotonic() + 1.0\n"
        "while time.monotonic() < end: os.write(1, b'.'); time.sleep(0.001)\n"
    )
    with person(lab, [*PYTHON, source], OPEN, "--quiet") as p:
        assert p.leaves() == 0
    run = lab.log(kind="run.start")[-1]["run"]
    pieces = lab.log(kind="admit", effect="output", run=run)
    assert len(pieces) <= 1.3 / FRAME_SECONDS + 3


def test_output_over_the_budget_is_withheld_and_said_afterwards(lab: Lab) -> None:
    policy = OPEN.replace("runs = 1000", "runs = 1000\noutput_bytes = 2000")
    source = "import time\nfor n in range(80): print('x' * 70, flush=True); time.sleep(.02)\n"
    with person(lab, [*PYTHON, source], policy) as p:
        assert p.leaves() == 0
        assert p.seen.count(b"x" * 70) < 60
        assert b"authority: output withheld (E_BUDGET_EXCEEDED" in p.seen


# --- without one ---


def test_a_pipe_is_no_terminal(lab: Lab) -> None:
    policy = lab.policy(OPEN)
    source = "import os, sys; print([os.isatty(n) for n in (0, 1, 2)], sys.stdin.read())"
    done = lab.cli("run", "--quiet", "--policy", str(policy), "--", *PYTHON, source, stdin="in")
    assert (done.returncode, done.stdout) == (0, "[False, False, False] in\n")
    forced = lab.cli(
        "run", "--quiet", "--tty", "--policy", str(policy), "--", *PYTHON, source, stdin="in\n"
    )
    assert (forced.returncode, forced.stdout) == (0, "in\n[True, True, True] in\n\n")


def test_a_person_can_do_without(lab: Lab) -> None:
    source = "import os; print([os.isatty(n) for n in (0, 1, 2)]); print('\\x1b]0;title\\x07')"
    with person(lab, [*PYTHON, source], OPEN, "--quiet", "--no-tty") as p:
        assert p.leaves() == 0
        assert b"[False, False, False]" in p.seen
        assert b"\\x1b]0;title\\x07" in p.seen


def test_json_and_a_terminal_exclude_each_other(lab: Lab) -> None:
    done = lab.cli("run", "--tty", "--json", "--policy", "p.toml", "--", "true")
    assert done.returncode == 2
    assert "choose one" in done.stderr


@pytest.mark.parametrize(
    "window", [{}, {"rows": 0, "columns": 80}, {"rows": 24}, {"rows": "24", "columns": 80},
               {"rows": 24, "columns": 5000}, [24, 80], None],
)  # fmt: skip
def test_a_window_without_a_size_is_refused(lab: Lab, window: object) -> None:
    from authority.gate.client import ensure

    ensure(lab.directory)
    body = {**lab.body([sys.executable, "-c", "pass"], OPEN), "terminal": window}
    with pytest.raises(GateError, match="rows and columns"):
        lab.admin("POST", "/v1/runs", body)


def test_a_run_without_a_terminal_can_not_be_resized(lab: Lab) -> None:
    ran = lab.start("input()").started()
    with pytest.raises(GateError, match="no terminal"):
        lab.admin("POST", f"/v1/runs/{ran.run}/resize", {"rows": 10, "columns": 10})
    ran.hang_up()
