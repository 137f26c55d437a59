"""Whether KVM works here: found by booting a small machine with a deadline, not by looking at a device.

Rules
- `/dev/kvm` can be there, and open, and still not run a kernel. So the answer is a guest that has
  booted, loaded its modules and opened its channel.
- The answer is kept for this boot of this host, its kernel, this guest kernel, this QEMU and the
  device's permissions; anything else asks again.
- What can be seen without booting (`obstacle`) is never kept. A kept no is asked again by a person who
  builds images (`again`): a computer may have been too busy once.
- Who only wants to know what is known (`doctor`) asks `known`, which boots nothing. A run that may
  choose (`auto`) boots the small machine once for each boot of the host, if the kernel is built.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import platform
import pwd
import socket
import stat
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from authority import protocol
from authority.isolation import Host, IsolationRefused, spawn
from authority.isolation.processes import tree
from authority.isolation.refusal import shown
from authority.vm import architectures, cache, hardware, hypervisor, jail, kernel, steps
from authority.vm.architectures import Architecture
from authority.vm.hardware import Hardware
from authority.vm.kernel import Base

PROBE_SECONDS: Final = 20.0
_CAME_SO_FAR: Final = bytes(4) + protocol.encode_control(
    protocol.Guest(protocol.GuestState.FAILED, "mounting the root image")
)
"""What the small machine says behind the length, when it has booted: it has no root image."""
_NAME: Final = "acceleration.known"
_AGAIN: Final = "authority image build tries it again"
_BOOT: Final = "/proc/sys/kernel/random/boot_id"
_one_at_a_time: Final = threading.Lock()
_line: Final = steps.Line()


@dataclass(frozen=True, slots=True)
class Answer:
    """`problem` says why not, and `fix` what to do; `milliseconds` what the guest took that booted."""

    works: bool
    problem: str = ""
    fix: str = ""
    milliseconds: int = 0


def obstacle() -> Answer | None:
    """What can be seen without booting: why KVM can't be used, or nothing."""
    try:
        found = os.stat(jail.KVM)
    except OSError:
        return Answer(
            False,
            f"{jail.KVM} is not here",
            "switch on virtualization in the firmware, or nested virtualization where this is a "
            "machine itself, and load kvm_intel or kvm_amd",
        )
    if not stat.S_ISCHR(found.st_mode):
        return Answer(False, f"{jail.KVM} is no device")
    if os.geteuid():
        if os.access(jail.KVM, os.R_OK | os.W_OK, effective_ids=True):
            return None
        return Answer(False, f"{jail.KVM} can't be opened by this user", _join(found))
    if found.st_mode & 0o006 == 0o006 or jail.kvm_group():
        return None
    return Answer(
        False,
        f"only root may open {jail.KVM}, and the hypervisor is not root",
        f"chgrp kvm {jail.KVM} && chmod 660 {jail.KVM}",
    )


def _join(found: os.stat_result) -> str:
    """What a user does who may not open the device: join its group, if the group may."""
    if found.st_mode & 0o060 != 0o060 or not found.st_gid:
        return f"as root: chgrp kvm {jail.KVM} && chmod 660 {jail.KVM}; then join the group kvm"
    group, user = str(found.st_gid), str(os.geteuid())
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.geteuid()).pw_name
    return f"join the group {group}: usermod -aG {group} {user}, then log in again"


