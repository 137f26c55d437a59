"""What a run sees of the host: the runtime is found, and nothing that is not runtime comes along."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.isolation import IsolationRefused, SandboxSpec, elf, plan, probe, start
from authority.isolation.python_runtime import entry
from authority.isolation.runtime import resolve
from authority.isolation.view import View

ARCH = probe().architecture


def run(argv: list[str], cwd: Path, **spec: Any) -> tuple[str, Any]:
    """(output and errors, plan) of a program in a sandbox."""

    async def scene() -> tuple[str, Any]:
        prepared = plan(SandboxSpec(tuple(argv), str(cwd), channel=False, **spec), probe())
        read, write = os.pipe()
        try:
            sandbox = await start(prepared, stdout=write, stderr=write)
        finally:
            os.close(write)
        with os.fdopen(read) as file:
            text = file.read()
        await sandbox.wait()
        return text, prepared

    return asyncio.run(scene())


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A folder like a user's, readable by others only as far as a umask of 022 makes it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.py").write_text(
        "import os, helper, package.part\n"
        "print(helper.WORD, package.part.WORD, sorted(os.listdir('.')))\n"
    )
    (folder / "helper.py").write_text("WORD = 'helped'\n")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "part.py").write_text("WORD = 'part'\n")
    (folder / ".env").write_text("SECRET=1")
    (folder / "data.csv").write_text("1,2")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("text")
    return folder


def test_a_script_its_modules_and_nothing_else(project: Path) -> None:
    out, prepared = run([sys.executable, "main.py"], project)
    assert out == "helped part ['helper.py', 'main.py', 'package']\n"
    assert prepared.missing == []
    text = " ".join(prepared.protection["runtime"])
    assert "main.py (the program)" in text
    assert ".env" not in text


def test_a_module_of_the_working_folder(project: Path) -> None:
    (project / "package" / "__main__.py").write_text("import helper; print(helper.WORD)")
    out, _ = run([sys.executable, "-m", "package"], project)
    assert out == "helped\n"


def test_code_alone_shows_no_module(project: Path) -> None:
    out, _ = run([sys.executable, "-c", "import os; print(os.listdir('.'))"], project)
    assert out == "[]\n"


def test_a_module_that_is_a_link_is_not_followed(project: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("WORD = 'leaked'\n")
    (project / "leak.py").symlink_to(secret)
    (project / "linked").symlink_to(tmp_path)
    out, prepared = run([sys.executable, "main.py"], project)
    assert "leak" not in out
    assert any("leak.py is a link" in text for text in prepared.missing)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts runs of another user")
def test_a_script_that_only_root_may_read_is_copied(project: Path) -> None:
    (project / "main.py").chmod(0o600)
    out, prepared = run([sys.executable, "main.py"], project)
    assert out.startswith("helped part")
    assert any("main.py (copied)" in text for text in prepared.protection["runtime"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts runs of another user")
def test_a_folder_that_only_root_may_read_is_named(project: Path) -> None:
    (project / "package").chmod(0o700)
    _, prepared = run([sys.executable, "main.py"], project)
    assert any("package" in text and "can't be read" in text for text in prepared.missing)


def test_a_script_with_a_first_line(project: Path) -> None:
    script = project / "tool"
    script.write_text(f"#!{sys.executable} -I\nimport sys; print(sys.argv[1:])\n")
    script.chmod(0o755)
    assert run(["./tool", "a", "b"], project)[0] == "['a', 'b']\n"
    script.write_text("#!/usr/bin/env python3\nimport sys; print(sys.argv[1:])\n")
    path = f"{os.path.dirname(sys.executable)}:/usr/bin"
    assert run(["./tool", "c"], project, search_path=path)[0] == "['c']\n"


@pytest.mark.parametrize("line", ["#!\n", "#!/usr/bin/env -i python3\n", "#!/no/such/program\n"])
def test_a_first_line_that_is_not_understood(project: Path, line: str) -> None:
    script = project / "tool"
    script.write_text(line)
    script.chmod(0o755)
    with pytest.raises(IsolationRefused):
        run(["./tool"], project)


def test_first_lines_that_go_in_circles(project: Path) -> None:
    script = project / "tool"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    with pytest.raises(IsolationRefused, match="neither"):
        run(["./tool"], project)


def test_a_virtual_environment(tmp_path: Path, project: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, symlinks=True, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "installed.py").write_text("WORD = 'installed'\n")
    source = tmp_path / "editable"
    (source / "edited").mkdir(parents=True)
    (source / "edited" / "__init__.py").write_text("WORD = 'edited'\n")
    (source / "private.txt").write_text("no module")
    (site / "editable.pth").write_text(f"{source}\nimport os\n# nothing\n/no/such/folder\n")
    mapped = tmp_path / "mapped" / "mapped"
    mapped.mkdir(parents=True)
    (mapped / "__init__.py").write_text("WORD = 'mapped'\n")
    (site / "__editable___mapped_finder.py").write_text(
        f"MAPPING: dict[str, str] = {{'mapped': {str(mapped)!r}}}\n"
        "import sys\n"
        "def install(): sys.path.append(MAPPING['mapped'].rpartition('/')[0])\n"
    )
    (site / "__editable__.mapped.pth").write_text(
        "import __editable___mapped_finder; __editable___mapped_finder.install()\n"
    )
    out, prepared = run(
        [
            str(home / "bin" / "python"),
            "-c",
            "import installed, edited, mapped, os, sys\n"
            "print(installed.WORD, edited.WORD, mapped.WORD, sys.prefix != sys.base_prefix,"
            f" os.path.exists({str(source / 'private.txt')!r}))",
        ],
        project,
    )
    assert out == "installed edited mapped True False\n"
    assert [text for text in prepared.missing if "/no/such/folder" in text]


def test_a_virtual_environment_found_by_its_name_has_its_packages(
    tmp_path: Path, project: Path
) -> None:
    """An interpreter looks for its environment by the name under which it was started."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=True, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "installed.py").write_text("WORD = 'installed'\n")
    words = ["python", "-c", "import installed; print(installed.WORD)"]
    out, _ = run(words, project, search_path=f"{home}/bin:/usr/bin:/bin")
    assert out == "installed\n"


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "elsewhere"])
def test_the_agents_side_is_importable(tmp_path: Path, project: Path, installed: bool) -> None:
    """Where it is installed, and in another environment of the same Python."""
    python = sys.executable
    if not installed:
        venv.create(tmp_path / "other", symlinks=True, with_pip=False)
        python = str(tmp_path / "other" / "bin" / "python")
    source = "import authority.agent, msgspec; print('there', authority.__file__)"

    async def scene() -> str:
        gate, theirs = socket.socketpair()
        spec = SandboxSpec((python, "-c", source), str(project))
        sandbox = await start(plan(spec, probe()), theirs)
        gate.settimeout(10)
        data = b""
        while part := await asyncio.to_thread(gate.recv, 65536):
            data += part
        gate.close()
        await sandbox.wait()
        return data.decode("latin-1")

    out = asyncio.run(scene())
    assert "there /" in out, out
    assert ("/run/authority/lib" in out) is not installed


