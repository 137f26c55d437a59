"""From what a run asks for to everything that its start needs, decided before anything is started.

Rules
- A plan is made once and can start any number of runs; it starts nothing itself and changes
  nothing. What differs from start to start (host id, control group) is decided by `sandbox`.
- A part that is required and missing refuses the plan. A part that is optional (control groups)
  is named in `protection` with what stands in for it.
- `protection` goes into the run's first entry: plain JSON without floats, and it says of each part
  what is in force and what is not.
- No environment variable decides how strong a sandbox is: `landlock_abi` is a parameter, for tests.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from authority.isolation import (
    bpf,
    extra_files,
    landlock,
    layout,
    places,
    protection,
    runtime,
)
from authority.isolation.cgroups import Support
from authority.isolation.listed import Listed
from authority.isolation.places import Mount
from authority.isolation.probe import Host, require
from authority.isolation.refusal import IsolationRefused, shown
from authority.isolation.spec import SandboxSpec, check
from authority.isolation.syscalls import NUMBERS
from authority.isolation.view import View

HOST_IDS: Final = range(1_900_000_000, 2_000_000_000)
"""Host user ids for runs that root starts: above every range that is handed out (system users,
subordinate ids, containers), one for each run, in no passwd."""

_KERNEL_CALLS: Final = [
    "close_range",
    "mount",
    "umount2",
    "open_tree",
    "mount_setattr",
    "sendmsg",
    "move_mount",
    "openat2",
    "prctl",
    "capget",
    "capset",
    "unshare",
    "prlimit64",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "seccomp",
    "socket",
    "bind",
    "listen",
    "ppoll",
    "ioctl",
]
_RLIMIT_FSIZE, _RLIMIT_DATA, _RLIMIT_CORE, _RLIMIT_NPROC, _RLIMIT_NOFILE = 1, 2, 4, 6, 7
_RLIMIT_MSGQUEUE: Final = 12
_OPEN_FILES: Final = 4096


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a run is shown of the host, settled: folders and files, links with their targets, and
    what of our own package lies elsewhere inside (target, source). Where there is no host to show
    it, this is what an image has to hold."""

    trees: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    packages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `start` needs; `protection` and `missing` are for people and the log.

    `mounts` are those that will be there, in the order of their numbers (the detail of their
    streams). Who answers for them shows, beside what the policy allows, the paths of `shown` (what
    the program is made of, folders with all below them) and lets the paths of `over` be looked up:
    something is put on them before the program begins. Files have to belong to whoever asks: the
    user and group in the head of each message.
    """

    spec: SandboxSpec
    host: Host
    command: tuple[str, ...]
    configuration: Mapping[str, Any]
    cgroup: Support
    protection: dict[str, Any]
    missing: list[str]
    mounts: tuple[Mount, ...] = ()
    shown: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    runtime: Runtime = Runtime()


def _environment(spec: SandboxSpec, folders: list[str], *, package: bool) -> dict[str, str]:
    """`folders` are those of programs that were listed by their names."""
    environment = {
        "PATH": runtime.DEFAULT_PATH,
        "LANG": "C.UTF-8",
        **spec.env,
        "HOME": places.HOME,
        "TMPDIR": "/tmp",  # noqa: S108
    }
    known = environment["PATH"].split(":")
    environment["PATH"] = ":".join([*(one for one in folders if one not in known), *known])
    if spec.channel:
        environment["AUTHORITY_CHANNEL"] = layout.SOCKET
    if package:
        before = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{before}:{layout.PACKAGES}" if before else layout.PACKAGES
    return environment


def _own_package(view: View, program: runtime.Program) -> dict[str, str]:
    """Where our agent's side comes from when the program's Python is ours in another environment:
    target to source. Empty when it is there anyway, or can't be used."""
    same = os.path.basename(os.path.realpath(program.path)) == os.path.basename(
        os.path.realpath(sys.executable)
    )
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if program.kind != "python" or not same or view.covered(folder):
        return {}
    found = {}
    for name in ("__init__.py", "errors.py", "tokens.py", "protocol", "agent"):
        if os.path.exists(os.path.join(folder, name)):
            found[f"{layout.PACKAGES}/authority/{name}"] = os.path.join(folder, name)
    spec = importlib.util.find_spec("msgspec")
    if spec is not None and spec.submodule_search_locations:
        place = next(iter(spec.submodule_search_locations))
        if not view.covered(place):
            found[f"{layout.PACKAGES}/msgspec"] = place
    return found


