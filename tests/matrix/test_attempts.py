"""What attacking programs print is JSON, though the module for it does not write it."""

from __future__ import annotations

import subprocess
import sys

from authority.matrix.live import PROGRAMS, json_lines

HOSTILE = '\x1b]0;title\x07"\\\n\u2028\U0001f600\udc80\x7f é'
SAY = """
import sys
sys.path.insert(0, sys.argv[1])
from attempts import attempt, done, note
attempt("fails", lambda: open("/nowhere"))
attempt("works", lambda: eval(sys.argv[2]))
note(files=["a", "b"], changed=False, asked=-7, of={"n": 1 << 70})
done()
"""


def test_what_is_printed_comes_back_and_steers_no_terminal() -> None:
    argv = [sys.executable, "-I", "-c", SAY, str(PROGRAMS), ascii(HOSTILE)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.replace("\n", "").isascii()
    assert said.replace("\n", "").isprintable()
    assert json_lines(said) == [
        {"name": "fails", "worked": False, "detail": "ENOENT"},
        {"name": "works", "worked": True, "detail": HOSTILE},
        {"files": ["a", "b"], "changed": False, "asked": -7, "of": {"n": 1 << 70}},
        {"done": 2},
    ]
