"""What is in force in a run, and what is not: the statement that goes into its first entry.

Rules
- It says of each part whether it holds and by what, in plain words and plain JSON. What was asked for
  and is weaker than it could be stands in `not_in_force`, with the reason.
- It is made of the same facts as the plan, so it can't claim what the plan does not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from authority.isolation import landlock
from authority.isolation.listed import Listed
from authority.isolation.places import Mount
from authority.isolation.probe import Host
from authority.isolation.refusal import shown
from authority.isolation.runtime import Program
from authority.isolation.view import View

if TYPE_CHECKING:
    from authority.isolation.spec import SandboxSpec


def statement(
    spec: SandboxSpec,
    host: Host,
    rules: landlock.Ruleset,
    view: View,
    program: Program,
    packages: dict[str, str],
    mounts: Sequence[Mount],
    listed: Listed,
    host_ids: range,
) -> dict[str, Any]:
    """What is in force, and what is not, for the run's first entry."""
    cgroup = host.cgroup
    user_namespace = not host.root or host.user_namespaces
    absent = []
    if not user_namespace:
        absent.append("a user name space: " + host.namespace_obstacles[0][0])
    if host.root:
        ids = f"an unprivileged host user of {host_ids.start}..{host_ids.stop - 1}, one a run"
    else:
        ids = f"the caller's own host user {host.uid}, mapped"
        absent.append("a host user of its own: not started by root")
    limits: dict[str, Any] = {"memory": spec.memory, "processes": spec.processes}
    limits |= {"millicpus": spec.millicpus, "tmp_bytes_each": spec.tmp_bytes}
    for name, controller, otherwise in (
        ("memory", "memory", "a limit for each process and a watcher that kills the run"),
        ("processes", "pids", "a limit on the run's user"),
        ("millicpus", "cpu", ""),
    ):
        if limits[name] and controller in cgroup.controllers:
            limits[f"{name}_by"] = f"control group version {cgroup.version}"
        elif limits[name]:
            limits[f"{name}_by"] = otherwise or "nothing"
            absent.append(f"a control group for {name}")
    if not rules.network and not spec.loopback:
        absent.append("Landlock for TCP (seccomp refuses the sockets)")
    if not rules.scopes:
        absent.append("Landlock for signals and abstract sockets (the name spaces hold them)")
    if spec.exec_allowed:
        absent.append(
            "a bar on programs that the loader is asked to run (ld.so FILE): listed programs are "
            "limited by Landlock, which does not see that"
        )
    if any(m.executable for m in mounts) or any(b.executable for b in spec.binds):
        absent.append(
            "the list of programs: the policy names folders with execution (process.exec_from), so "
            "the list is advisory, and the run can execute whatever it writes there"
        )
    if spec.calls and mounts:
        absent += [
            "counting and bounding what is written to files: they are mediated call by call, and a "
            "file that is open is the program's to use; where file_bytes is limited none is opened "
            "for writing",
            "taking open files back: a halt, a revocation, or a secret that a file which is open may "
            "not get, ends the run at once",
        ]
    if spec.binds:
        absent.append(
            "mediation of files: they are bound plainly, so reads and writes below the bound paths "
            "are not judged, not recorded, not counted and not bounded"
        )
    namespaces = ["mount", "pid", "network", "ipc", "uts", "cgroup"]
    return {
        "isolation": "namespace",
        "kernel": host.kernel,
        "namespaces": (["user"] if user_namespace else []) + namespaces,
        "ids": ids,
        "capabilities": "none, no_new_privs",
        "seccomp": f"allow list, {host.architecture} alone",
        "landlock": {"abi": rules.abi, "tcp": rules.network, "scopes": rules.scopes},
        "execution": f"listed programs: {', '.join(map(shown, spec.exec_allowed))}"
        if spec.exec_allowed
        else "none after the first",
        "executed_with_them": listed.belonging if spec.exec_allowed else [],
        "network": _network(spec),
        "file_system": "read-only root; private /tmp, /home/agent, /dev/shm, not executable; no "
        "/sys; /proc/sys read-only",
        "mounts": [
            shown(mount.path) + (" (files may be executed)" if mount.executable else "")
            for mount in mounts
        ],
        "binds": [
            shown(bind.path) + (" (writable)" if bind.writable else "") for bind in spec.binds
        ],
        "terminal": "one of its own; no typing into it (TIOCSTI), no other can be made"
        if spec.terminal
        else "none",
        "limits": limits,
        "runtime": view.described() + [f"{shown(path)} (agent's side)" for path in packages],
        "program": shown(program.path),
        "not_in_force": absent,
    }


def _network(spec: SandboxSpec) -> str:
    if not spec.loopback:
        return "no sockets but AF_UNIX"
    return f"TCP {'and UDP ' if spec.datagrams else ''}on its own loopback"
