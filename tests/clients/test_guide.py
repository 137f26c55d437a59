"""The guide's chapter on unmodified programs, done as it says: files written, commands typed.

A line `<!-- example: file NAME -->` before a fenced block writes it, `<!-- example: run -->` runs it
with `bash -e`. The guide's host stands for one of the site's: names are replaced, and the policies get
the lines that lead there. Everything else is typed as it is printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate.lab import Lab

from .site import Answer, Seen, Site

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
HEADING = "A program that knows nothing of Authority"
EXAMPLE = re.compile(
    r"^<!-- example: (file [\w./-]+|run) -->\n```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SECRET = "rates-secret-0123456789"
EXPECTED = 16
"""Examples in the chapter: one that is lost by a slip of a mark would be run by nobody."""


def chapter() -> str:
    return GUIDE.read_text("utf-8").split(f"\n## {HEADING}\n", 1)[1].split("\n## ", 1)[0]


def examples() -> Iterator[tuple[str, str]]:
    for match in EXAMPLE.finditer(chapter()):
        yield match[1], match[2]


def rates(seen: Seen) -> Answer:
    known = seen.headers.get("authorization") == f"Bearer {SECRET}"
    body = b'{"day": "Monday", "you": "%s"}' % (b"authorized" if known else b"a stranger")
    return 200, {"Content-Type": "application/json"}, body


def test_the_chapter_works_as_printed(lab: Lab, site: Site) -> None:
    site.handlers["api.test"] = rates
    folder = lab.root / "guide"
    folder.mkdir(mode=0o755)
    found = list(examples())
    assert len(found) == EXPECTED
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "PYTEST"))},
        "AUTHORITY_STATE": str(lab.root / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    for what, printed in found:
        text = printed.replace("elsewhere.example.com", "other.test")
        text = text.replace("api.example.com", "api.test")
        if what.startswith("file "):
            path = folder / what.removeprefix("file ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.replace("[network]\n", "[network]\n" + site.network), "utf-8")
            continue
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert not [seen for seen in site.seen if seen.host == "other.test" or "leak" in seen.path]


@pytest.mark.parametrize("broken", ["grep nothing-such-here looked.txt", "exit 3"])
def test_a_command_that_fails_is_seen(tmp_path: Path, broken: str) -> None:
    done = subprocess.run(["bash", "-e", "-c", f"{broken}\ntrue"], cwd=tmp_path, check=False)
    assert done.returncode != 0
