"""The guide's chapter on injected agents, typed as it is printed, into one terminal.

A line `<!-- example: run -->` before a fenced block types it into a shell that stays (`run, fails`: its
last command has to fail), `<!-- example: output -->` is what the run before it printed, and
`<!-- example: part FILE -->` stands word for word in a file of `examples/injected`.

- The folder and the two ports are replaced by those of the test, and the environment is active already.
- A printed line has to be a line of the output, the lines in their order; others may stand between.
  `…` stands for anything, a number of an entry or of bytes for any number, the name of a run for any.
- The number that a person reads from the screen is read from the screen.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate.lab import CLI, Lab

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (ROOT / "docs" / "guide-injected.md").read_text("utf-8")
EXAMPLE = re.compile(
    r"^<!-- example: (run|run, fails|output|part [\w./-]+) -->\n```[^\n]*\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
EXPECTED = {"run": 16, "run, fails": 2, "output": 14, "part": 3}
"""Examples in the chapter: one that is lost by a slip of a mark would be run by nobody."""
SECONDS = 120
RUN = 'eval "$block"'
VARIES = re.compile(r"(…|\b(?:entry|bytes|to|approve|deny) \d+|^ +\d+(?= )|\b[0-9a-f]{12}\b| {2,})")


def examples() -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in EXAMPLE.finditer(CHAPTER)]


class Terminal:
    """A shell into which blocks are typed, one after the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._log = folder / "typescript"
        self._out = self._log.open("wb")
        blocks, self._blocks = os.pipe()
        self._shell = subprocess.Popen(
            ["bash", "-c", f'while IFS= read -r -d "" block <&{blocks}; do {RUN}; done'],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            pass_fds=[blocks],
        )
        os.close(blocks)
        self._typed = 0

    def type(self, text: str) -> tuple[int, str]:
        """The exit code of the block's last command, and what was printed meanwhile."""
        signal.alarm(SECONDS + 30)  # each block has a deadline of its own
        begin, mark = self._log.stat().st_size, f"-- typed {self._typed} --"
        self._typed += 1
        os.write(self._blocks, f'{text}\necho "{mark} $?"\n\0'.encode())
        deadline = time.monotonic() + SECONDS
        while True:
            said = self._log.read_bytes()[begin:].decode("utf-8", "replace")
            if found := re.search(rf"^{re.escape(mark)} (\d+)$", said, re.MULTILINE):
                return int(found[1]), said[: found.start()]
            assert time.monotonic() < deadline, f"no end of:\n{text}\n{said}"
            assert self._shell.poll() is None, said
            time.sleep(0.1)

    def close(self) -> None:
        os.close(self._blocks)
        self._shell.wait(SECONDS)
        self._out.close()


def pattern(line: str) -> re.Pattern[str]:
    """What a printed line stands for."""
    out = []
    for part in VARIES.split(line):
        if part == "…":
            out.append(".*")
        elif re.fullmatch(r"[0-9a-f]{12}", part):
            out.append("[0-9a-f]{12}")
        elif not part.strip(" "):
            out.append(" +" if len(part) > 1 else re.escape(part))
        elif re.fullmatch(r"(entry|bytes|to|approve|deny)? +\d+", part):
            out.append(re.sub(r"\\? +", " +", re.sub(r"\d+\Z", r"\\d+", part)))
        else:
            out.append(re.escape(part))
    return re.compile("".join(out))


def missing(printed: str, said: str) -> str:
    """The first printed line that is not there in its place, or nothing."""
    lines = iter([line.rstrip() for line in said.split("\n")])
    for line in printed.rstrip("\n").split("\n"):
        wanted = pattern(line.rstrip())
        if not any(wanted.fullmatch(have) for have in lines):
            return line
    return ""


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        return a.getsockname()[1], b.getsockname()[1]


@pytest.fixture
def terminal(lab: Lab) -> Iterator[Terminal]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AUTHORITY", "PYTEST"))}
    environment["PATH"] = f"{CLI.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = Terminal(lab.root, environment)
    yield made
    made.type("authority gate stop --force; cd /")
    made.close()


def test_every_example_is_typed() -> None:
    found = [what.split(" ")[0] if what.startswith("part") else what for what, _ in examples()]
    assert {what: found.count(what) for what in EXPECTED} == EXPECTED
    assert CHAPTER.count("<!-- example:") == len(found)
    assert CHAPTER.count("\n```") == 2 * len(found)  # no fenced block without a mark


def test_the_chapter_works_as_printed(lab: Lab, terminal: Terminal) -> None:
    place = lab.root / "injected"
    own, attacker = free_ports()
    said, number = "", ""

    def here(text: str) -> str:
        text = text.replace("/tmp/injected", str(place)).replace(". .venv/bin/activate", "true")
        text = re.sub(r"(office\.py \S+)", r"\1 --own 8417 --attacker 8418", text)
        return text.replace("127.0.0.1:8417", f"127.0.0.1:{own}").replace(
            "127.0.0.1:8418", f"127.0.0.1:{attacker}"
        ).replace("--own 8417 --attacker 8418", f"--own {own} --attacker {attacker}")  # fmt: skip

    for what, printed in examples():
        if what.startswith("part "):
            file = ROOT / "examples/injected" / what.removeprefix("part ")
            assert printed in file.read_text("utf-8"), printed
        elif what == "output":
            line = missing(here(printed), said)
            assert not line, f"not printed:\n{line}\n\nin:\n{said}"
        else:
            text = re.sub(r"approvals (approve|deny) \d+", rf"approvals \1 {number}", here(printed))
            code, said = terminal.type(text)
            assert (code != 0) == (what == "run, fails"), f"{text}\n{said}"
            if shown := re.findall(r"authority approvals approve (\d+)", said):
                number = shown[-1]
    assert not place.exists()


def test_a_line_that_is_not_printed_is_seen() -> None:
    said = "entry 17: tool:pay\n  <- entry 12, bytes 3 to 9\npounds = 338.76\n"
    assert not missing("entry 99: tool:pay\npounds = 338.76\n", said)
    assert not missing("   5  tool:pay now", "  17   tool:pay now")
    assert not missing("entry 99: …\n  <- entry 1, bytes 1 to 2", said)
    assert missing("pounds = 338.77\n", said)
    assert missing("pounds = 338.76\nentry 99: tool:pay\n", said)  # not in this order
    assert missing("entry 99: tool:pay and more\n", said)