def _asked_for(architecture: Architecture, base: Base) -> str:
    """What an answer belongs to."""
    device = os.stat(jail.KVM)
    parts = [
        *(Path(_BOOT).read_text().strip(), platform.release()),
        *(base.kernel.digest, base.initramfs.digest),
        hypervisor.find(architecture).identity,
        *(device.st_rdev, device.st_mode, device.st_uid, device.st_gid, os.geteuid()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def known(architecture: Architecture, base: Base) -> Answer | None:
    """What can be seen, or the kept answer; None when a guest would have to be booted."""
    if seen := obstacle():
        return seen
    try:
        kept = json.loads((cache.folder() / _NAME).read_text())
        if kept["of"] != _asked_for(architecture, base):
            return None
        if kept["works"] is True:
            return Answer(True, milliseconds=int(kept["milliseconds"]))
        return Answer(False, str(kept["problem"]), _AGAIN)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def not_ready(host: Host, tell: steps.Tell = steps.nobody) -> str:
    """Why a machine can't be taken without being asked for, or nothing. Fetches and builds nothing;
    where nobody knows yet it boots the small machine, and blocks for up to `PROBE_SECONDS`."""
    try:
        architecture = architectures.of(host.architecture)
        hypervisor.find(architecture)
        if seen := obstacle():
            return seen.problem
        base = kernel.find(architecture)
        if base is None:
            return "its kernel was not built (authority image build)"
        answer = works(host, architecture, base, tell=tell)
    except IsolationRefused as error:
        return error.reason
    return "" if answer.works else f"no working acceleration: {answer.problem}"


def works(
    host: Host,
    architecture: Architecture,
    base: Base,
    *,
    again: bool = False,
    tell: steps.Tell = steps.nobody,
) -> Answer:
    """The kept answer, or a new one; `again`: a kept no is no answer. Blocks for up to
    `PROBE_SECONDS`."""
    with _line.turn(_one_at_a_time, tell) as told:
        kept = known(architecture, base)
        if kept is not None and (kept.works or not again or obstacle()):
            return kept
        asked_for = _asked_for(architecture, base)
        told("acceleration")
        answer = _boot(host, architecture, base)
        path = cache.folder() / _NAME
        made = cache.aside(path.parent)
        text = {"of": asked_for, "works": answer.works, "problem": answer.problem}
        # An answer that can't be kept is asked for again.
        with contextlib.suppress(OSError):
            try:
                made.write_text(json.dumps({**text, "milliseconds": answer.milliseconds}))
                os.replace(made, path)
            finally:
                made.unlink(missing_ok=True)
        return answer


def _boot(host: Host, architecture: Architecture, base: Base) -> Answer:
    """Boots the small machine. It has the initramfs for a disk, so it says on its channel that this is
    no root image, and ends."""
    held = [cache.load(one).fd for one in (base.kernel, base.initramfs, base.initramfs)]
    made = Hardware(architecture, True, 192, 1)
    ours, theirs = socket.socketpair()
    control, far = socket.socketpair()
    diagnostics = spawn.diagnostics_file()
    uid, claim = spawn.take_host_id() if host.root else (host.uid, None)
    began = time.monotonic()
    try:
        arguments = hardware.arguments(made)
        command = jail.command(host, architecture, arguments, uid=uid, kvm=True)
        own = [theirs.fileno(), far.fileno(), *held]
        data = (made.memory_mib << 20) + hardware.DATA_BYTES
        pid = jail.spawn(command, diagnostics, own, [], architecture=host.architecture, data=data)
        theirs.close()
        far.close()
        try:
            trouble = _heard(ours, began + PROBE_SECONDS)
        finally:
            for member in [*tree(pid)[1:], pid]:
                spawn.end_and_reap(member)
        if not trouble:
            return Answer(True, milliseconds=round((time.monotonic() - began) * 1000))
        said = spawn.diagnostics(diagnostics).strip().splitlines()
        reason = shown(said[0])[:200] if said else trouble
        return Answer(False, f"a guest did not boot with KVM ({reason})", _AGAIN)
    except (OSError, subprocess.SubprocessError) as error:
        return Answer(False, f"a guest could not be started with KVM: {shown(str(error))}")
    finally:
        for one in (ours, theirs, control, far, *([claim] if claim else [])):
            one.close()
        os.close(diagnostics)


def _heard(ours: socket.socket, deadline: float) -> str:
    """Empty when the guest came as far as it can; else what came instead."""
    wanted = 4 + len(_CAME_SO_FAR)
    heard = b""
    while len(heard) < wanted:
        left = deadline - time.monotonic()
        if left <= 0:
            return f"it did not come up within {PROBE_SECONDS:.0f} s"
        ours.settimeout(left)
        try:
            part = ours.recv(wanted - len(heard))
        except TimeoutError:
            continue
        except ConnectionError:
            part = b""
        if not part:
            return "it ended before it came up"
        heard += part
    return "" if heard[4:] == _CAME_SO_FAR else "what it said is not what a guest says"
