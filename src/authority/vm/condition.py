"""What there is for machines here and what is missing: for `doctor`, which boots nothing.

Times are those that were measured when a thing was made: the guest that tried KVM, the boot before a
state was saved, the first continuation of that state.
"""

from __future__ import annotations

from typing import Any

from authority.isolation import Host, IsolationRefused
from authority.vm import acceleration, architectures, hypervisor, kernel, shelf


def of(host: Host) -> dict[str, Any]:
    """Raises nothing: what can't be had is `problem`, with its `fix`."""
    said: dict[str, Any] = {"hypervisor": None, "kernel": None, "acceleration": None}
    said |= {"images": [], "saved_states": [], "problem": "", "fix": ""}
    try:
        architecture = architectures.of(host.architecture)
        found = hypervisor.find(architecture)
        said["hypervisor"] = {"path": found.path, "version": found.version}
        base = kernel.find(architecture)
        if base is not None:
            said["kernel"] = {
                "version": base.version,
                "digest": base.kernel.digest,
                "initramfs": base.initramfs.digest,
            }
        said["acceleration"] = _acceleration(architecture, base)
        for item in shelf.items():
            if item.kind == "root":
                said["images"].append(_item(item))
            elif item.kind == "template":
                measured = {n: item.facts.get(n) for n in ("hardware", "boot_ms", "continue_ms")}
                said["saved_states"].append(_item(item) | measured)
    except IsolationRefused as error:
        said |= {"problem": error.reason, "fix": error.fix}
    return said


def _acceleration(
    architecture: architectures.Architecture, base: kernel.Base | None
) -> dict[str, Any]:
    """`works` is null while nobody knows."""
    seen = acceleration.known(architecture, base) if base else acceleration.obstacle()
    if seen is None:
        return {"works": None, "problem": "it was not tried", "fix": "authority image build"}
    said: dict[str, Any] = {"works": seen.works, "problem": seen.problem, "fix": seen.fix}
    return said | ({"boot_ms": seen.milliseconds} if seen.works else {})


def _item(item: shelf.Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "digest": item.digest,
        "bytes": item.bytes,
        "on_disk": item.on_disk,
        "age": item.age,
    }
