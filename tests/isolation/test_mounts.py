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
    caller.own(folder)
    yield folder
    shutil.rmtree(folder)


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


def test_the_program_below_a_mount_is_shown_by_who_answers(caller: Any, place: Path) -> None:
    """Its modules are no binds any more, so that a program may write its own sources."""
    (answer,) = caller.mounted(
        {"argv": [caller.python, "main.py"], "cwd": str(place), "mounts": [[str(place)]]}
    )
    assert answer["out"] == f"imported {place}\n", answer
    assert str(place / "main.py") in answer["shown"]
    assert str(place / "helper.py") in answer["shown"]
    assert answer["over"] == []


def test_a_program_file_in_a_mounted_folder_starts(caller: Any, place: Path) -> None:
    """Machine code is bound onto the mount, where it can be executed; a script is read through it."""
    shutil.copy("/bin/echo", place / "tool")
    (place / "tool").chmod(0o755)
    (place / "run.sh").write_text("#!/bin/sh\nread line < data.txt || true\necho got $line\n")
    (place / "run.sh").chmod(0o755)
    caller.own(place)
    case = {"cwd": str(place), "mounts": [[str(place)]]}
    binary, script = caller.mounted(
        {"argv": ["./tool", "hello"], **case}, {"argv": ["./run.sh"], **case}
    )
    assert binary["out"] == "hello\n", binary
    assert binary["over"] == [str(place / "tool")]
    assert script["out"] == "got data\n", script
    assert str(place / "run.sh") in script["shown"]


def test_a_denial_is_eacces_and_a_neighbour_still_opens(caller: Any, place: Path) -> None:
    answer = python(
        caller,
        place,
        "try: open('data.txt')\nexcept OSError as e: print(e.errno)\nprint(open('helper.py').read())",
        refuse=[[14, "data.txt", 13]],
    )
    assert answer["out"].startswith("13\n"), answer
    assert "imported" in answer["out"]


def test_nothing_of_a_mount_can_be_executed(caller: Any, place: Path) -> None:
    shutil.copy("/bin/echo", place / "echo")
    caller.own(place)
    source = (
        "import mmap, os\n"
        "f = open('echo', 'r+b')\n"
        "try:\n"
        "    mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)\n"
        "    print('mapped')\n"
        "except OSError as e: print(e.errno)\n"
        "print(mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)[:4])\n"
    )
    answer = python(caller, place, source)
    assert answer["out"] == "1\nb'\\x7fELF'\n", answer
    executable = python(caller, place, source, mounts=[[str(place), True]])
    assert executable["out"] == "mapped\nb'\\x7fELF'\n", (
        "the control: where execution was asked for"
    )


def test_a_runtime_below_a_mount_is_bound_onto_it(caller: Any, place: Path) -> None:
    """A virtual environment in the project: its files come from no question, and can't be written."""
    environment(caller, place / ".venv")
    source = (
        "import sys, os\n"
        "print(sys.prefix, sys.executable)\n"
        "try: open(sys.prefix + '/x', 'w')\n"
        "except OSError as e: print(e.errno)\n"
        "open('data.txt', 'w').write('w')"
    )
    (answer,) = caller.mounted(
        {
            "argv": [str(place / ".venv/bin/python"), "-c", source],
            "cwd": str(place),
            "mounts": [[str(place)]],
        }
    )
    lines = answer["out"].splitlines()
    assert lines[0] == f"{place / '.venv'} {place / '.venv/bin/python'}", answer
    assert lines[1] == "30"
    assert answer["over"] == [str(place / ".venv")]
    below = [path for path in answer["asked"] if path.startswith(f"{place}/.venv/")]
    assert below == []
    assert (place / "data.txt").read_text() == "w"


def test_an_environment_that_the_run_fills_is_mounted_with_execution(
    caller: Any, place: Path
) -> None:
    environment(caller, place / ".venv")
    library = next(Path("/usr/lib").glob("python3*/lib-dynload/_json*.so"))
    shutil.copy(library, place / "native.so")
    caller.own(place)
    source = (
        "import ctypes, shutil, sys\n"
        "shutil.copy('native.so', sys.prefix + '/native.so')\n"
        "ctypes.CDLL(sys.prefix + '/native.so'); print('loaded')\n"
        "try: ctypes.CDLL('./native.so')\n"
        "except OSError as e: print('not permitted' in str(e) or 'failed to map' in str(e))"
    )
    (answer,) = caller.mounted(
        {
            "argv": [str(place / ".venv/bin/python"), "-c", source],
            "cwd": str(place),
            "mounts": [[str(place)], [str(place / ".venv"), True]],
        }
    )
    assert answer["out"] == "loaded\nTrue\n", answer
    assert any("advisory" in text for text in answer["protection"]["not_in_force"])
    assert (place / ".venv/native.so").exists()


def environment(caller: Any, path: Path) -> None:
    """As `python -m venv --without-pip` makes it."""
    real = os.path.realpath(caller.python)
    version = "python3.11" if "3.11" in real else os.path.basename(real)
    (path / "bin").mkdir(parents=True)
    (path / "lib" / version / "site-packages").mkdir(parents=True)
    (path / "bin/python").symlink_to(real)
    (path / "pyvenv.cfg").write_text(f"home = {os.path.dirname(real)}\n")
    caller.own(path)


