"""The directions in which rooms may know each other, read from the source itself.

`ROOMS` says for each room which of our own rooms it may import: a room may always import itself
and nothing that is not listed. `kernel` is held to more: it is pure, so it may import only the
modules of `PURE`, and it neither opens, prints, evaluates nor keeps globals. `agent` runs beside
the program, so it stays small: the standard library, msgspec and the protocol. What runs in the
gate's process reads no TLS, no HTTP of a server and no archive: the rooms of `NO_REMOTE_BYTES` import
nothing that does (`ALLOWED_READERS` says what is not a server's).

Imports under `TYPE_CHECKING` and inside functions count like any other. A room that is not in the
table is refused: whoever adds one says here what it may know.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

EVERYTHING_BUT_FACES = frozenset(
    [
        *("kernel", "audit", "effects", "compat", "gate", "isolation", "agent", "worker"),
        *("protocol", "tokens", "errors", "proof", "rejudge", "recorded", "replay", "vm"),
    ]
)
ROOMS: dict[str, frozenset[str]] = {
    "": frozenset(),
    "errors": frozenset(),
    "tokens": frozenset({"errors"}),
    "protocol": frozenset({"errors", "tokens"}),
    "kernel": frozenset({"errors", "tokens"}),
    "audit": frozenset({"kernel", "errors"}),
    "dialects": frozenset({"errors"}),
    "effects": frozenset({"kernel", "errors"}),
    "isolation": frozenset({"protocol", "errors"}),
    "vm": frozenset({"isolation", "protocol", "errors"}),
    "agent": frozenset({"protocol", "tokens", "errors"}),
    "compat": frozenset({"kernel", "effects", "protocol", "tokens", "errors", "dialects"}),
    "worker": frozenset({"protocol", "errors", "dialects"}),
    "proof": frozenset({"kernel", "tokens", "errors"}),
    "rejudge": frozenset({"kernel", "audit", "tokens", "errors"}),
    "gate": frozenset(
        [
            *("kernel", "audit", "effects", "compat", "isolation", "protocol", "tokens"),
            *("agent", "errors", "proof", "dialects", "recorded", "vm"),
        ]
    ),
    "recorded": frozenset({"kernel", "audit", "errors"}),
    "replay": frozenset(
        [
            *("recorded", "kernel", "audit", "effects", "compat", "gate", "isolation", "protocol"),
            *("tokens", "errors", "rejudge"),
        ]
    ),
    "matrix": EVERYTHING_BUT_FACES,
    "cli": EVERYTHING_BUT_FACES | {"matrix"},
}

PURE = frozenset(
    [
        "__future__",
        "abc",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "copy",
        "dataclasses",
        "difflib",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "string",
        "struct",
        "textwrap",
        "tomllib",
        "types",
        "typing",
        "unicodedata",
        "urllib.parse",
        "idna",
        "msgspec",
    ]
)
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "compile", "__import__"})
AGENT_LIBRARIES = frozenset({"msgspec"})
NO_REMOTE_BYTES = frozenset({"kernel", "audit", "effects", "compat", "gate"})
READERS = frozenset(
    [
        *("ssl", "http", "httpcore", "httpx", "httpx2", "h11", "aiohttp", "requests", "urllib3"),
        *("urllib.request", "mcp", "tarfile", "zipfile", "gzip", "zlib", "bz2", "lzma"),
    ]
)
ALLOWED_READERS = frozenset({("authority.gate.control", "h11")})
"""The control API, on a socket that only its owner can reach."""


class Import(NamedTuple):
    module: str
    line: int


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Each module that `tree` (a module of `package`, dotted) imports; relative ones resolved.

    `from x import y` gives `x.y`, so that a room that is imported as a name counts.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield Import(name.name, node.lineno)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = module or ""
                if level:
                    parts = package.split(".")
                    parts = parts[: len(parts) - level + 1]
                    base = ".".join([*parts, module] if module else parts)
                for name in names:
                    yield Import(f"{base}.{name.name}", node.lineno)
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(text)), *_],
            ):
                yield Import(text, node.lineno)


def room(module: str) -> str:
    """The room of one of our modules: `authority.kernel.state` is in `kernel`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def is_pure(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:n]) in PURE for n in range(1, len(parts) + 1))


def is_reader(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:n]) in READERS for n in range(1, len(parts) + 1))


