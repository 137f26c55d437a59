"""Real programs in runs, unmodified, with their files behind a mount."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Answer = dict[str, Any]
ABSENT = [name for name in ("git", "node", "npm", "make", "bash") if shutil.which(name) is None]


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if name in ABSENT]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def place(caller: Any) -> Iterator[Path]:
    folder = Path(caller.folder) / "project"
    folder.mkdir()
    caller.own(folder)
    yield folder
    shutil.rmtree(folder)


def run(caller: Any, place: Path, *argv: str, **case: Any) -> Answer:
    case = {"cwd": str(place), "mounts": [[str(place)]], "memory": 2 << 30, **case}
    env = {"PATH": "/usr/bin:/bin", **case.pop("env", {})}
    (answer,) = caller.mounted({"argv": list(argv), "env": env, **case})
    assert "refused" not in answer, answer
    return dict(answer)


@needs("bash")
def test_bash_with_coreutils(caller: Any, place: Path) -> None:
    script = (
        "set -eu; mkdir -p a/b; for n in 1 2 3; do echo line $n >> a/b/file; done; "
        "cat a/b/file | tail -n 1 | tr a-z A-Z; cp a/b/file copy; ls -d copy; wc -l < copy; "
        "(sleep 0.05; echo child) & wait; rm -r a; test ! -e a; grep -c line copy; "
        "cat <<< here; diff copy copy; echo done"
    )
    answer = run(caller, place, "bash", "-c", script, exec_allowed=["coreutils"])
    assert answer["out"].split("\n") == [
        *("LINE 3", "copy", "3", "child", "3", "here", "done", "")
    ], answer
    assert (place / "copy").read_text().count("line") == 3


@needs("bash", "git")
def test_git_with_its_helpers(caller: Any, place: Path) -> None:
    script = (
        "set -e; git init -q -b main .; git config user.email a@example.test; "
        "git config user.name A; echo one > one; git add one; git commit -q -m first; "
        "git log --format=%s; git clone -q . copy; cat copy/one; git -C copy status --short; "
        "git stash list; git submodule status; git gc -q; git fsck"
    )
    answer = run(caller, place, "bash", "-c", script, exec_allowed=["git", "coreutils"])
    assert answer["code"] == 0, answer
    assert answer["out"] == "first\none\n"
    helpers = answer["protection"]["executed_with_them"]
    assert any("git-core (for git)" in one for one in helpers)


@needs("make", "bash")
def test_make(caller: Any, place: Path) -> None:
    (place / "Makefile").write_text(
        "all: out\n\t@cat out\nout: in\n\t@sed s/a/b/ < in > out && echo made\n"
    )
    (place / "in").write_text("a\n")
    caller.own(place)
    answer = run(caller, place, "make", "-s", exec_allowed=["make", "coreutils"])
    assert answer["out"] == "made\nb\n", answer


@needs("node", "npm")
def test_node_and_npm(caller: Any, place: Path) -> None:
    package = place / "local"
    package.mkdir()
    (package / "package.json").write_text('{"name": "local", "version": "1.0.0", "main": "x.js"}')
    (package / "x.js").write_text("module.exports = 'from a package'\n")
    (place / "package.json").write_text('{"name": "p", "scripts": {"t": "node main.js"}}')
    (place / "main.js").write_text(
        "const cp = require('child_process');\n"
        "console.log(require('local'), cp.execFileSync('node', ['-p', '6*7']).toString().trim())\n"
    )
    caller.own(place)
    script = "npm install --offline --no-audit --no-fund ./local >/dev/null && npm run -s t"
    answer = run(caller, place, "bash", "-c", script, exec_allowed=["npm", "node"], processes=128)
    assert answer["out"] == "from a package 42\n", answer
    assert (place / "node_modules/local").exists()


def wheel(folder: Path) -> Path:
    """The smallest package that can be installed: a module with a command."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    files = {
        "tiny.py": "def main():\n    print('installed and run')\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        "tiny-1.0.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}\n"
        for name, text in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("tiny-1.0.dist-info/RECORD", record + "tiny-1.0.dist-info/RECORD,,\n")
    return path


def test_pip_fills_an_environment_in_the_run_and_its_programs_run(caller: Any, place: Path) -> None:
    made = subprocess.run(["/usr/bin/python3", "-m", "venv", str(place / ".venv")], check=False)
    if made.returncode:
        pytest.skip("the system's Python can't make environments here")
    wheel(place)
    caller.own(place)
    script = (
        "set -e; .venv/bin/pip install -q --no-index --disable-pip-version-check ./tiny-*.whl; "
        ".venv/bin/tiny; .venv/bin/python -c 'import tiny; print(tiny.__name__)'"
    )
    answer = run(
        caller,
        place,
        "bash",
        "-c",
        script,
        exec_allowed=["bash"],
        mounts=[[str(place)], [str(place / ".venv"), True]],
    )
    assert answer["out"] == "installed and run\ntiny\n", answer


def test_pytest_on_a_project(caller: Any, place: Path) -> None:
    if caller.drop is not None:
        pytest.skip("the ordinary user's Python has no pytest")
    (place / "thing.py").write_text("def double(x):\n    return 2 * x\n")
    (place / "tests").mkdir()
    (place / "tests/test_thing.py").write_text(
        "import thing\n"
        "def test_double(tmp_path):\n"
        "    (tmp_path / 'x').write_text('x')\n"
        "    assert thing.double(2) == 4\n"
        "def test_bad():\n    assert thing.double(2) == 5\n"
    )
    answer = run(caller, place, caller.python, "-m", "pytest", "-q", "--rootdir=.", "tests")
    assert "1 failed, 1 passed" in answer["out"], answer


def test_a_folder_of_programs_can_be_listed(caller: Any, place: Path) -> None:
    answer = run(
        caller,
        place,
        "sh",
        "-c",
        "id -u; uname; awk 'BEGIN { print 6 * 7 }'; env perl -e 'print \"p\\n\"' || true",
        exec_allowed=["/usr/bin"],
    )
    assert answer["out"].split("\n")[:3] == ["1000", "Linux", "42"], answer


def test_a_program_that_is_not_listed_is_not_there(caller: Any, place: Path) -> None:
    answer = run(caller, place, "sh", "-c", "cat /dev/null; id", exec_allowed=["sh", "cat"])
    assert answer["code"] == 127, answer
    assert "not found" in answer["err"]


@needs("bash")
def test_a_listed_program_is_found_by_its_name(caller: Any, place: Path) -> None:
    """Also where the run's own PATH does not lead; one that is not listed is not there."""
    folder = place.parent / "programs"
    folder.mkdir()
    for name in ("my-echo", "other-echo"):
        shutil.copy(shutil.which("echo") or "", folder / name)
    search = f"{folder}:/usr/bin:/bin"
    script = "my-echo found; other-echo found || type -P my-echo"
    answer = run(caller, place, "bash", "-c", script, exec_allowed=["my-echo"], search_path=search)
    assert answer["out"] == f"found\n{folder}/my-echo\n", answer
    answer = run(caller, place, "bash", "-c", "my-echo found", search_path=search)
    assert answer["code"] == 127, answer
