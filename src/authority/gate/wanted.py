"""What a run asks of its sandbox: its policy's limits, its endpoints, its files, its capability."""

from __future__ import annotations

from authority.compat.base import Folder, Places
from authority.compat.endpoints import Endpoints
from authority.gate.places import Reach
from authority.gate.run import Run, Start
from authority.isolation import Plan, SandboxSpec
from authority.isolation.places import HOME
from authority.kernel import capabilities

SEED = "PYTHONHASHSEED"


def wanted_of(run: Run, ends: Endpoints, reached: Reach, forbidden: tuple[str, ...]) -> SandboxSpec:
    """The sandbox's spec: `reached` are the folders and how they are mediated, `forbidden` what the run
    may not see whatever its policy says."""
    spec, policy = run.spec, run.spec.policy
    return SandboxSpec(
        argv=spec.argv,
        cwd=spec.cwd,
        env={
            **({SEED: run.seed} if run.seed else {}),
            **spec.environment,
            **ends.environment,
            "AUTHORITY_CAPABILITY": capabilities.to_text(run.token),
        },
        search_path=spec.caller.get("PATH", ""),
        exec_allowed=policy.process.exec,
        memory=policy.limits.memory,
        processes=policy.limits.processes,
        millicpus=policy.limits.cpus,
        tmp_bytes=policy.limits.tmp,
        loopback=bool(ends.listeners),
        listeners=tuple(ends.listeners),
        forbidden=forbidden,
        mounts=reached.mounts,
        calls=reached.way == "calls",
        binds=reached.binds,
        files=ends.files,
        terminal=spec.terminal,
        certificates=ends.bundle,
    )


def sketch_of(spec: Start, reached: Reach, forbidden: tuple[str, ...]) -> SandboxSpec:
    """The same without what only the run itself brings: enough to know what it will be shown."""
    policy = spec.policy
    return SandboxSpec(
        argv=spec.argv,
        cwd=spec.cwd,
        env=dict(spec.environment),
        search_path=spec.caller.get("PATH", ""),
        exec_allowed=policy.process.exec,
        memory=policy.limits.memory,
        millicpus=policy.limits.cpus,
        tmp_bytes=policy.limits.tmp,
        forbidden=forbidden,
        mounts=reached.mounts,
        binds=reached.binds,
        calls=reached.way == "calls",
        terminal=spec.terminal,
    )


def places_of(planned: Plan) -> Places:
    """What will be mounted, for who answers."""
    folders = tuple(
        Folder(mount.path, mount.outside, mount.executable, mount.path == HOME)
        for mount in planned.mounts
    )
    return Places(folders, planned.shown, planned.over)
