"""From what a run asks for to a machine that can be started: kernel, images, hardware, one statement.

Rules
- The run is planned as on a host, for the host that it will find: the guest's kernel. So inside it
  has the same layers, and its root image holds what the plan shows.
- Files reach a machine through the gate or not at all: plain binds are refused, there is no shared
  folder.
- Acceleration by KVM is used only where a small machine has booted with it (`acceleration`).
  Emulation is for who asked for it by name, with a warning in the statement.
- Every digest stands in the statement, and so in the run's first entry. The bytes that boot are
  copied and compared here (`cache`).
- Two steps: `images` finds or builds what a run like this boots and may take long; `prepare` makes
  the machine for one run, quickly, and refuses when the images do not hold all that it is shown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from authority.isolation import Host, IsolationRefused, Plan, SandboxSpec, plan
from authority.isolation.cgroups import NONE
from authority.isolation.plan import Runtime
from authority.isolation.probe import require
from authority.vm import (
    acceleration,
    architectures,
    cache,
    hardware,
    hypervisor,
    kernel,
    root,
    steps,
)
from authority.vm.architectures import Architecture
from authority.vm.cache import Held
from authority.vm.hardware import Hardware
from authority.vm.kernel import Base

if TYPE_CHECKING:
    from authority.vm.template import Template

EMULATED: Final = (
    "the machine is emulated, not accelerated: about ten times slower, and emulation is outside what "
    "QEMU's developers promise about its security"
)
_LANDLOCK: Final = (((6, 12), 6), ((6, 10), 5), ((6, 7), 4), ((6, 2), 3), ((5, 19), 2))
_one_at_a_time: Final = threading.Lock()
_line: Final = steps.Line()
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Images:
    """What a machine boots, in sealed memory. `runtime` is what the root image was made to show."""

    base: Base
    kernel: Held
    initramfs: Held
    root: Held
    runtime: Runtime
    accelerated: bool
    template: Template | None = None
    no_template: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A machine that can be started, any number of times. `host` is the one that QEMU runs on."""

    plan: Plan
    host: Host
    hardware: Hardware
    images: Images


def guest(host: Host, base: Base) -> Host:
    """What a run inside finds: the guest's kernel, root without limits but the machine's own."""
    numbers = tuple(int(part) for part in base.version.split("-")[0].split(".")[:2])
    return dataclasses.replace(
        host,
        kernel=base.version,
        landlock_abi=next((abi for least, abi in _LANDLOCK if numbers >= least), 0),
        seccomp=True,
        user_namespaces=True,
        namespace_obstacles=(),
        cgroup=NONE,
        uid=0,
        gid=0,
        sys_admin=True,
        fuse_problem=("", ""),
    )


def images(
    spec: SandboxSpec, host: Host, *, emulate: bool, tell: steps.Tell = steps.nobody
) -> Images:
    """What a run like this boots: found, or built now. Raises `IsolationRefused`: with the cause, and
    what to do about it. Blocks, perhaps for minutes: it belongs on a thread, where it tells what it
    has to make."""
    _check(spec)
    with _line.turn(_one_at_a_time, tell) as told:
        architecture = architectures.of(host.architecture)
        hypervisor.find(architecture)
        # The hypervisor's jail is made of name spaces, and so is what builds images.
        require(host)
        # What can be seen is seen before anything is fetched for it.
        if not emulate and (seen := acceleration.obstacle()):
            raise _not_accelerated(seen)
        for _ in range(_TRIES - 1):
            with contextlib.suppress(cache.Replaced):  # others build and prune meanwhile
                return _images(spec, host, architecture, emulate=emulate, tell=told)
        return _images(spec, host, architecture, emulate=emulate, tell=told)


