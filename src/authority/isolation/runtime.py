"""From a command line to the files that it needs: the program, its interpreter, its libraries.

Rules
- A name without a slash is looked up in the caller's PATH; nothing is run to find anything out.
- A script's `#!` line is followed here (also through `env`), at most four times, so what is executed
  is always an ELF file: the run can execute once.
- pyenv's shims are shell scripts that would start two more programs; they are resolved here from
  `PYENV_VERSION`, `.python-version` files and the global version, as pyenv does.
- System libraries are shown as the system's library folders, read-only; programs are not: of `bin`
  folders only the program itself is there. A library elsewhere is shown by RPATH and RUNPATH.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from authority.isolation import elf, python_runtime
from authority.isolation.refusal import IsolationRefused, shown
from authority.isolation.view import View, is_program

_LIBRARY_FOLDERS: Final = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
_TERMINALS: Final = ("/usr/share/terminfo", "/usr/lib/terminfo", "/lib/terminfo", "/etc/terminfo")
_LOCAL_LIBRARIES: Final = "/usr/local/lib"
_NODE_LIBRARY: Final = "/usr/share/nodejs"
CERTIFICATES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
_PACKAGES: Final = ("", "site-packages/", "dist-packages/", "python3/dist-packages/")
_BUNDLES: Final = ("certifi/cacert.pem", "pip/_vendor/certifi/cacert.pem")
_FEW: Final = 8
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_SHEBANG_BYTES: Final = 512
_MAX_SHEBANGS: Final = 4
NODE: Final = re.compile(r"node(js)?")
_NODE_ENDINGS: Final = (".js", ".mjs", ".cjs")
_NODE_OPTIONS_WITH_VALUE: Final = frozenset(["-r", "--require", "--import", "-C", "--conditions"])


@dataclass(frozen=True, slots=True)
class Program:
    """What to execute: an absolute path, the arguments (the first is the name), and the files that
    the kernel opens for execution (the program and its ELF interpreter)."""

    path: str
    arguments: tuple[str, ...]
    executables: tuple[str, ...]
    kind: str


def certificate_bundles(view: View) -> list[str]:
    """Files of trusted certificates that the run will see: the system's, and those that Python's
    packages bring along (certifi, alone and inside pip)."""
    found = {path for path in CERTIFICATES if path in view.files or view.covered(path)}
    found |= {path for path in view.files if path.endswith("/certifi/cacert.pem")}
    for tree in view.trees:
        pythons = [f"{name}/site-packages/" for name in _pythons(tree)]
        pythons += [f"lib/{name}/site-packages/" for name in _pythons(f"{tree}/lib")]
        for packages in (*_PACKAGES, *pythons):
            found.update(f"{tree}/{packages}{bundle}" for bundle in _BUNDLES)
    return sorted(path for path in found if os.path.isfile(path) and os.path.realpath(path) == path)


def _pythons(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith("python3")]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def show_system(view: View) -> None:
    """The system's libraries, time zones and CA certificates."""
    for folder in _LIBRARY_FOLDERS:
        if os.path.isdir(folder) and not view.covered(os.path.realpath(folder)):
            real = view.follow(folder)
            links = _links_alone(real)
            if links:
                view.links.update(links)
            else:
                view.trees[real] = "system"
    for path in CERTIFICATES:
        if os.path.isfile(path):
            view.file(path, "CA certificates")
    if os.path.isdir(_LOCAL_LIBRARIES) and any(
        ".so" in name for name in os.listdir(_LOCAL_LIBRARIES)
    ):
        view.trees[view.follow(_LOCAL_LIBRARIES)] = "system"


def show_terminals(view: View) -> None:
    """What terminals can do, for programs that draw on one."""
    for folder in _TERMINALS:
        if os.path.isdir(folder) and not view.covered(os.path.realpath(folder)):
            view.tree(folder, "terminals")


def _links_alone(folder: str) -> dict[str, str]:
    """The entries of a folder that holds a few links and nothing else (`/usr/lib64` on Debian):
    rebuilding them costs less than a mount."""
    entries = list(os.scandir(folder))
    if len(entries) > _FEW or not all(entry.is_symlink() for entry in entries):
        return {}
    return {entry.path: os.readlink(entry.path) for entry in entries}


