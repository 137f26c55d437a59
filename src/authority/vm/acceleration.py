"""Whether KVM works here: found by booting a small machine with a deadline, not by looking at a device.

Rules
- `/dev/kvm` can be there, and open, and still not run a kernel. So the answer is a guest that has
  come as far as waiting for its order.
- The answer is kept for this host's kernel, this guest kernel, this QEMU and the device's
  permissions; anything else asks again.
- Who only wants to know what is known (`auto`, `doctor`) asks `known`, which boots nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from typing import Final

from authority.isolation import Host, IsolationRefused, spawn
from authority.isolation.processes import tree
from authority.vm import architectures, cache, hardware, jail, kernel
from authority.vm.architectures import Architecture
from authority.vm.hardware import Hardware
from authority.vm.kernel import Base

PROBE_SECONDS: Final = 20.0
_WAITING: Final = (6).to_bytes(4, "big") + bytes(4) + b"\x11\x00"
_last = "it was not tried"


def problem() -> str:
    """Why the last answer was no."""
    return _last


def obstacle() -> str:
    """What can be seen without booting: why KVM can't be used, or nothing."""
    if not os.path.exists(jail.KVM):
        return f"{jail.KVM} is not here"
    if not os.access(jail.KVM, os.R_OK | os.W_OK, effective_ids=True):
        return f"{jail.KVM} can't be opened by this user"
    if not os.geteuid() and os.stat(jail.KVM).st_mode & 0o006 != 0o006 and not jail.kvm_group():
        return (
            f"only root may open {jail.KVM}, and the hypervisor is not root (chmod 660, chgrp kvm)"
        )
    return ""


def _name(base: Base, program: str) -> str:
    found, device = os.stat(program), os.stat(jail.KVM)
    text = f"{platform.release()} {base.kernel.digest} {base.initramfs.digest} {found.st_mtime_ns}"
    text += f" {device.st_mode} {device.st_uid} {device.st_gid} {os.geteuid()}"
    return f"acceleration-{hashlib.sha256(text.encode()).hexdigest()[:32]}.known"


def known(architecture: Architecture, base: Base) -> bool | None:
    """The kept answer; None when there is none."""
    global _last  # noqa: PLW0603
    if seen := obstacle():
        _last = seen
        return False
    try:
        path = cache.folder() / _name(base, jail.qemu(architecture))
        kept = json.loads(path.read_text())
        _last = str(kept["problem"])
        return kept["works"] is True
    except (OSError, ValueError, KeyError, TypeError):
        _last = "it was not tried"
        return None


def not_ready(host: Host) -> str:
    """Why a machine can't be taken without being asked for, or nothing. Boots nothing."""
    try:
        architecture = architectures.of(host.architecture)
        jail.qemu(architecture)
    except IsolationRefused as error:
        return error.reason
    if seen := obstacle():
        return seen
    base = kernel.find(architecture)
    if base is None:
        return "its kernel was not built (authority image build)"
    return "" if known(architecture, base) else f"no working acceleration: {_last}"


def works(host: Host, architecture: Architecture, base: Base) -> bool:
    """The kept answer, or a new one. Blocks for up to `PROBE_SECONDS`."""
    global _last  # noqa: PLW0603
    answer = known(architecture, base)
    if answer is not None:
        return answer
    _last = _boot(host, architecture, base)
    path = cache.folder() / _name(base, jail.qemu(architecture))
    made = cache.aside(path.parent)
    made.write_text(json.dumps({"works": not _last, "problem": _last}))
    os.replace(made, path)
    return not _last


def _boot(host: Host, architecture: Architecture, base: Base) -> str:
    """Why the small machine did not come up, or nothing. It has the initramfs for a disk, so it ends
    where the root image would be mounted: by then it has booted, loaded modules and talked to us."""
    held = [cache.load(one).fd for one in (base.kernel, base.initramfs, base.initramfs)]
    made = Hardware(architecture, True, 192, 1)
    ours, theirs = socket.socketpair()
    control, far = socket.socketpair()
    diagnostics = spawn.diagnostics_file()
    uid, claim = spawn.take_host_id() if host.root else (host.uid, None)
    try:
        arguments = hardware.arguments(made)
        command = jail.command(host, architecture, arguments, uid=uid, kvm=True)
        own = [theirs.fileno(), far.fileno(), *held]
        data = (made.memory_mib << 20) + hardware.DATA_BYTES
        pid = jail.spawn(command, diagnostics, own, [], data=data)
        theirs.close()
        far.close()
        ours.settimeout(PROBE_SECONDS)
        deadline = time.monotonic() + PROBE_SECONDS
        try:
            heard = _heard(ours, deadline)
        finally:
            for member in [*tree(pid)[1:], pid]:
                spawn.end_and_reap(member)
        said = spawn.diagnostics(diagnostics).decode("utf-8", "replace").strip().splitlines()
        if heard:
            return ""
        return f"a guest did not boot with KVM ({said[0][:200] if said else 'nothing was heard'})"
    except (OSError, subprocess.SubprocessError) as error:
        return f"a guest could not be started with KVM: {error}"
    finally:
        for one in (ours, theirs, control, far, *([claim] if claim else [])):
            one.close()
        os.close(diagnostics)


def _heard(ours: socket.socket, deadline: float) -> bool:
    """Whether the guest said a whole frame of its own: stream 0, its state."""
    heard = b""
    while time.monotonic() < deadline:
        try:
            part = ours.recv(4096)
        except TimeoutError:
            return False
        if not part:
            return False
        heard += part
        if len(heard) >= 10:
            return heard[4:9] == _WAITING[4:9]
    return False