def test_a_question_that_is_never_answered_holds_nobody_beyond_the_kill(
    caller: Any, place: Path
) -> None:
    """The control is the answer: without it the program waits for ever."""
    for then in ("kill", "freeze"):
        answer = python(
            caller,
            place,
            "print(open('data.txt').read())",
            deaf=[14, "data.txt"],
            then=then,
        )
        assert answer["killed"] is True
        assert answer["out"] == ""
        assert answer["took"] < 60, answer
        if then == "freeze" and caller.drop is None and os.geteuid() == 0:
            assert answer["frozen"] is True


def test_the_end_of_the_stream_ends_the_mount(caller: Any, place: Path) -> None:
    """Who waits for it is woken with an error, and so is whoever comes later."""
    answer = python(
        caller,
        place,
        "for name in ('data.txt', 'helper.py'):\n"
        "    try: open(name)\n"
        "    except OSError as e: print(e.errno)\n",
        deaf=[14, "data.txt"],
        then="close",
    )
    assert answer["code"] == 0
    assert answer["out"] == "103\n107\n", answer


@pytest.mark.parametrize("path", ["/", "/usr", "/etc", "/home", "/tmp", "/proc/self", "/dev/shm"])
def test_a_run_is_not_mounted_over(caller: Any, path: str) -> None:
    (answer,) = caller.mounted({"argv": [caller.python, "-c", ""], "mounts": [[path]]})
    assert "can't be mounted" in answer["refused"]


def test_too_many_mounts_are_refused_in_words(caller: Any, place: Path) -> None:
    folders = [place / f"f{n}" for n in range(17)]
    for folder in folders:
        folder.mkdir()
    caller.own(place)
    case = {"argv": [caller.python, "-c", "print('ran')"], "cwd": str(place)}
    over, within = caller.mounted(
        {**case, "mounts": [[str(folder)] for folder in folders]},
        {**case, "mounts": [[str(folder)] for folder in folders[:16]]},
    )
    assert "17 places" in over["refused"]
    assert within["out"] == "ran\n"


def test_a_folder_that_is_not_there_is_said_and_not_mounted(caller: Any, place: Path) -> None:
    (place / "link").symlink_to(place / "src")
    answer = python(
        caller, place, "print('ran')", mounts=[[str(place / "gone")], [str(place / "link")]]
    )
    assert answer["out"] == "ran\n"
    assert sum("not mounted" in text for text in answer["missing"]) == 2


def test_a_persistent_home_is_mounted_without_execution(caller: Any, place: Path) -> None:
    answer = python(
        caller,
        place,
        "import os\nopen(os.path.expanduser('~/state'), 'w').write('kept')\nprint(os.environ['HOME'])",
        mounts=[["/home/agent", False, str(place / "src")]],
    )
    assert answer["out"] == "/home/agent\n", answer
    assert (place / "src/state").read_text() == "kept"


def test_plain_binds_are_reached_without_a_question(caller: Any, place: Path) -> None:
    (place / "src").chmod(0o777)
    answer = python(
        caller,
        place,
        "print(open('data.txt').read())\n"
        "open('src/made', 'w').write('m')\n"
        "try: open('made', 'w')\nexcept OSError as e: print(e.errno)\n"
        "import mmap\n"
        "f = open('src/made', 'r+b')\n"
        "try: mmap.mmap(f.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)\n"
        "except OSError as e: print(e.errno)",
        mounts=[],
        binds=[[str(place)], [str(place / "src"), True]],
    )
    assert answer["out"] == "data\n30\n1\n", answer
    assert (place / "src/made").read_text() == "m"
    assert any("not judged" in text for text in answer["protection"]["not_in_force"])


def test_extra_files_lie_over_what_is_shown_and_on_mounts(caller: Any, place: Path) -> None:
    environment(caller, place / ".venv")
    site = next((place / ".venv/lib").iterdir()) / "site-packages"
    (site / "bundle.pem").write_text("theirs")
    caller.own(place)
    files = {
        str(site / "bundle.pem"): "over a bind on a mount",
        str(place / "extra.txt"): "on a mount",
        "/etc/hosts": "127.0.0.1 named",
        "/opt/deep/er/file": "made",
    }
    (place / "extra.txt").write_text("the host's")
    caller.own(place)
    source = (
        f"for path in {list(files)!r}:\n"
        "    print(open(path).read())\n"
        "    try: open(path, 'w')\n"
        "    except OSError as e: print(e.errno)"
    )
    (answer,) = caller.mounted(
        {
            "argv": [str(place / ".venv/bin/python"), "-c", source],
            "cwd": str(place),
            "mounts": [[str(place)]],
            "files": files,
        }
    )
    lines = answer["out"].splitlines()
    assert lines[::2] == list(files.values()), answer
    assert set(lines[1::2]) <= {"30", "13"}
    assert (site / "bundle.pem").read_text() == "theirs"
    assert (place / "extra.txt").read_text() == "the host's"


def test_nobody_but_the_run_looks_into_its_mounts(caller: Any, place: Path) -> None:
    """The host's root included: through /proc/PID/root it is refused, and nobody gets stuck."""
    if os.geteuid() != 0:
        pytest.skip("only root could look into another user's process")
    source = (
        "import os, sys\nprint(os.listdir('.'), flush=True)\n"
        "print(open('/proc/self/mountinfo').read())"
    )
    answer = python(caller, place, source)
    line = next(line for line in answer["out"].splitlines() if " fuse " in line)
    assert "allow_other" not in line
    assert {"nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
