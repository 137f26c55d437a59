"""What of the host a root image holds: the plan's runtime, and of the system's folders what is used.

Rules
- In name spaces the system's library folders are shown as a whole, which costs nothing. An image
  would have to hold them: gigabytes on many machines. So of those folders it holds the libraries
  that the program, the interpreters and every compiled module of the shown packages name, those
  that they name in turn, what the plan wants executed, the folders of the languages, and a few that
  the C library opens by itself. What a program opens there by name alone is missing, as it would be
  on a smaller machine.
- Where the run is shown all of the system's data (a shell or something that builds is listed), or
  parts of it (anything is listed), the image holds of it what the packages of the listed programs
  need (`installed`). Where no packages are recorded it holds all of that, and if that is too large
  the start is refused.
- A folder that the plan shows is there, if empty. bubblewrap is in the image beside the run's own
  files; it lays the run out inside, as it does on a host, and the run does not see it.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from authority.isolation import Host, IsolationRefused, Plan, elf, landlock
from authority.isolation.plan import Runtime
from authority.isolation.refusal import shown
from authority.isolation.runtime import certificate_bundles, show_libraries, show_loaded
from authority.isolation.view import View
from authority.vm import installed

LIBRARIES: Final = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")
DATA: Final = (
    *("/usr/libexec", "/usr/share", "/usr/include", "/usr/share/i18n", "/usr/share/locale"),
    *("/usr/share/misc", "/usr/share/perl", "/usr/share/perl5", "/usr/share/file"),
    *("/usr/share/awk", "/usr/share/bash-completion"),
)
"""Shown for whoever may need them, and not because a program is known to."""
_ALWAYS: Final = (
    *("/usr/lib/ssl", "/usr/lib/locale/C.utf8", "/usr/lib/*-linux-gnu/gconv"),
    *("/usr/lib/*-linux-gnu/libgcc_s.so.1", "/usr/lib/*-linux-gnu/libnss_*.so.2"),
    *("/usr/lib/*-linux-gnu/ossl-modules", "/usr/lib/*-linux-gnu/engines-3"),
    *("/usr/lib64/libgcc_s.so.1", "/usr/lib64/libnss_*.so.2", "/usr/lib64/ossl-modules"),
    *("/usr/share/zoneinfo", "/usr/share/terminfo", "/usr/lib/terminfo"),
    "/usr/share/ca-certificates",
)
_ALL_DATA: Final = "/usr/share"
"""Shown as a whole where all of the system's data is: for a shell, a compiler, a build."""
_LIBRARY: Final = re.compile(r".*\.so(\.\d+)*")
_LANGUAGES: Final = (
    (re.compile(r"python(\d+(\.\d+)?)?t?"), ("/usr/lib/python3*", "/usr/local/lib/python3*")),
    (re.compile(r"node(js)?"), ("/usr/lib/node_modules", "/usr/lib/nodejs", "/usr/share/nodejs")),
    (re.compile(r"perl(5[\d.]*)?"), ("/usr/share/perl5", "/usr/lib/*-linux-gnu/perl5")),
)
"""Interpreters, and the folders that they find modules in, whoever installed those."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Folders and files of an image, its links, and folders that are there and perhaps empty."""

    trees: tuple[str, ...]
    files: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]


def of(plan: Plan, host: Host) -> Contents:
    """What an image for this plan holds, without overlaps. Raises `IsolationRefused`, `OSError`."""
    runtime = plan.runtime
    whole = _ALL_DATA in runtime.trees
    system = [tree for tree in runtime.trees if tree in LIBRARIES or tree in DATA]
    view = View(cwd="/", home="/", root=False)
    view.links = dict(runtime.links)
    view.trees = dict.fromkeys((tree for tree in runtime.trees if tree not in system), "")
    view.files = dict.fromkeys(runtime.files, "")
    for _, source in runtime.packages:
        (view.trees if os.path.isdir(source) else view.files)[source] = ""
    executed = _executed(plan)
    _used(view, plan, system, executed)
    for program in (host.bwrap, os.path.realpath(sys.executable), _program(plan)):
        show_loaded(view, program, host.architecture)
    _libraries(view, host.architecture)
    _needed(view, [tree for tree in system if whole or tree in DATA], executed)
    for bundle in _bundles(runtime):
        view.file(bundle, "")
    view.settle()
    return Contents(
        tuple(sorted(view.trees)),
        tuple(sorted(view.files)),
        tuple(sorted(view.links.items())),
        tuple(sorted(runtime.trees)),
    )


def _bundles(runtime: Runtime) -> list[str]:
    """Files of trusted certificates. A run with a proxy has its own put over each that it would see in
    name spaces, whatever the program, so they have to be there."""
    seen = View(cwd="/", home="/", root=False)
    seen.trees, seen.files = dict.fromkeys(runtime.trees, ""), dict.fromkeys(runtime.files, "")
    return certificate_bundles(seen)


def _program(plan: Plan) -> str:
    return os.fsdecode(plan.configuration["program"])


def _executed(plan: Plan) -> list[str]:
    """The files that may be executed, and the folders whose files may be."""
    rules = plan.configuration["rules"]
    listed = [os.fsdecode(path) for path, rights in rules if rights & landlock.EXECUTE]
    return [os.path.realpath(path) for path in (_program(plan), *listed)]


def _used(view: View, plan: Plan, system: list[str], executed: list[str]) -> None:
    """What of the system's folders is not found by following libraries or packages."""

    def show(path: str) -> None:
        if not any(path.startswith(tree + "/") for tree in system):
            return
        if os.path.isdir(path):
            view.trees[view.follow(path)] = ""
        elif os.path.isfile(path):
            view.file(path, "")

    patterns = [*_ALWAYS]
    for name in {os.path.basename(path) for path in executed}:
        for interpreter, folders in _LANGUAGES:
            if interpreter.fullmatch(name):
                patterns += folders
    for pattern in patterns:
        for path in glob.glob(pattern):
            show(path)
    for path, _rights in plan.configuration["rules"]:
        if os.fsdecode(path) not in system:
            show(os.fsdecode(path))
    show(os.path.realpath(sysconfig.get_path("stdlib")))


def _needed(view: View, folders: list[str], executed: list[str]) -> None:
    """Of folders that are shown for whoever may need them, what these programs need."""
    if not folders:
        return
    selection = installed.select(folders, executed, view.files)
    if selection is None:
        view.trees.update(dict.fromkeys(folders, ""))
        return
    view.trees.update(dict.fromkeys(selection.trees, ""))
    view.files.update(dict.fromkeys(selection.files, ""))
    for path, target in selection.links:
        view.links.setdefault(path, target)


def _libraries(view: View, architecture: str) -> None:
    """The libraries that compiled modules name, wherever in the shown folders they lie."""
    seen: set[str] = set()
    for module in [*view.files, *_modules(list(view.trees))]:
        try:
            found = elf.read(module)
        except (elf.ElfError, OSError, ValueError):
            continue  # no library of ours: a test file, or one for another system
        if found is None or found.machine != elf.machine_number(architecture):
            continue
        if not set(found.needed) <= seen:
            seen.update(found.needed)
            _show_needed(view, found, module)


def _show_needed(view: View, found: elf.Elf, module: str) -> None:
    try:
        show_libraries(view, found)
    except (elf.ElfError, OSError) as error:
        raise IsolationRefused(f"{shown(module)}: {shown(str(error))}") from error


def _modules(trees: Iterable[str]) -> Iterator[str]:
    for tree in trees:
        for folder, _, names in os.walk(tree):
            for name in names:
                if _LIBRARY.fullmatch(name):
                    yield os.path.join(folder, name)