def test_a_pyenv_shim_is_resolved(tmp_path: Path, project: Path) -> None:
    root = tmp_path / "pyenv"
    (root / "shims").mkdir(parents=True)
    shim = root / "shims" / "python3"
    shim.write_text("#!/bin/sh\nexec false\n")
    shim.chmod(0o755)
    for version in ("3.11.2", "3.11.10"):
        (root / "versions" / version / "bin").mkdir(parents=True)
        (root / "versions" / version / "bin" / "python3").symlink_to(
            os.path.realpath(sys.executable)
        )
    view = View(cwd=str(project), home="/nowhere", root=False)

    def resolved(**environment: str) -> str:
        return resolve(
            view, ["python3", "-V"], {"PATH": str(root / "shims"), **environment}, ARCH
        ).path

    with pytest.raises(IsolationRefused, match="pyenv"):
        resolved()
    (root / "version").write_text("3.11.2\n")
    assert "/versions/3.11.2/" in resolved()
    (project / ".python-version").write_text("3.11\n")
    assert "/versions/3.11.10/" in resolved()
    assert "/versions/3.11.2/" in resolved(PYENV_VERSION="3.11.2")
    (project / ".python-version").write_text("../../../../bin\n")
    with pytest.raises(IsolationRefused, match="pyenv"):
        resolved()


