"""What a program prints and reads: whole, in order, committed first, harmless; and how it ends."""

from __future__ import annotations

import hashlib
import sys

import pytest

from .lab import Lab


def test_both_streams_apart_and_each_in_order(lab: Lab) -> None:
    ran = lab.run(
        "import sys\n"
        "for i in range(50):\n"
        "    print('out', i, flush=True)\n"
        "    print('err', i, file=sys.stderr, flush=True)\n"
    )
    assert ran.out == "".join(f"out {i}\n" for i in range(50))
    assert ran.err == "".join(f"err {i}\n" for i in range(50))


@pytest.mark.parametrize(
    ("program", "code", "reason"),
    [
        ("pass", 0, "exited"),
        ("import sys; sys.exit(3)", 3, "exited"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "killed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139, "killed"),
        ("raise SystemExit(200)", 200, "exited"),
    ],
)
def test_the_exit_code_is_the_programs(lab: Lab, program: str, code: int, reason: str) -> None:
    ran = lab.run(program)
    assert (ran.summary["code"], ran.summary["reason"]) == (code, reason)
    assert lab.log(run=ran.run, kind="run.end")[0].get("code", 0) == code


EVIL = {
    "title": b"\x1b]0;evil\x07",
    "clear": b"\x1b[2J\x1b[H",
    "c1": "\x9b31m".encode(),
    "raw c1": b"\x9b31m",
    "bidi": "\u202egnp.exe\u2066".encode(),
    "not utf-8": b"\xff\xfe\xc3(",
    "backspace": b"safe\x08\x08\x08\x08evil",
    "nul": b"a\x00b",
    "device control": b"\x1bP+q544e\x1b\\",
}


def test_nothing_that_a_terminal_acts_on_gets_through(lab: Lab) -> None:
    data = b"".join(name.encode() + b":" + evil + b"\n" for name, evil in EVIL.items())
    harmless = b"plain \xc3\xa9\ttab \x1b[1;31mred\x1b[0m\n"
    ran = lab.run(f"import sys; sys.stdout.buffer.write({data + harmless!r})")
    shown = ran.out
    assert shown.endswith("plain é\ttab \x1b[1;31mred\x1b[0m\n")  # the control
    rest = shown[: -len("plain é\ttab \x1b[1;31mred\x1b[0m\n")]
    assert all(c == "\n" or c.isprintable() for c in rest), rest
    assert "\\x1b]0;evil\\x07" in rest
    assert "\\u202e" in rest
    assert "\\xff\\xfe" in rest


def test_a_sequence_cut_between_two_pieces_is_harmless_too(lab: Lab) -> None:
    pieces = [b"\x1b", b"]0;x\x07\n", b"\xe2\x80", b"\xae\n", b"\x1b[3", b"1mred\x1b[0m\n"]
    ran = lab.run(f"import os, time\nfor p in {pieces!r}:\n    os.write(1, p); time.sleep(.05)\n")
    assert ran.out == "\\x1b]0;x\\x07\n\\u202e\n\x1b[31mred\x1b[0m\n"


def test_five_megabytes_come_whole(lab: Lab) -> None:
    ran = lab.run(
        "import sys\n"
        "line = 'x' * 99 + '\\n'\n"
        "for i in range(50_000): sys.stdout.write(line)\n"
        "sys.stdout.write('end')\n"
    )
    assert len(ran.out) == 5_000_003
    assert hashlib.sha256(ran.out.encode()).digest() == (
        hashlib.sha256(b"x" * 99 + b"\n" + (b"x" * 99 + b"\n") * 49_999 + b"end").digest()
    )
    sizes = [e["arguments"]["size"] for e in lab.log(run=ran.run, effect="output")]
    assert sum(sizes) == 5_000_003


def test_what_is_shown_stands_in_the_log_already(lab: Lab) -> None:
    ran = lab.start("import time\nprint('first', flush=True)\ntime.sleep(60)").said("first")
    event = next(e for e in ran.events if e["event"] == "output")
    # Read from the file while the run goes on: the entry is there before the text was shown.
    (entry,) = [e for e in lab.log(run=ran.run, effect="output") if e["seq"] == event["seq"]]
    assert entry["arguments"]["text"] == "first\n"
    ran.hang_up()


def test_standard_input_reaches_the_program(lab: Lab) -> None:
    ran = lab.start(
        "import sys\ndata = sys.stdin.buffer.read()\n"
        "import hashlib\nprint(len(data), hashlib.sha256(data).hexdigest())\n"
    ).started()
    data = bytes(range(256)) * 1000
    for at in range(0, len(data), 64_000):
        lab.input(ran, data[at : at + 64_000])
    lab.input(ran, b"", eof=True)
    assert ran.end().out == f"{len(data)} {hashlib.sha256(data).hexdigest()}\n"


def test_the_command_passes_streams_and_code_on(lab: Lab) -> None:
    policy = lab.policy("version = 1\n[filesystem]\nread = ['./**']\n")
    done = lab.cli(
        "run", "--quiet", "--policy", str(policy), "--", sys.executable, "-c",
        "import sys; t = sys.stdin.read(); print(t.upper(), end=''); "
        "print('e', file=sys.stderr); sys.exit(7)",
        stdin="some text\n",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "SOME TEXT\n", "e\n")