def look_up(name: str, cwd: str, path: str) -> str:
    """The program behind a command's first word. Raises `IsolationRefused`."""
    if "/" in name:
        found = os.path.normpath(os.path.join(cwd, name))
        if not is_program(found):
            raise IsolationRefused(
                f"{shown(name)} is no program", "check the path and its execute permission"
            )
        return found
    for folder in path.split(":"):
        found = os.path.join(folder, name)
        if os.path.isabs(folder) and is_program(found):
            return os.path.normpath(found)
    raise IsolationRefused(f"{shown(name)} was not found", "give its path, or install it")


def _pyenv(shim: str, cwd: str, environment: Mapping[str, str]) -> str:
    """The program behind a pyenv shim, or the path itself when it is none."""
    folder, name = os.path.split(shim)
    versions = os.path.join(os.path.dirname(folder), "versions")
    if os.path.basename(folder) != "shims" or not os.path.isdir(versions):
        return shim
    wanted = environment.get("PYENV_VERSION", "")
    place = cwd
    while not wanted:
        file = os.path.join(place, ".python-version")
        if os.path.isfile(file):
            with open(file, encoding="utf-8", errors="replace") as source:
                wanted = source.read(4096)
        if place == "/":
            break
        place = os.path.dirname(place)
    file = os.path.join(os.path.dirname(folder), "version")
    if not wanted and os.path.isfile(file):
        with open(file, encoding="utf-8", errors="replace") as source:
            wanted = source.read(4096)
    installed = sorted(os.listdir(versions), key=_version_key, reverse=True)
    for version in re.split(r"[\s:]+", wanted.strip()):
        for candidate in installed:
            if version and (candidate == version or candidate.startswith(version + ".")):
                program = os.path.join(versions, candidate, "bin", name)
                if is_program(program):
                    return program
    path = environment.get("PATH", DEFAULT_PATH).split(":")
    try:
        return look_up(name, cwd, ":".join(one for one in path if os.path.normpath(one) != folder))
    except IsolationRefused as error:
        raise IsolationRefused(
            f"pyenv has no version with {shown(name)} selected here",
            "set one with `pyenv local`, or give the interpreter's path",
        ) from error


def _version_key(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name))


def _shebang(path: str) -> list[str] | None:
    with open(path, "rb") as file:
        first = file.read(_SHEBANG_BYTES).split(b"\n", 1)[0]
    if not first.startswith(b"#!"):
        return None
    words = os.fsdecode(first[2:]).strip().split(None, 1)
    if not words:
        raise IsolationRefused(f"{shown(path)} begins with an empty #! line")
    if os.path.basename(words[0]) != "env":
        return words
    rest = words[1].split() if len(words) > 1 else []
    if rest[:1] == ["-S"]:
        rest = rest[1:]
    if not rest or rest[0].startswith("-") or "=" in rest[0]:
        raise IsolationRefused(f"the #! line of {shown(path)} is not understood")
    return rest


def resolve(
    view: View, argv: Sequence[str], environment: Mapping[str, str], architecture: str
) -> Program:
    """Finds the program, shows what it needs, and says what to execute."""
    if not argv or not argv[0]:
        raise IsolationRefused("there is no program to run")
    words = list(argv)
    program = find(words[0], view.cwd, environment)
    for _ in range(_MAX_SHEBANGS):
        line = _shebang(program)
        if line is None:
            break
        view.file(program, "the program")
        words = [*line, program, *words[1:]]
        program = find(line[0], view.cwd, environment)
    executables = _show_elf(view, program, architecture)
    name = os.path.basename(os.path.realpath(program))
    kind = "program"
    if python_runtime.NAME.fullmatch(name) or python_runtime.environment_of(program):
        kind = "python"
        python_runtime.show(view, program)
        python_runtime.show_program(view, words[1:])
    elif NODE.fullmatch(name):
        kind = "node"
        show_node(view, program, words[1:])
    # An interpreter finds its libraries by its own name; inside, a name without a slash would be looked
    # up anew, in another PATH.
    called = words[0] if "/" in words[0] else program
    return Program(program, (called, *words[1:]), executables, kind)


def find(name: str, cwd: str, environment: Mapping[str, str]) -> str:
    """The program behind a name: looked up in PATH, behind pyenv's shims. `IsolationRefused`."""
    path = environment.get("PATH", DEFAULT_PATH)
    return _pyenv(look_up(name, cwd, path), cwd, environment)