def test_an_interpreter_in_a_home_does_not_show_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    library = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (home / "bin").mkdir(parents=True)
    (home / "lib" / library).mkdir(parents=True)
    (home / "lib" / library / "os.py").write_text("")
    (home / "private").write_text("")
    python = home / "bin" / "python3"
    python.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    python.chmod(0o755)
    view = View(cwd="/", home=str(home), root=False)
    resolve(view, [str(python), "-V"], {}, ARCH)
    view.settle()
    assert str(home) not in view.trees
    assert str(home / "lib" / library) in view.trees


@pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="node is not installed")
def test_node(project: Path) -> None:
    (project / "main.mjs").write_text(
        "import {word} from './other.mjs'; import fs from 'node:fs';\n"
        "console.log(word, fs.readdirSync('.').sort().join());\n"
    )
    (project / "other.mjs").write_text("export const word = 'other';\n")
    out, _ = run(["/usr/bin/node", "main.mjs"], project)
    assert out == "other main.mjs,other.mjs\n"


def test_time_zone_locale_and_certificates(project: Path) -> None:
    out, _ = run(
        [
            sys.executable,
            "-c",
            "import ssl, locale, zoneinfo, pwd, tempfile, os\n"
            "print(len(ssl.create_default_context().get_ca_certs()) > 0 or"
            " not os.path.exists('/etc/ssl/certs/ca-certificates.crt'),"
            " zoneinfo.ZoneInfo('Europe/Berlin').key, locale.getpreferredencoding(),"
            " pwd.getpwuid(os.getuid()).pw_dir, tempfile.gettempdir())",
        ],
        project,
    )
    assert out == "True Europe/Berlin UTF-8 /home/agent /tmp\n"


def test_extra_folders_are_read_only(project: Path) -> None:
    source = (
        "import os\n"
        "print(open('notes/a.txt').read())\n"
        "try: open('notes/b.txt', 'w')\n"
        "except OSError as e: print(e.strerror)\n"
    )
    out, _ = run([sys.executable, "-c", source], project, read_only=(str(project / "notes"),))
    assert out.startswith("text\n")
    assert "Read-only" in out or "denied" in out


LISTED = (
    "import os, subprocess, sys\n"
    "def attempt(*argv):\n"
    "    try: return subprocess.run(argv, capture_output=True, text=True).stdout.strip() or 'ran'\n"
    "    except OSError as e: return e.strerror\n"
    "print(attempt('/usr/bin/id', '-u'), '|', attempt('/usr/bin/env'), '|',"
    " attempt(sys.executable, '--version'))\n"
    "fd = os.memfd_create('x', 0) if False else -1\n"
)


def test_listed_programs_and_no_others(project: Path) -> None:
    out, prepared = run([sys.executable, "-c", LISTED], project, exec_allowed=("id",))
    mine, other, _ = out.split(" | ")
    assert mine == "1000"
    assert other in ("No such file or directory", "Permission denied")
    assert any("ld.so" in text for text in prepared.protection["not_in_force"])
    out, _ = run([sys.executable, "-c", LISTED], project)
    assert [part.strip() for part in out.split("|")] == ["Function not implemented"] * 3 or (
        "No such file" in out and "1000" not in out
    )


