"""What a Python program needs: interpreter, library, virtual environment, and its own modules.

Found by reading files, never by running the interpreter: a virtual environment may lie in a
workspace that an agent could write.

Rules
- The interpreter is followed through its links; `pyvenv.cfg` beside it, or one folder up, makes it
  a virtual environment, whose whole folder is shown; `home` there names the base installation.
- Of a base installation outside the system's own folders its prefix is shown (pyenv, uv and conda
  keep each in a folder of its own), or, when the prefix is too wide (an interpreter in `~/bin`),
  only `lib/pythonX.Y` and the shared `libpython`.
- `.pth` files and the finders of editable installs are read: of a folder that they name, the modules
  are shown. Links out of `site-packages` are followed.
- Of the program itself: the script, and the modules in its folder; with `-m`, those in the working
  folder. A folder or archive with a `__main__` is shown whole.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from typing import Final

from authority.isolation.refusal import shown
from authority.isolation.view import View

NAME: Final = re.compile(r"python(\d+(\.\d+)?)?t?")
_LIBRARY: Final = re.compile(r"python\d+\.\d+t?")
_ENDINGS: Final = (".py", ".so")
_PACKAGE: Final = "__init__.py"
_OPTIONS_WITH_VALUE: Final = frozenset("WXQ")
_LONG_WITH_VALUE: Final = frozenset({"--check-hash-based-pycs"})
_MAX_PTH_BYTES: Final = 1 << 20


def show(view: View, program: str) -> None:
    """Shows the installation behind the interpreter `program` (an absolute path)."""
    real = os.path.realpath(program)
    bases = [os.path.dirname(os.path.dirname(real))]
    environment = environment_of(program)
    if environment:
        view.tree(environment, "virtual environment")
        home = _home_of(environment)
        if home:
            bases.insert(0, os.path.dirname(home))
        for site in _libraries(environment, "site-packages"):
            _show_site(view, site)
    for base in dict.fromkeys(os.path.realpath(base) for base in bases):
        _show_base(view, base, real)


def environment_of(program: str) -> str:
    """The virtual environment that an interpreter's path lies in, or nothing."""
    folder = os.path.dirname(program)
    for place in (folder, os.path.dirname(folder)):
        if os.path.isfile(os.path.join(place, "pyvenv.cfg")):
            return place
    return ""


def _home_of(environment: str) -> str:
    with open(os.path.join(environment, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition("=")
            if key.strip().lower() == "home":
                return value.strip()
    return ""


def _libraries(prefix: str, *below: str) -> list[str]:
    found = []
    for lib in ("lib", "lib64"):
        folder = os.path.join(prefix, lib)
        if os.path.isdir(folder) and not os.path.islink(folder):
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name, *below)
                if _LIBRARY.fullmatch(name) and os.path.isdir(path):
                    found.append(path)
    return found


def _show_base(view: View, prefix: str, real: str) -> None:
    libraries = [path for path in _libraries(prefix) if os.path.isfile(os.path.join(path, "os.py"))]
    if not libraries:
        view.missing.append(f"no Python library was found below {shown(prefix)}")
        return
    if prefix == "/usr":
        for local in _libraries("/usr/local"):
            view.tree(local, "Python library")
    elif view.too_wide(prefix):
        for library in libraries:
            view.tree(library, "Python library")
        folder = os.path.join(prefix, "lib")
        for name in sorted(os.listdir(folder)):
            if name.startswith("libpython"):
                view.file(os.path.join(folder, name), "Python library")
    else:
        view.tree(prefix, "Python installation")
    if not view.covered(real):
        view.file(real, "interpreter")
    for library in libraries:
        for name in ("site-packages", "dist-packages"):
            if os.path.isdir(os.path.join(library, name)):
                _show_site(view, os.path.join(library, name))


def _show_site(view: View, site: str) -> None:
    """What a `site-packages` folder leads to: `.pth` lines, editable finders, links."""
    for entry in sorted(os.scandir(site), key=lambda entry: entry.name):
        if entry.is_symlink():
            real = os.path.realpath(entry.path)
            if os.path.isdir(real):
                view.tree(real, "linked package")
            elif os.path.isfile(real):
                view.file(real, "linked module")
            else:
                view.missing.append(f"{shown(entry.path)} leads nowhere")
        elif entry.name.endswith(".pth"):
            _show_pth(view, site, entry.path)
        elif entry.name.startswith("__editable__") and entry.name.endswith("_finder.py"):
            _show_finder(view, entry.path)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_PTH_BYTES)


def _show_pth(view: View, site: str, path: str) -> None:
    for line in _text(path).splitlines():
        name = line.strip()
        if not name or name.startswith(("#", "import ", "import\t")):
            continue
        folder = os.path.normpath(os.path.join(site, name))
        if view.covered(os.path.realpath(folder)):
            continue
        if os.path.isdir(folder):
            view.modules_of(folder, _ENDINGS, _PACKAGE, "named in a .pth file")
        else:
            view.missing.append(f"{shown(folder)}, named in {shown(path)}, is not there")


def _show_finder(view: View, path: str) -> None:
    """Setuptools writes `MAPPING = {'package': '/its/folder'}` into the finder's source."""
    try:
        module = ast.parse(_text(path))
    except (SyntaxError, ValueError):
        view.missing.append(f"{shown(path)} can't be read")
        return
    for node in module.body:
        target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if not (isinstance(target, ast.Name) and target.id == "MAPPING"):
            continue
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        try:
            mapping = ast.literal_eval(node.value) if node.value else {}
        except ValueError:
            mapping = None
        if not isinstance(mapping, dict):
            view.missing.append(f"{shown(path)} names its packages in a way that is not known")
            return
        for place in mapping.values():
            if os.path.isdir(place):
                view.tree(place, "editable install")
            elif os.path.isfile(f"{place}.py"):
                view.file(f"{place}.py", "editable install")
            else:
                view.missing.append(f"{shown(str(place))}, named in {shown(path)}, is not there")


def show_program(view: View, arguments: Sequence[str]) -> None:
    """Shows what the interpreter is told to run; `arguments` are those behind the interpreter."""
    kind, what = entry(arguments)
    if kind == "module":
        if not view.covered(view.cwd):
            view.modules_of(view.cwd, _ENDINGS, _PACKAGE, "the program's modules")
    elif kind == "script":
        path = os.path.normpath(os.path.join(view.cwd, what))
        if os.path.isdir(path):
            view.tree(path, "the program")
        elif view.file(path, "the program"):
            folder = os.path.dirname(os.path.realpath(path))
            if path.endswith((".py", ".pyw")) and not view.covered(folder):
                view.modules_of(folder, _ENDINGS, _PACKAGE, "the program's modules")


def entry(arguments: Sequence[str]) -> tuple[str, str]:
    """('script', path), ('module', name), ('code', '') or ('', '') for an interactive start."""
    place = 0
    while place < len(arguments):
        word = arguments[place]
        place += 1
        if word in _LONG_WITH_VALUE:
            place += 1
        elif word == "-":
            return "", ""
        elif word == "--":
            return ("script", arguments[place]) if place < len(arguments) else ("", "")
        elif word.startswith("--"):
            continue
        elif word.startswith("-"):
            for at, letter in enumerate(word[1:], 2):
                if letter == "c":
                    return "code", ""
                if letter == "m":
                    rest = word[at:] or (arguments[place] if place < len(arguments) else "")
                    return "module", rest
                if letter in _OPTIONS_WITH_VALUE:
                    place += not word[at:]
                    break
        else:
            return "script", word
    return "", ""
