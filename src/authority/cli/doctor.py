"""`authority doctor`: what this machine can protect, what is missing, and how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from authority.cli.common import age, parser, print_json, state_of, table
from authority.errors import AuthorityError
from authority.gate.client import alive
from authority.isolation import probe
from authority.isolation.probe import FUSE, Host, explain, try_namespaces

Row = tuple[str, str, str, str]


def main(arguments: Sequence[str]) -> int:
    from authority.vm import condition

    made = parser("doctor", "What this machine can protect, and what is missing.")
    options = made.parse_args(arguments)
    host = probe()
    machine = condition.of(host)
    rows = _rows(host, machine)
    good = all(status != "missing" for _, status, _, _ in rows)
    rows.append(_state(options))
    if options.json:
        print_json(
            {
                "ready": good,
                "checks": [{"part": p, "status": s, "found": f, "fix": x} for p, s, f, x in rows],
                "machine": machine,
            }
        )
    else:
        table("", ("part", "status", "found", "what to do"), rows)
        print("ready: runs are contained" if good else "NOT READY: a run would be refused")
    return 0 if good else 1


def _rows(host: Host, machine: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [
        ("kernel", "ok", f"Linux {host.kernel}, {host.architecture}", ""),
        _need(
            "bubblewrap", bool(host.bwrap), host.bwrap or host.bwrap_problem,
            "apt-get install -y bubblewrap",
        ),
        _need("seccomp", host.seccomp, "filters" if host.seccomp else "none",
              "use a kernel with CONFIG_SECCOMP_FILTER"),
        _need("Landlock", host.landlock_abi >= 2, f"ABI {host.landlock_abi}",
              "use Linux 5.19 or later with landlock in the lsm= list"),
    ]  # fmt: skip
    trouble = try_namespaces(host)
    cause, fix = explain(host, trouble) if trouble else ("a sandbox started", "")
    rows.append(_need("namespaces", not trouble, cause, fix))
    cause, fix = host.fuse_problem
    problem, way = host.calls_problem
    weaker = 'or in a policy: files = "requests" or "bind" in [filesystem]'
    if cause and not problem:
        weaker = "files are mediated call by call until then"
    rows += [
        (
            "file mounts",
            "weaker" if cause else "ok",
            cause or f"FUSE through {FUSE}",
            f"{fix}; {weaker}" if cause else "",
        ),
        (
            "files call by call",
            "weaker" if problem else "ok",
            problem or "seccomp notifications, with descriptors handed in",
            f"{way}; only needed where there are no mounts" if problem else "",
        ),
    ]
    controllers = sorted(host.cgroup.controllers)
    usable = {"memory", "pids"} <= host.cgroup.controllers
    rows.append(
        (
            "cgroup limits",
            "ok" if usable else "weaker",
            f"v{host.cgroup.version}: {', '.join(controllers)}" if controllers else "none",
            "" if usable else "delegate a cgroup v2 tree; until then resource limits and a watcher",
        )
    )
    rows += _machine(machine)
    who = "root (gives up root before the program starts)" if host.root else f"uid {host.uid}"
    rows.append(("identity", "ok", who, ""))
    return rows


def _machine(said: dict[str, Any]) -> list[Row]:
    """What a run in a virtual machine needs; without it runs live in name spaces."""
    found = said["hypervisor"]
    if found is None:
        return [("hypervisor", "weaker", said["problem"], said["fix"])]
    rows: list[Row] = [("hypervisor", "ok", f"{found['path']} {found['version']}", "")]
    if said["problem"]:
        rows.append(("machine image", "weaker", said["problem"], said["fix"]))
        return rows
    rows.append(_acceleration(said["acceleration"]))
    if said["kernel"] is None:
        rows.append(("machine image", "weaker", "not built", "authority image build"))
        return rows
    images, states = said["images"], said["saved_states"]
    size = sum(image["on_disk"] for image in images) / 1e6
    kept = f"Linux {said['kernel']['version']}; {len(images)} root images, {size:.0f} MB"
    rows.append(("machine image", "ok", kept, ""))
    if not states:
        rows.append(("saved states", "ok", "none yet: the first start boots and makes one", ""))
        return rows
    last = min(states, key=lambda state: state["age"])
    size = sum(state["on_disk"] for state in states) / 1e6
    text = f"{len(states)}, {size:.0f} MB; the last was used {age(last['age'])} ago"
    if last["boot_ms"] is not None:
        text += f" ({last['hardware']}: boot {last['boot_ms'] / 1e3:.1f} s,"
        text += f" continued in {last['continue_ms']} ms)"
    rows.append(("saved states", "ok", text, ""))
    return rows


def _acceleration(said: dict[str, Any]) -> Row:
    if said["works"]:
        return "acceleration", "ok", f"KVM booted a guest in {said['boot_ms']} ms", ""
    weaker = "--isolation vm --emulate does without (slowly)"
    fix = f"{said['fix']}; {weaker}" if said["fix"] else weaker
    return "acceleration", "weaker", f"none: {said['problem']}", fix


def _need(part: str, there: bool, found: str, fix: str) -> Row:
    return part, "ok" if there else "missing", found, "" if there else fix


def _state(options: Any) -> Row:
    try:
        directory = state_of(options)
    except AuthorityError as error:
        return "state directory", "none yet", error.message, error.hint
    running = "a gate is running" if alive(directory) else "no gate is running"
    return "state directory", "ok", f"{directory.root} ({running})", ""