def problems(source: str, module: str, *, package: bool = False) -> list[str]:
    """What `source`, as the module `module`, breaks; `package` for an `__init__.py`."""
    tree = ast.parse(source)
    home = room(module)
    if home not in ROOMS:
        return [f"{module}: the room {home!r} is not in the table"]
    found = []
    for name, line in imports(tree, module if package else module.rpartition(".")[0]):
        where = f"{module}:{line}"
        top = name.split(".")[0]
        if top == "authority":
            target = room(name)
            # `from authority import __version__` is a constant of the face, not a room.
            if target not in {home, "", "__version__"} and target not in ROOMS[home]:
                found.append(f"{where}: {home or 'authority'} may not import {name}")
        elif home == "kernel" and not is_pure(name):
            found.append(f"{where}: kernel is pure and may not import {name}")
        elif home in NO_REMOTE_BYTES and is_reader(name) and (module, top) not in ALLOWED_READERS:
            found.append(f"{where}: bytes of servers are read by the worker, not here: {name}")
        elif home == "agent" and top not in sys.stdlib_module_names | AGENT_LIBRARIES:
            found.append(f"{where}: agent stays small and may not import {name}")
    if home == "kernel":
        found += impurities(tree, module)
    return found


def impurities(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                yield f"{module}:{node.lineno}: kernel is pure and may not call {name}()"
            case ast.Global():
                yield f"{module}:{node.lineno}: kernel is pure and may not change globals"


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted((SRC / "authority").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_keep_their_direction(module: str, path: Path) -> None:
    found = problems(path.read_text("utf-8"), module, package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("authority.kernel.bad", "import socket"),
        ("authority.kernel.bad", "import time as t"),
        ("authority.kernel.bad", "from os import path"),
        ("authority.kernel.bad", "import importlib"),
        ("authority.kernel.bad", "import urllib.request"),
        ("authority.kernel.bad", "from authority.audit import chain"),
        ("authority.kernel.bad", "from authority import gate"),
        ("authority.kernel.bad", "from ..gate import session"),
        ("authority.kernel.bad", "from .. import cli"),
        ("authority.kernel.bad", "def f():\n    import random"),
        ("authority.kernel.bad", "if TYPE_CHECKING:\n    from authority.audit import log"),
        ("authority.kernel.bad", "__import__('authority.audit.log')"),
        ("authority.kernel.bad", "open('/etc/passwd')"),
        ("authority.kernel.bad", "def f():\n    global x\n    x = 1"),
        ("authority.audit.bad", "from authority.gate import session"),
        ("authority.audit.bad", "from authority.effects import base"),
        ("authority.effects.bad", "import authority.audit.log"),
        ("authority.gate.bad", "from authority.cli import main"),
        ("authority.gate.bad", "from authority.matrix import run"),
        ("authority.matrix.bad", "from authority.cli import main"),
        ("authority.agent.bad", "from authority.kernel import codes"),
        ("authority.agent.bad", "import httpx"),
        ("authority.effects.bad", "import ssl"),
        ("authority.compat.bad", "def f():\n    import httpcore"),
        ("authority.gate.bad", "from http import client"),
        ("authority.gate.bad", "import urllib.request"),
        ("authority.gate.bad", "import h11"),
        ("authority.effects.bad", "import tarfile"),
        ("authority.protocol", "from authority.gate import session"),
        ("authority.newroom.thing", "import json"),
    ],
)
def test_a_bad_import_is_caught(module: str, source: str) -> None:
    assert problems(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("authority.kernel.good", "import hashlib, hmac\nfrom collections.abc import Mapping"),
        ("authority.kernel.good", "from authority.kernel import codes\nfrom . import labels"),
        ("authority.kernel.good", "from authority.errors import AuthorityError"),
        ("authority.kernel.good", "from urllib.parse import quote"),
        ("authority.audit.good", "import os, asyncio\nfrom authority.kernel import canonical"),
        ("authority.gate.good", "from authority.agent.constants import X\nimport json"),
        ("authority.gate.control", "import h11"),
        ("authority.effects.good", "from urllib.parse import quote"),
        ("authority.worker.good", "import ssl"),
        ("authority.agent.good", "import msgspec, socket\nfrom authority import protocol"),
        ("authority.cli.good", "from authority.matrix import run\nfrom authority import gate"),
    ],
)
def test_a_good_import_passes(module: str, source: str) -> None:
    assert problems(source, module) == []


def test_relative_imports_of_a_package_face_are_resolved() -> None:
    assert problems("from ..audit import log", "authority.kernel", package=True)
    assert problems("from .codes import Code", "authority.kernel", package=True) == []


def test_the_table_has_the_rooms_that_there_are_and_nobody_may_import_the_commands() -> None:
    """A typing error in the table would silently grant nothing, or the wrong thing."""
    there = {room(module) for module, _ in modules()}
    assert ROOMS.keys() == there
    for name, allowed in ROOMS.items():
        assert allowed <= ROOMS.keys(), name
    assert not any({"cli"} & allowed for allowed in ROOMS.values())
