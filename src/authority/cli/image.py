"""`authority image`: the kernel and the root images that machines boot.

`build` fetches and unpacks what is missing, tries whether acceleration works, and with a program
makes the root image that a run of it would need, so that the first run does not have to. `show`
lists what is there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from authority.cli.common import parser, print_json, table
from authority.errors import AuthorityError
from authority.isolation import SandboxSpec, probe
from authority.vm import acceleration, architectures, cache, images, kernel


def main(arguments: Sequence[str]) -> int:
    rest, program = list(arguments), []
    if "--" in rest:
        at = rest.index("--")
        rest, program = rest[:at], rest[at + 1 :]
    made = parser("image", "The kernel and the root images that machines boot.")
    made.add_argument("what", choices=("build", "show"))
    made.add_argument("--force", action="store_true", help="build anew, with the newest kernel")
    made.add_argument("--kernel", type=Path, metavar="DEB", help="a kernel package to use")
    options = made.parse_args(rest)
    if options.what == "show" and (program or options.force or options.kernel):
        made.error("show takes no program and builds nothing")
    if options.kernel is not None and not options.kernel.is_file():
        raise AuthorityError(f"{str(options.kernel)!a} is no file", "name a .deb of a Linux kernel")
    if options.what == "build":
        _build(options, program)
    found = _images()
    if options.json:
        print_json({"folder": str(cache.folder()), "images": found})
    else:
        rows = [(i["name"], f"{i['bytes'] / 1e6:.0f} MB", i["digest"][:16]) for i in found]
        table(str(cache.folder()), ("image", "size", "sha256"), rows, right=("size",))
    return 0


def _build(options: Any, program: list[str]) -> None:
    host = probe()
    architecture = architectures.of(host.architecture)
    if options.force:
        for image in _images():
            if image["name"].startswith("root-"):
                cache.forget(image["name"])
    package = options.kernel.absolute() if options.kernel else None
    base = kernel.build(architecture, force=options.force, package=package)
    acceleration.works(host, architecture, base)
    if program:
        spec = SandboxSpec(tuple(program), os.getcwd(), search_path=os.environ.get("PATH", ""))
        images(spec, host, emulate=True)


def _images() -> list[dict[str, Any]]:
    found = []
    for record in sorted(cache.folder().glob("*.json")):
        stored = cache.find(record.name.removesuffix(".json"))
        if stored is not None:
            found.append(
                {
                    "name": stored.path.name,
                    "bytes": stored.size,
                    "digest": stored.digest,
                    "made_of": stored.facts,
                }
            )
    return found
