"""`authority image`: the kernel and the root images that machines boot.

`build` fetches and unpacks what is missing, tries whether acceleration works, and with a program
makes the root image that a run of it would need, and a saved state, so that the first run does not
have to. `show` lists what is there. `prune` removes root images and saved states that were not used
for some days; running machines keep what they have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from authority.cli.common import age, parser, print_json, table
from authority.errors import AuthorityError
from authority.isolation import SandboxSpec, probe
from authority.vm import acceleration, architectures, cache, furnish, kernel, shelf

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
    made.add_argument(
        "what",
        choices=("build", "show", "prune"),
        metavar="build|show|prune",
        help="make what is missing (for PROGRAM, too, when named behind --); list; remove",
    )
    made.add_argument("--force", action="store_true", help="build anew, with the newest kernel")
    made.add_argument("--kernel", type=Path, metavar="DEB", help="a kernel package to use")
    made.add_argument(
        "--days", type=_days, metavar="N",
        help=f"with prune: what was not used for N days ({DAYS}; 0: everything but the kernel)",
    )  # fmt: skip
    options = made.parse_args(rest)
    if options.what != "build" and (program or options.force or options.kernel):
        made.error(f"{options.what} takes no program and builds nothing")
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
    if options.force:
        shelf.prune(unused=0)
    package = options.kernel.absolute() if options.kernel else None
    base = kernel.build(architecture, force=options.force, package=package)
    answer = acceleration.works(host, architecture, base)
    print(f"authority: KVM: {answer.problem or 'a guest booted'}", file=sys.stderr)
    if program:
        spec = SandboxSpec(tuple(program), os.getcwd(), search_path=os.environ.get("PATH", ""))
        found = asyncio.run(furnish(spec, host, emulate=not answer.works))
        if found.no_template:
            print(f"authority: {found.no_template}", file=sys.stderr)


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