def test_listed_programs_can_not_be_brought_along(project: Path) -> None:
    source = (
        "import ctypes, os, shutil, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for make in ('/tmp/id', '/home/agent/id', '/dev/shm/id'):\n"
        "    shutil.copy('/usr/bin/id', make); os.chmod(make, 0o755)\n"
        "    try: os.posix_spawn(make, ['id'], {}); print('ran')\n"
        "    except OSError as e: print(e.strerror)\n"
        "fd = libc.memfd_create(b'x', 8)\n"
        "os.write(fd, open('/usr/bin/id', 'rb').read())\n"
        "try: os.posix_spawn(f'/proc/self/fd/{fd}', ['id'], {}); print('ran')\n"
        "except OSError as e: print(e.strerror)\n"
        "print(libc.memfd_create(b'x', 0))\n"
    )
    out, _ = run([sys.executable, "-c", source], project, exec_allowed=("id",))
    lines = out.splitlines()
    assert lines[:3] == ["Permission denied"] * 3, out
    assert "ran" not in lines
    assert lines[-1] == "-1"


# --- the small parsers ---


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a.py", "-m", "x"], ("script", "a.py")),
        (["-Im", "pkg", "y"], ("module", "pkg")),
        (["-mpkg"], ("module", "pkg")),
        (["-c", "code", "a.py"], ("code", "")),
        (["-X", "utf8", "-Werror", "-W", "ignore", "a.py"], ("script", "a.py")),
        (["-IXdev", "a.py"], ("script", "a.py")),
        (["--check-hash-based-pycs", "always", "a.py"], ("script", "a.py")),
        (["--", "-a.py"], ("script", "-a.py")),
        (["-"], ("", "")),
        ([], ("", "")),
        (["-m"], ("module", "")),
    ],
)
def test_what_python_is_told_to_run(words: list[str], found: tuple[str, str]) -> None:
    assert entry(words) == found


def test_elf_agrees_with_readelf() -> None:
    found = elf.read(os.path.realpath(sys.executable))
    assert found is not None
    assert found.machine == elf.machine_number(ARCH)
    assert os.path.exists(found.interpreter)
    assert any(name.startswith("libc.so") for name in found.needed)
    assert elf.read("/etc/passwd") is None
    try:
        text = subprocess.run(
            ["readelf", "-d", os.path.realpath(sys.executable)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError:
        return
    assert all(f"[{name}]" in text for name in found.needed)


@given(cut=st.integers(4, 600), place=st.integers(0, 63), byte=st.integers(0, 255))
def test_a_broken_elf_file_is_an_error_and_no_crash(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int
) -> None:
    data = bytearray(Path(os.path.realpath(sys.executable)).read_bytes()[:4096])
    data[place] = byte
    path = tmp_path_factory.getbasetemp() / "broken-elf"
    path.write_bytes(data[:cut])
    try:
        found = elf.read(str(path))
    except elf.ElfError:
        return
    assert found is None or isinstance(found.interpreter, str)


def test_an_endless_program_header_is_an_error(tmp_path: Path) -> None:
    data = bytearray(Path(os.path.realpath(sys.executable)).read_bytes()[:4096])
    struct.pack_into("<Q", data, 32, 1 << 60)
    path = tmp_path / "elf"
    path.write_bytes(data)
    with pytest.raises(elf.ElfError):
        elf.read(str(path))


def test_an_offset_beyond_what_a_file_can_have_is_an_error(tmp_path: Path) -> None:
    """Found by the test above once: the program table's place was 2**63."""
    data = bytearray(Path(os.path.realpath(sys.executable)).read_bytes()[:4096])
    data[39] = 128
    path = tmp_path / "broken-elf"
    path.write_bytes(data)
    with pytest.raises(elf.ElfError):
        elf.read(str(path))