def _show_launcher(view: View, architecture: str) -> str:
    """The interpreter that runs the launcher: this one, with its standard library."""
    real = os.path.realpath(sys.executable)
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    if not (view.covered(real) and view.covered(library)):
        runtime.show_loaded(view, real, architecture)
        view.tree(library, "launcher")
        dynamic = os.path.realpath(sysconfig.get_config_var("DESTSHARED") or library)
        if os.path.isdir(dynamic):
            view.tree(dynamic, "launcher")
    return real


def _limits(spec: SandboxSpec, cgroup: Support) -> list[tuple[int, int]]:
    limits = [(_RLIMIT_CORE, 0), (_RLIMIT_MSGQUEUE, 0), (_RLIMIT_NOFILE, _OPEN_FILES)]
    if not spec.mounts and not spec.binds:
        # The private folders have a size of their own; what is written through the gate is budgeted
        # there, and a limit on every file would be one on that too.
        limits.append((_RLIMIT_FSIZE, spec.tmp_bytes))
    if spec.processes:
        # The supervisor counts like any other process of the run's user.
        limits.append((_RLIMIT_NPROC, spec.processes + 1))
    if spec.memory and "memory" not in cgroup.controllers:
        limits.append((_RLIMIT_DATA, spec.memory))
    return limits


def plan(
    spec: SandboxSpec, host: Host, *, landlock_abi: int | None = None, own_files: bool = False
) -> Plan:
    """Decides everything about a run. Raises `IsolationRefused`.

    `own_files`: what is shown will belong to the run's user, whoever that is (in an image).

    `landlock_abi` masks the kernel's ABI down to a lower one (tests run with 2, which is what
    Debian 12's own kernel has); it can't raise it.
    """
    require(host)
    check(spec)
    abi = host.landlock_abi if landlock_abi is None else min(landlock_abi, host.landlock_abi)
    try:
        rules = landlock.ruleset(abi, loopback=spec.loopback)
    except ValueError as error:
        raise IsolationRefused(str(error)) from error
    view = View(
        cwd=spec.cwd,
        home=os.path.realpath(os.path.expanduser("~")),
        root=host.root and not own_files,
    )
    try:
        program, listed, interpreter = _show_everything(view, spec, host)
        packages = _own_package(view, program) if spec.channel else {}
    except OSError as error:
        raise IsolationRefused(f"the runtime could not be read: {shown(str(error))}") from error
    view.settle()
    view.refuse_forbidden(spec.forbidden)
    places.check_binds(spec.binds, spec.forbidden)
    mounts = _usable(spec, host, view)
    executed = [*program.executables, *listed.executes]
    split = places.split(view, mounts, executed)
    written, covers = extra_files.lay(spec.files, spec.certificates, view)
    laid = [path for path in written if any(places.inside(path, one.path) for one in mounts)]
    over = [*split.over, *(path for path in laid if not view.covered(path))]
    # A folder with execution is for running what lies there, with or without a list.
    may_start = spec.exec_allowed or _executable(spec)
    execution = bpf.Exec.LISTED if may_start else bpf.Exec.ONCE
    user_namespace = not host.root or host.user_namespaces
    placed = [*(mount.path for mount in mounts), *(bind.path for bind in spec.binds)]
    uncovered = not view.covered(spec.cwd) and not any(places.inside(spec.cwd, p) for p in placed)
    configuration = {
        "numbers": {name: NUMBERS[host.architecture][name] for name in _KERNEL_CALLS},
        "calls": layout.hidden(mounts) if spec.calls else [],
        "files": [(os.fsencode(path), content) for path, content in written.items()],
        "covers": [(os.fsencode(source), os.fsencode(path)) for source, path in covers],
        "cover_flags": layout.COVER_FLAGS,
        "no_more_namespaces": not host.root,
        "read_only": layout.read_only(spec.cwd if uncovered else ""),
        "proc_flags": layout.NOSUID | layout.NODEV | layout.NOEXEC,
        "masked": layout.MASKED,
        "remounts": [*layout.WRITABLE_REMOUNTS, *layout.bind_remounts(spec.binds)],
        "last_remounts": layout.ROOT_REMOUNT,
        "listeners": list(spec.listeners),
        "fuse": layout.DEVICE.encode() if mounts and not spec.calls else None,
        "mounts": [] if spec.calls else places.in_order(mounts, rules),
        "over": [os.fsencode(path) for path in over],
        "socket": layout.SOCKET.encode() if spec.channel else None,
        "limits": _limits(spec, host.cgroup),
        "user_namespace": user_namespace,
        "inside_id": bpf.INSIDE_ID,
        "landlock": rules.attribute,
        "rules": layout.landlock_rules(
            rules,
            view,
            executed,
            spec.cwd if uncovered else "",
            spec.binds,
            [path for path in (*spec.files, *runtime.CERTIFICATES) if path in written],
            channel=spec.channel,
            terminal=spec.terminal is not None,
            stands=[mount.path for mount in mounts] if spec.calls else [],
        ),
        "filter": bpf.build(
            host.architecture,
            execution,
            loopback=spec.loopback,
            datagrams=spec.datagrams,
            terminal=spec.terminal is not None,
            calls=bool(spec.calls and mounts),
        ),
        "terminal": layout.TERMINAL.encode() if spec.terminal else None,
        "exec_once": execution is bpf.Exec.ONCE,
        "program": os.fsencode(program.path),
        "argv": [os.fsencode(word) for word in program.arguments],
        "env": {
            os.fsencode(name): os.fsencode(value)
            for name, value in _environment(spec, listed.folders, package=bool(packages)).items()
        },
        "cwd": os.fsencode(spec.cwd),
    }
    arguments = layout.bubblewrap(
        view,
        host,
        spec.tmp_bytes,
        cwd=spec.cwd if uncovered else "",
        packages=packages,
        mounts=mounts,
        calls=spec.calls,
        binds=spec.binds,
        files=written,
        terminal=spec.terminal is not None,
    )
    return Plan(
        spec=spec,
        host=host,
        command=(host.bwrap, *arguments, "--", interpreter, "-I", "-S", "-B", "-c"),
        configuration=MappingProxyType(configuration),
        cgroup=host.cgroup,
        protection=protection.statement(
            spec, host, rules, view, program, packages, mounts, listed, HOST_IDS
        ),
        missing=list(view.missing),
        mounts=tuple(mounts),
        shown=tuple(split.shown),
        over=tuple(over),
        runtime=Runtime(
            tuple(sorted(view.trees)),
            tuple(sorted(view.files)),
            tuple(sorted(view.links.items())),
            tuple(sorted(packages.items())),
        ),
    )