def shebang_words(path: str) -> list[str] | None:
    """What the kernel executes for a script, in turn: the interpreter, or `env` and what it starts.
    None for what is no script."""
    with open(path, "rb") as file:
        first = file.read(_SHEBANG_BYTES).split(b"\n", 1)[0]
    line = _shebang(path)
    if line is None:
        return None
    named = os.fsdecode(first[2:]).strip().split()[0]
    return [named] if named == line[0] else [named, line[0]]


def show_loaded(view: View, program: str, architecture: str) -> tuple[str, ...]:
    """Shows a program file with its loader and libraries, and nothing that belongs to it; the files
    that the kernel executes."""
    return _show_elf(view, program, architecture)


def show_libraries(view: View, found: elf.Elf) -> None:
    """Shows the libraries that a file names, and those that they name in turn."""
    _show_libraries(view, found, set())


def _show_elf(view: View, program: str, architecture: str) -> tuple[str, ...]:
    """The program file, its ELF interpreter and libraries; the files that the kernel executes."""
    try:
        found = elf.read(program)
    except (elf.ElfError, OSError) as error:
        raise IsolationRefused(f"{shown(program)}: {shown(str(error))}") from error
    if found is None:
        raise IsolationRefused(
            f"{shown(program)} is neither an ELF program nor a script with a #! line",
            "start it through its interpreter",
        )
    if found.machine != elf.machine_number(architecture):
        raise IsolationRefused(f"{shown(program)} was built for another architecture")
    view.file(program, "the program")
    real = os.path.realpath(program)
    if view.root and not os.stat(real).st_mode & 0o001:
        raise IsolationRefused(
            f"{shown(real)} can't be executed by the run's user", f"chmod o+rx {shown(real)}"
        )
    executables = [real]
    if found.interpreter:
        executables.append(os.path.realpath(found.interpreter))
        view.file(found.interpreter, "loader")
    _show_libraries(view, found, set())
    return tuple(executables)


def _show_libraries(view: View, found: elf.Elf, seen: set[str]) -> None:
    for name in found.needed:
        if name in seen:
            continue
        seen.add(name)
        places = [os.path.join(folder, name) for folder in (*found.search, *_system_places())]
        library = next((place for place in places if os.path.isfile(place)), "")
        if not library:
            view.missing.append(f"the library {shown(name)} was not found")
        elif not view.covered(os.path.realpath(library)):
            view.file(library, "library")
            below = elf.read(library)
            if below is not None:
                _show_libraries(view, below, seen)


def _system_places() -> list[str]:
    places = ["/usr/lib64", "/usr/lib", "/lib64", "/lib", "/usr/local/lib"]
    machine = os.uname().machine
    return [f"{base}/{machine}-linux-gnu" for base in ("/usr/lib", "/usr/local/lib")] + places


def show_node(view: View, program: str, arguments: Sequence[str]) -> None:
    """Node's own modules (`PREFIX/lib`), the script, the modules beside it, `node_modules` above."""
    prefix = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    modules = os.path.join(prefix, "lib", "node_modules")
    if os.path.isdir(modules) and not view.covered(modules):
        view.tree(modules, "Node modules")
    if prefix == "/usr" and os.path.isdir(_NODE_LIBRARY):
        view.tree(_NODE_LIBRARY, "Node modules")
    place = 0
    while place < len(arguments) and arguments[place].startswith("-"):
        if arguments[place] in ("-e", "--eval", "-p", "--print"):
            return
        place += 2 if arguments[place] in _NODE_OPTIONS_WITH_VALUE else 1
    if place >= len(arguments):
        return
    script = os.path.normpath(os.path.join(view.cwd, arguments[place]))
    if not view.file(script, "the program"):
        return
    folder = os.path.dirname(os.path.realpath(script))
    view.modules_of(folder, _NODE_ENDINGS, "package.json", "the program's modules")
    while True:
        for name in ("package.json", "node_modules"):
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                view.tree(path, "Node modules")
            elif os.path.isfile(path):
                view.file(path, "the program's package")
        if folder in ("/", view.home):
            return
        folder = os.path.dirname(folder)
