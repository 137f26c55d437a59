"""`authority image`: the kernel and the root images that machines boot.

`build` fetches and unpacks what is missing, tries whether acceleration works, and with a program and
its policy makes the very root image that a run of it from this folder would need, and a saved state,
so that the first run does not have to; without the policy, those of a program that may start nothing
and has the memory of a policy that names none. What takes long is said before. `show` lists what is
there. `prune` removes root images and saved states that were not used for some days; running machines
keep what they have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from authority.cli import preparing
from authority.cli.common import age, parser, print_json, table
from authority.errors import AuthorityError
from authority.gate import houses, policyfile, statedir
from authority.gate.places import reach
from authority.gate.run import Start
from authority.gate.wanted import sketch_of
from authority.isolation import Host, SandboxSpec, probe
from authority.vm import Step, acceleration, architectures, cache, furnish, kernel, shelf

DAYS: Final = 30


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 100_000:
        raise argparse.ArgumentTypeError(f"a number of days is meant, as 30, and not {text!a}")
    return days


def main(arguments: Sequence[str]) -> int:
    rest, program = list(arguments), []
    if "--" in rest:
        at = rest.index("--")
        rest, program = rest[:at], rest[at + 1 :]
    made = parser("image", "The kernel and the root images that machines boot.")
    made.usage = "authority image {build,show,prune} [options] [-- PROGRAM [argument ...]]"
    made.epilog = "with build: PROGRAM and --policy are those of the run that is not to wait"
    made.add_argument(
        "what",
        choices=("build", "show", "prune"),
        metavar="build|show|prune",
        help="make what is missing (for PROGRAM, too, when named behind --); list; remove",
    )
    made.add_argument("--force", action="store_true", help="build anew, with the newest kernel")
    made.add_argument(
        "--policy", type=Path, metavar="FILE", help="with build and a program: what it may use"
    )
    made.add_argument("--kernel", type=Path, metavar="DEB", help="a kernel package to use")
    made.add_argument(
        "--days", type=_days, metavar="N",
        help=f"with prune: what was not used for N days ({DAYS}; 0: everything but the kernel)",
    )  # fmt: skip
    options = made.parse_args(rest)
    builds = program or options.force or options.kernel or options.policy
    if options.what != "build" and builds:
        made.error(f"{options.what} takes no program and builds nothing")
    if options.policy is not None and not program:
        made.error("--policy is for a program: name it after --")
    if options.days is not None and options.what != "prune":
        made.error("--days is for prune")
    if options.kernel is not None and not options.kernel.is_file():
        raise AuthorityError(f"{str(options.kernel)!a} is no file", "name a .deb of a Linux kernel")
    if options.what == "build":
        _build(options, program)
    gone: list[shelf.Item] = []
    if options.what == "prune":
        gone = shelf.prune(unused=(DAYS if options.days is None else options.days) * 86_400)
    found = shelf.items()
    if options.json:
        said: dict[str, Any] = {
            "folder": str(cache.folder()),
            "on_disk": sum(item.on_disk for item in found),
            "images": [_shown(item) for item in found],
        }
        print_json(said | ({"removed": [i.name for i in gone]} if options.what == "prune" else {}))
        return 0
    rows = [
        (i.name, _megabytes(i.bytes), _megabytes(i.on_disk), age(i.age), i.digest[:16])
        for i in found
    ]
    columns = ("image", "size", "on disk", "last used", "sha256")
    if rows:
        table(str(cache.folder()), columns, rows, right=("size", "on disk", "last used"))
        print(f"{_megabytes(sum(item.on_disk for item in found))} on the disk", end="")
    else:
        print(f"no image in {cache.folder()}: 'authority image build' makes one", end="")
    if options.what == "prune":
        freed = _megabytes(sum(item.on_disk for item in gone))
        print(f"; {len(gone)} removed, {freed} freed", end="")
    print()
    return 0


def _build(options: Any, program: list[str]) -> None:
    host = probe()
    architecture = architectures.of(host.architecture)
    # What is wrong with the policy is said before anything is fetched.
    spec = _like_a_run(options, program, host) if program else None
    package = options.kernel.absolute() if options.kernel else None

    def tell(step: Step) -> None:
        _say("unpacking a kernel" if step == "kernel" and package else preparing.text(step))

    base = kernel.build(architecture, force=options.force, package=package, tell=tell)
    if options.force:
        shelf.prune(unused=0)
    answer = acceleration.works(host, architecture, base, again=True, tell=tell)
    _say(f"KVM: {answer.problem or 'a guest booted'}")
    if spec is not None:
        found = asyncio.run(furnish(spec, host, emulate=not answer.works, tell=tell))
        if found.no_template:
            _say(found.no_template)


def _say(text: str) -> None:
    print(f"authority: {text}", file=sys.stderr, flush=True)


def _like_a_run(options: Any, program: list[str], host: Host) -> SandboxSpec:
    """What the gate would have for a run of this program under this policy. Raises `AuthorityError`."""
    search, cwd = os.environ.get("PATH", ""), os.getcwd()
    if options.policy is None:
        return SandboxSpec(tuple(program), cwd, search_path=search)
    policy = policyfile.read(options.policy).policy
    passed = {k: os.environ[k] for k in policy.process.pass_env if k in os.environ}
    start = Start(
        argv=tuple(program),
        cwd=cwd,
        policy=policy,
        environment={**policy.process.env, **passed},
        caller={"PATH": search},
    )
    reached = reach(policy, cwd, houses.as_seen(host, machine=True), "", served=True)
    state = (options.state or statedir.default_root()).absolute()
    return sketch_of(start, reached, (str(state.resolve()),))


def _shown(item: shelf.Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "bytes": item.bytes,
        "on_disk": item.on_disk,
        "age": item.age,
        "digest": item.digest,
        "made_of": item.facts,
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
