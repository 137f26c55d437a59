"""The document's own verifier and `jq` agree with `verify`, on good logs and on damaged ones."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.audit.helpers import build, content, crashed_copy

from authority.audit import verify
from authority.audit.chain import START, BadLine, follow, plain, seal

DOCUMENT = Path(__file__).parents[2] / "docs" / "log-format.md"


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The verifier as a reader would copy it out of the document."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path: Path = tmp_path_factory.mktemp("verifier") / "verifier.py"
    path.write_text(code)
    return path


def ask(script: Path, log: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(log)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def load(script: Path) -> object:
    names: dict[str, object] = {}
    exec(script.read_text().rsplit("print(", 1)[0], names)
    return names["verify"]


def test_it_is_ten_lines() -> None:
    (code,) = re.findall(r"def verify.*?\n\n", DOCUMENT.read_text(), re.DOTALL)
    assert len(code.strip().split("\n")) <= 11


def test_it_agrees_on_a_good_log_of_several_segments(independent: Path, tmp_path: Path) -> None:
    log = build(tmp_path / "log", [3] * 8, segment_bytes=2048)
    report = verify(log)
    assert report.ok
    assert ask(independent, log) == f"24 entries, head {report.head}"


def test_it_agrees_on_every_kind_of_damage(independent: Path, tmp_path: Path) -> None:
    check = load(independent)
    log = build(tmp_path / "log", [2, 1, 3], segment_bytes=1 << 14)
    data = content(log)
    lines = data.splitlines(keepends=True)
    rng = random.Random(5)
    mutated = [
        b"".join(lines[:2] + lines[3:]),
        b"".join([lines[1], lines[0], *lines[2:]]),
        b"".join([*lines[:3], lines[2], *lines[3:]]),
    ]
    for _ in range(120):
        at = rng.randrange(len(data))
        mutated.append(data[:at] + bytes([data[at] ^ (1 << rng.randrange(7))]) + data[at + 1 :])
    for number, wrong in enumerate(mutated):
        (log / "00000001.jsonl").write_bytes(wrong)
        report = verify(log)
        assert not report.ok
        try:
            said = check(str(log))  # type: ignore[operator]
        except ValueError:
            continue  # it may also stop at what is not JSON
        assert said == f"entry {report.first_bad} is damaged or missing", (number, report.problem)
    (log / "00000001.jsonl").write_bytes(data)
    assert str(check(str(log))).startswith("6 entries")  # type: ignore[operator]


def test_jq_reads_it(tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed here")
    log = crashed_copy(build(tmp_path / "log", [2, 3]), tmp_path / "crashed")
    command = f"cat {log}/*.jsonl | tr -d '\\0' | jq -c '[.seq, .batch, .time]'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    rows = done.stdout.split()
    assert rows[0] == "[0,0,1763925000000000]"
    assert rows[4] == "[4,2,1763925000000004]"


def test_each_line_is_one_entry_although_many_are_read_together() -> None:
    """Two entries on one line and none that begins on the next are as many entries as lines."""
    first, torn = b'{"batch":0,"seq":0}{"batch":0,"seq":1,"x":{"y":0}', b',"z":0}'
    for bodies, good in (
        ([b'{"batch":0,"seq":0}', b'{"batch":0,"seq":1}'], True),
        ([first, torn], False),
        ([b' {"batch":0,"seq":0}'], False),
    ):
        head, lines = START.hash, []
        for body in bodies:
            head, line = seal(head, body)
            lines.append(line[:-1])
        if good:
            assert follow(lines, START) == (2, 0, head)
        else:
            with pytest.raises(BadLine) as caught:
                follow(lines, START)
            assert caught.value.entry == 0


_PIECES = [
    *(bytes([byte]) for byte in b'"\\{}[],: \t\r0-'),
    *(b',"hash":"', b'"}', b'{"batch":0,"seq":0}', b'"seq":1', b'"seq":1.0', b"e0", b"null"),
]


def test_what_is_accepted_is_accepted_by_the_documents_verifier(
    independent: Path, tmp_path: Path
) -> None:
    """Forged lines, each hashed as it must be: read together, line by line, and by the document."""
    check = load(independent)
    rng = random.Random(7)
    accepted = 0
    for _ in range(3000):
        bodies = [bytearray(b'{"batch":0,"kind":"x","seq":%d,"t":"a\\"b"' % n) for n in range(3)]
        for _ in range(rng.randrange(3)):
            body = rng.choice(bodies)
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.choice((0, 0, 0, 1, 5))] = rng.choice(_PIECES)
        head, lines = START.hash, []
        for body in bodies:
            head, line = seal(head, bytes(body) + b"}")
            lines.append(line[:-1])
        together, each = True, START
        try:
            together = follow(lines, START)[::2] == (3, head)
        except BadLine:
            together = False
        try:
            for line in lines:
                each = follow([line], each)
            assert together
        except BadLine:
            assert not together
        if together and plain(data := b"".join(line + b"\n" for line in lines)):
            (tmp_path / "1.jsonl").write_bytes(data)
            assert check(str(tmp_path)) == f"3 entries, head {head.hex()}", lines  # type: ignore[operator]
            accepted += 1
    assert 0 < accepted < 3000


@pytest.mark.parametrize("blank", [b"\r", b"\t"])
def test_a_blank_that_no_entry_has_is_found(
    independent: Path, tmp_path: Path, blank: bytes
) -> None:
    """Between JSON's words a carriage return is a blank, and to other readers the end of a line."""
    log = build(tmp_path / "log", [1])
    _, line = seal(START.hash, b'{"batch":0,' + blank + b'"kind":"x","seq":0,"time":1}')
    (log / "00000001.jsonl").write_bytes(line)
    report = verify(log)
    assert (report.ok, report.first_bad) == (False, 0)
    assert "belongs in no entry" in report.problem
