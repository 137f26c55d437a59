"""Mounts: what the gate answers for lies where the policy says, also while the program starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Answer = dict[str, Any]


@pytest.fixture
def place(caller: Any) -> Iterator[Path]:
    """A project folder of the caller's."""
    folder = Path(caller.folder) / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "data.txt").write_text("data")
    (folder / "helper.py").write_text("WORD = 'imported'\n")
    (folder / "main.py").write_text("import helper, os; print(helper.WORD, os.getcwd())\n")
    own(caller, folder)
    yield folder
    shutil.rmtree(folder)


def own(caller: Any, folder: Path) -> None:
    if caller.drop is not None:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, caller.drop, caller.drop, follow_symlinks=False)


def python(caller: Any, place: Path, source: str, **case: Any) -> Answer:
    case = {"cwd": str(place), "mounts": [[str(place)]], **case}
    (answer,) = caller.mounted({"argv": [caller.python, "-I", "-c", source], **case})
    assert "refused" not in answer, answer
    return answer


def test_files_of_the_host_are_read_and_written(caller: Any, place: Path) -> None:
    answer = python(
        caller,
        place,
        "import os\n"
        "print(open('data.txt').read(), sorted(os.listdir('.')), os.stat('data.txt').st_uid)\n"
        "open('src/new.txt', 'w').write('x' * 300000)\n"
        "os.rename('src/new.txt', 'src/newer.txt'); os.mkdir('made'); os.chmod('data.txt', 0o600)",
    )
    assert answer["out"].split(" [")[0] == "data", answer
    assert answer["out"].split()[-1] == "1000"
    assert (place / "src/newer.txt").read_text() == "x" * 300000
    assert (place / "made").is_dir()
    assert (place / "data.txt").stat().st_mode & 0o777 == 0o600
    assert answer["troubles"] == []
