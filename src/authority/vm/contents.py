"""What of the host a root image holds: the plan's runtime, and of the system's libraries what is used.

Rules
- In name spaces the system's library folders are shown as a whole, which costs nothing. An image
  would have to hold them: gigabytes on many machines. So of those folders it holds the libraries
  that the program, the interpreters and every compiled module of the shown packages name, those
  that they name in turn, what the plan wants executed, Python's own folders, and a few that the C
  library opens by itself. What a program opens there by name alone is missing, as it would be on a
  smaller machine.
- Where the run is shown all of the system's data (a shell or something that builds is listed) nobody
  can say what it will need: then the folders are in the image as a whole, and if that is too large
  the start is refused.
- bubblewrap is in the image beside the run's own files; it lays the run out inside, as it does on a
  host, and the run does not see it.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from typing import Final

from authority.isolation import Host, IsolationRefused, Plan, elf
from authority.isolation.plan import Runtime
from authority.isolation.refusal import shown
from authority.isolation.runtime import show_libraries, show_loaded
from authority.isolation.view import View

SYSTEM: Final = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")
_ALWAYS: Final = (
    *("/usr/lib/ssl", "/usr/lib/locale/C.utf8", "/usr/lib/*-linux-gnu/gconv"),
    *("/usr/lib/*-linux-gnu/libgcc_s.so.1", "/usr/lib/*-linux-gnu/libnss_*.so.2"),
    *("/usr/lib/*-linux-gnu/ossl-modules", "/usr/lib/*-linux-gnu/engines-3"),
    *("/usr/lib64/libgcc_s.so.1", "/usr/lib64/libnss_*.so.2", "/usr/lib64/ossl-modules"),
)
_ALL_DATA: Final = "/usr/share"
"""Shown as a whole where all of the system's data is: for a shell, a compiler, a build."""
_PYTHON: Final = re.compile(r"python(\d+(\.\d+)?)?t?")
_LIBRARY: Final = re.compile(r".*\.so(\.\d+)*")
_NODE: Final = ("/usr/lib/node_modules", "/usr/lib/nodejs")


def of(plan: Plan, host: Host) -> Runtime:
    """Folders and files of the image, and its links, without overlaps. Raises `IsolationRefused`."""
    runtime = plan.runtime
    whole = _ALL_DATA in runtime.trees
    view = View(cwd="/", home="/", root=False)
    view.links = dict(runtime.links)
    for tree in runtime.trees:
        if whole or tree not in SYSTEM:
            view.trees[tree] = ""
    view.files = dict.fromkeys(runtime.files, "")
    for _, source in runtime.packages:
        (view.trees if os.path.isdir(source) else view.files)[source] = ""
    if not whole:
        _used(view, plan, runtime)
    for program in _programs(plan, host):
        show_loaded(view, program, host.architecture)
    if not whole:
        _libraries(view, host.architecture)
    view.settle()
    links = tuple(sorted(view.links.items()))
    return Runtime(tuple(sorted(view.trees)), tuple(sorted(view.files)), links)


def _programs(plan: Plan, host: Host) -> list[str]:
    return [
        host.bwrap,
        os.path.realpath(sys.executable),
        os.fsdecode(plan.configuration["program"]),
    ]


def _used(view: View, plan: Plan, runtime: Runtime) -> None:
    """What of the system's folders is not found by following libraries."""
    system = [tree for tree in runtime.trees if tree in SYSTEM]

    def show(path: str) -> None:
        if not any(path.startswith(tree + "/") for tree in system):
            return
        if os.path.isdir(path):
            view.trees[view.follow(path)] = ""
        elif os.path.isfile(path):
            view.file(path, "")

    for pattern in _ALWAYS:
        for path in glob.glob(pattern):
            show(path)
    for path, _rights in plan.configuration["rules"]:
        show(os.fsdecode(path))
    show(os.path.realpath(sysconfig.get_path("stdlib")))
    name = os.path.basename(os.path.realpath(os.fsdecode(plan.configuration["program"])))
    if _PYTHON.fullmatch(name):
        for path in glob.glob("/usr/lib/python3*"):
            show(path)
    elif name.startswith("node"):
        for path in _NODE:
            show(path)


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
