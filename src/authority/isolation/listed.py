"""Programs that a run may start (`process.exec`): what may be executed for each, and what it needs.

Rules
- A name is looked up like the first program. A path to a folder stands for the programs in it. The
  name `coreutils` stands for the small programs that scripts take for granted.
- What a listed program starts by itself to do its work belongs to it: git's own helpers, the parts of a
  compiler, the shell of `make`. So does what a `#!` line names, `env` included, because there the
  kernel executes both. Each stands in the run's first entry.
- Beside its own files a listed program finds the data that programs look for: terminals, locales,
  certificates, time zones. Where a shell or a tool that builds or installs things is listed, all
  system data is shown (`/usr/lib`, `/usr/libexec`, `/usr/share`, `/usr/include` and the same below
  `/usr/local`), because nobody can say which part of it a build will need.
- A program that was listed by its name is found by that name inside: where the run's PATH does not lead
  to its folder (pyenv, a user's own folder of programs), the folder comes first in it (`folders`).
- The system's programs are never shown as a whole: in `/usr/bin` there is what the policy lists, and
  nothing else could be run through the loader either.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from authority.isolation import elf, python_runtime, runtime
from authority.isolation.places import Mount
from authority.isolation.refusal import IsolationRefused, shown
from authority.isolation.view import View, is_program

WHY: Final = "for listed programs"
_SYSTEM: Final = (
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/share",
    "/usr/include",
)
_LOCAL: Final = tuple(f"/usr/local/{name}" for name in ("lib", "libexec", "share", "include"))
_DATA: Final = (
    *("/usr/share/terminfo", "/lib/terminfo", "/etc/terminfo", "/usr/share/locale"),
    *("/usr/share/i18n", "/usr/share/misc", "/usr/share/ca-certificates", "/usr/share/perl"),
    *("/usr/share/perl5", "/usr/share/file", "/usr/share/awk", "/usr/share/bash-completion"),
)
_CERTIFICATES: Final = "/etc/ssl/certs"
_ALTERNATIVES: Final = "/etc/alternatives"
_MERGED: Final = ("/bin", "/sbin", "/lib", "/lib64")

_COREUTILS: Final = """
[ arch b2sum base32 base64 basename cat chmod cksum comm cp csplit cut date dd df dir dircolors
dirname du echo env expand expr factor false fmt fold head id install join link ln ls md5sum mkdir
mkfifo mktemp mv nice nl nproc numfmt od paste pathchk pr printenv printf ptx pwd readlink realpath
rm rmdir seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf
sum sync tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink wc
whoami yes
awk cmp diff egrep fgrep find grep gunzip gzip sed tar which xargs zcat
"""
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {"coreutils": tuple(_COREUTILS.split())}
"""Names that stand for many: the small programs that scripts take for granted."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What belongs to a program: folders to show, folders whose files may be executed, programs."""

    shows: tuple[str, ...] = ()
    executes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    system: bool = False


_SHELL: Final = Kit(system=True)
_COMPILER: Final = Kit(
    executes=("/usr/lib/gcc", "/usr/libexec/gcc", "/usr/lib/llvm"),
    programs=("as", "ld", "ar"),
    system=True,
)
_SCRIPTED: Final = Kit(programs=("node", "sh"), system=True)
_BUILD: Final = Kit(programs=("sh",), system=True)
KITS: Final[Mapping[str, Kit]] = {
    **dict.fromkeys(("sh", "bash", "dash", "zsh", "ksh", "fish"), _SHELL),
    **dict.fromkeys(("gcc", "cc", "g++", "c++", "clang", "clang++", "cpp"), _COMPILER),
    **dict.fromkeys(("npm", "npx", "yarn", "pnpm", "corepack"), _SCRIPTED),
    **dict.fromkeys(
        ("make", "cmake", "ninja", "meson", "cargo", "go", "pip", "pip3", "uv"), _BUILD
    ),
    **dict.fromkeys(("pytest", "tox", "nox", "poetry", "perl"), Kit(system=True)),
    "git": Kit(
        shows=("/usr/share/git-core",),
        executes=("/usr/lib/git-core", "/usr/libexec/git-core"),
        programs=("sh",),
    ),
}


class Listed:
    """Collects what may be executed. `executes` are files, and folders that stand for theirs."""

    def __init__(
        self, view: View, names: Iterable[str], environment: Mapping[str, str], architecture: str
    ) -> None:
        self.view = view
        self.environment = environment
        self.architecture = architecture
        self.executes: list[str] = []
        self.belonging: list[str] = []
        self.folders: list[str] = []
        self._seen: set[str] = set()
        self._programs: set[str] = set()
        names = list(names)
        for name in names:
            self._add(name)
        if names:
            self._data()

    def _add(self, name: str, *, because: str = "") -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        if os.path.isdir(name):
            self._folder(name)
            return
        members = GROUPS.get(name, ())
        for member in members:
            if self._found(member):
                self._add(member)
        if members and not self._found(name):
            return
        if because:
            if not self._found(name):
                return
            self.belonging.append(f"{shown(name)} (for {shown(because)})")
        self._program(name)
        if "/" not in name:
            self._named(name)
        self.kit(os.path.basename(name))

    def _found(self, name: str) -> bool:
        try:
            runtime.look_up(name, self.view.cwd, self._path())
        except IsolationRefused:
            return False
        return True

    def _path(self) -> str:
        return self.environment.get("PATH", runtime.DEFAULT_PATH)

    def _program(self, name: str) -> None:
        """The file and, for a script, what its first line names."""
        program = runtime.find(name, self.view.cwd, self.environment)
        if program in self._programs:
            return
        self._programs.add(program)
        words = runtime.shebang_words(program)
        if words is None:
            self.executes += runtime.show_loaded(self.view, program, self.architecture)
            if python_runtime.NAME.fullmatch(os.path.basename(os.path.realpath(program))):
                python_runtime.show(self.view, program)
            elif runtime.NODE.fullmatch(os.path.basename(os.path.realpath(program))):
                runtime.show_node(self.view, program, ())
            return
        self.view.file(program, "listed script")
        self.executes.append(os.path.realpath(program))
        for word in words:
            self._program(word)

    def _named(self, name: str) -> None:
        """Where the program lies that was listed by its name."""
        folder, found = os.path.split(runtime.find(name, self.view.cwd, self.environment))
        if found == name and folder not in self.folders:
            self.folders.append(folder)

    def kit(self, name: str) -> None:
        """What belongs to the program of this name, and is there."""
        kit = KITS.get(name)
        if kit is None:
            return
        for folder in (*kit.shows, *kit.executes):
            if os.path.isdir(folder):
                self._show(folder)
        for folder in kit.executes:
            if os.path.isdir(folder):
                self.executes.append(os.path.realpath(folder))
                self.belonging.append(f"{folder} (for {shown(name)})")
        for program in kit.programs:
            self._add(program, because=name)
        if kit.system:
            self.system()

    def system(self) -> None:
        """All data of the system, and not its programs."""
        for folder in (*_SYSTEM, *_LOCAL):
            if os.path.isdir(folder) and not os.path.islink(folder):
                self._show(folder)

    def _show(self, folder: str) -> None:
        """As a whole, also a folder that is too wide for anybody's runtime: here it was asked for."""
        real = self.view.follow(folder)
        if not self.view.covered(real):
            self.view.trees[real] = WHY

    def _folder(self, folder: str) -> None:
        """Every program in it: a folder of programs that the policy names whole."""
        self._show(folder)
        real = os.path.realpath(folder)
        self.executes.append(real)
        self.executes += self._loader()
        for entry in os.scandir(real):
            target = os.path.realpath(entry.path)
            if entry.is_symlink() and not target.startswith(real + "/") and is_program(target):
                self.view.file(entry.path, WHY)
                self.executes.append(target)
            elif python_runtime.NAME.fullmatch(entry.name):
                python_runtime.show(self.view, entry.path)
        self.system()

    def _loader(self) -> list[str]:
        found = elf.read(os.path.realpath("/proc/self/exe"))
        return [os.path.realpath(found.interpreter)] if found and found.interpreter else []

    def _data(self) -> None:
        for path in _MERGED:
            if os.path.islink(path):
                self.view.follow(path)
        for folder in (*_DATA, _CERTIFICATES, _ALTERNATIVES):
            if os.path.isdir(folder):
                self._show(folder)

    def environments(self, mounts: Iterable[Mount]) -> None:
        """Of a virtual environment that is mounted with execution: the interpreter that it leads to,
        which lies elsewhere."""
        for mount in mounts:
            folder = os.path.join(mount.outside, "bin")
            if not mount.executable or not os.path.isfile(f"{mount.outside}/pyvenv.cfg"):
                continue
            for name in ("python3", "python"):
                program = os.path.join(folder, name)
                if is_program(program):
                    self.executes += runtime.show_loaded(self.view, program, self.architecture)
                    python_runtime.show(self.view, program)
                    break