def _images(
    spec: SandboxSpec, host: Host, architecture: Architecture, *, emulate: bool, tell: steps.Tell
) -> Images:
    base = kernel.build(architecture, tell=tell)
    if not emulate:
        answer = acceleration.works(host, architecture, base, tell=tell)
        if not answer.works:
            raise _not_accelerated(answer)
    planned = plan(spec, guest(host, base), own_files=not host.root)
    image = root.ready(planned, host, tell)
    return Images(
        base,
        cache.load(base.kernel),
        cache.load(base.initramfs),
        cache.load(image),
        planned.runtime,
        not emulate,
    )


def _not_accelerated(answer: acceleration.Answer) -> IsolationRefused:
    ways = "--emulate runs the machine without it, slowly; --isolation namespace runs without a machine"
    return IsolationRefused(
        f"there is no working acceleration here: {answer.problem}",
        f"{answer.fix}; or {ways}" if answer.fix else ways,
    )


def prepare(spec: SandboxSpec, host: Host, found: Images) -> Prepared:
    """A machine for exactly this run, from images that were made for one like it. Reads no image."""
    _check(spec)
    planned = plan(spec, guest(host, found.base), own_files=not host.root)
    shown_now, there = planned.runtime, found.runtime
    if not (
        set(shown_now.trees) <= set(there.trees)
        and set(shown_now.files) <= set(there.files)
        and set(shown_now.links) <= set(there.links)
        and set(shown_now.packages) <= set(there.packages)
    ):
        raise IsolationRefused("the program changed while its image was made", "start it again")
    made = hardware.of(spec, architectures.of(host.architecture), accelerated=found.accelerated)
    statement = _statement(planned, host, made, found)
    return Prepared(dataclasses.replace(planned, protection=statement), host, made, found)


def _check(spec: SandboxSpec) -> None:
    if spec.binds:
        raise IsolationRefused(
            "a machine has no shared folder, and the policy's files are to be bound plainly",
            'files = "mount" in [filesystem], or --isolation namespace',
        )
    if spec.calls:
        raise IsolationRefused(
            "files call by call need a kernel that both sides share, and a machine has its own",
            'files = "mount" in [filesystem], or --isolation namespace',
        )
    if not spec.channel:
        raise IsolationRefused("a machine is for runs, not for tools")


def _statement(planned: Plan, host: Host, made: Hardware, found: Images) -> dict[str, Any]:
    """What a plan for name spaces says holds inside the machine; what is around it comes here."""
    inside = planned.protection
    limits = dict(inside["limits"])
    if limits["memory"]:
        limits["memory_by"] = f"the machine's memory of {made.memory_mib} MiB, and for each process"
    if limits["millicpus"]:
        limits["millicpus_by"] = (
            f"{made.processors} processors of the machine, and around it a group"
        )
    around = {"memory", "millicpus", "processes"}
    absent = [
        text
        for text in inside["not_in_force"]
        if text not in {f"a control group for {name}" for name in around}
    ]
    controllers = host.cgroup.controllers
    for controller in ("memory", "cpu"):
        if controller not in controllers:
            absent.append(f"a control group for the hypervisor's {controller}")
    machine: dict[str, Any] = {
        "hardware": made.described,
        "devices": "one channel, one read-only disk, random numbers; no network card, no shared folder",
        "kernel": found.kernel.digest,
        "initramfs": found.initramfs.digest,
        "root": found.root.digest,
        "hypervisor": "QEMU in name spaces of its own, "
        + ("a host user of its own" if host.root else "the caller's host user, mapped")
        + ", no capability, its own system call filter, no network, no files",
    }
    if found.template is not None:
        machine["saved_state"] = found.template.memory.digest
    elif found.no_template:
        machine["saved_state"] = found.no_template
    if not made.accelerated:
        machine["warning"] = EMULATED
        absent.append("hardware virtualization: the machine is emulated")
    return {
        **inside,
        "isolation": "vm",
        "kernel": f"{found.base.version} (the machine's own)",
        "machine": machine,
        "ids": "an unprivileged user of the machine",
        "limits": limits,
        "not_in_force": absent,
    }