def _executable(spec: SandboxSpec) -> bool:
    return any(m.executable for m in spec.mounts) or any(b.executable for b in spec.binds)


def _usable(spec: SandboxSpec, host: Host, view: View) -> list[Mount]:
    mounts = places.usable(spec.mounts, view)
    cause, fix = host.calls_problem if spec.calls else host.fuse_problem
    if mounts and cause:
        raise IsolationRefused(f"the policy's files can't be mounted: {cause}", fix)
    if spec.calls and any(mount.executable for mount in mounts):
        raise IsolationRefused(
            "files that are mediated call by call can't be executed (process.exec_from)",
            'files = "mount" can, where /dev/fuse is',
        )
    return mounts


def _show_everything(
    view: View, spec: SandboxSpec, host: Host
) -> tuple[runtime.Program, Listed, str]:
    runtime.show_system(view)
    if spec.terminal:
        runtime.show_terminals(view)
    environment = dict(spec.env)
    if spec.search_path:
        environment["PATH"] = spec.search_path
    program = runtime.resolve(view, spec.argv, environment, host.architecture)
    listed = Listed(view, spec.exec_allowed, environment, host.architecture)
    listed.kit(os.path.basename(spec.argv[0]))
    listed.environments(spec.mounts)
    for path in spec.read_only:
        whole = os.path.isdir(path)
        if not (view.tree(path, "asked for") if whole else view.file(path, "asked for")):
            raise IsolationRefused(f"{shown(path)} can't be shown: {view.missing[-1]}")
    return program, listed, _show_launcher(view, host.architecture)
